"""What every test runs under. Float64 is switched on per test, by the fixture `x64`."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

# XLA's older code generator compiles twice as fast. Read once, when JAX first looks for devices; an
# XLA that does not know a flag ends the process, and that of jaxlib 0.12 has only the newer one.
if version("jaxlib").startswith("0.10."):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {flags}"

import jax
import pytest
from flax import struct

# Most of the time of these tests is compiling, of the same programs again and again. Kept between
# runs, they make the next one twice as fast; the keys are the programs themselves.
_COMPILED = {
    "jax_compilation_cache_dir": Path(__file__).resolve().parents[1] / ".pytest_cache" / "jax",
    "jax_persistent_cache_min_compile_time_secs": 0.2,
    "jax_compilation_cache_max_size": 2**30,
}


def pytest_configure() -> None:
    gc.set_threshold(200_000, 50, 50)  # tracing makes millions of objects that stay: 7 % of time
    for name, value in _COMPILED.items():
        if name.upper() not in os.environ:
            os.environ[name.upper()] = str(value)  # for child processes
            jax.config.update(name, str(value) if isinstance(value, Path) else value)


_struct_dataclass = struct.dataclass


def _pytree_dataclass(cls: type | None = None, **kwargs):
    """`flax.struct.dataclass`, its fields unchecked at construction.

    JAX constructs pytrees itself, of arrays with a mapped axis in front, of integers' cotangents,
    of booleans and sentinels. Fields are checked where a test asks for it, by `problems.conforms`.
    """
    if cls is None:
        return functools.partial(_pytree_dataclass, **kwargs)
    made = _struct_dataclass(cls, **kwargs)
    made.__no_type_check__ = True
    return made


struct.dataclass = _pytree_dataclass


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 for one test: arrays made and functions called inside have JAX's wide types.

    The switch is part of the key of JAX's jit caches, so a jitted function may be shared by float32
    and float64 tests. With hypothesis use `jax.enable_x64(True)` inside the test.
    """
    with jax.enable_x64(True):
        yield


_MAPS = Path("/proc/self/maps")
_MANY_MAPS = 15_000  # Linux allows 65,530 for a process; each compiled program takes dozens


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Programs are dropped between modules before a process runs out of memory maps.

    XLA would then crash, and say nothing.
    """
    yield
    if _MAPS.exists() and len(_MAPS.read_text().splitlines()) > _MANY_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="module")
def quick_compiler() -> Iterator[None]:
    """Compiles 3x faster code that runs slower, here and in child processes.

    For modules of whole runs and commands, where compiling is nearly all of the time.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    del os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"]


@pytest.fixture
def optimized() -> Iterator[None]:
    """One test of such a module whose programs are optimised all the same, as a user's are."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
