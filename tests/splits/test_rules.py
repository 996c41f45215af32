"""Users' own constraints and terms: read safely, refused clearly, optimal, and kept everywhere."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import evaluate, gain_of, reset
from episodes import sample, spoil_padding
from paths import ROOT

import offload_jax as oj
from offload_jax.env.config import EnvConfig
from offload_jax.env.step import step
from offload_jax.methods import METHODS
from offload_jax.plans.outcome import check_all_local, facts_of, objective_denied, problem_of
from offload_jax.plans.plan import execute
from offload_jax.plans.rounding import mend
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import EdgeScenario
from offload_jax.problem.types import Status
from offload_jax.runs.config_file import load_config, parse_config
from offload_jax.splits import RuleError, Rules, Solver, SplitsConfig
from offload_jax.splits.layer import ConeLayer
from offload_jax.splits.qp import check_rules
from offload_jax.splits.rules import FACTS, FUNCTIONS, SHORTHANDS

MOREAU, DIFFCP = "cvxpylayers-moreau", "cvxpylayers-diffcp"
SCENARIO = EdgeScenario(num_users=(4, 6), batches=3, servers=2, models=2, budget=1.0)
COUNT = 10
RULES = {
    "deadline": Rules(constraints=("granted * latency <= 0.9 * local_latency",)),
    "handover": Rules(constraints=("transfer + edge_time <= 2.5",)),
    "energy": Rules(constraints=("granted * 13 * device_time <= 0.85 * 13 * steps * local_step",)),
    "late": Rules(terms=("-0.5 * sum(pos(latency - 15))",)),
    "fair": Rules(terms=("-0.9 * max(granted * latency)", "0.3 * min(local_latency - latency)")),
    "smooth": Rules(terms=("-sum(alpha * square(edge_time)) / 200", "-0.2 * cp.norm2(latency)")),
    "both": Rules(("edge_time / 2 <= 1.5",), ("-sum(maximum(latency - 15, 0))",)),
}


def world() -> tuple[Instance, jax.Array]:
    """Instances, and assignments of two users each (batch last)."""
    instances = sample(SCENARIO, jax.random.key(4), COUNT)
    plan = np.zeros((6, COUNT), np.int32)
    plan[0], plan[2] = 1, 1 + np.arange(COUNT) % 3
    return instances, jnp.asarray(plan)


def config(rules: Rules, solver: str = MOREAU) -> Solver:
    return SplitsConfig(solver, rules.constraints, rules.terms).to_solver()


@pytest.mark.fast
@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ("latency", "is no constraint; must be one comparison with <= or >="),
        ("latency <= ", "is no constraint"),
        ("1 <= split <= 3", "is no constraint"),
        ("split == 3", "is no inequality"),
        ("square(split) >= 4", "is constant <= convex; must be convex <= concave (DCP)"),
        ("split * split <= 4", "multiplies split by split; must be convex (DCP)"),
        ("1 / split <= 3", "divides by split; must be convex (DCP)"),
        ("latancy <= 3", "has the unknown name 'latancy' (did you mean latency?)"),
        ("summ(split) <= 3", "has the unknown function 'summ' (did you mean sum?)"),
        ("split ** 3 <= 3", "has 'split ** 3'; must be numbers, names,"),
        ("split[0] <= 3", "has 'split[0]'"),
        ("split.T <= 3", "has 'split.T'"),
        ("latency <= True", "has 'True'"),
        ("'a' <= split", "has \"'a'\""),
        ("(lambda: 3)() <= split", "has '(lambda: 3)()'"),
        ("__import__('os').system('true') <= split", "has \"__import__('os').system('true')\""),
        ("sum(steps) <= 3", "takes the sum of a single number"),
        ("sum(split, 1) <= 3", "calls sum with 2 arguments; must be 1"),
        ("max(square(split)) <= 3", "must be of an expression that is affine in split"),
    ],
)
def test_bad_constraints_are_refused(constraint, message) -> None:
    with pytest.raises(RuleError) as caught:
        check_rules(Rules(constraints=(constraint,)))
    assert str(caught.value).startswith(f"{constraint!r} ")
    assert message in str(caught.value)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("term", "message"),
    [
        ("sum(square(latency))", "is convex; must be concave, since terms are maximised (DCP)"),
        ("latency", "is one number per user; must be a single one"),
        ("max(split) - max(latency)", "neither convex nor concave"),
        ("split >= 3", "has 'split >= 3'"),
        ("", "is no expression"),
    ],
)
def test_bad_terms_are_refused(term, message) -> None:
    with pytest.raises(RuleError) as caught:
        check_rules(Rules(terms=(term,)))
    assert message in str(caught.value)


@pytest.mark.fast
def test_good_rules_are_accepted() -> None:
    for rules in RULES.values():
        check_rules(rules)
    config(RULES["late"]).validate()


@partial(jax.jit, static_argnames="rules")
def on_grid(instance: Instance, plan: jax.Array, rules: Rules, low, high) -> tuple:
    """(best U with rules, where) on a grid of both granted users' splits, as shares of [lo, T]."""
    placed = equations.place(instance, plan)
    lower = jnp.maximum(instance.split_min, placed.centre)
    facts = facts_of(instance, placed)
    axes = [jnp.linspace(low[k], high[k], 241) for k in range(2)]
    shares = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)

    def worth(share: jax.Array) -> jax.Array:
        of_user = jnp.ones(plan.shape).at[jnp.array([0, 2])].set(share)
        n = jnp.where(placed.granted, lower + (instance.steps - lower) * of_user, instance.steps)
        left = instance.budget - equations.server_use(instance, placed, n)
        kept = jnp.all(left >= -1e-9) & (rules.violation(facts, n) <= 1e-9)
        value = equations.objective(instance, placed, n) + rules.worth(facts, n)
        return jnp.where(kept, value, -jnp.inf)

    values = jax.lax.map(worth, shares, batch_size=4096)
    return jnp.max(values), shares[jnp.argmax(values)]


