"""Advice: what the prices say of a plan, against solving again, one change at a time."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import evaluate, gain_of
from episodes import numpy, one, world

from offload_jax import cli
from offload_jax.commands.advise import text
from offload_jax.files import records
from offload_jax.plans.advice import BUDGET, CAPACITY, OPEN, RULES, WORTH, advise
from offload_jax.plans.candidates import exact_gains
from offload_jax.plans.reduced_gains import move_gains
from offload_jax.problem import equations
from offload_jax.problem.instance import save_instances, toy
from offload_jax.splits import SplitsConfig

COUNT = 24
exact = jax.jit(exact_gains)


@jax.jit
def estimates(instance, plan):
    outcome = evaluate(instance, plan)
    return move_gains(instance, equations.place(instance, plan), outcome.split, outcome.price)


def worth(instance, plan) -> float:
    return float(gain_of(instance, jnp.asarray(plan, jnp.int32)))


def changed(plan, user: int, batch: int):
    plan = plan.copy()
    plan[user] = batch
    return plan


def cases():
    """Instances of the edge world with random plans that fit.

    By turns as they are, without room to spare, and with small budgets and some quick devices.
    """
    draw = np.random.default_rng(0)
    instances = world("edge", COUNT)
    for index in range(COUNT):
        instance = one(instances, index)
        facts, plan = numpy(instance), np.zeros(instance.num_users, np.int32)
        for user in draw.permutation(np.flatnonzero(facts.mask)):
            new = changed(plan, user, max(0, draw.integers(-3, 1 + instance.num_batches)))
            plan = new if np.all(loads(facts, new) <= facts.capacity) else plan
        if index % 3 == 1:
            capacity = np.where(np.arange(instance.num_batches) % 2, 1, 0) + loads(facts, plan)
            instance = replace(instance, capacity=jnp.asarray(capacity))
        if index % 3 == 2:
            quick = jnp.where(jnp.arange(instance.num_users) % 2, 0.2, 1) * instance.local_step
            instance = replace(instance, local_step=quick, budget=0.1 * instance.budget)
        yield instance, numpy(instance), plan


def loads(facts, plan):
    return np.array([np.sum(facts.demand[plan == k + 1]) for k in range(facts.num_batches)])


def singles(facts, plan, capacity, granted: bool = False):
    """All (user, batch) grants of denied users, or moves of granted ones, that fit."""
    return [
        (user, batch)
        for user in np.flatnonzero(facts.mask & ((plan > 0) == granted))
        for batch in range(1, facts.num_batches + 1)
        if batch != plan[user]
        and loads(facts, changed(plan, user, batch))[batch - 1] <= capacity[batch - 1] + 1e-9
    ]


def test_prices_are_derivatives_and_bound_whole_seconds(x64) -> None:
    bind, strict = 0, 0
    for instance, facts, plan in cases():
        advice, now = advise(instance, plan), worth(instance, plan)
        assert advice.gain == pytest.approx(now, abs=1e-9)
        for server in advice.servers:
            here = np.arange(facts.num_servers) == server.server

            def at(more, instance=instance, plan=plan, here=here):
                return worth(replace(instance, budget=instance.budget + more * here), plan)

            slope = (at(1e-5) - at(-1e-5)) / 2e-5
            assert server.price == pytest.approx(slope, abs=1e-4)
            assert server.binds == (slope > 1e-6) == (server.price > 0)
            if server.binds:
                assert server.use == pytest.approx(server.budget, abs=1e-6)
            assert server.second == pytest.approx(at(1.0) - now, abs=1e-9)
            assert -1e-12 <= server.second <= server.price + 1e-9
            bind, strict = bind + server.binds, strict + (server.second < 0.9 * server.price)
    assert COUNT / 4 < bind < 7 * COUNT / 4
    assert strict > 2


def test_speed_and_bandwidth_against_finite_differences(x64) -> None:
    for instance, facts, plan in cases():
        advice = advise(instance, plan)
        for server in advice.servers:

            def at(factor, instance=instance, plan=plan, g=server.server):
                time = jnp.where(instance.server == g, factor, 1.0)
                quick = replace(
                    instance,
                    intercept=time * instance.intercept,
                    interference=time[:, None] * instance.interference,
                )
                return worth(quick, plan)

            slope = (at(1 - 1e-5) - at(1 + 1e-5)) / 2e-5
            assert server.faster == pytest.approx(0.01 * slope, abs=1e-6)
        wide, narrow = (
            worth(replace(instance, bandwidth=factor * instance.bandwidth), plan)
            for factor in (1 + 1e-5, 1 - 1e-5)
        )
        assert advice.wider == pytest.approx(0.01 * (wide - narrow) / 2e-5, abs=1e-8)
        assert (advice.wider > 0) == (facts.mask & (plan > 0)).any()


def test_denied_users_have_their_exact_gains_and_reasons(x64) -> None:
    seen = set()
    for instance, facts, plan in cases():
        gains, now = np.asarray(exact(instance, jnp.asarray(plan))), worth(instance, plan)
        reduced = np.asarray(estimates(instance, jnp.asarray(plan)))
        denied = advise(instance, plan).denied
        assert {d.user for d in denied} == set(np.flatnonzero(facts.mask & (plan == 0)))
        free = replace(instance, budget=jnp.full_like(instance.budget, jnp.inf))
        for d in denied:
            seen.add(d.why)
            new = changed(plan, d.user, d.batch)
            over = loads(facts, new)[d.batch - 1] - facts.capacity[d.batch - 1]
            assert d.missing == max(over, 0)
            assert d.gain == pytest.approx(worth(instance, new) - now, abs=1e-9)
            assert d.unlimited == pytest.approx(worth(free, new) - worth(free, plan), abs=1e-9)
            assert d.estimate == pytest.approx(reduced[d.user, d.batch - 1], abs=1e-9)
            if d.missing == 0:
                assert d.gain == pytest.approx(gains[d.user, d.batch - 1], abs=1e-9)
            assert (d.why == OPEN) == (np.max(gains[d.user]) > 1e-9)
            if d.why == OPEN:
                assert d.gain == pytest.approx(np.max(gains[d.user]), abs=1e-9)
            if d.why == CAPACITY:
                assert d.gain > 0 < d.missing
            if d.why == BUDGET:
                assert d.gain <= 1e-9 < d.unlimited
        for why in seen:
            ranked = [d.estimate for d in denied if d.why == why]
            assert ranked == sorted(ranked, reverse=True)
    assert seen == {OPEN, CAPACITY, BUDGET, WORTH}


@pytest.mark.parametrize("granted", [False, True])
def test_one_more_image_is_what_a_loop_finds(x64, granted) -> None:
    found = 0
    for instance, facts, plan in cases():
        now, anything = worth(instance, plan), np.full(facts.num_batches, np.inf)
        pairs = singles(facts, plan, anything, granted)
        gains = {pair: worth(instance, changed(plan, *pair)) - now for pair in pairs}
        fitting = singles(facts, plan, facts.capacity, granted)
        before = max([0.0, *(gains[pair] for pair in fitting)])
        for batch in advise(instance, plan).batches:
            k = batch.batch - 1
            assert batch.load == loads(facts, plan)[k] == batch.capacity - batch.room
            larger = facts.capacity + (np.arange(facts.num_batches) == k)
            after = [gains[pair] for pair in singles(facts, plan, larger, granted)]
            mine = batch.image_move if granted else batch.image
            user = batch.image_mover if granted else batch.image_user
            assert mine == pytest.approx(max([before, *after]) - before, abs=1e-9)
            assert (user is None) == (mine == 0)
            if user is not None:
                assert mine == pytest.approx(gains[user, batch.batch] - before, abs=1e-9)
            if not granted:
                nobody = all(pair[1] != batch.batch for pair in fitting)
                assert batch.full == (nobody and (facts.mask & (plan == 0)).any())
            found += mine > 0
    assert found > 2


def test_grants_moves_and_seconds_with_one_user_decided_anew(x64) -> None:
    better, above = 0, 0
    for instance, facts, plan in cases():
        advice, now = advise(instance, plan), worth(instance, plan)
        for granted in advice.granted:
            without = worth(instance, changed(plan, granted.user, 0))
            assert granted.worth == pytest.approx(now - without, abs=1e-9)
            assert granted.batch == plan[granted.user]
        worths = [granted.worth for granted in advice.granted]
        assert worths == sorted(worths)
        use = sum(granted.use for granted in advice.granted)
        assert use == pytest.approx(sum(server.use for server in advice.servers))
        plans = [plan, *(changed(plan, user, 0) for user in np.flatnonzero(facts.mask))]
        for user in np.flatnonzero(facts.mask):
            plans += [changed(plan, user, k + 1) for k in range(facts.num_batches)]
        plans = [new for new in plans if np.all(loads(facts, new) <= facts.capacity)]
        best = max(worth(instance, new) for new in plans) - now
        assert (advice.better.gain if advice.better else 0) == pytest.approx(best, abs=1e-9)
        better += best > 1e-9
        for server in advice.servers:
            here = np.arange(facts.num_servers) == server.server
            rich = replace(instance, budget=instance.budget + here)
            then = max(worth(rich, new) for new in plans) - now
            assert server.decided == pytest.approx(then - best, abs=1e-9)
            if server.change is not None:
                assert server.change.gain == pytest.approx(then, abs=1e-9)
            above += server.decided > server.second + 1e-9
    assert better > 0
    assert above > 0


def test_the_toy_by_hand(x64) -> None:
    instance, plan, _ = toy()
    advice = advise(instance, plan)
    [server] = advice.servers
    assert (server.binds, server.price, server.second, server.decided) == (False, 0, 0, 0)
    assert server.use == pytest.approx(8 * (0.2 + 0.1))
    assert server.faster == pytest.approx(0.01 * 8 * (0.3 + 0.2))  # s: steps take 0.3 and 0.2
    assert [(g.user, round(g.worth, 9)) for g in advice.granted] == [(1, 2.4), (0, 5.6)]
    [denied] = advice.denied  # would run locally, and slow the others by 8 * 0.1
    assert (denied.gain, denied.estimate) == pytest.approx((-0.8, -0.8))
    assert denied.why == WORTH
    assert [(b.load, b.room, b.full, b.image) for b in advice.batches] == [
        (2, 0, True, 0), (1, 0, True, 0)]  # fmt: skip
    assert advice.better is None
    assert advice.wider == 0

    # User 2 in the way: with one more image user 1 would gain 8 (0.5 - 0.3) in batch 2.
    blocked = advise(instance, np.array([1, 0, 2]))
    [denied] = blocked.denied
    assert (denied.user, denied.batch, denied.missing, denied.why) == (1, 2, 1, CAPACITY)
    assert denied.gain == pytest.approx(1.6)
    assert [b.image for b in blocked.batches] == pytest.approx([0, 1.6])
    assert [b.image_user for b in blocked.batches] == [None, 1]
    assert blocked.granted[0].user == 2
    assert blocked.granted[0].worth == pytest.approx(0)

    # A place left empty. Moves: alone in batch 1, user 1 would be as well off in batch 2.
    unfinished = advise(instance, np.array([1, 0, 0]))
    assert (unfinished.better.user, unfinished.better.batch) == (1, 2)
    assert unfinished.better.gain == pytest.approx(2.4)
    assert next(d.why for d in unfinished.denied if d.user == 1) == OPEN
    assert "granting user 1 in batch 2 would gain 2.400 s more" in text(unfinished)

    # A budget of 1 GPU-second: 1.4 of the 2.4 are missing. User 1 earns 0.3 / 0.1 = 3 s for each,
    # user 0 earns 0.7 / 0.2 = 3.5 s, so user 1 does without its 0.8 and user 0 without 0.6.
    tight = advise(replace(instance, budget=jnp.ones(1)), plan)
    [server] = tight.servers
    assert server.binds
    assert (server.price, server.second) == pytest.approx((3.5, 0.6 * 3.5 + 0.4 * 3))
    assert tight.gain == pytest.approx(3.5)
    assert "Server 0: its budget binds." in text(tight)
    assert "3.500 s" in text(tight)


def test_padding_and_limits_are_left_out(x64) -> None:
    instance, facts, plan = next(case for case in cases() if not case[1].mask.all())
    open_ended = replace(instance, budget=jnp.full_like(instance.budget, jnp.inf))
    garbage = np.where(facts.mask, plan, 2)  # padded users have no say
    advice = advise(open_ended, garbage)
    assert len(advice.granted) + len(advice.denied) == facts.mask.sum()
    assert not any(server.binds or server.decided for server in advice.servers)
    assert "has no budget that could run out" in text(advice)
    document = json.loads(json.dumps(advice.to_json(), allow_nan=False))
    assert document["servers"][0]["budget"] is None
    assert document["format"] == "offload-jax/advice"


def test_rules_are_kept_and_do_no_harm(x64) -> None:
    """The rule forbids a third grant, but leaves the plan itself as it would be without."""
    instance, plan, _ = toy()
    instance = replace(instance, budget=jnp.ones(1), alpha=jnp.array([0.2, 0.1, 0.1]))
    rule = "granted * edge_step * num_granted <= 0.61"
    native = advise(instance, plan)
    ruled = advise(
        instance, plan, SplitsConfig("cvxpylayers-moreau", constraints=(rule,)).to_solver()
    )
    assert native.servers[0].binds
    for name in ("binds", "price", "second", "faster"):
        mine, theirs = (getattr(a.servers[0], name) for a in (native, ruled))
        assert theirs == pytest.approx(mine, abs=1e-4)
    for mine, theirs in zip(native.granted, ruled.granted, strict=True):
        assert (theirs.user, theirs.worth) == (mine.user, pytest.approx(mine.worth, abs=1e-4))
    assert [d.why for d in ruled.denied] == [RULES]
    assert ruled.to_json()["denied"][0]["gain"] is None


@pytest.mark.parametrize(
    ("plan", "phrase"),
    [
        ([1, 2], "assignment has shape (2,); must be (3,)"),
        ([1, 3, 0], "assignment ranges over 0..3; must be 0 (deny) to 2"),
        ([1.0, 2.0, 0.0], "must be integers"),
        ([1, 1, 0], "assignment puts 3 images in batch 1; must be at most its capacity (2)"),
    ],
)
def test_plans_that_are_none(plan, phrase) -> None:
    with pytest.raises(ValueError, match="assignment") as caught:
        advise(toy()[0], np.array(plan))
    assert phrase in str(caught.value)


def test_one_instance_only() -> None:
    with pytest.raises(ValueError, match="must be one instance"):
        advise(world("edge", 2), np.zeros((6, 2), np.int32))


def test_command(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    save_instances("site.json", [toy()[0]] * 2)
    assert cli.main(["advise", "--instances", "site.json", "--json", "out.json"]) == 0
    said = capsys.readouterr().out
    assert "Plan for instance-0, made by reduced-greedy" in said
    assert "User 1 would be dropped first: its grant is worth 2.400 s" in said
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["granted"][0]["worth"] == pytest.approx(2.4, abs=1e-5)
    assert document["instance"] == "instance-0"

    plan = records.Plan(np.array([1, 0, 2]), np.full(3, 10.0), np.full(3, 10), 0.0, 0.0, None, "",
                       0.0, "by hand")  # fmt: skip
    records.write_plans("plans.json", [plan, plan])
    words = ["advise", "--instances", "site.json", "--index", "1", "--plans", "plans.json"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "Plan for instance-1, of plans.json" in said
    assert "Batch 2: memory for one more image is worth 1.600 s, because user 1 could be" in said
    assert "warning: the plan says that its objective is 0.000 s, here it is" in said


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (["--index", "1"], "index is 1; must be in 0..0"),
        (["--index", "-1"], "index is -1; must be in 0..0"),
        (["--method", "magic"], "method is 'magic'; must be one of deny"),
        (["--method", "top-b"], "method is 'top-b', which does not apply"),
        (["--method", "deny", "--plans", "plans.json"], "plans and method are both given"),
        (["--plans", "plans.json"], "plans.json[0].assignment: has length 2; must be N = 3"),
        (["--plans", "two.json"], "plans has 2 plan(s); must have one per instance (1)"),
        (["--plans", "over.json"], "must be at most its capacity (2)"),
        (["--plans", "gone.json"], "gone.json"),
        (["--instances", "missing.json"], "missing.json"),
    ],
)
def test_command_refuses(words, phrase, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    save_instances("site.json", [toy()[0]])
    for name, plans in {"plans": [[1, 2]], "two": [[1, 2, 0]] * 2, "over": [[1, 1, 0]]}.items():
        records.write_plans(
            f"{name}.json",
            [
                records.Plan(np.array(p), np.full(len(p), 9.0), np.full(len(p), 9), 0.0, 0.0, None,
                            "", 0.0, "by hand")
                for p in plans
            ],
        )  # fmt: skip
    assert cli.main(["advise", "--instances", "site.json", *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert phrase in error
