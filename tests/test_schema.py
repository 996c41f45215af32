"""Files of instances and plans: exact round trips, and refusals that name the place."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_jax import schema
from offload_jax.schema import SchemaError

N, M = 3, 2
GOLDEN = Path(__file__).parent / "golden"

INSTANCE = {  # 0.1 + 0.2, 1 / 3 and 5e-324 are here for the exactness of round trips
    "format": "offload-jax/instance", "version": 1, "name": "tiny é", "steps": 50.0,
    "bandwidth": 1e8, "servers": [{"budget": 1.5}, {"budget": None}],
    "batches": [{"server": k, "intercept": 0.01, "capacity": 5.0} for k in range(M)],
    "interference": [[0.02, 0.0], [0.1 + 0.2, 5e-324]],
    "users": [
        {"local_step": 0.3, "alpha": 2.5, "wait": 0.25, "demand": 2, "payload": 1e6,
         "spectral_efficiency": 4.5, "split_min": 15.0, "accuracy_local": 0.9,
         "accuracy": [{"floor": 1 / 3, "slope": 0.166, "centre": 20.5 + k} for k in range(M)]}
        for _ in range(N)
    ],
    "optimum": {"objective": -24.0, "deny_all": -37.8, "assignment": [2, 0, 1],
                "split": [21.5, 50.0, 28.072457], "method": "full enumeration"},
}  # fmt: skip
PLAN = {
    "format": "offload-jax/plan", "version": 1, "assignment": [2, 0, 1],
    "split": [21.5, 50.0, 1 / 3], "integer_split": [22, 50, 1], "objective": -24.0,
    "integer_objective": -24.5, "bound": None, "status": "optimal", "seconds": 0.1,
    "method": "exact",
}  # fmt: skip

# place, new value (JSON, or `removed`), message from the field's path on
DOMAIN = """
steps                       | 0     | steps: is 0; must be > 0 (steps)
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


def changed(document, where, value):
    """A copy of the document with the value at the place; `removed` removes the key."""
    document = copy.deepcopy(document)
    node = document
    for key in where[:-1]:
        node = node[key]
    node[where[-1]] = value
    if value == "removed":
        del node[where[-1]]
    return document


def places(node, prefix=()):
    """Every place of a JSON document but its root."""
    for key, child in node.items() if isinstance(node, dict) else enumerate(node):
        yield [*prefix, key]
        if isinstance(child, dict | list):
            yield from places(child, (*prefix, key))


def refused(message: str, read, *args) -> None:
    with pytest.raises(SchemaError) as caught:
        read(*args)
    text = str(caught.value)
    assert text.startswith(message)
    assert text.startswith(f"{caught.value.path}: ")
    assert "; must " in text
    assert "\n" not in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


def record() -> schema.InstanceRecord:
    return schema.parse_instances(INSTANCE)[0]


@rows(DOMAIN, FORM)
def test_each_rule_is_refused_at_its_place(row):
    where, value, message = parts(row)
    text = json.dumps([INSTANCE, changed(INSTANCE, where, value)])
    refused(f"fleet.json[1].{message}", schema.parse_instances, text, "fleet.json")


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
    refused(f"r.{message}", schema.validate, instance, "r")


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
    refused(f"r.{message}", schema.validate, instance, "r")


def check_plan(document) -> None:
    """Reads a plan and checks it against its instance."""
    schema.validate_plan(schema.parse_plan(document, "p"), "p", record())


