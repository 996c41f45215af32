"""One problem to decide: users, batches and servers as a JAX pytree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from offload_jax.files import records


@struct.dataclass
class Instance:
    """All numbers of one instance (symbols as in arXiv 2411.15781, generalised to M batches).

    Users are padded to a common N so that instances can be stacked; `mask` marks the real ones.
    Padded users take part in nothing: whatever their numbers are, no result changes.
    """

    steps: Float[Array, "*batch"]  # T, denoising steps of one run
    bandwidth: Float[Array, "*batch"]  # B, Hz, shared equally by all granted users
    local_step: Float[Array, "users *batch"]  # l, s/step of the whole request on the own device
    alpha: Float[Array, "users *batch"]  # s, worth of +1 accuracy in seconds of latency
    wait: Float[Array, "users *batch"]  # w, s already waited when the batch starts
    demand: Float[Array, "users *batch"]  # d, images in the request
    payload: Float[Array, "users *batch"]  # z, bit, prompt up and intermediate latent down
    spectral_efficiency: Float[Array, "users *batch"]  # eta, bit/s/Hz
    split_min: Float[Array, "users *batch"]  # m, steps, smallest allowed split point
    accuracy_local: Float[Array, "users *batch"]  # P, accuracy when everything runs locally
    accuracy_floor: Float[Array, "users batches *batch"]  # f
    accuracy_slope: Float[Array, "users batches *batch"]  # a, 1/step
    accuracy_centre: Float[Array, "users batches *batch"]  # b, steps
    intercept: Float[Array, "batches *batch"]  # h, s, fixed time of one step of a batch
    capacity: Float[Array, "batches *batch"]  # C, images
    server: Int[Array, "batches *batch"]  # g(k), the server that hosts the batch, from 0
    interference: Float[Array, "batches batches *batch"]  # X_kl, s/image added to k per image in l
    budget: Float[Array, "servers *batch"]  # W, GPU-seconds in this window; inf = no limit
    mask: Bool[Array, "users *batch"]  # True for real users

    @property
    def num_users(self) -> int:
        """N, padded users included."""
        return self.local_step.shape[0]

    @property
    def num_batches(self) -> int:
        return self.intercept.shape[0]

    @property
    def num_servers(self) -> int:
        return self.budget.shape[0]


# What a padded user is filled with: harmless numbers that keep every formula finite.
_PADDING = {
    "local_step": 1.0,
    "demand": 1.0,
    "spectral_efficiency": 1.0,
    "accuracy_local": 1.0,
    "accuracy_slope": 1.0,
}
_USER_FIELDS = (
    "local_step",
    "alpha",
    "wait",
    "demand",
    "payload",
    "spectral_efficiency",
    "split_min",
    "accuracy_local",
    "accuracy_floor",
    "accuracy_slope",
    "accuracy_centre",
)


def from_record(record: records.InstanceRecord) -> Instance:
    """The record's numbers in JAX's default float type, without padding."""
    floating = jnp.zeros(()).dtype
    types = {
        field.name: np.int32 if field.name == "server" else floating for field in fields(Instance)
    }
    arrays = {  # converted by NumPy, as JAX would compile that for each number of users
        name: jnp.asarray(np.asarray(getattr(record, name), dtype))
        for name, dtype in types.items()
        if name != "mask"
    }
    return Instance(**arrays, mask=jnp.ones(arrays["alpha"].shape, bool))


def to_record(instance: Instance, name: str = "instance") -> records.InstanceRecord:
    """The real users of one (unbatched) instance as a float64 record, its domain checked."""
    instance = users_only(instance)
    values: dict[str, Any] = {}
    for field in fields(Instance):
        if field.name == "mask":
            continue
        value = np.asarray(getattr(instance, field.name))
        values[field.name] = value.astype(np.int64 if field.name == "server" else np.float64)
    record = records.InstanceRecord(
        **{**values, "steps": float(values["steps"]), "bandwidth": float(values["bandwidth"])},
        name=name,
        model=(None,) * instance.num_batches,
        optimum=None,
    )
    records.validate(record, name)
    return record


def load_instances(path: str | Path) -> list[Instance]:
    """Reads one instance file (JSON, one object or an array).

    Raises `SchemaError` with the path of the offending field, what is wrong and what is allowed.
    """
    return [from_record(record) for record in records.read_instances(path)]


def save_instances(
    path: str | Path, instances: Sequence[Instance], names: Sequence[str] | None = None
) -> None:
    """Writes unbatched instances as one JSON file that `load_instances` reads back exactly."""
    names = [f"instance-{i}" for i in range(len(instances))] if names is None else list(names)
    if len(names) != len(instances):
        raise ValueError(
            f"names has {len(names)} entries; must have one per instance ({len(instances)})"
        )
    records.write_instances(path, [to_record(i, n) for i, n in zip(instances, names, strict=True)])


def stack(instances: Sequence[Instance]) -> Instance:
    """Stacks instances of the same M and G along a new last axis, users padded to the largest N."""
    if not instances:
        raise ValueError("instances is empty; must hold at least one instance")
    shapes = {(i.num_batches, i.num_servers) for i in instances}
    if len(shapes) > 1:
        raise ValueError(
            f"instances mix (batches, servers) {sorted(shapes)}; must all have the same"
        )
    width = max(i.num_users for i in instances)
    # In NumPy, as JAX would compile every operation for each number of users.
    padded = [pad_users(jax.device_get(i), width) for i in instances]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves, axis=-1)), *padded)


def pad_users(instance: Instance, num_users: int) -> Instance:
    """The same instance (or batch of them) with padded users appended up to `num_users`."""
    extra = num_users - instance.num_users
    if extra < 0:
        raise ValueError(f"num_users is {num_users}; must be at least {instance.num_users}")
    updates: dict[str, Any] = {}
    for name in (*_USER_FIELDS, "mask"):
        value = getattr(instance, name)
        pad = [(0, extra)] + [(0, 0)] * (value.ndim - 1)
        padding = np.pad if isinstance(value, np.ndarray) else jnp.pad
        updates[name] = padding(value, pad, constant_values=_PADDING.get(name, 0))
    return replace(instance, **updates)


def taken(instances: Instance, index: Any) -> Instance:
    """Some instances of a batch (batch last): x[..., index] of every field."""
    return jax.tree.map(lambda x: x[..., index], instances)


def users_only(instance: Instance) -> Instance:
    """One concrete instance (no batch axis) without its padded users."""
    real = np.asarray(instance.mask)
    kept = {}
    for name in (*_USER_FIELDS, "mask"):
        value = getattr(instance, name)
        few = np.asarray(value)[real]  # JAX's own indexing would compile for each number of users
        kept[name] = few if isinstance(value, np.ndarray) else jnp.asarray(few)
    return replace(instance, **kept)


def neutral_padding(instance: Instance) -> Instance:
    """The same instance (or batch of them), padded users filled with harmless numbers."""
    updates = {}
    for name in _USER_FIELDS:
        value = getattr(instance, name)
        mask = instance.mask if value.ndim == instance.mask.ndim else instance.mask[:, None]
        updates[name] = jnp.where(mask, value, jnp.asarray(_PADDING.get(name, 0), value.dtype))
    return replace(instance, **updates)


def strong_types(instance: Instance) -> Instance:
    """The same numbers without JAX's weak types (those of Python literals).

    A weakly typed instance makes weakly typed states, and every jitted step would compile twice.
    """
    return jax.tree.map(lambda x: x.astype(x.dtype), instance)


def toy() -> tuple[Instance, np.ndarray, float]:
    """Three users, two batches: (instance, optimal assignment, optimal objective), all by hand.

    No worth of accuracy, so a granted user runs lo = 2 of T = 10 steps locally and gains
    8 (l - s), s = 0.1 + 0.1 load. User 0 (2 images) fits only batch 1: 8 (1 - 0.3) = 5.6 s. User 1
    takes batch 2: 8 (0.5 - 0.2) = 2.4 s. User 2 would lose anywhere. All local takes 16.5 s.
    """
    instance = Instance(
        steps=jnp.asarray(10.0),
        bandwidth=jnp.asarray(1.0),
        local_step=jnp.array([1.0, 0.5, 0.15]),
        alpha=jnp.zeros(3),
        wait=jnp.zeros(3),
        demand=jnp.array([2.0, 1.0, 1.0]),
        payload=jnp.zeros(3),
        spectral_efficiency=jnp.ones(3),
        split_min=jnp.full(3, 2.0),
        accuracy_local=jnp.ones(3),
        accuracy_floor=jnp.zeros((3, 2)),
        accuracy_slope=jnp.ones((3, 2)),
        accuracy_centre=jnp.full((3, 2), 2.0),
        intercept=jnp.full(2, 0.1),
        capacity=jnp.array([2.0, 1.0]),
        server=jnp.zeros(2, jnp.int32),
        interference=0.1 * jnp.eye(2),
        budget=jnp.full(1, jnp.inf),
        mask=jnp.ones(3, bool),
    )
    return strong_types(instance), np.array([1, 2, 0], np.int32), -16.5 + 5.6 + 2.4
