"""Decisions from a bundle: pad, run, check, and fall back rather than answer with a bad plan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from offload_jax.deploy.bundle import Bundle, open_bundle
from offload_jax.deploy.physics import effect
from offload_jax.deploy.ports import INPUTS, RANGED, unpadded
from offload_jax.deploy.runtimes import Runtime, open_runtime, run
from offload_jax.files.checks import SchemaError
from offload_jax.files.records import (
    Floats,
    InstanceRecord,
    Plan,
    parse_instances,
    plan_to_json,
    validate,
)

Source = Literal["policy", "fallback", "deny"]
MOST_STEPS = 100_000  # beyond any denoising run; float32 counts whole steps exactly up to 2**24
ANSWER_HEADER = {"format": "offload-jax/answer", "version": 1}


@dataclass(frozen=True, eq=False)
class Answer:
    """A plan that may be executed, what it does, and who made it."""

    plan: Plan
    latency: Floats  # (N,) s, with the whole splits
    accuracy: Floats  # (N,)
    price: Floats  # (G,) s per GPU-second
    source: Source
    notes: tuple[str, ...]  # why it is not the policy's plan, or what was cut short

    def to_json(self) -> dict[str, Any]:
        return {
            **ANSWER_HEADER,
            "plan": plan_to_json(self.plan),
            "latency": self.latency.tolist(),
            "accuracy": self.accuracy.tolist(),
            "price": self.price.tolist(),
            "source": self.source,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Ask:
    """How one instance is to be decided."""

    samples: int = 1  # 1: the most likely decisions; more: the best of so many plans
    seed: int = 0
    deadline: float = np.inf  # time.monotonic() at which the best plan so far is wanted


def load(path: str | Path, runtime: str | None = None, warm: bool = True) -> Decider:
    """A decider from a bundle's folder or .zip; `runtime` is iree or jax (default: first found).

    `warm` makes every program ready now instead of at its first call. Raises BundleError.
    """
    bundle = open_bundle(path)
    decider = Decider(bundle, open_runtime(bundle, runtime))
    if warm:
        decider.warm_up()
    return decider


class Decider:
    """Decides instances of the bundle's number of batches and servers, and up to its users."""

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        self.bundle, self.runtime = bundle, runtime
        self.samples = int(bundle.about["sizes"]["samples"])  # of its best-of-P program
        self._last_s: dict[str, float] = {}  # of the last call of each entry

    def warm_up(self, together: bool = False) -> None:
        """Runs the programs once for each size; `together`: also for many instances at once."""
        record = parse_instances(self.bundle.vectors[0]["instance"])[0]
        for users in self.bundle.sizes:
            few = _first_users(record, users)
            self._run("fallback", [few], [Ask()], users)
            for count in self.runtime.batches("greedy") if together else (1,):
                self._run("greedy", [few] * count, [Ask()] * count, users)

    def decide(
        self, request: Any, samples: int = 1, seed: int = 0, deadline_s: float | None = None
    ) -> Answer:
        """The answer for one instance: JSON text, a loaded object, or an InstanceRecord.

        `samples` > 1 also tries the bundle's number of sampled plans and keeps the best; with a
        `deadline_s` (s from now) only while time is left. Raises SchemaError naming the field.
        """
        end = np.inf if deadline_s is None else time.monotonic() + deadline_s
        (record,) = self.parse(request)
        return self.decide_many([record], [Ask(samples, seed, end)])[0]

    def parse(self, request: Any, source: str = "request") -> list[InstanceRecord]:
        """The instances of a request, within the bundle's limits. Raises SchemaError."""
        if isinstance(request, InstanceRecord):
            validate(request, source)
            records = [request]
        else:
            records = parse_instances(request, source)
        for record in records:
            self._check_sizes(record, source if len(records) == 1 else f"{source} {record.name}")
        return records

    def _check_sizes(self, record: InstanceRecord, path: str) -> None:
        sizes = self.bundle.about["sizes"]
        if record.steps > MOST_STEPS:
            wrong, allowed = f"is {record.steps:g}", f"must be at most {MOST_STEPS} (steps)"
            raise SchemaError(f"{path}.steps", wrong, allowed)
        for place, array, axis in (
            ("batches", record.intercept, "batches"),
            ("servers", record.budget, "servers"),
        ):
            if len(array) != sizes[axis]:
                raise SchemaError(
                    f"{path}.{place}",
                    f"has length {len(array)}",
                    f"must be {sizes[axis]}, as the bundle was exported for",
                )
        if len(record.alpha) > self.bundle.sizes[-1]:
            raise SchemaError(
                f"{path}.users",
                f"has length {len(record.alpha)}",
                f"must be at most {self.bundle.sizes[-1]}, the bundle's limit",
            )

    def decide_many(
        self, records: Sequence[InstanceRecord], asks: Sequence[Ask] | None = None
    ) -> list[Answer]:
        """Answers for parsed instances, computed side by side where the runtime can."""
        asks = [Ask()] * len(records) if asks is None else asks
        strange = [self._strange(record) for record in records]
        answers: dict[int, Answer] = {}
        for i, notes in enumerate(strange):
            if time.monotonic() >= asks[i].deadline:
                answers[i] = _denied(records[i], ("the deadline has passed",))
            elif notes:
                answers[i] = self._fallback(records[i], asks[i], notes)
        waiting = [i for i in range(len(records)) if i not in answers]
        for users in self.bundle.sizes:
            group = [i for i in waiting if self._size(records[i]) == users]
            found = self._by_policy([records[i] for i in group], [asks[i] for i in group], users)
            answers.update(zip(group, found, strict=True))
        return [answers[i] for i in range(len(records))]

    def _by_policy(
        self, records: Sequence[InstanceRecord], asks: Sequence[Ask], users: int
    ) -> list[Answer]:
        answers = self._run("greedy", records, asks, users)
        wanted = [i for i, ask in enumerate(asks) if ask.samples > 1]
        for part in self._parts("best", wanted):
            late = time.monotonic() + self._last_s.get("best", 0)
            for i in (i for i in part if asks[i].deadline < late):
                answers[i] = replace(answers[i], notes=("no time for samples before the deadline",))
            more = [i for i in part if asks[i].deadline >= late]
            sampled = self._run("best", [records[i] for i in more], [asks[i] for i in more], users)
            for i, answer in zip(more, sampled, strict=True):
                answers[i] = max(answers[i], answer, key=_worth)
        return [
            answer
            if not answer.plan.status.startswith("broken")
            else self._fallback(record, ask, (f"policy's plan: {answer.plan.status}",))
            for record, ask, answer in zip(records, asks, answers, strict=True)
        ]

    def _fallback(self, record: InstanceRecord, ask: Ask, notes: tuple[str, ...]) -> Answer:
        """Adaptive greedy's plan, or nobody granted if that breaks a constraint, too."""
        (answer,) = self._run("fallback", [record], [ask], self._size(record))
        if answer.plan.status.startswith("broken"):
            return _denied(record, (*notes, f"fallback's plan: {answer.plan.status}"))
        return replace(answer, notes=notes)

    def _size(self, record: InstanceRecord) -> int:
        return next(size for size in self.bundle.sizes if len(record.alpha) <= size)

    def _run(
        self, entry: str, records: Sequence[InstanceRecord], asks: Sequence[Ask], users: int
    ) -> list[Answer]:
        """A program's answers, each checked; its status says what is broken."""
        answers: list[Answer] = []
        for part in self._parts(entry, range(len(records))):
            chosen = [records[i] for i in part]
            answers += self._call(entry, chosen, [asks[i] for i in part], users)
        return answers

    def _parts(self, entry: str, items: Sequence[int]) -> list[Sequence[int]]:
        """What one call of a program can take, each."""
        most = self.runtime.batches(entry)[-1]
        return [items[i : i + most] for i in range(0, len(items), most)]

    def _call(
        self, entry: str, records: Sequence[InstanceRecord], asks: Sequence[Ask], users: int
    ) -> list[Answer]:
        start = time.perf_counter()
        seeds = [ask.seed for ask in asks]
        outputs = run(self.runtime, entry, records, seeds, users, self.samples)
        seconds = time.perf_counter() - start
        self._last_s[entry] = seconds
        method = "adaptive greedy" if entry == "fallback" else f"policy {self.bundle.name}"
        method += f" best of {self.samples}" if entry == "best" else ""
        source: Source = "fallback" if entry == "fallback" else "policy"
        outs = [unpadded(outputs, i, len(record.alpha)) for i, record in enumerate(records)]
        each = seconds / len(records)
        return [_answer(*pair, source, method, each) for pair in zip(records, outs, strict=True)]

    def _strange(self, record: InstanceRecord) -> tuple[str, ...]:
        """What lies outside the ranges that the policy was trained for."""
        return tuple(
            f"{name} {low:g}..{high:g} lies outside the trained range {least:g}..{most:g}"
            for name, (low, high) in spans(record).items()
            if (known := self.bundle.about["ranges"].get(name))
            for least, most in [[np.inf if x is None else x for x in known]]
            if low < least or high > most
        )


