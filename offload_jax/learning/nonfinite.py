"""Numbers that are not finite: which array of a failed update they are in, and which user's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offload_jax.learning import updates
from offload_jax.learning.algorithm import Learner
from offload_jax.learning.loss import loss
from offload_jax.learning.updates import LearnerState
from offload_jax.problem.contracts import arrays_of
from offload_jax.problem.instance import Instance

_BATCH = ("step", "instance", "sample")  # leading axes of what is recorded


def explain(learner: Learner, state: LearnerState) -> str:
    """The first number that is not finite in the update that `state` cannot make, and its place.

    Causes before consequences: parameters, instances, observations, rewards, gradients.
    """
    numbers = jax.device_get(_numbers(learner, state))
    found = (
        *_in_tree("parameter", numbers["parameter"]),
        *_in_record("instance", _limited(numbers["instance"]), (), ("instance",)),
        *_in_record("observation", numbers["observation"], _BATCH, ()),
        *_in_array("reward", numbers["reward"], _BATCH),
        *_in_tree("gradient of", numbers["gradient"]),
    )
    return found[0] if found else "the optimiser's step, from numbers that are all finite"


@partial(jax.jit, static_argnums=0)
def _numbers(learner: Learner, state: LearnerState) -> dict[str, Any]:
    """What the update of `state` is made from, once more; the gradient is that of all samples."""
    _, sample_key, roll_key, _ = jax.random.split(state.key, 4)
    instances, collected = updates.collect(learner, state.params, sample_key, roll_key)
    progress = state.step / learner.config.updates
    gradient, _ = jax.grad(loss, argnums=1, has_aux=True)(
        learner, state.params, instances, collected, progress
    )
    return {
        "parameter": state.params,
        "instance": instances,
        "observation": collected.decisions.observation,
        "reward": collected.decisions.reward,
        "gradient": gradient,
    }


def _limited(instances: Instance) -> Instance:
    """An infinite budget is no fault: it means that there is no limit."""
    return replace(instances, budget=jnp.where(jnp.isposinf(instances.budget), 0, instances.budget))


def _in_tree(name: str, tree: Any) -> Iterator[str]:
    """Faults in a tree of parameters, by path."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        words = [str(getattr(key, "key", key)) for key in path]
        yield from _in_array(f"{name} {'/'.join(words)}", leaf, ())


def _in_record(
    name: str, record: Any, before: tuple[str, ...], after: tuple[str, ...]
) -> Iterator[str]:
    """Faults in a record; between `before` and `after` stand the axes that its annotations name."""
    for full, array, axes in arrays_of(name, record, before, after):
        yield from _in_array(full, array, axes)


def _in_array(name: str, array: Any, axes: tuple[str, ...]) -> Iterator[str]:
    """The first fault of an array, with its index along each axis."""
    array = np.asarray(array)
    if not np.issubdtype(array.dtype, np.inexact) or np.all(np.isfinite(array)):
        return
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    names = axes if len(axes) == array.ndim else [f"axis {i}" for i in range(array.ndim)]
    place = ", ".join(f"{axis} {i}" for axis, i in zip(names, index, strict=True))
    count = int(np.sum(~np.isfinite(array)))
    yield f"{name}[{place}] is {array[index]} ({count} of {array.size} numbers are not finite)"
