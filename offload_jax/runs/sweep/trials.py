"""The trials of a sweep, kept by Optuna in a journal file or a database for several machines.

A trial that runs has an owner, who shows now and then that it is alive. A trial whose owner died is
taken over and goes on under its number, in its run directory. (Optuna's own heartbeat knows
databases only, and repeats a trial under a new number.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from offload_jax.files.checks import ConfigError
from offload_jax.runs.sweep.space import Scalar, Space
from offload_jax.runs.sweep.spec import SweepConfig
from offload_jax.runs.sweep.storage import answering, open_storage

BEAT_S = 15.0  # between two signs of life of an owner
STALE_S = 90.0  # an owner that is silent for so long is taken for dead
_STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
}


@dataclass(frozen=True)
class Record:
    """One trial, as it is on record."""

    number: int
    state: str  # finished, pruned, failed or running
    parameters: dict[str, Scalar]  # all of the file's
    value: float | None  # the best of the metric so far
    seconds: float | None  # from its start to its end, interruptions included
    reason: str | None  # why it failed
    starts: int  # of its training process

    @property
    def done(self) -> bool:
        return self.state != "running"


@dataclass
class Trial:
    """A trial that this process runs."""

    number: int
    parameters: dict[str, Scalar]
    handle: Any  # optuna's
    reported: int  # values of the metric that are on record
    beaten: float = field(default_factory=time.monotonic)


class _Grid(optuna.samplers.GridSampler):
    # Every other sampler's: that of grids would stop Optuna's own loop, which does not run here.
    after_trial = optuna.samplers.BaseSampler.after_trial


class Trials:
    """The trials of one sweep, as one of the processes that work on them sees them."""

    def __init__(
        self, sweep: SweepConfig, storage: str | Path, owner: str, stale_s: float = STALE_S
    ) -> None:
        """Opens or creates them in a journal file (a path) or a database (a URL).

        `owner` names this process; after a restart under the same name its trials go on at once.
        Raises ConfigError for a storage that cannot be opened, or that holds another sweep of this
        name; RunError, here and in all methods, where it does not answer.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.sweep, self.owner, self.stale_s = sweep, owner, stale_s
        self._seen: dict[int, tuple[Any, float]] = {}
        self._storage = open_storage(storage)
        with answering():
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=sweep.name,
                direction=sweep.goal,
                sampler=_sampler(sweep),
                pruner=_pruner(sweep),
                load_if_exists=True,
            )
            known = self._study.user_attrs.get("sweep")
            if known is None:
                self._study.set_user_attr("sweep", sweep.key)
        if known not in (None, sweep.key):
            raise ConfigError(
                f"{sweep.source}: the storage has a sweep {sweep.name!r} with another method, "
                "metric, early_terminate or parameters; take another directory (--out)"
            )

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._storage, optuna.storages.RDBStorage):
            self._storage.remove_session()
            self._storage.engine.dispose()

    def take(self, held: Sequence[int], limit: int) -> Trial | None:
        """A trial to run: one whose owner is gone, or a new one while there are fewer than `limit`.

        `held` are those that this process runs already.
        """
        with answering():
            for frozen in self._frozen():
                others = frozen.state == TrialState.RUNNING and frozen.number not in held
                if others and self._abandoned(frozen):
                    return self._claimed(optuna.trial.Trial(self._study, frozen._trial_id))
            if len(self._frozen()) >= limit:
                return None
            fresh = self._study.ask()
            if sum(frozen.number < fresh.number for frozen in self._frozen()) >= limit:
                fresh.set_user_attr("surplus", True)  # another process was as quick
                self._study.tell(fresh.number, state=TrialState.FAIL)
                return None
            return self._claimed(fresh)

    def _claimed(self, handle: Any) -> Trial:
        handle.set_user_attr("owner", self.owner)
        handle.set_user_attr("beat", time.time())
        # Also completes a trial whose owner died while it drew the parameters.
        drawn = {name: _suggested(handle, name, s) for name, s in self.sweep.varied.items()}
        parameters = self.sweep.fixed | drawn
        reported = len(self._frozen_of(handle.number).intermediate_values)
        return Trial(handle.number, parameters, handle, reported)

    def _abandoned(self, frozen: FrozenTrial) -> bool:
        """By this process' clock: those of other machines may be wrong."""
        if frozen.user_attrs.get("owner") == self.owner:
            return True
        beat, now = frozen.user_attrs.get("beat"), time.monotonic()
        last, since = self._seen.get(frozen.number, (None, -1.0))
        if since < 0 or beat != last:
            self._seen[frozen.number] = (beat, now)
            return False
        return now - since > self.stale_s

    def beat(self, trial: Trial) -> bool:
        """Shows that the trial's owner is alive; False where another took it over meanwhile."""
        now = time.monotonic()
        if now - trial.beaten < BEAT_S:
            return True
        with answering():
            frozen = self._frozen_of(trial.number)
            mine: bool = frozen.user_attrs["owner"] == self.owner and not frozen.state.is_finished()
            if mine:
                trial.handle.set_user_attr("beat", time.time())
        trial.beaten = now
        return mine

    def started(self, trial: Trial) -> None:
        """Counts a start of the trial's training process."""
        with answering():
            starts = trial.handle.user_attrs.get("starts", 0)
            trial.handle.set_user_attr("starts", starts + 1)

    def report(self, trial: Trial, values: Sequence[float]) -> bool:
        """Puts new values of the metric on record; True where the trial should stop early.

        `values` are all so far, in order. What is compared at a rung is the best up to there.
        """
        stop = False
        with answering(), suppress(UpdateFinishedTrialError):
            for count in range(trial.reported + 1, len(values) + 1):
                trial.handle.report(self.sweep.best(values[:count]), count)
                trial.reported = count
                stop = stop or trial.handle.should_prune()
        return stop

    def finish(self, trial: Trial, value: float) -> None:
        self._tell(trial, TrialState.COMPLETE, value)

    def prune(self, trial: Trial) -> None:
        self._tell(trial, TrialState.PRUNED, None)

    def fail(self, trial: Trial, reason: str) -> None:
        with answering(), suppress(UpdateFinishedTrialError):
            trial.handle.set_user_attr("reason", reason)
        self._tell(trial, TrialState.FAIL, None)

    def _tell(self, trial: Trial, state: TrialState, value: float | None) -> None:
        # Skips what another process finished, that had taken this one for dead.
        with answering():
            self._study.tell(trial.number, value, state=state, skip_if_finished=True)

    def records(self) -> list[Record]:
        """All trials, by number."""
        with answering():
            return [_record(frozen, self.sweep) for frozen in self._frozen()]

    def _frozen(self) -> list[FrozenTrial]:
        found = self._study.get_trials(deepcopy=False)
        return [frozen for frozen in found if not frozen.user_attrs.get("surplus")]

    def _frozen_of(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]