def _first_users(record: InstanceRecord, count: int) -> InstanceRecord:
    users = {port.name: getattr(record, port.name)[:count] for port in INPUTS if "N" in port.axes}
    return replace(record, **users)


def spans(record: InstanceRecord) -> dict[str, tuple[float, float]]:
    """The smallest and largest number of every field; inf stands for no limit.

    `load` is all that is asked for as a share of all capacities.
    """
    found = {port.name: np.asarray(getattr(record, port.name), float) for port in RANGED}
    found["users"] = np.array(float(len(record.alpha)))
    found["load"] = np.sum(record.demand) / np.maximum(np.sum(record.capacity), 1e-9)
    return {name: (float(np.min(x)), float(np.max(x))) for name, x in found.items()}


def _answer(
    record: InstanceRecord,
    out: dict[str, np.ndarray],
    source: Source,
    method: str,
    seconds: float,
    notes: tuple[str, ...] = (),
) -> Answer:
    """A checked answer from what was put out for one instance."""
    assignment = out["assignment"].astype(np.int64)
    whole = out["integer_split"].astype(np.int64)
    split = np.clip(out["split"].astype(np.float64), 0, record.steps)
    done = effect(record, assignment, whole)
    plan = Plan(
        assignment=assignment,
        split=split,
        integer_split=whole,
        objective=effect(record, assignment, split).objective,
        integer_objective=done.objective,
        bound=None,
        status=f"broken: {'; '.join(done.flaws)}" if done.flaws else "feasible",
        seconds=seconds,
        method=method,
    )
    price = out["price"].astype(np.float64)
    return Answer(plan, done.latency, done.accuracy, price, source, notes)


def _denied(record: InstanceRecord, notes: tuple[str, ...]) -> Answer:
    """Everybody runs locally: always feasible."""
    nobody = np.zeros(len(record.alpha))
    everything = np.full(len(record.alpha), record.steps)
    out = {"assignment": nobody, "split": everything, "integer_split": everything}
    out["price"] = np.zeros(len(record.budget))
    return _answer(record, out, "deny", "deny", 0.0, notes)


def _worth(answer: Answer) -> float:
    broken = answer.plan.status.startswith("broken")
    return -np.inf if broken else answer.plan.objective
