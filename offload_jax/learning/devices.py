"""Devices, and how a batch of instances is spread over them.

Training is data-parallel: every device holds all parameters and works on its own slice of the
instances, and sums go through all devices (one collective per optimiser step, a few per update).
Random numbers are drawn for the whole batch, of which a device uses its slice, so what is learned
does not depend on the number of devices, up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from offload_jax.files.checks import ConfigError

AXIS = "instances"  # of the mesh


@dataclass(frozen=True)
class Devices:
    """What a program is spread over (static: hashed by its mesh).

    Without a mesh: one device, wherever JAX puts it, and nothing is sliced or summed.
    """

    mesh: Mesh | None = None

    @property
    def count(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    def spread(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """`program` on every device. Its arguments and results are the same on all of them."""
        if self.mesh is None:
            return program
        # Unchecked: the checker wants every constant of a loop's state marked as varying. What a
        # program returns has to come from its arguments and from `sum` and `mean`.
        return jax.shard_map(program, mesh=self.mesh, in_specs=P(), out_specs=P(), check_vma=False)

    def spread_members(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """`program` on every device, on its own slice of the first axis of all leaves."""
        if self.mesh is None:
            return program
        specs = P(AXIS)
        return jax.shard_map(
            program, mesh=self.mesh, in_specs=specs, out_specs=specs, check_vma=False
        )

    def mine(self, tree: Any, axis: int = 0) -> Any:
        """Inside `spread`: this device's slice of leaves that have the whole batch along `axis`.

        The axis must be divisible by the number of devices.
        """
        if self.mesh is None:
            return tree

        def cut(x: jax.Array) -> jax.Array:
            size = x.shape[axis] // self.count
            start = jax.lax.axis_index(AXIS) * size
            return jax.lax.dynamic_slice_in_dim(x, start, size, axis)

        return jax.tree.map(cut, tree)

    def sum(self, tree: Any) -> Any:
        """Inside `spread`: the sum over the devices, leaf by leaf (of one floating type)."""
        if self.mesh is None:
            return tree
        flat, unravel = ravel_pytree(tree)  # one message instead of one per leaf
        return unravel(jax.lax.psum(flat, AXIS))

    def mean(self, tree: Any) -> Any:
        """Inside `spread`: the mean over the devices."""
        return tree if self.mesh is None else jax.tree.map(lambda x: x / self.count, self.sum(tree))

    def place(self, tree: Any) -> Any:
        """Leaves whole on every device of the mesh, in all processes."""
        return self._moved(tree, P())

    def deal(self, tree: Any) -> Any:
        """Leaves cut along their first axis, as `spread_members` works on them."""
        return self._moved(tree, P(AXIS))

    def _moved(self, tree: Any, spec: P) -> Any:
        if self.mesh is None:
            return tree
        # A program, since only those move keys, and arrays of one process to devices of all.
        return jax.jit(lambda x: x, out_shardings=NamedSharding(self.mesh, spec))(tree)


ONE_DEVICE = Devices()


def find_devices(limit: int | None = None) -> Devices:
    """The first `limit` devices, an equal number of each process; None takes all there are.

    Raises ConfigError where there are fewer, or processes would get unequal numbers.
    """
    available, processes = jax.devices(), jax.process_count()
    count = len(available) if limit is None else limit
    if not 1 <= count <= len(available):
        raise ConfigError(
            f"run.devices is {limit}; must be in 1..{len(available)}, the {available[0].platform} "
            "devices found"
        )
    if count % processes:
        raise ConfigError(
            f"run.devices is {count}; must be divisible by the number of processes ({processes})"
        )
    if count == 1:
        return Devices()
    share = count // processes
    chosen = [d for p in range(processes) for d in _of_process(available, p)[:share]]
    if len(chosen) < count:
        raise ConfigError(
            f"run.devices is {limit}; must be at most the fewest devices of a process "
            f"times the number of processes ({processes})"
        )
    return Devices(jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen))


def _of_process(devices: list[jax.Device], process: int) -> list[jax.Device]:
    return [device for device in devices if device.process_index == process]


def local_copy(tree: Any) -> Any:
    """Leaves whole on this process's first device, wherever their parts are."""
    here = SingleDeviceSharding(jax.local_devices()[0])

    def copy(x: Any) -> Any:
        # Of several processes' arrays, which are whole everywhere, this process's own.
        whole = x if x.is_fully_addressable else x.addressable_data(0)
        return jax.device_put(whole, here)

    return jax.tree.map(copy, tree)


def memory_mb(compiled: Any) -> float | None:
    """MB per device that a compiled program holds at once; None where the backend does not say."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    size = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return float(size - stats.alias_size_in_bytes) / 1e6