def by_grid(instance: Instance, plan: jax.Array, rules: Rules) -> float:
    """The optimum to a ten thousandth of the interval, an independent computation."""
    low, high = jnp.zeros(2), jnp.ones(2)
    for window in (0.02, 0.001):
        best, at = on_grid(instance, plan, rules, low, high)
        low, high = jnp.clip(at - window, 0, 1), jnp.clip(at + window, 0, 1)
    return float(max(best, on_grid(instance, plan, rules, low, high)[0]))


@pytest.mark.parametrize("name", RULES)
def test_answers_are_optimal_and_the_same_everywhere(x64, name) -> None:
    instances, plan = world()
    outcomes = [
        jax.jit(partial(evaluate, solver=config(RULES[name], s)))(instances, plan)
        for s in (MOREAU, DIFFCP)
    ]
    plain = evaluate(instances, plan)
    solved = np.asarray(outcomes[0].status) == Status.SOLVED
    np.testing.assert_array_equal(outcomes[1].status, outcomes[0].status)
    assert solved.mean() >= 0.4
    assert set(np.asarray(outcomes[0].status)) <= {Status.SOLVED, Status.INFEASIBLE}
    ours, theirs = (np.asarray(o.objective)[solved] for o in outcomes)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    denied = np.asarray(objective_denied(instances, config(RULES[name])))[solved]
    gains = np.asarray(outcomes[0].gain)[solved]
    np.testing.assert_allclose(gains, ours - denied, rtol=1e-6, atol=1e-6)
    deviation = np.abs(outcomes[0].split - outcomes[1].split)[:, solved] / 50
    assert deviation.max() <= 1e-3
    facts = facts_of(instances, equations.place(instances, plan))
    missed = np.asarray(RULES[name].violation(facts, outcomes[0].split))[solved]
    assert missed.max() <= 1e-6
    moved = np.abs(outcomes[0].split - plain.split)[:, solved].max(axis=0) > 1e-2
    assert moved.any(), "the rule does nothing: this would prove nothing"
    for i in np.flatnonzero(solved)[:3]:
        one = jax.tree.map(lambda x, i=i: x[..., i], instances)
        wanted = by_grid(one, plan[:, i], RULES[name])
        assert abs(float(outcomes[0].objective[i]) - wanted) <= 1e-5 * abs(wanted)


