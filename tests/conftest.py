"""What every test runs under. Float64 is switched on per test, by the fixture `x64`."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

# Most of the time of these tests is compiling, of programs that run for milliseconds: quickly made
# ones, and not divided among threads, as every core has a worker. Child processes inherit this.
# Read once, when JAX first looks for devices.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1 " + os.environ.get("XLA_FLAGS", "")
)
# The older code generator compiles twice as fast. An XLA that does not know a flag ends the
# process, and that of jaxlib 0.12 has only the newer one.
if version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import jax
import pytest
from flax import struct

# Programs kept between runs make the next one twice as fast; the keys are the programs themselves.
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
