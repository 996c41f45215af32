"""The benchmarks run and say what they measured; how fast anything is, no test judges."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.quality import __main__ as quality
from benchmarks.quality import decisions, generalisation
from benchmarks.speed import layers, suite, table
from benchmarks.systems import sweep

NUMBERS = ("median_s", "p10_s", "p90_s", "best_s", "compile_s", "rate")


@pytest.mark.parametrize("name", suite.NAMES)
def test_every_benchmark_runs(name, tmp_path, capsys, monkeypatch):
    kinds = {kind: [x for x in found if x != "qpax"] for kind, found in layers.KINDS.items()}
    monkeypatch.setattr(layers, "KINDS", kinds)
    assert runs(name, tmp_path, capsys)["results"]


def test_qpax_runs_where_it_is_installed(tmp_path, capsys, monkeypatch):
    pytest.importorskip("qpax", reason="qpax is not installed: pip install 'offload-jax[bench]'")
    monkeypatch.setattr(layers, "KINDS", {"single QP": ("qpax",)})
    document = runs("layers", tmp_path, capsys)
    assert [row["case"].split(", ")[0] for row in document["results"]] == ["qpax", "qpax"]
    assert all(row["unsolved"] == 0 for row in document["results"])


def runs(name, tmp_path, capsys) -> dict:
    """Runs a benchmark in quick mode, checks its rows and returns its document."""
    out = tmp_path / "speed.json"
    assert main([name, "--quick", "--repeats", "2", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    assert {"device", "versions", "commit", "cpu", "cores"} <= set(document["provenance"])
    assert document["date"]
    assert document["quick"] is True
    printed = capsys.readouterr().out
    assert document["results"]
    for row in document["results"]:
        assert row["benchmark"] == name
        assert row["case"] in printed
        assert row["repeats"] == 2
        assert row["unit"].endswith("/s")
        assert "target" in row
        assert all(math.isfinite(row[key]) and row[key] > 0 for key in NUMBERS)
        assert row["best_s"] <= row["p10_s"] <= row["median_s"] <= row["p90_s"]
    return document


LAYER_ROWS = [
    {"benchmark": "layers", "case": f"{layer}, single QP, N=24 M=6 G=3, {rest}", **found}
    for layer, rest, found in [
        ("native", "forward, batch 512", {"rate": 600.0}),
        ("moreau", "forward, batch 512", {"rate": 200.0}),
        ("diffcp", "forward, batch 512", {"rate": 1.5}),
        ("qpax", "forward, batch 512", {"error": "ModuleNotFoundError: No module named 'qpax'"}),
        ("native", "forward, batch 64", {"error": "FloatingPointError: not finite"}),
        ("moreau", "forward, batch 64", {"rate": 100.0}),
        ("native", "forward+backward, batch 512", {"rate": 300.0}),
        ("qpax", "forward+backward, batch 512", {"rate": 400.0}),
    ]
]


@pytest.mark.fast
def test_ratios_of_layers_by_hand():
    """Of rates of the same case; none where a side failed, or for another benchmark's rows."""
    case = "single QP, N=24 M=6 G=3, forward, batch 512"
    backward = "single QP, N=24 M=6 G=3, forward+backward, batch 512"
    other = {"benchmark": "splits", "case": f"moreau, {case}", "rate": 1.0}
    assert layers.ratios([*LAYER_ROWS, other]) == [
        {"case": case, "layer": "moreau", "rate_native": 600, "rate": 200, "ratio": 3},
        {"case": case, "layer": "diffcp", "rate_native": 600, "rate": 1.5, "ratio": 400},
        {"case": backward, "layer": "qpax", "rate_native": 300, "rate": 400, "ratio": 0.75},
    ]
    assert list(table.layers({"ratios": layers.ratios(LAYER_ROWS)}))[1:] == [
        "| case | native | moreau | diffcp | qpax |",
        "|---|---:|---:|---:|---:|",
        "| single QP, forward | 600 | 200 (3x) | 1.5 (400x) |  |",
        "| single QP, forward+backward | 300 |  |  | 400 (0.75x) |",
    ]
    assert list(table.layers({"results": []})) == []


@pytest.mark.fast
def test_slow_layers_are_left_out():
    """Nothing whose call would last minutes, and everything of the size that is compared."""
    names = [case.name for case in layers.cases(quick=False)]
    assert len(names) == len(set(names))
    assert sum("N=24 M=6 G=3" in name and name.endswith("batch 512") for name in names) == 14
    assert "diffcp, whole solve, N=64 M=6 G=3, forward+backward, batch 4096" not in names