def _record(frozen: FrozenTrial, sweep: SweepConfig) -> Record:
    values = frozen.intermediate_values.values()
    value = frozen.value if frozen.state == TrialState.COMPLETE else None
    begun, ended = frozen.datetime_start, frozen.datetime_complete
    return Record(
        number=frozen.number,
        state=_STATES[frozen.state],
        parameters=read_parameters(frozen.params, sweep),
        value=sweep.best(values) if value is None and values else value,
        seconds=(ended - begun).total_seconds() if begun and ended else None,
        reason=frozen.user_attrs.get("reason"),
        starts=frozen.user_attrs.get("starts", 0),
    )


def read_parameters(found: Mapping[str, Any], sweep: SweepConfig) -> dict[str, Scalar]:
    """A trial's parameters, as far as the sweep file has them: the journal may be a stranger's.

    Raises ConfigError for a value that the file does not have.
    """
    varied = {name: value for name, value in found.items() if name in sweep.varied}
    for name, value in varied.items():
        values = sweep.varied[name].values
        if values and value not in values:
            raise ConfigError(f"{name} is {value!r} in a trial; must be one of {values}")
    return varied | sweep.fixed


def _suggested(handle: Any, name: str, space: Space) -> Scalar:
    if space.kind == "choice":
        value = handle.suggest_categorical(name, space.values)
    elif space.kind == "int":
        low, high = int(space.low), int(space.high)
        value = handle.suggest_int(name, low, high, step=int(space.step or 1))
    else:
        value = handle.suggest_float(name, space.low, space.high, step=space.step, log=space.log)
    return value


def _sampler(sweep: SweepConfig) -> optuna.samplers.BaseSampler:
    # Without seeds: a sweep that goes on after a restart must not draw the same again.
    makers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "grid": lambda: _Grid({n: list(s.grid() or ()) for n, s in sweep.varied.items()}),
        "random": optuna.samplers.RandomSampler,
        "bayes": optuna.samplers.TPESampler,
    }
    return makers[sweep.method]()


def _pruner(sweep: SweepConfig) -> optuna.pruners.BasePruner:
    if sweep.early is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(sweep.early.first, sweep.early.eta)
