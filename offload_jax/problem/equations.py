"""The system model: one function per equation, over an instance and an assignment.

Equation numbers: (1) load, (2) step time, (3) transfer, (4) latency, (5) accuracy, (6) server use,
(7) objective, (8) score and gap. The single-batch case is the model of arXiv 2411.15781.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from offload_jax.problem.arrays import pick, pick_column, total
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Assignment, Numbers, Scalar


def batch_load(
    assignment: Assignment, demand: Float[Array, "users *batch"], num_batches: int
) -> Float[Array, "batches *batch"]:
    """(1) Images in each batch, sum of d_j over the users in it."""
    return total(assignment - 1, demand, num_batches)


def step_time(
    intercept: Float[Array, "batches *batch"],
    interference: Float[Array, "batches batches *batch"],
    load: Float[Array, "batches *batch"],
) -> Float[Array, "batches *batch"]:
    """(2) Seconds of one step of each batch: h_k + sum_l X_kl load_l."""
    return intercept + jnp.sum(interference * load, axis=1)


def transfer_time(
    payload: Numbers, spectral_efficiency: Numbers, bandwidth: Numbers, num_granted: Numbers
) -> Numbers:
    """(3) Seconds a user's prompt and latent are on the air; all granted users share the band."""
    return payload * num_granted / (bandwidth * spectral_efficiency)


def airtime(instance: Instance) -> Float[Array, "users *batch"]:
    """(3) for each user alone on the air, s."""
    band = instance.bandwidth
    return transfer_time(instance.payload, instance.spectral_efficiency, band, jnp.ones_like(band))


def latency(
    wait: Numbers,
    transfer: Numbers,
    steps: Numbers,
    split: Numbers,
    edge_step: Numbers,
    local_step: Numbers,
) -> Numbers:
    """(4) Seconds until a granted user has the image: wait, transfer, edge steps, own steps."""
    return wait + transfer + (steps - split) * edge_step + split * local_step


def accuracy(
    steps: Numbers, split: Numbers, local: Numbers, floor: Numbers, slope: Numbers, centre: Numbers
) -> Numbers:
    """(5) Personalised accuracy index of a granted user whose last `split` steps run locally."""
    return local - accuracy_loss(steps, split, local, floor, slope, centre)


def accuracy_loss(
    steps: Numbers, split: Numbers, local: Numbers, floor: Numbers, slope: Numbers, centre: Numbers
) -> Numbers:
    """What (5) is below the local accuracy P, without the cancellation of P - PAI.

    sig(u) / sig(v) - 1 = expm1(u - v) sig(-u) with u = a (n - b), v = a (T - b).
    """
    rise = jnp.expm1(slope * (split - steps)) * jax.nn.sigmoid(slope * (centre - split))
    return -(local - floor) * rise


@struct.dataclass
class Curve:
    """The accuracy curve (5) and what it is worth: of users, or of users in batches.

    All shapes broadcast.
    """

    steps: Float[Array, "..."]  # T
    alpha: Float[Array, "..."]  # s per unit of accuracy
    local: Float[Array, "..."]  # P
    floor: Float[Array, "..."]  # f
    slope: Float[Array, "..."]  # a, 1/step
    centre: Float[Array, "..."]  # b, steps


def pair_curve(instance: Instance) -> Curve:
    """The curve of every user in every batch, (users, batches, *batch)."""
    return Curve(
        steps=instance.steps,
        alpha=instance.alpha[:, None],
        local=instance.accuracy_local[:, None],
        floor=instance.accuracy_floor,
        slope=instance.accuracy_slope,
        centre=instance.accuracy_centre,
    )


def worth_lost(curve: Curve, split: Numbers) -> Numbers:
    """alpha (P - PAI), s: what the edge steps before `split` cost in accuracy."""
    loss = accuracy_loss(curve.steps, split, curve.local, curve.floor, curve.slope, curve.centre)
    return curve.alpha * loss


def amplitude(curve: Curve) -> Numbers:
    """c = alpha (P - f) / sig(a (T - b)), s: the factor of sig(a (n - b)) in U."""
    top = jax.nn.sigmoid(curve.slope * (curve.steps - curve.centre))
    return curve.alpha * (curve.local - curve.floor) / top


def user_gain(curve: Curve, split: Numbers, saving: Numbers, transfer: Numbers) -> Numbers:
    """What a granted user adds to U - U_deny, s: (T - n)(l - s) - alpha (P - PAI) - transfer.

    `saving` is l - s, s per step.
    """
    return (curve.steps - split) * saving - worth_lost(curve, split) - transfer


def own_slope(instance: Instance) -> Float[Array, "batches *batch"]:
    """X_kk: seconds a step of batch k grows by per image of its own."""
    return jnp.stack([instance.interference[k, k] for k in range(instance.num_batches)])


