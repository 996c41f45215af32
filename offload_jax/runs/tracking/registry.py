"""Every tracker by its name, and those of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from offload_jax.files.plugins import Plugins, check_class, find, is_own, name_of
from offload_jax.runs import run_files
from offload_jax.runs.tracking.metrics import MetricsFile, TrackingConfig
from offload_jax.runs.tracking.tracker import Composite, Noop, RunStart, Tracker, switched_off
from offload_jax.runs.tracking.wandb_tracker import WandbTracker

Maker = Callable[[TrackingConfig, RunStart], Tracker]

TRACKERS: dict[str, Maker] = {
    "metrics": lambda _, start: MetricsFile(start.folder / run_files.ROWS, start.step),
    "none": lambda *_: Noop(),
    "wandb": lambda *about: WandbTracker(*about) if about[0].wandb != "off" else Noop(),
}


def find_makers(config: TrackingConfig) -> list[Maker]:
    """What makes the trackers of a run: metrics.jsonl's, W&B's, then those of `tracking.also`.

    Raises ConfigError for a name that there is not.
    """
    names = dict.fromkeys(("metrics", "wandb", *config.also))
    return [find_maker(name, plugins=None) for name in names]  # the caller has chosen them


def find_maker(name: str, plugins: Plugins = (), folder: Path | None = None) -> Maker:
    """What makes a tracker of that name, or the user's own: a class with all that `Tracker` has.

    Raises ConfigError as `plugins.find`.
    """
    found = find(name, TRACKERS, "tracking.also", plugins, folder)
    if is_own(name):
        check_class(found, Tracker, f"tracking.also has {name!r}")
    return found


def full_name(name: str) -> str:
    """The name of a tracker as another process finds it, too: own ones by their absolute path."""
    return name_of(find_maker(name, None), "tracking.also") if is_own(name) else name


def make_trackers(config: TrackingConfig, start: RunStart) -> Tracker:
    """One that tells all of them. Raises OSError where metrics.jsonl cannot be opened."""
    truth, *others = find_makers(config)
    first = truth(config, start)
    return Composite(first, [_made(make, config, start) for make in others], start.warn)


def _made(make: Maker, config: TrackingConfig, start: RunStart) -> Tracker:
    """A tracker; none in the place of one that cannot even be made."""
    try:
        return make(config, start)
    except Exception as error:
        name = getattr(make, "__name__", "tracker")
        start.warn(switched_off(name, error))
        return Noop()


@contextmanager
def tracked(config: TrackingConfig, start: RunStart) -> Iterator[Tracker]:
    """The trackers of one start of a run, told at the end how it ended."""
    tracker = make_trackers(config, start)
    try:
        yield tracker
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish()
