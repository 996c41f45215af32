"""The worked instance of docs/reference/bundle.md: `python -m benchmarks.systems.worked BUNDLE`.

BUNDLE is `offload-jax export --policy paper --sizes 8 20`. Then `python -m benchmarks.fill`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.common import ROOT
from offload_jax import deploy
from offload_jax.deploy.ports import INPUTS, OUTPUTS, Port, packed
from offload_jax.files import records

OUT = ROOT / "benchmarks" / "results" / "worked.md"
USERS, SIZE = 4, 8


def page(bundle: str) -> str:
    """Inputs and outputs of `greedy`, an array a line."""
    instances = records.read_instances(ROOT / "tests" / "golden" / "paper.json")
    record = next(one for one in instances if len(one.alpha) == USERS)
    arrays = packed([record], SIZE)
    runtime = deploy.open_runtime(deploy.open_bundle(bundle), "iree")
    outputs = runtime.call("greedy", SIZE, arrays)
    blocks = [_lines(INPUTS, arrays), _lines(OUTPUTS, outputs)]
    return "Inputs:\n\n```json\n{}\n```\n\nOutputs:\n\n```json\n{}\n```\n".format(*blocks)


def _lines(ports: Sequence[Port], arrays: Sequence[np.ndarray]) -> str:
    return "\n".join(
        json.dumps({**port.to_json(), "shape": array.shape, "values": _plain(array.tolist())})
        for port, array in zip(ports, arrays, strict=True)
    )


def _plain(value: Any) -> Any:
    """Numbers with as many digits as float32 needs to come back the same; JSON knows no inf."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return "inf" if value == np.inf else float(str(np.float32(value)))
    return value


if __name__ == "__main__":
    OUT.write_text(page(sys.argv[1]), encoding="utf-8")
    print(f"written: {OUT.relative_to(ROOT)}; now python -m benchmarks.fill")
