"""What runs the programs of a bundle. Each runtime is imported only when it is used.

A runtime has a `name`, says how many instances a call takes (`batches`, rising) and how many
threads may call it at once (`threads`), and calls one entry with arrays padded to one of the
bundle's sizes.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

from offload_jax.deploy.bundle import Bundle, BundleError

Arrays = Sequence[np.ndarray]


@runtime_checkable
class Runtime(Protocol):
    """Calls programs; see the module."""

    name: str
    batches: tuple[int, ...]
    threads: int

    def call(self, entry: str, users: int, arrays: Arrays) -> list[np.ndarray]:
        """The outputs of an entry for inputs whose users are padded to `users`."""


class JaxRuntime:
    """`jax.export` programs on whatever device JAX has; needs jax and flatbuffers alone.

    Compiles each shape at its first call (seconds; JAX's compilation cache shortens later starts).
    """

    name = "jax"
    batches: tuple[int, ...] = (1, 16)  # each is compiled; a few instances cost as much as 16
    threads = 1  # JAX uses all cores by itself

    def __init__(self, bundle: Bundle) -> None:
        from jax import export

        def program(entry: str) -> Any:
            import jax

            content = bytearray((bundle.folder / f"{entry}.jax").read_bytes())
            return jax.jit(export.deserialize(content).call)

        self._program = cache(program)

    def call(self, entry: str, users: int, arrays: Arrays) -> list[np.ndarray]:
        import jax

        return [np.asarray(x) for x in jax.device_get(self._program(entry)(*arrays))]


class IreeRuntime:
    """Modules that IREE compiled ahead of time, one instance a call; no compiler at run time."""

    name = "iree"
    batches: tuple[int, ...] = (1,)
    threads = os.cpu_count() or 1

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
        self._programs: dict[tuple[int, str, int], Any] = {}
        weakref.finalize(self, self._programs.clear)  # IREE complains of modules that outlive it

    def call(self, entry: str, users: int, arrays: Arrays) -> list[np.ndarray]:
        key = threading.get_ident(), entry, users  # a module belongs to one thread
        if key not in self._programs:
            self._programs[key] = self._load(entry, users)
        run = partial(self._one, self._programs[key])
        rows = [run([x[i : i + 1] for x in arrays]) for i in range(len(arrays[0]))]
        return [np.concatenate(column) for column in zip(*rows, strict=True)]

    def _load(self, entry: str, users: int) -> Any:
        import iree.runtime as iree

        # "local-sync" starts no threads, which would cost more than a single plan gains.
        config = iree.Config("local-sync")
        content = (self._bundle.folder / f"{entry}-{users}.vmfb").read_bytes()
        module = iree.VmModule.copy_buffer(config.vm_instance, content)
        return iree.load_vm_module(module, config).main

    @staticmethod
    def _one(program: Any, arrays: Arrays) -> list[np.ndarray]:
        return [np.asarray(x.to_host()) for x in program(*map(np.ascontiguousarray, arrays))]


RUNTIMES: dict[str, Callable[[Bundle], Runtime]] = {"iree": IreeRuntime, "jax": JaxRuntime}
_NEEDS = {"iree": "iree.runtime", "jax": "jax"}


def present(name: str) -> bool:
    """Whether the runtime's package is installed; nothing is imported but its parent."""
    try:
        return importlib.util.find_spec(_NEEDS[name]) is not None
    except ModuleNotFoundError:
        return False


def open_runtime(bundle: Bundle, name: str | None = None) -> Runtime:
    """The runtime of that name, or the first installed one that the bundle has programs for.

    Raises BundleError where there is none.
    """
    if name is not None and name not in RUNTIMES:
        raise BundleError(f"runtime is {name!r}; must be one of {', '.join(RUNTIMES)}")
    reasons = []
    for candidate in [name] if name else RUNTIMES:
        if not present(candidate):
            reasons.append(f"{candidate}: package {_NEEDS[candidate].split('.')[0]} is missing")
            continue
        try:
            return RUNTIMES[candidate](bundle)
        except BundleError as error:
            reasons.append(f"{candidate}: {error}")
    raise BundleError(f"no runtime can run the bundle: {'; '.join(reasons)}")