def test_gradient_of_a_ruled_plan_is_that_of_differences(x64) -> None:
    instances, plan = world()
    solver = config(RULES["handover"])
    value = jax.jit(lambda i: evaluate(i, plan, solver).objective)
    slopes = jax.jit(jax.grad(lambda i: jnp.sum(value(i)), allow_int=True))(instances)
    draw = np.random.default_rng(0)
    for name in ("local_step", "alpha", "intercept", "payload"):
        field = getattr(instances, name)
        along = draw.normal(size=field.shape) * np.abs(field)
        found = (np.asarray(getattr(slopes, name)) * along).reshape(-1, COUNT).sum(axis=0)
        ends = [np.asarray(value(replace(instances, **{name: field + h * along})))
                for h in (1e-5, -1e-5)]  # fmt: skip
        wanted = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3, err_msg=name)


def test_padded_users_count_for_nothing(x64) -> None:
    instances, plan = world()
    for name in ("fair", "smooth", "both"):
        solver = config(RULES[name])
        spoiled = spoil_padding(instances, 7.0)
        same = [evaluate(i, plan, solver).gain for i in (instances, spoiled)]
        np.testing.assert_allclose(*same, rtol=1e-6, atol=1e-6)


@pytest.mark.fast
def test_padded_users_miss_no_constraint() -> None:
    """Their numbers are 0, which many constraints do not allow."""
    instances, plan = world()
    facts = facts_of(instances, equations.place(instances, plan))
    [missed] = Rules(("1e6 <= split",)).violations(facts, jnp.zeros(plan.shape))
    np.testing.assert_array_equal(np.asarray(missed) > 0, instances.mask)
    assert not np.all(instances.mask)


@pytest.mark.fast
def test_constraints_that_the_all_local_plan_breaks_are_refused() -> None:
    instances, _ = world()
    bad = config(Rules(constraints=("latency <= 5",)))
    with pytest.raises(ValueError, match=r"'latency <= 5', which the all-local plan breaks"):
        check_all_local(instances, bad)
    instance = jax.tree.map(lambda x: x[..., 0], instances)
    with pytest.raises(ValueError, match="multiply by granted what only granted users must keep"):
        oj.solve(instance, "deny", solver=bad)
    check_all_local(instances, config(RULES["deadline"]))
    # 0/0 for a denied user, whatever the instance.
    nothing = config(Rules(constraints=("granted * latency / edge_step <= 100",)))
    with pytest.raises(ValueError, match=r"breaks \(instance 0 of \d+, where it is no number\)"):
        check_all_local(instances, nothing)


@pytest.mark.fast
def test_a_solver_that_knows_no_rules_refuses_them() -> None:
    """Also where nobody has validated the configuration."""
    instances, plan = world()
    for rules in ({"constraints": ("latency <= 5",)}, {"terms": ("-latency",)}):
        with pytest.raises(ValueError, match=r"splits\.solver is 'native', which takes no constr"):
            evaluate(instances, plan, SplitsConfig(**rules).to_solver())


def test_an_episode_keeps_the_rules() -> None:
    """A grant that leaves no splits is a denial, and rewards add up to the gain with the terms."""
    instances, _ = world()
    rules = Rules(RULES["deadline"].constraints, RULES["late"].terms)
    env = EnvConfig(solver=config(rules))
    go = jax.jit(partial(step, env=env))
    state, total = reset(instances, env), 0.0
    for _ in range(6):
        before = state
        state, reward = go(instances, state, jnp.ones(COUNT, jnp.int32))
        total = total + reward
        assert np.all(np.isfinite(state.split))
        assert np.all(np.sum(state.assignment > 0, 0) <= np.sum(before.assignment > 0, 0) + 1)
    placed = equations.place(instances, state.assignment)
    facts = facts_of(instances, placed)
    assert np.max(rules.violation(facts, state.split)) <= 1e-4
    users = np.sum(instances.mask, axis=0)
    gain = gain_of(instances, state.assignment, env.solver)
    np.testing.assert_allclose(total, 0.1 * gain / users, rtol=1e-3, atol=1e-4)
    granted = np.sum(np.asarray(state.assignment) > 0, axis=0)
    assert granted.max() > 0
    assert np.any(granted < np.sum(np.asarray(reset_free(instances)) > 0, axis=0))


