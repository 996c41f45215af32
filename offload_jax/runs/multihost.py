"""Training in several processes, on one host or many: starting them, and acting as one.

Every process runs the same program on its own devices. The first one writes files and talks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils

from offload_jax.files.checks import ConfigError

_TEXT_BYTES = 4096  # of a message to all processes
# Variables of launchers that tell a process how many of its kind there are. Slurm sets its one
# inside `srun` only: a batch script alone is one process, however many tasks it may start.
_LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_TPU_HOSTS = "TPU_WORKER_HOSTNAMES"  # comma-separated, on a TPU pod slice


@dataclass(frozen=True)
class DistributedConfig:
    """Which of several processes this is; found out by itself under srun, mpirun, on TPU pods."""

    coordinator: str | None = None  # HOST:PORT at which process 0 listens; auto: ask the cluster
    processes: int | None = None  # how many
    process: int | None = None  # which one, from 0
    timeout_s: int = 300  # to wait for the others

    def validate(self) -> None:
        """Raises ConfigError naming the field and the allowed values."""
        if self.timeout_s < 1:
            raise ConfigError(f"distributed.timeout_s is {self.timeout_s}; must be at least 1")
        numbers = (self.processes, self.process)
        if self.coordinator in (None, "auto"):
            if numbers != (None, None):
                raise ConfigError(
                    f"distributed.coordinator is {self.coordinator!r}; must be HOST:PORT of "
                    "process 0 where distributed.processes or distributed.process are given"
                )
            return
        host, _, port = str(self.coordinator).rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise ConfigError(
                f"distributed.coordinator is {self.coordinator!r}; must be HOST:PORT of process 0, "
                "or auto"
            )
        if self.processes is None or self.processes < 1:
            raise ConfigError(f"distributed.processes is {self.processes}; must be at least 1")
        if self.process is None or not 0 <= self.process < self.processes:
            raise ConfigError(
                f"distributed.process is {self.process}; must be in 0..{self.processes - 1}"
            )


@contextmanager
def started(config: DistributedConfig) -> Iterator[None]:
    """Joins the other processes, if there are any; before anything else touches a device.

    Raises ConfigError where they cannot be reached.
    """
    config.validate()
    if config.coordinator is None and not _launched_with_others():
        yield
        return
    address = None if config.coordinator == "auto" else config.coordinator
    try:
        jax.distributed.initialize(
            address, config.processes, config.process, initialization_timeout=config.timeout_s
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"distributed.coordinator is {config.coordinator!r}; must be where process 0 listens "
            f"({str(error).splitlines()[0][:200]})"
        ) from None
    any_of_all(False)  # connects them: later on they wait for each other however long it takes
    yield
    # Not after an error: the others may wait for this process elsewhere, and end when it is gone.
    jax.distributed.shutdown()


def _launched_with_others() -> bool:
    counts = [int(os.environ.get(name) or 1) for name in _LAUNCHERS]
    return max(counts) > 1 or "," in os.environ.get(_TPU_HOSTS, "")


def is_first() -> bool:
    """Whether this process writes files and talks."""
    return jax.process_index() == 0


def any_of_all(flag: bool) -> bool:
    """Whether the flag is set in any process; the same answer in all, which all have to ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def from_first(text: str) -> str:
    """The first process's text, cut at 4 KB; all processes have to ask."""
    if jax.process_count() == 1:
        return text
    sent = np.zeros(_TEXT_BYTES, np.uint8)
    mine = np.frombuffer(text.encode()[:_TEXT_BYTES], np.uint8)
    sent[: len(mine)] = mine
    received = multihost_utils.broadcast_one_to_all(sent)
    return bytes(received).rstrip(b"\0").decode(errors="ignore")


def first_only(action: Callable[[], object]) -> None:
    """Acts in the first process while the others wait; a ConfigError there is raised in all."""
    if jax.process_count() == 1:
        action()
        return
    problem = ""
    if is_first():
        try:
            action()
        except ConfigError as error:
            problem = str(error)
    problem = from_first(problem)
    if problem:
        raise ConfigError(problem)
