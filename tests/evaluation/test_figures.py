"""Charts and pages: readable on white and on black, valid, self-contained, nothing unescaped."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from offload_jax.evaluation import figures, timeline
from offload_jax.evaluation.page import Section, Table, page
from offload_jax.methods import solve
from offload_jax.problem.instance import toy

pytestmark = pytest.mark.fast
METHODS = [f"method {i}" for i in range(14)]


def luminance(colour: str) -> float:
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("colour", figures.COLOURS)
def test_colours_stand_out_on_white_and_on_black(colour) -> None:
    for back in ("#ffffff", "#111111"):
        low, high = sorted([luminance(colour), luminance(back)])
        assert (high + 0.05) / (low + 0.05) >= 3


def drawn() -> dict[str, object]:
    rng = np.random.default_rng(0)
    gaps = {name: rng.exponential(0.1 * i, 60) for i, name in enumerate(METHODS)}  # the first is 0
    seconds = np.geomspace(1e-3, 1, 20)
    rows = [(name, n, 1e-4 * n**1.5) for name in METHODS[:2] for n in (4, 8, 16, 32)]
    instance, _, _ = toy()
    return {
        "by users": figures.gap_by(rng.integers(8, 25, 60), gaps, "users N"),
        "one instance": figures.gap_by(np.array([3]), {"a": np.array([0.0])}, "users N"),
        "anytime": figures.anytime(
            {
                "a": (seconds, 0.1 / seconds),
                "b": (seconds, 0 * seconds),
                "ends by itself": (np.array([1e-3]), np.array([0.0])),
            }
        ),
        "scaling": figures.scaling([*rows, ("scip", 4, 1.0), ("scip", 8, 30.0)]),
        "certified": figures.certified(np.array([0.0, 0.01, 0.02])),
        "plan": timeline.plan_figure(instance, solve(instance, "greedy")),
    }


def test_every_chart_in_one_page() -> None:
    found = {name: figures.svg(figure, name) for name, figure in drawn().items()}
    for text in found.values():
        ElementTree.fromstring(text)
        assert figures.INK not in text
        assert "currentColor" in text
    sections = [Section(name, svg=text, caption="<b>") for name, text in found.items()]
    text = page("T", "t", [*sections, Section("Table", table=Table(["<b>"], [["<i>&"]]))])
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    assert used <= set(ids)
    assert "<b>" not in text
    assert "<i>" not in text
    assert "&lt;i&gt;&amp;" in text
    outside = set(re.findall(r'(?:href|src)="(?!#)([^"]*)"', text))
    assert not outside
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_every_method_has_a_look_of_its_own() -> None:
    looks = figures.styles(METHODS).values()
    assert len({(look["color"], look["marker"], look["mfc"]) for look in looks}) == len(METHODS)


def test_few_values_are_not_put_together() -> None:
    values = np.repeat([4, 8, 12, 16, 20], [3, 7, 1, 5, 9])
    assert np.array_equal(figures._groups(values, 8), values // 4 - 1)
    many = figures._groups(np.arange(100), 8)
    assert set(many) == set(range(8))
    assert np.all(np.diff(many) >= 0)


def test_legends_are_in_the_order_of_the_line_ends() -> None:
    traces = {
        "low": (np.array([0.1, 1]), np.array([0.5, 0.01])),
        "high": (np.array([0.1]), np.array([0.2])),
        "none": (np.array([0.1]), np.array([0.0])),
    }
    legend = figures.anytime(traces).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["high", "low", "none"]


def test_numbers_on_axes() -> None:
    shown = [figures._plain(number) for number in (1e6, 100.0, 1.0, 0.1, 1e-5)]
    assert shown == ["1,000,000", "100", "1", "0.1", "0.00001"]


def test_the_exponent_of_a_power_is_found() -> None:
    sizes = np.array([4, 8, 16, 32, 64])
    line = np.stack([sizes, 1e-3 * sizes**2.5], axis=1)
    assert figures.exponent(line) == pytest.approx(2.5)
    assert figures.exponent(line[:3]) is None
    exponential = np.stack([sizes, 1e-3 * 2.0**sizes], axis=1)
    assert figures.exponent(exponential) is None
