"""The genetic algorithm of pymoo on our problem, its plans valued by us, a generation at a time."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offload_jax.methods.search import repaired
from offload_jax.plans.candidates import candidate_gains, repeated
from offload_jax.problem.instance import Instance


def pymoo_genetic(
    instance: Instance, population: int, generations: int, seed: int
) -> tuple[float, float]:
    """(gain U - U_deny of the best plan, seconds) of one instance, compiling excluded.

    Integer variables, uniform crossover, polynomial mutation, no plan twice. Plans that do not
    fit are repaired as ours are.
    """
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.ux import UX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.optimize import minimize

    class Plans(Problem):
        def __init__(self) -> None:
            super().__init__(n_var=instance.num_users, n_obj=1, xl=0, xu=instance.num_batches,
                             vtype=int)  # fmt: skip

        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            full = np.zeros((population, instance.num_users), np.int32)
            full[: len(x)] = x  # of one shape: compiled once
            out["F"] = -np.asarray(_values(instance, jnp.asarray(full.T)))[: len(x), None]

    nobody = jnp.zeros((instance.num_users, population), jnp.int32)
    jax.block_until_ready(_values(instance, nobody))
    algorithm = GA(
        pop_size=population,
        sampling=IntegerRandomSampling(),
        crossover=UX(),
        mutation=PM(vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    start = time.perf_counter()
    result = minimize(Plans(), algorithm, ("n_gen", generations), seed=seed)
    return float(-result.F[0]), time.perf_counter() - start


@jax.jit
def _values(instance: Instance, plans: jax.Array) -> jax.Array:
    """Gains of plans (users, population), repaired."""
    fixed = repaired(repeated(instance, plans.shape[1]), plans)
    return candidate_gains(instance, lambda i: fixed[:, i], plans.shape[1])