@struct.dataclass
class Placement:
    """What an assignment makes of an instance: the numbers each user meets in its batch.

    Denied and padded users hold zeros (slope 1), which keep every formula finite.
    """

    granted: Bool[Array, "users *batch"]
    batch: Int[Array, "users *batch"]  # from 0; -1 where denied
    num_granted: Float[Array, "*batch"]
    load: Float[Array, "batches *batch"]  # images
    step_time: Float[Array, "batches *batch"]  # s per step of the batch
    edge_step: Float[Array, "users *batch"]  # s per step of the user's batch
    rate: Float[Array, "users *batch"]  # GPU-seconds per step charged to the user, X_kk d
    transfer: Float[Array, "users *batch"]  # s
    floor: Float[Array, "users *batch"]
    slope: Float[Array, "users *batch"]
    centre: Float[Array, "users *batch"]


def user_curve(instance: Instance, placed: Placement) -> Curve:
    """The curve of every user in its batch."""
    return Curve(
        steps=instance.steps,
        alpha=instance.alpha,
        local=instance.accuracy_local,
        floor=placed.floor,
        slope=placed.slope,
        centre=placed.centre,
    )


def place(instance: Instance, assignment: Assignment) -> Placement:
    """Equations (1)-(3) for an assignment."""
    granted = (assignment > 0) & instance.mask
    batch = jnp.where(granted, assignment - 1, -1)
    num_granted = jnp.sum(granted, axis=0, dtype=instance.alpha.dtype)
    load = total(batch, instance.demand, instance.num_batches)
    times = step_time(instance.intercept, instance.interference, load)
    own = own_slope(instance)
    air = transfer_time(
        instance.payload, instance.spectral_efficiency, instance.bandwidth, num_granted
    )
    return Placement(
        granted=granted,
        batch=batch,
        num_granted=num_granted,
        load=load,
        step_time=times,
        edge_step=pick(batch, times),
        rate=pick(batch, own) * instance.demand,
        transfer=jnp.where(granted, air, 0),
        floor=pick_column(batch, instance.accuracy_floor),
        slope=jnp.where(granted, pick_column(batch, instance.accuracy_slope), 1),
        centre=pick_column(batch, instance.accuracy_centre),
    )


def user_latency(
    instance: Instance, placed: Placement, split: Float[Array, "users *batch"]
) -> Float[Array, "users *batch"]:
    """(4) for every user: granted in its batch, denied all local. Padded users get 0."""
    edge = latency(
        instance.wait, placed.transfer, instance.steps, split, placed.edge_step, instance.local_step
    )
    local = instance.wait + instance.steps * instance.local_step
    return jnp.where(instance.mask, jnp.where(placed.granted, edge, local), 0)


def user_accuracy(
    instance: Instance, placed: Placement, split: Float[Array, "users *batch"]
) -> Float[Array, "users *batch"]:
    """(5) for every user; a denied user keeps the local accuracy. Padded users get 0."""
    loss = accuracy_loss(
        instance.steps, split, instance.accuracy_local, placed.floor, placed.slope, placed.centre
    )
    kept = instance.accuracy_local - jnp.where(placed.granted, loss, 0)
    return jnp.where(instance.mask, kept, 0)


def server_use(
    instance: Instance, placed: Placement, split: Float[Array, "users *batch"]
) -> Float[Array, "servers *batch"]:
    """(6) GPU-seconds each server spends on its users' edge steps."""
    server = jnp.where(placed.granted, pick(placed.batch, instance.server), -1)
    return total(server, placed.rate * (instance.steps - split), instance.num_servers)


def objective(instance: Instance, placed: Placement, split: Float[Array, "users *batch"]) -> Scalar:
    """(7) U, the sum over users of alpha times accuracy minus latency, in seconds."""
    worth = instance.alpha * user_accuracy(instance, placed, split)
    return jnp.sum(
        jnp.where(instance.mask, worth - user_latency(instance, placed, split), 0), axis=0
    )


def gain(instance: Instance, placed: Placement, split: Float[Array, "users *batch"]) -> Scalar:
    """U - U_deny, summed user by user: U itself loses digits to cancellation in float32."""
    saving = instance.local_step - placed.edge_step
    gains = user_gain(user_curve(instance, placed), split, saving, placed.transfer)
    return jnp.sum(jnp.where(placed.granted, gains, 0), axis=0)


def num_real_users(instance: Instance) -> Scalar:
    """N without padding, as a float; at least 1 so that it can divide."""
    return jnp.maximum(jnp.sum(instance.mask, axis=0, dtype=instance.alpha.dtype), 1)


def score(instance: Instance, value: Scalar) -> Scalar:
    """(8) What is reported for an objective or a gain: 0.1 U / N."""
    return 0.1 * value / num_real_users(instance)


def gap(best_gain: Numbers, gain: Numbers) -> Numbers:
    """(8) (U_best - U) / (U_best - U_deny) from gains U - U_deny; 0 where nothing can be gained."""
    return jnp.where(best_gain > 0, (best_gain - gain) / jnp.where(best_gain > 0, best_gain, 1), 0)
