"""What `eval` takes, and which of it excludes each other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from offload_jax.files.checks import ConfigError
from offload_jax.methods import QUICK, method_named
from offload_jax.methods.refine import Refinement
from offload_jax.runs import policy_folder


@dataclass(frozen=True)
class SplitsOption:
    """Split points of the plans."""

    solver: str | None = None
    """Solver for them instead of the run's: native, cvxpylayers-moreau, cvxpylayers-diffcp, or your
    own as file.py:Name."""


@dataclass(frozen=True)
class Arguments:
    """Compare a trained policy with every baseline on the same instances."""

    run: Path | None = None
    """Run directory whose best policy is evaluated. Default: the newest under runs/."""
    instances: Path | None = None
    """Evaluate on this instance file instead of fresh instances of the run's scenario."""
    policy: str | None = None
    """Evaluate this instead of a run: a shipped policy by its name, or a policy folder."""
    per_cell: int = 205
    """Fresh instances of every cell (20 cells of paper: 4,100 in all)."""
    plugins: tuple[str, ...] = ()
    """Files or modules of your own code that the policy's settings may name."""
    samples: tuple[int, ...] = (1, 64)
    """Decodings of the policy: 1 is greedy, more is best of that many samples."""
    refine: tuple[Refinement, ...] = ()
    """Also refine the best of the largest number of samples: in random orders of the users
    (orders; for policies in order of arrival), by local search, tabu search, or deciding again."""
    temperature: float | None = None
    """Of samples, above 1 they differ more. Default: the policy's own, 1 for a run."""
    methods: tuple[str, ...] = QUICK
    """Baselines to compare with. There are also: annealing, tabu, genetic, genetic-tuned,
    enumeration, scip, and your own as file.py:NAME."""
    testset: str | None = None
    """Evaluate on a frozen test set (edge or edge_large), against the best plans known for it."""
    budget_s: float | None = None
    """Seconds for each instance that searches and scip get. Default: searches end by themselves,
    scip has 60 s."""
    bounds: bool = False
    """Also compute upper bounds, valid for every plan (test sets come with theirs)."""
    anytime: float = 0.0
    """Seconds for each instance that searches get, once more, for the picture of gap against time
    (0: no picture)."""
    scaling: tuple[int, ...] = ()
    """Numbers of users to measure the time per plan at, for the picture of time against users."""
    splits: SplitsOption = field(default_factory=lambda: SplitsOption())
    certify: bool = False
    """Also solve a sample of the plans again, by cvxpylayers, and report how far they are apart."""
    certified: int = 64
    """Plans in that sample."""
    no_policy: bool = False
    """Compare the baselines alone (of --config's scenario, on --instances or --testset)."""
    config: str | None = None
    """Scenario for --no-policy without --instances or --testset. Default: paper."""
    seed: int = 2**31
    """Of the fresh instances and the samples; other than training's."""
    out: Path | None = None
    """Where eval.json, the plans and the pictures go.

    Default: eval/ in the run directory, or eval-NAME/ with --instances NAME.json or
    --testset NAME."""


def check(parsed: Arguments) -> None:
    """Raises ConfigError for the first impossible option."""
    for name in parsed.methods:
        method_named(name, "methods")
    if parsed.no_policy and not parsed.methods:
        raise ConfigError("methods is empty; must name at least one method with no-policy")
    if parsed.certified < 1:
        raise ConfigError(f"certified is {parsed.certified}; must be at least 1")
    if parsed.per_cell < 1:
        raise ConfigError(f"per-cell is {parsed.per_cell}; must be at least 1")
    if not parsed.samples or min(parsed.samples) < 1:
        raise ConfigError(f"samples is {parsed.samples}; must be one or more numbers >= 1")
    if not 0 <= parsed.seed < 2**32:
        raise ConfigError(f"seed is {parsed.seed}; must be in 0..{2**32 - 1}")
    if sum(map(bool, (parsed.no_policy, parsed.run, parsed.policy))) > 1:
        raise ConfigError("run, policy and no-policy exclude each other; give one of them")
    if parsed.policy is not None:
        policy_folder.find(parsed.policy)
    if parsed.refine and parsed.no_policy:
        raise ConfigError("refine is given, but no-policy leaves the policy out; give one of them")
    if parsed.temperature is not None and not 0 < parsed.temperature < math.inf:
        raise ConfigError(f"temperature is {parsed.temperature}; must be above 0 and finite")
    if parsed.config is not None and (parsed.instances or parsed.testset or not parsed.no_policy):
        raise ConfigError(
            f"config is {parsed.config!r}; must be left out, but with no-policy and without "
            "instances or testset: a run and a test set have scenarios of their own"
        )
    if parsed.scaling and parsed.instances is not None:
        raise ConfigError(
            f"scaling is {parsed.scaling}; must be left out with instances: a file tells no "
            "scenario to draw more users from"
        )
    if parsed.testset is not None and parsed.instances is not None:
        raise ConfigError("testset and instances are both given; must be one of them")
    if parsed.budget_s is not None and not 0 < parsed.budget_s < math.inf:
        raise ConfigError(f"budget-s is {parsed.budget_s}; must be above 0 and finite (s)")
    if not 0 <= parsed.anytime < math.inf:
        raise ConfigError(f"anytime is {parsed.anytime}; must be at least 0 and finite (s)")
    if parsed.scaling and min(parsed.scaling) < 1:
        raise ConfigError(f"scaling is {parsed.scaling}; must be numbers of users >= 1")
