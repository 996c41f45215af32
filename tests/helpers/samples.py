"""An instance and a plan as JSON, ways to spoil them, and the check of the refusal that follows."""

from __future__ import annotations

import copy
import pickle

import pytest

from offload_jax.files import records
from offload_jax.files.checks import SchemaError

N, M = 3, 2

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


def assert_refused(message: str, read, *args) -> None:
    """Asserts that `read(*args)` raises a `SchemaError` that starts with the message."""
    with pytest.raises(SchemaError) as caught:
        read(*args)
    text = str(caught.value)
    assert text.startswith(message)
    assert text.startswith(f"{caught.value.path}: ")
    assert "; must " in text
    assert "\n" not in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


def record() -> records.InstanceRecord:
    """`INSTANCE` as a fresh record."""
    return records.parse_instances(INSTANCE)[0]