@pytest.mark.fast
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["splitz"],
            "NAMES has 'splitz'; must be among training, environment, splits, layers, decode",
        ),
        (["splits", "--repeats", "0"], "repeats is 0; must be at least 1"),
        (["compare", "--own", "HEAD", "--rounds", "0"], "rounds is 0; must be at least 1"),
        (["compare", "--own", "no-such-rev"], "own is 'no-such-rev'; must be a commit"),
        (["splits", "--out", "/no/such/folder/x.json"], "its folder must exist"),
    ],
)
def test_wrong_arguments_are_refused(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.fast
def test_a_failing_benchmark_is_a_row(monkeypatch, capsys):
    def broken(name: str):
        raise ImportError(f"no {name} in this tree")

    monkeypatch.setattr(suite, "import_module", broken)
    assert main(["decode"]) == 1
    assert "FAILED ImportError: no benchmarks.speed.decode in this tree" in capsys.readouterr().out


@pytest.mark.fast
def test_targets_are_judged():
    row = {"case": "one", "rate": 1e6, "unit": "problems/s", "target": 1.5e6, "compile_s": 1.0}
    row |= {"median_s": 0.002, "p10_s": 0.001, "p90_s": 2.0}
    assert "target 1,500,000: short by 1.50x" in table.measurement(row)
    assert "1,000,000 problems/s" in table.measurement(row)
    assert "2 ms" in table.measurement(row)
    assert "target 1,000,000: reached" in table.measurement(row | {"target": 1e6})
    assert "target" not in table.measurement(row | {"target": None})


def test_quality_keeps_parts_that_were_not_run(tmp_path, capsys, monkeypatch):
    out = tmp_path / "quality.json"
    before = {"rows": [{"closed": 1, "gap_max": None}, {"closed": 2000, "gap_max": 0.01}]}
    out.write_text(json.dumps({"proofs": before}))
    monkeypatch.setitem(quality.PARTS, "bounds", lambda: iter([{"gap_mean": 0.25, "rounds": 3}]))
    assert quality.main(["bounds", "--out", str(out)]) == 0
    assert "bounds: gap mean % 25, rounds 3" in capsys.readouterr().out
    document = json.loads(out.read_text())
    assert document["proofs"] == before
    table = (tmp_path / "quality.md").read_text()
    assert "| closed | gap max % |\n| --- | ---: |\n| 1 |  |\n| 2,000 | 1 |" in table
    assert document["bounds"]["rows"] == [{"gap_mean": 0.25, "rounds": 3}]
    assert document["bounds"]["provenance"]["commit"]


def test_quality_refuses_what_cannot_run(tmp_path, capsys, monkeypatch):
    assert quality.main(["bound", "--out", str(tmp_path / "quality.json")]) == 2
    refused = capsys.readouterr().err
    assert "parts has 'bound'; must be among" in refused
    assert all(part in refused for part in quality.PARTS)
    assert quality.main(["bounds", "--out", str(tmp_path / "nowhere" / "quality.json")]) == 2
    assert "its folder must exist" in capsys.readouterr().err
    monkeypatch.setitem(quality.NEEDS, "bounds", ("no_such_module", "bench"))
    assert quality.main(["bounds"]) == 2
    assert "needs no_such_module: pip install 'offload-jax[bench]'" in capsys.readouterr().err


@pytest.mark.fast
def test_decisions_may_differ_in_ties_only() -> None:
    before = {"edge/greedy": np.array([[1, 0], [0, 2]]), "edge/greedy/worth": np.array([0.3, 0.2])}
    tie = before | {"edge/greedy": np.array([[0, 0], [1, 2]])}
    assert decisions.differences(before, before) == decisions.differences(before, tie) == []
    [found] = decisions.differences(before, tie | {"edge/greedy/worth": np.array([0.3, 0.21])})
    assert found.startswith("edge/greedy: 1 of 2 plans are worth something else")
    assert "1 differ" in found
    assert decisions.differences(before, {}) == [
        "edge/greedy: is not decided, or of other instances"
    ]


@pytest.mark.fast
def test_decisions_to_compare_with_are_read_first(tmp_path, capsys) -> None:
    words = ["--out", str(tmp_path / "after.npz"), "--against", str(tmp_path / "no.npz")]
    assert decisions.main(words) == 2
    assert "no.npz cannot be read" in capsys.readouterr().err
    (tmp_path / "no.npz").write_text("{}")
    assert decisions.main(words) == 2


@pytest.mark.fast
def test_a_stopped_command_ends_in_one_line(tmp_path, capsys, monkeypatch) -> None:
    """Whatever it was doing, with the status of Ctrl-C and no traceback."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    out = str(tmp_path / "out.npz")
    for module, name, words in (
        (decisions, "sets", ["--out", out]),
        (generalisation, "deciders_of", ["users", "--out", out]),
        (suite, "checked_names", []),
        (sweep, "_measured", []),
    ):
        monkeypatch.setattr(module, name, stop)
        command = main if module is suite else module.main
        assert command(words) == 130
        told = capsys.readouterr().err
        assert told.startswith("stopped; ")
        assert told.count("\n") == 1
