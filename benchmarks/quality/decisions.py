"""What shipped policies and methods decide, kept so that a change can be held against it.

`python -m benchmarks.quality.decisions --out before.npz`, then, in the changed tree,
`python -m benchmarks.quality.decisions --out after.npz --against before.npz`

All policies decide greedily, all methods with their own number of rounds (scip and enumeration are
left out), on both frozen test sets and on 205 instances of every cell of `paper`. It takes some 15
minutes, and goes on where it was stopped.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import parts
from benchmarks.common import UsageError, checked_out
from offload_jax.evaluation import testsets
from offload_jax.evaluation.compare import sample_cells
from offload_jax.files.disk import replace_file
from offload_jax.methods import METHODS, apply_method
from offload_jax.plans.candidates import gains_of
from offload_jax.policy.decoding import greedy_plan
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import PRESETS
from offload_jax.runs import policy_folder
from offload_jax.splits import NATIVE

SAME = 1e-6  # of sum_i (alpha_i + T l_i): plans worth so nearly the same are ties, in float32
PER_CELL = 205  # 4,100 in the 20 cells of `paper`
SLOW = ("scip", "enumeration")

Decisions = dict[str, np.ndarray]  # "SET/NAME": assignments; "SET/NAME/worth": gain over the scale


@dataclass(frozen=True)
class Arguments:
    """Keep what all policies and methods decide, or hold it against what was kept before."""

    out: Path
    """File to write (.npz); decisions that it has already are not made again."""
    against: Path | None = None
    """File of another tree. The exit status is 1 where anything but ties differs from it."""


def sets() -> Iterator[tuple[str, Instance]]:
    """The instances to decide, batch last."""
    cells = sample_cells(PRESETS["paper"], PER_CELL, jax.random.key(7)).values()
    yield "paper", jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *cells)
    for name in testsets.SHIPPED:
        yield name, testsets.load(name).on_device()


def deciders(instances: Instance) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """All that applies to the instances, by name."""
    for name in policy_folder.names():
        policy, _ = policy_folder.load(name)
        yield f"policy {name}", lambda p=policy: greedy_plan(p, instances)[0]
    for name, method in METHODS.items():
        if name not in SLOW and not method.refuse(instances, NATIVE):
            yield name, lambda n=name: apply_method(n, instances).assignment


def worth(instances: Instance, assignment: np.ndarray) -> np.ndarray:
    """U - U_deny of each plan, as a share of sum_i (alpha_i + T l_i)."""
    each = instances.alpha + instances.steps * instances.local_step
    scale = jnp.sum(jnp.where(instances.mask, each, 0), axis=0)
    return np.asarray(gains_of(instances, jnp.asarray(assignment)) / scale)


def differences(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> list[str]:
    """A line for all that was decided before and is not now, or has plans of another worth."""
    found = []
    for name in (name for name in before if not name.endswith("/worth")):
        if name not in after or after[name].shape != before[name].shape:
            found.append(f"{name}: is not decided, or of other instances")
            continue
        other = np.any(after[name] != before[name], axis=0)
        apart = np.abs(after[f"{name}/worth"] - before[f"{name}/worth"])
        if np.any(apart > SAME):
            found.append(
                f"{name}: {np.sum(apart > SAME)} of {apart.size} plans are worth something else "
                f"(by up to {np.max(apart):.1e} of the scale); {np.sum(other)} differ"
            )
    return found


def main(words: Sequence[str] | None = None) -> int:
    """0 good, 1 where decisions differ, 2 refused, 130 stopped."""
    parsed = tyro.cli(Arguments, args=words, prog="python -m benchmarks.quality.decisions")
    return parts.status_of(partial(_main, parsed))


def _main(parsed: Arguments) -> int:
    checked_out(parsed.out)
    before = _read(parsed.against) if parsed.against else {}
    after = _read(parsed.out) if parsed.out.exists() else {}
    for group, instances in sets():
        for name, decide in deciders(instances):
            key = f"{group}/{name}"
            if f"{key}/worth" not in after:
                after[key] = np.asarray(decide())
                after[f"{key}/worth"] = worth(instances, after[key])
                _write(parsed.out, after)
            print(f"{key}: {after[key].size:,} decisions", flush=True)
    found = differences(before, after)
    if parsed.against:
        plans = [name for name in before if not name.endswith("/worth")]
        equal = sum(np.array_equal(before[name], after.get(name)) for name in plans)
        print(
            "\n".join(found or [f"{equal} of {len(plans)} are the same, the others but for ties"])
        )
    return 1 if found else 0


def _read(path: Path) -> Decisions:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}); must be a file of --out") from None


def _write(path: Path, decisions: Decisions) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **decisions)
    replace_file(path, content.getvalue())


if __name__ == "__main__":
    sys.exit(main())
