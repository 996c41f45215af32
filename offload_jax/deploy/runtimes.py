"""What runs the programs of a bundle. Each runtime is imported only when it is used.

A runtime has a `name`, says how many instances a call of an entry takes (`batches`, rising) and
how many threads may call it at once (`threads`), and calls one entry with arrays padded to one of
the bundle's sizes.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol, runtime_checkable

import numpy as np

from offload_jax.deploy.bundle import TOGETHER, Bundle, module_name
from offload_jax.deploy.ports import arrays_of
from offload_jax.files.checks import BundleError
from offload_jax.files.records import InstanceRecord

Arrays = Sequence[np.ndarray]


@runtime_checkable
class Runtime(Protocol):
    """Calls programs; see the module."""

    name: str
    threads: int

    def batches(self, entry: str) -> tuple[int, ...]:
        """The numbers of instances that a call of this entry takes, rising."""

    def call(self, entry: str, users: int, arrays: Arrays) -> list[np.ndarray]:
        """The outputs of an entry for inputs whose users are padded to `users`."""


def run(
    runtime: Runtime,
    entry: str,
    records: Sequence[InstanceRecord],
    seeds: Sequence[int],
    users: int,
    samples: int,
) -> list[np.ndarray]:
    """An entry's outputs for instances padded to `users`, no more than a call takes.

    The call is filled up to one of the numbers that it takes. `seeds` are of the samples of best.
    """
    width = next(size for size in runtime.batches(entry) if len(records) <= size)
    missing = width - len(records)
    filled, seeds = [*records, *[records[0]] * missing], [*seeds, *[0] * missing]
    arrays = arrays_of(entry, filled, users, seeds, samples)
    return [x[: len(records)] for x in runtime.call(entry, users, arrays)]


class JaxRuntime:
    """`jax.export` programs on whatever device JAX has; needs jax and flatbuffers alone.

    Compiles each shape at its first call (seconds; JAX's compilation cache shortens later starts).
    """

    name = "jax"
    threads = 1  # JAX uses all cores by itself

    def __init__(self, bundle: Bundle) -> None:
        from jax import export

        def program(entry: str) -> Any:
            import jax

            content = bytearray((bundle.folder / f"{entry}.jax").read_bytes())
            return jax.jit(export.deserialize(content).call, compiler_options=compiler_options())

        self._program = cache(program)

    def batches(self, entry: str) -> tuple[int, ...]:
        return TOGETHER  # each is compiled

    def call(self, entry: str, users: int, arrays: Arrays) -> list[np.ndarray]:
        import jax

        return [np.asarray(x) for x in jax.device_get(self._program(entry)(*arrays))]


@cache
def compiler_options() -> dict[str, bool] | None:
    """XLA's older code generator for CPUs, where this version of XLA has it.

    Programs of bundles compile and run faster: `python -m benchmarks.systems.serving generators`.
    """
    import jax

    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda x: x, compiler_options=options)(0.0)
    except jax.errors.JaxRuntimeError:  # it does not know the option
        return None
    return options


class IreeRuntime:
    """Modules that IREE compiled ahead of time for fixed shapes; no compiler at run time."""

    name = "iree"
    threads = max(1, (os.cpu_count() or 1) - 1)  # each computes on one core; one is left to serve

    def __init__(self, bundle: Bundle) -> None:
        compiled = bundle.about.get("iree")
        if compiled is None:
            raise BundleError(f"bundle {bundle.source} holds no programs for IREE; export it again")
        if compiled["machine"] != platform.machine():
            raise BundleError(
                f"bundle {bundle.source} was compiled for {compiled['machine']}, this machine is "
                f"{platform.machine()}; export it here, or use another runtime"
            )
        self._bundle = bundle
        self._batches: dict[str, list[int]] = compiled["batches"]
        self._programs: dict[tuple[int, str, int, int], Any] = {}
        weakref.finalize(self, self._programs.clear)  # IREE complains of modules that outlive it

    def call(self, entry: str, users: int, arrays: Arrays) -> list[np.ndarray]:
        batch = len(arrays[0])
        key = threading.get_ident(), entry, batch, users  # a module belongs to one thread
        if key not in self._programs:
            self._programs[key] = self._load(module_name(entry, batch, users))
        outputs = self._programs[key](*map(np.ascontiguousarray, arrays))
        return [np.asarray(x.to_host()) for x in outputs]

    def batches(self, entry: str) -> tuple[int, ...]:
        return tuple(self._batches[entry])

    def _load(self, name: str) -> Any:
        import iree.runtime as iree

        # "local-sync" starts no threads, which would cost more than a single plan gains.
        config = iree.Config("local-sync")
        content = (self._bundle.folder / name).read_bytes()
        module = iree.VmModule.copy_buffer(config.vm_instance, content)
        return iree.load_vm_module(module, config).main


RUNTIMES: dict[str, Callable[[Bundle], Runtime]] = {"iree": IreeRuntime, "jax": JaxRuntime}
_NEEDS = {"iree": ("iree.runtime",), "jax": ("jax", "flatbuffers")}  # modules


def installed(module: str) -> bool:
    """Whether a module can be imported; nothing is imported but its parent."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def present(name: str) -> bool:
    """Whether all that the runtime needs is installed."""
    return all(map(installed, _NEEDS[name]))


def open_runtime(bundle: Bundle, name: str | None = None) -> Runtime:
    """The runtime of that name, or the first installed one that the bundle has programs for.

    Raises BundleError where there is none.
    """
    if name is not None and name not in RUNTIMES:
        raise BundleError(f"runtime is {name!r}; must be one of {', '.join(RUNTIMES)}")
    reasons = []
    for candidate in [name] if name else RUNTIMES:
        if missing := [module for module in _NEEDS[candidate] if not installed(module)]:
            reasons.append(f"{candidate}: {' and '.join(missing)} cannot be imported")
            continue
        try:
            return RUNTIMES[candidate](bundle)
        except BundleError as error:
            reasons.append(f"{candidate}: {error}")
    raise BundleError(f"no runtime can run the bundle: {'; '.join(reasons)}")