@rows(PLANS)
def test_plans_are_refused_at_the_place(row):
    where, value, message = parts(row)
    check_plan(PLAN)
    refused(f"p.{message}", check_plan, changed(PLAN, where, value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1,\n  oops}', ": is not JSON at line 2 column 3 (Expecting property name"),
        (b'{"a":\n "\xff"}', ": is not UTF-8 at line 2 column 3; must be a JSON object or"),
        (b"[" * 100_000, ": is nested too deeply at line 1 column 1; must be"),
        (b"", ": is not JSON at line 1 column 1 (Expecting value)"),
        (b"3", ": is 3; must be an object"),
        (b'{"fromat": 3}', ": has the unknown key \"fromat\", nearest to 'format'; must have"),
        (b'{"format": 1, "format": 1}', ".format: is a repeated key; must be"),
        (None, ": cannot be read at line 1 column 1 (No such file or directory); must be"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_bad_file_is_refused_by_name_line_and_column(tmp_path, text, message):
    file = tmp_path / "fleet.json"
    if text is not None:
        file.write_bytes(text)
    for read in (schema.read_instances, schema.read_plans):
        refused(f"{file}{message}", read, file)


@pytest.mark.parametrize("entry", ['"alpha": 1, "alpha": 2', f'"alpha": {"9" * 5000}'])
def test_repeated_keys_and_endless_integers_are_refused(entry):
    text = json.dumps(INSTANCE).replace('"alpha": 2.5', entry, 1)
    refused("f.users[0].alpha: is a", schema.parse_instances, text, "f")
    refused("f.steps: is an", schema.parse_instances, {**INSTANCE, "steps": 10**5000}, "f")


def test_truncation_at_any_byte_is_refused():
    text = json.dumps(INSTANCE, ensure_ascii=False).encode()
    for end in range(len(text)):
        refused("f: is not ", schema.parse_instances, text[:end], "f")


def test_round_trips_are_exact(tmp_path):
    file = tmp_path / "instances.json"
    named = changed(INSTANCE, ["batches", 1, "model"], "anime")
    bare = changed(INSTANCE, ["optimum"], "removed")
    for documents in ([], [INSTANCE], [named, bare]):
        schema.write_instances(file, schema.parse_instances(documents))
        assert json.loads(file.read_text()) == (documents[0] if len(documents) == 1 else documents)
        records = schema.read_instances(file)
        assert [schema.instance_to_json(record) for record in records] == documents
    assert (records[0].model, records[1].optimum) == ((None, "anime"), None)
    assert records[0].budget.tolist() == [1.5, math.inf]
    assert records[0].interference.tolist() == INSTANCE["interference"]
    assert records[0].accuracy_floor.shape == (N, M)
    assert (records[0].server.dtype, records[0].demand.dtype) == (np.int64, np.float64)


def test_plans_round_trip(tmp_path):
    for documents in ([PLAN], [PLAN, {**PLAN, "bound": -20.1}]):
        plans = [schema.parse_plan(json.dumps(document)) for document in documents]
        schema.write_plans(tmp_path / "plans.json", plans)
        plans = schema.read_plans(tmp_path / "plans.json")
        assert [schema.plan_to_json(plan) for plan in plans] == documents
    assert [plan.bound for plan in plans] == [None, -20.1]


@pytest.mark.parametrize("name", ["paper.json", "edge.json"])
def test_golden_files_round_trip(name, tmp_path):
    if not (GOLDEN / name).exists():
        pytest.skip(f"no {GOLDEN / name}")
    schema.write_instances(tmp_path / name, schema.read_instances(GOLDEN / name))
    assert json.loads((tmp_path / name).read_text()) == json.loads((GOLDEN / name).read_text())


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, broken):
    file = tmp_path / "instances.json"
    schema.write_instances(file, [record()])
    before = file.read_bytes()
    bad = replace(record(), alpha=np.full(N, -1.0))
    refused("records[0].users[0].alpha: is -1;", schema.write_instances, file, [bad])
    with pytest.raises(FileNotFoundError):
        schema.write_instances(tmp_path / "missing" / "instances.json", [record()])
    monkeypatch.setattr(os, broken, lambda *_: os.stat(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError):
        schema.write_instances(file, [record(), record()])
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["instances.json"]


def in_domain(r: schema.InstanceRecord) -> bool:
    """The domain once more, by hand."""
    above_0 = [r.steps, r.bandwidth, r.local_step, r.demand, r.spectral_efficiency]
    above_0 += [r.accuracy_slope, np.diag(r.interference), r.accuracy_local]
    above_0 += [r.steps - r.accuracy_centre, r.accuracy_local[:, None] - r.accuracy_floor]
    from_0 = [r.alpha, r.wait, r.payload, r.split_min, r.accuracy_floor, r.intercept, r.capacity]
    from_0 += [r.interference, r.server, len(r.budget) - 1 - r.server, r.steps - r.split_min]
    from_0 += [1 - r.accuracy_local, r.optimum.assignment, M - r.optimum.assignment]
    from_0 += [r.optimum.split, r.steps - r.optimum.split]
    finite = all(np.isfinite(value).all() for value in above_0 + from_0)
    signs = [np.all(x > 0) for x in above_0] + [np.all(x >= 0) for x in [*from_0, r.budget]]
    return finite and all(signs)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([0, 1, 50, 0.9, 2**53, 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(list(places(INSTANCE))), JSON, st.booleans())
def test_any_value_anywhere_is_refused_or_in_the_domain(where, value, as_text):
    document = changed(INSTANCE, where, value)
    try:
        instances = schema.parse_instances(json.dumps(document) if as_text else document)
    except SchemaError:
        return
    assert in_domain(instances[0])


@settings(max_examples=50, deadline=None)
@given(JSON.filter(lambda document: document != []))
def test_any_document_is_refused(document):
    refused("<memory>", schema.parse_instances, document)
    refused("<memory>", schema.parse_instances, json.dumps(document))
    refused("<memory>", schema.parse_plan, document)