def reset_free(instances: Instance) -> jax.Array:
    """What the same actions grant without rules."""
    env = EnvConfig()
    go, state = jax.jit(partial(step, env=env)), reset(instances, env)
    for _ in range(6):
        state, _ = go(instances, state, jnp.ones(COUNT, jnp.int32))
    return state.assignment


def test_baselines_and_whole_splits_keep_the_rules() -> None:
    instances, _ = world()
    solver = config(RULES["energy"])
    gains = {}
    for name in ("deny", "grant", "reduced-greedy"):
        plan = jax.jit(partial(METHODS[name].assign, solver=solver))(instances)
        gains[name] = np.asarray(gain_of(instances, plan, solver))
        assert np.all(np.isfinite(gains[name])), name
    assert np.all(gains["deny"] == 0)
    assert np.all(gains["reduced-greedy"] >= -1e-4)
    assert gains["reduced-greedy"].mean() > 0
    assert METHODS["top-b"].refuse(instances, solver).startswith("top-b needs the plain problem")

    rounded = execute(instances, plan, solver)
    facts = facts_of(instances, equations.place(instances, plan))
    whole = rounded.integer_split.astype(float)
    missed = np.asarray(solver.rules.violation(facts, whole))
    kept = np.asarray(rounded.kept)
    assert missed[kept].max(initial=0) <= 1e-4
    assert kept.mean() >= 0.8
    use = equations.server_use(instances, equations.place(instances, plan), jnp.asarray(whole))
    assert np.all((np.asarray(use) <= np.asarray(instances.budget) + 2e-5)[:, kept])
    instance = jax.tree.map(lambda x: x[..., 0], instances)
    made = oj.solve(instance, "reduced-greedy", solver=solver)
    assert made.status in ("feasible", "feasible, but not in whole steps")


def test_whole_splits_above_a_budget_are_not_kept() -> None:
    """The constraint lets nobody go up to what the budget allows."""
    instances, plan = world()
    placed = equations.place(instances, plan)
    whole = jnp.where(placed.granted, 40, instances.steps).astype(jnp.int32)
    solver = config(Rules(("granted * split <= 40",)))
    for budget, wanted in ((1e-3, False), (1e3, True)):
        given = replace(instances, budget=jnp.full_like(instances.budget, budget))
        mended, kept = mend(given, placed, problem_of(given, placed), whole, solver)
        np.testing.assert_array_equal(mended, whole)
        np.testing.assert_array_equal(kept, wanted)


@pytest.mark.fast
def test_the_pages_on_rules_tell_the_truth() -> None:
    names = (ROOT / "docs" / "reference" / "rules.md").read_text()
    for name in (*FACTS, *SHORTHANDS, *FUNCTIONS, "split"):
        assert f"`{name}`" in names, name
    text = (ROOT / "docs" / "how-to" / "constraints.md").read_text()
    [settings] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    shown = parse_config(settings).splits
    assert len(shown.constraints) == 2
    shown.validate()
    example = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[-1]
    names = {"cp": cp, "jax": jax, "jnp": jnp, "ConeLayer": ConeLayer}
    exec(example, names)
    np.testing.assert_allclose(names["answer"].values[0], np.full((8, 3), 1 / 3), atol=1e-5)
    for name in ("edge_deadline", "edge_energy", "edge_fair"):
        assert load_config(name).splits.to_solver().rules


@pytest.mark.fast
def test_both_readings_of_a_rule_agree() -> None:
    """The numbers of a rule by hand: its value, and how far a plan misses it."""
    instances, plan = world()
    facts = facts_of(instances, equations.place(instances, plan))
    split = jnp.where(plan > 0, 40.0, 50.0)
    latency = facts["wait"] + facts["transfer"] + facts["edge_step"] * (50 - split)
    latency = np.asarray(latency + facts["local_step"] * split)
    real = np.asarray(instances.mask)
    rules = Rules(("max(latency) <= 10",), ("-max(latency)", "sum(latency) / users"))
    wanted = -np.max(np.where(real, latency, 0), 0) + latency.sum(0) / real.sum(0)
    np.testing.assert_allclose(rules.worth(facts, split), wanted, rtol=1e-5)
    worst = np.max(np.where(real, latency, 0), 0)
    missed = np.maximum(worst - 10, 0) / (1 + np.maximum(worst, 10))
    np.testing.assert_allclose(rules.violation(facts, split), missed, rtol=1e-5)
