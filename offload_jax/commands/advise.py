"""`advise`: what an operator asks about one plan, answered in sentences and tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tyro

from offload_jax.files import documents
from offload_jax.files.checks import ConfigError
from offload_jax.files.records import (
    InstanceRecord,
    Plan,
    read_instances,
    read_plans,
    validate_plan,
)
from offload_jax.methods import method_named, solve
from offload_jax.plans.advice import (
    BUDGET,
    CAPACITY,
    OPEN,
    RULES,
    WORTH,
    Advice,
    BatchAdvice,
    Change,
    DeniedAdvice,
    GrantedAdvice,
    ServerAdvice,
    advise,
)
from offload_jax.plans.outcome import objective_denied
from offload_jax.problem.instance import Instance, from_record
from offload_jax.splits import NATIVE

METHOD = "reduced-greedy"

One = TypeVar("One")
Columns = Sequence[tuple[str, Callable[[One], str]]]  # heading, and what an item has there


@dataclass(frozen=True)
class Arguments:
    """Say which budget binds, what more of everything is worth, and who would be granted next."""

    instances: Path
    """Instance file (JSON)."""
    index: int = 0
    """Which of its instances, from 0."""
    plans: Path | None = None
    """Plans of all its instances, as eval writes them; their assignments are advised on."""
    method: str | None = None
    """Method that makes the plan instead. Default: reduced-greedy."""
    json: Path | None = None
    """Where the advice is written to as well, as JSON."""


def run(words: list[str], prog: str) -> int:
    """Prints advice on the plan that the words name."""
    parsed = tyro.cli(Arguments, args=words, prog=prog)
    _check(parsed)
    records = read_instances(parsed.instances)
    if not 0 <= parsed.index < len(records):
        allowed = f"must be in 0..{len(records) - 1}" if records else "must name one: there is none"
        raise ConfigError(f"index is {parsed.index}; {allowed} ({parsed.instances})")
    record, source = records[parsed.index], f"made by {parsed.method or METHOD}"
    instance = from_record(record)
    try:
        if parsed.plans is not None:
            plan, source = _read(parsed.plans, parsed.index, records), f"of {parsed.plans}"
        else:
            plan = solve(instance, parsed.method or METHOD)
        advice = advise(instance, plan.assignment)
    except ValueError as error:  # a method that does not apply, a plan that cannot be executed
        raise ConfigError(str(error)) from None
    print(f"Plan for {record.name}, {source}\n\n{text(advice)}")
    if parsed.plans is not None:
        _warn_of_rules(instance, plan, advice)
    if parsed.json is not None:
        documents.write(parsed.json, [{**advice.to_json(), "instance": record.name}])
        print(f"\nwritten: {parsed.json}")
    return 0


def _check(parsed: Arguments) -> None:
    if parsed.plans is not None and parsed.method is not None:
        raise ConfigError("plans and method are both given; must be one of them")
    if parsed.method is not None:
        method_named(parsed.method)


def _read(path: Path, index: int, records: Sequence[InstanceRecord]) -> Plan:
    """The plan of one instance from a file with the plans of all."""
    plans = read_plans(path)
    if len(plans) != len(records):
        raise ConfigError(
            f"plans has {len(plans)} plan(s); must have one per instance ({len(records)})"
        )
    validate_plan(plans[index], f"{path}[{index}]", instance=records[index])
    return plans[index]


def _warn_of_rules(instance: Instance, plan: Plan, advice: Advice) -> None:
    """A plan that is worth something else here was made for another problem."""
    objective = float(objective_denied(instance, NATIVE)) + advice.gain
    if abs(objective - plan.objective) > 10 * advice.rounding:
        print(
            f"\nwarning: the plan says that its objective is {_s(plan.objective)} s, here it is "
            f"{_s(objective)} s: its split points were not optimal, or it was made for other "
            "instances, or with splits.constraints or splits.terms, which this advice leaves out"
        )


def text(advice: Advice) -> str:
    """The advice for an operator: sentences, and tables with units in their headings."""
    users = len(advice.granted) + len(advice.denied)
    head = [
        f"{len(advice.granted)} of {users} users are granted. That gains {_s(advice.gain)} s over "
        "denying everybody.",
        "Seconds of worth are those of the objective: latency saved, less what lost accuracy is "
        "worth to the users.",
        "All of it holds for this plan, nobody else moved, split points solved again.",
        "Users and servers count from 0 as in the instance file, batches from 1 as in plans.",
        _better(advice),
    ]
    parts = ["\n".join(head), _servers(advice), _batches(advice)]
    parts += [_denied(advice)] if advice.denied else []
    parts += [_granted(advice)] if advice.granted else []
    return "\n\n".join(parts)


def _better(advice: Advice) -> str:
    if advice.better is None:
        return "No single grant, move or denial would improve the plan."
    how, gain = _doing(advice, advice.better), _s(advice.better.gain)
    return f"The plan can be improved: {how} would gain {gain} s more."


def _doing(advice: Advice, change: Change) -> str:
    if change.batch == 0:
        return f"denying user {change.user}"
    if any(one.user == change.user for one in advice.granted):
        return f"moving user {change.user} to batch {change.batch}"
    return f"granting user {change.user} in batch {change.batch}"


def _servers(advice: Advice) -> str:
    columns: Columns[ServerAdvice] = (
        ("server", lambda one: f"{one.server}"),
        ("budget GPU-s", lambda one: "no limit" if math.isinf(one.budget) else f"{one.budget:.2f}"),
        ("used GPU-s", lambda one: f"{one.use:.2f}"),
        ("price s/GPU-s", lambda one: _s(one.price)),
        ("+1 GPU-s, s", lambda one: _s(one.second)),
        ("and a change, s", lambda one: _s(one.decided)),
        ("1 % faster steps, s", lambda one: _s(one.faster)),
    )
    band = (
        f"Radio: 1 % more bandwidth ({0.01 * advice.bandwidth / 1e6:.3g} MHz) is worth "
        f"{_s(advice.wider)} s."
    )
    lines = [_server(advice, one) for one in advice.servers]
    return "\n".join(["SERVERS AND RADIO", *lines, band, *_table(columns, advice.servers)])


def _server(advice: Advice, one: ServerAdvice) -> str:
    name = f"Server {one.server}"
    if math.isinf(one.budget):
        return f"{name} has no budget that could run out."
    if one.binds:
        said = (
            f"{name}: its budget binds. One more GPU-second is worth {_s(one.second)} s to this "
            f"plan, and none is worth more than the price, {_s(one.price)} s"
        )
    else:
        said = (
            f"{name}: {one.budget - one.use:.2f} GPU-seconds are left; more of them are worth "
            "nothing to this plan"
        )
    if one.change is not None and (advice.better is None or one.decided > one.second):
        return f"{said}. One more and {_doing(advice, one.change)} is worth {_s(one.decided)} s."
    # Of a plan that can be improved as it is, every second seems to pay for that.
    if one.binds or advice.better is not None:
        return f"{said}."
    return f"{said}, and one would pay for no single change."


def _batches(advice: Advice) -> str:
    worthy = [one for one in advice.batches if max(one.image, one.image_move) > 0]
    lines = []
    for one in worthy:
        how = f"user {one.image_user} could be granted"
        if one.image_move > one.image:
            how = f"user {one.image_mover} could move there"
        worth = _s(max(one.image, one.image_move))
        lines.append(
            f"Batch {one.batch}: memory for one more image is worth {worth} s, because {how}."
        )
    if not worthy:
        lines.append("Memory for one more image is worth nothing in any batch.")
    full = [f"{one.batch}" for one in advice.batches if one.full]
    if full:
        lines.append(f"No denied user fits in batch {' or '.join(full)}.")
    columns: Columns[BatchAdvice] = (
        ("batch", lambda one: f"{one.batch}"),
        ("server", lambda one: f"{one.server}"),
        ("images", lambda one: f"{one.load:g}"),
        ("capacity", lambda one: f"{one.capacity:g}"),
        ("room", lambda one: f"{one.room:g}"),
        ("+1 image, s", lambda one: _s(one.image)),
        ("estimate, s", lambda one: _s(one.image_estimate)),
        ("by a move, s", lambda one: _s(one.image_move)),
    )
    return "\n".join(["BATCHES", *lines, *_table(columns, advice.batches)])


def _denied(advice: Advice) -> str:
    lines = []
    waiting = [one for one in advice.denied if one.why == CAPACITY]
    if waiting:
        best = max(waiting, key=lambda one: one.gain)
        lines.append(
            f"Next in line is user {best.user}: worth {_s(best.gain)} s in batch {best.batch}, "
            f"which lacks memory for {_images(best.missing)}."
        )
    short = [one for one in advice.denied if one.why == BUDGET]
    if short:
        best = max(short, key=lambda one: one.unlimited)
        lines.append(
            f"For want of GPU-seconds: {len(short)} of {len(advice.denied)}, before all user "
            f"{best.user}, worth {_s(best.unlimited)} s in batch {best.batch} without budgets."
        )
    if not waiting and not short:
        lines.append("Nobody waits for memory or GPU-seconds.")
    columns: Columns[DeniedAdvice] = (
        ("user", lambda one: f"{one.user}"),
        ("images", lambda one: f"{one.demand:g}"),
        ("best batch", lambda one: f"{one.batch}"),
        ("estimate, s", lambda one: _s(one.estimate)),
        ("exact, s", lambda one: _s(one.gain)),
        ("why denied", _why),
    )
    title = "DENIED, by what stops them and by estimate (reduced gain, from the prices)"
    return "\n".join([title, *lines, *_table(columns, advice.denied, words=True)])


def _why(one: DeniedAdvice) -> str:
    also = f", and {_images(one.missing)} too many" if one.missing else ""
    return {
        OPEN: "it fits and gains: the plan is not locally optimal",
        CAPACITY: f"memory: {_images(one.missing)} too many",
        BUDGET: f"GPU-seconds: {_s(one.unlimited)} s without budgets{also}",
        WORTH: "not worth it, budgets or not",
        RULES: "no split points keep the solver's rules",
    }[one.why]


def _granted(advice: Advice) -> str:
    first = advice.granted[0]
    line = (
        f"User {first.user} would be dropped first: its grant is worth {_s(first.worth)} s, "
        f"what it costs the others included."
    )
    columns: Columns[GrantedAdvice] = (
        ("user", lambda one: f"{one.user}"),
        ("images", lambda one: f"{one.demand:g}"),
        ("batch", lambda one: f"{one.batch}"),
        ("worth, s", lambda one: _s(one.worth)),
        ("own steps", lambda one: f"{one.split:.1f} of {advice.steps:g}"),
        ("GPU-s", lambda one: f"{one.use:.2f}"),
    )
    return "\n".join(["GRANTED, smallest worth first", line, *_table(columns, advice.granted)])


def _s(seconds: float) -> str:
    """Seconds to three places; whatever is nearer to 0 is 0."""
    return f"{round(seconds, 3) + 0.0:.3f}"


def _images(count: float) -> str:
    return f"{count:g} image" + ("" if count == 1 else "s")


def _table(columns: Columns[One], items: Sequence[One], words: bool = False) -> list[str]:
    """Lines of a table, an item each, numbers on the right; `words` stand in the last column."""
    header = [title for title, _ in columns]
    rows = [[show(item) for _, show in columns] for item in items]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for line in (header, *rows):
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        lines.append("  ".join(["", *cells[:-1], line[-1] if words else cells[-1]]))
    return lines
