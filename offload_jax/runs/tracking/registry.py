"""Every tracker by its name, and those of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from offload_jax.files.checks import ConfigError
from offload_jax.runs import run_files
from offload_jax.runs.tracking.metrics import MetricsFile, TrackingConfig
from offload_jax.runs.tracking.tracker import Composite, Noop, RunStart, Tracker
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
    return [_find(name) for name in dict.fromkeys(("metrics", "wandb", *config.also))]


def _find(name: str) -> Maker:
    if name in TRACKERS:
        return TRACKERS[name]
    # Here own ones are loaded: `file.py:Name` or `package.module:Name`.
    raise ConfigError(f"tracking.also has {name!r}; must be among {', '.join(TRACKERS)}")


def make_trackers(config: TrackingConfig, start: RunStart) -> Tracker:
    """One that tells all of them. Raises OSError where metrics.jsonl cannot be opened."""
    truth, *others = [make(config, start) for make in find_makers(config)]
    return Composite(truth, others, start.warn)


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
