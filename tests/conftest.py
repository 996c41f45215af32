"""What every test runs under. Float64 is switched on per test, by the fixture `x64`."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import pytest
from flax import struct

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
