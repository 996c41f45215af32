"""Instances and plans: exact round trips, and each rule refused at its place."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from paths import GOLDEN
from samples import INSTANCE, PLAN, M, N, assert_refused, changed, record

from offload_jax.files.records import (
    instance_to_json,
    parse_instances,
    parse_plan,
    plan_to_json,
    read_instances,
    read_plans,
    validate,
    validate_plan,
    write_instances,
    write_plans,
)

# place, new value (JSON, or `removed`), message from the field's path on
DOMAIN = """
steps                       | 0     | steps: is 0; must be > 0 (steps)
steps                       | 50.5  | steps: is 50.5; must be a whole number (steps)
bandwidth                   | -1    | bandwidth: is -1; must be > 0 (Hz)
servers.0.budget            | -1    | servers[0].budget: is -1; must be >= 0 (s), or null for no limit
batches.1.server            | 2     | batches[1].server: is 2; must be < G = 2 (server from 0)
batches.1.server            | -1    | batches[1].server: is -1; must be >= 0 (server from 0)
batches.1.intercept         | -1    | batches[1].intercept: is -1; must be >= 0 (s)
batches.1.capacity          | -1    | batches[1].capacity: is -1; must be >= 0 (images)
interference.0.1            | -1    | interference[0][1]: is -1; must be >= 0 (s/image)
interference.1.1            | 0     | interference[1][1]: is 0; must be > 0 on the diagonal (s/image)
users.2.local_step          | 0     | users[2].local_step: is 0; must be > 0 (s/step)
users.2.alpha               | -1e-9 | users[2].alpha: is -1e-09; must be >= 0 (s)
users.2.wait                | -1    | users[2].wait: is -1; must be >= 0 (s)
users.2.demand              | 0     | users[2].demand: is 0; must be > 0 (images)
users.2.payload             | -1    | users[2].payload: is -1; must be >= 0 (bit)
users.2.spectral_efficiency | 0     | users[2].spectral_efficiency: is 0; must be > 0 (bit/s/Hz)
users.2.split_min           | -1    | users[2].split_min: is -1; must be >= 0 (steps)
users.2.split_min           | 50.5  | users[2].split_min: is 50.5; must be <= steps = 50 (steps)
users.2.accuracy_local      | 1.01  | users[2].accuracy_local: is 1.01; must be <= 1
users.2.accuracy_local      | 0     | users[2].accuracy_local: is 0; must be > 0
users.2.accuracy.0.floor    | -0.1  | users[2].accuracy[0].floor: is -0.1; must be >= 0
users.2.accuracy.0.floor    | 0.9   | users[2].accuracy[0].floor: is 0.9; must be < accuracy_local = 0.9
users.2.accuracy.0.slope    | 0     | users[2].accuracy[0].slope: is 0; must be > 0 (1/step)
users.2.accuracy.0.centre   | 50    | users[2].accuracy[0].centre: is 50; must be < steps = 50 (steps)
optimum.assignment.1        | 3     | optimum.assignment[1]: is 3; must be <= M = 2 (batch from 1, 0 to deny)
optimum.assignment.1        | -1    | optimum.assignment[1]: is -1; must be >= 0 (batch from 1, 0 to deny)
optimum.split.1             | 51    | optimum.split[1]: is 51; must be <= steps = 50 (steps)
optimum.split.1             | -1    | optimum.split[1]: is -1; must be >= 0 (steps)
"""  # noqa: E501
FORM = """
users.1.wait       | true     | users[1].wait: is true; must be a finite number >= 0 (s)
users.1.wait       | null     | users[1].wait: is null; must be a finite number >= 0 (s)
users.1.wait       | NaN      | users[1].wait: is NaN; must be a finite number >= 0 (s)
users.1.wait       | 1e400    | users[1].wait: is Infinity; must be a finite number >= 0 (s)
users.1.wait       | removed   | users[1].wait: is missing; must be a finite number >= 0 (s)
users.1.waits      | 1        | users[1]: has the unknown key "waits", nearest to 'wait'; must
users.1.accuracy   | []       | users[1].accuracy: has length 0; must be M = 2
servers.1.budget   | Infinity | servers[1].budget: is Infinity; must be a finite number >= 0 (s), or
batches.0.server   | 0.0      | batches[0].server: is 0.0; must be an integer >= 0 and < G (server
batches.0.model    | 1        | batches[0].model: is 1; must be a string, or null for unnamed
name               | 1        | name: is 1; must be a string
format             | "x"      | format: is "x"; must be "offload-jax/instance"
version            | 2        | version: is 2; must be 1
version            | true     | version: is true; must be 1
users              | []       | users: has length 0; must be at least 1
users.1            | 7        | users[1]: is 7; must be an object
servers            | []       | servers: has length 0; must be at least 1
interference.1     | [1]      | interference[1]: has length 1; must be M = 2
optimum            | null     | optimum: is null; must be an object
"""
PLANS = """
assignment.0       | -1       | assignment[0]: is -1; must be >= 0 (batch from 1, 0 to deny)
split              | [1]      | split: has length 1; must be N = 3
split.2            | -1       | split[2]: is -1; must be >= 0 (steps)
integer_split.1    | 1.5      | integer_split[1]: is 1.5; must be an integer >= 0 and <= steps
objective          | null     | objective: is null; must be a finite number (s)
bound              | NaN      | bound: is NaN; must be a finite number (s), or null for none proven
bound              | removed   | bound: is missing; must be a finite number (s), or null
seconds            | -1       | seconds: is -1; must be >= 0 (s)
format             | 1        | format: is 1; must be "offload-jax/plan"
assignment.0       | 3        | assignment[0]: is 3; must be <= M = 2 (batch from 1, 0 to deny)
split.1            | 50.5     | split[1]: is 50.5; must be <= steps = 50 (steps)
integer_split.1    | 51       | integer_split[1]: is 51; must be <= steps = 50 (steps)
"""


def rows(*tables: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", [r for t in tables for r in t.strip().splitlines()])


def parts(row: str):
    """The place as a list of keys, the value and the message of a row."""
    where, value, message = (part.strip() for part in row.split("|"))
    keys = [int(key) if key.isdigit() else key for key in where.split(".")]
    return keys, value if value == "removed" else json.loads(value), message


@rows(DOMAIN, FORM)
def test_each_rule_is_refused_at_its_place(row):
    where, value, message = parts(row)
    text = json.dumps([INSTANCE, changed(INSTANCE, where, value)])
    assert_refused(f"fleet.json[1].{message}", parse_instances, text, "fleet.json")


@rows(DOMAIN)
def test_arrays_are_refused_as_files_are(row):
    where, value, message = parts(row)
    instance = record()
    owner = instance.optimum if where[0] == "optimum" else instance
    keys = [key for key in where if isinstance(key, str)]
    attr = "_".join(keys[1:] or keys)
    array = np.array(getattr(owner, attr))
    array[tuple(key for key in where if isinstance(key, int))] = value
    object.__setattr__(owner, attr, array if array.ndim else float(array))  # they are frozen
    assert_refused(f"r.{message}", validate, instance, "r")


@pytest.mark.parametrize(
    ("attr", "value", "message"),
    [
        ("alpha", np.ones(2), "alpha: has shape (2,); must be (N = 3)"),
        ("interference", np.ones(2), "interference: has shape (2,); must be (M = 2, M = 2)"),
        ("budget", np.ones(0), "servers: has length 0; must be at least 1"),
        ("budget", np.full(2, -np.inf), "servers[0].budget: is -Infinity; must be a finite"),
        ("server", np.zeros(2), "batches[0].server: is 0.0; must be an integer"),
        ("wait", np.full(3, np.nan), "users[0].wait: is NaN; must be a finite number"),
        ("wait", np.full(3, True), "users[0].wait: is true; must be a finite number"),
        ("name", None, "name: is null; must be a string"),
    ],
)
def test_shapes_and_types_of_arrays_are_checked(attr, value, message):
    instance = record()
    object.__setattr__(instance, attr, value)
    assert_refused(f"r.{message}", validate, instance, "r")


def check_plan(document) -> None:
    """Reads a plan and checks it against its instance."""
    validate_plan(parse_plan(document, "p"), "p", record())


@rows(PLANS)
def test_plans_are_refused_at_the_place(row):
    where, value, message = parts(row)
    check_plan(PLAN)
    assert_refused(f"p.{message}", check_plan, changed(PLAN, where, value))


def test_round_trips_are_exact(tmp_path):
    file = tmp_path / "instances.json"
    named = changed(INSTANCE, ["batches", 1, "model"], "anime")
    bare = changed(INSTANCE, ["optimum"], "removed")
    for documents in ([], [INSTANCE], [named, bare]):
        write_instances(file, parse_instances(documents))
        assert json.loads(file.read_text()) == (documents[0] if len(documents) == 1 else documents)
        records = read_instances(file)
        assert [instance_to_json(record) for record in records] == documents
    assert (records[0].model, records[1].optimum) == ((None, "anime"), None)
    assert records[0].budget.tolist() == [1.5, math.inf]
    assert records[0].interference.tolist() == INSTANCE["interference"]
    assert records[0].accuracy_floor.shape == (N, M)
    assert (records[0].server.dtype, records[0].demand.dtype) == (np.int64, np.float64)


def test_plans_round_trip(tmp_path):
    for documents in ([PLAN], [PLAN, {**PLAN, "bound": -20.1}]):
        plans = [parse_plan(json.dumps(document)) for document in documents]
        write_plans(tmp_path / "plans.json", plans)
        plans = read_plans(tmp_path / "plans.json")
        assert [plan_to_json(plan) for plan in plans] == documents
    assert [plan.bound for plan in plans] == [None, -20.1]


@pytest.mark.parametrize("name", ["paper.json", "edge.json"])
def test_golden_files_round_trip(name, tmp_path):
    if not (GOLDEN / name).exists():
        pytest.skip(f"no {GOLDEN / name}")
    write_instances(tmp_path / name, read_instances(GOLDEN / name))
    assert json.loads((tmp_path / name).read_text()) == json.loads((GOLDEN / name).read_text())
