"""JSON documents: text refused by line and column, any value by its place."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import INSTANCE, M, N, assert_refused, changed, record

from offload_jax.files import documents, records
from offload_jax.files.checks import SchemaError
from offload_jax.files.fields import INTEGER, TEXT, At, table


@dataclass(frozen=True)
class Shelf:
    """A record of no format of ours: two axes, a key that may be left out, a null."""

    label: Annotated[str, At("label", kind=TEXT)]
    count: Annotated[np.ndarray, At("rows[R].count", "items", ">= 1", INTEGER)]
    note: Annotated[tuple, At("rows[R].note?", kind=TEXT, null="nothing")]
    width: Annotated[np.ndarray, At("rows[R].cells[C].width", "m", "> 0", null="open")]


HEADER = {"kind": "shelf", "edition": 3}
SHELF = HEADER | {
    "label": "a",
    "rows": [{"count": 2, "cells": [{"width": 0.5}]},
             {"count": 1, "note": "top", "cells": [{"width": None}]}],
}  # fmt: skip


def read_shelf(document) -> Shelf:
    fields = table(Shelf)
    return documents.Reader(document, HEADER, fields, "s").build(Shelf, fields)


def test_any_record_with_a_table_round_trips():
    shelf = read_shelf(SHELF)
    assert (shelf.count.tolist(), shelf.note) == ([2, 1], (None, "top"))
    assert shelf.width.tolist() == [[0.5], [math.inf]]
    assert documents.to_json(shelf, HEADER, table(Shelf), "s") == SHELF


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (["edition"], 2, "s.edition: is 2; must be 3"),
        (["rows", 1, "count"], 0, "s.rows[1].count: is 0; must be >= 1 (items)"),
        (["rows", 1, "cells"], [], "s.rows[1].cells: has length 0; must be C = 1"),
        (
            ["rows", 0, "cells", 0, "width"],
            0,
            "s.rows[0].cells[0].width: is 0; must be > 0 (m), or",
        ),
        (
            ["rows", 0, "cell"],
            0,
            "s.rows[0]: has the unknown key \"cell\", nearest to 'cells'; must",
        ),
    ],
)
def test_any_table_refuses_by_place(where, value, message):
    assert_refused(message, read_shelf, changed(SHELF, where, value))


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
    for read in (records.read_instances, records.read_plans):
        assert_refused(f"{file}{message}", read, file)


@pytest.mark.parametrize("entry", ['"alpha": 1, "alpha": 2', f'"alpha": {"9" * 5000}'])
def test_repeated_keys_and_endless_integers_are_refused(entry):
    text = json.dumps(INSTANCE).replace('"alpha": 2.5', entry, 1)
    assert_refused("f.users[0].alpha: is a", records.parse_instances, text, "f")
    assert_refused("f.steps: is an", records.parse_instances, {**INSTANCE, "steps": 10**5000}, "f")


def test_truncation_at_any_byte_is_refused():
    text = json.dumps(INSTANCE, ensure_ascii=False).encode()
    for end in range(len(text)):
        assert_refused("f: is not ", records.parse_instances, text[:end], "f")


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, broken):
    file = tmp_path / "instances.json"
    records.write_instances(file, [record()])
    before = file.read_bytes()
    bad = replace(record(), alpha=np.full(N, -1.0))
    assert_refused("records[0].users[0].alpha: is -1;", records.write_instances, file, [bad])
    with pytest.raises(FileNotFoundError):
        records.write_instances(tmp_path / "missing" / "instances.json", [record()])
    monkeypatch.setattr(os, broken, lambda *_: os.stat(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError):
        records.write_instances(file, [record(), record()])
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["instances.json"]


def places(node, prefix=()):
    """Every place of a JSON document but its root."""
    for key, child in node.items() if isinstance(node, dict) else enumerate(node):
        yield [*prefix, key]
        if isinstance(child, dict | list):
            yield from places(child, (*prefix, key))


def in_domain(r: records.InstanceRecord) -> bool:
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
        instances = records.parse_instances(json.dumps(document) if as_text else document)
    except SchemaError:
        return
    assert in_domain(instances[0])


@settings(max_examples=50, deadline=None)
@given(JSON.filter(lambda document: document != []))
def test_any_document_is_refused(document):
    assert_refused("<memory>", records.parse_instances, document)
    assert_refused("<memory>", records.parse_instances, json.dumps(document))
    assert_refused("<memory>", records.parse_plan, document)
