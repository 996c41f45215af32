"""Pictures of plans, and the page around them: edge cases, and what readers rely on."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax.evaluation import figures, timeline
from offload_jax.evaluation.page import Section, Table, page
from offload_jax.files.records import Plan
from offload_jax.problem.instance import Instance, pad_users, toy, users_only

pytestmark = pytest.mark.fast


def luminance(colour: str) -> float:
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def plan_of(assignment: list[int], split: list[int], method: str = "greedy") -> Plan:
    return Plan(
        assignment=np.array(assignment, np.int64),
        split=np.array(split, float),
        integer_split=np.array(split, np.int64),
        objective=-8.5,
        integer_objective=-8.5,
        bound=None,
        status="done",
        seconds=0.0,
        method=method,
    )


def crowd(count: int) -> Instance:
    """The toy's users, as many of them as asked for, and plain ones; two batches, one server."""
    padded = pad_users(toy()[0], 100)
    mask = jnp.arange(100) < count
    return users_only(replace(padded, mask=mask, capacity=jnp.full(2, 60.0)))


def texts(figure: object, name: str = "plan") -> list[str]:
    """All text of a figure, read from its SVG, which must be valid."""
    found = ElementTree.fromstring(figures.svg(figure, name)).iter()
    return ["".join(e.itertext()) for e in found if e.tag.endswith("text")]


def test_a_plan_says_what_it_uses() -> None:
    instance, assignment, _ = toy()
    limited = replace(instance, budget=jnp.array([2.5]))
    plan = plan_of(assignment.tolist(), [2, 2, 10])
    said = texts(timeline.plan_figure(limited, plan))
    [server] = [text for text in said if text.startswith("server 0")]
    assert re.fullmatch(r"server 0: 2\.40 of 2\.50 GPU-s, price \d+\.\d\d s per GPU-s", server)
    assert {"batch 1: 2 of 2 images", "batch 2: 1 of 1 images"} <= set(said)
    assert "denied: 1, all 10 steps on the own device" in said
    assert [text for text in said if text.startswith("user")] == ["user 0", "user 1", "user 2"]
    assert said.count("8") == 2  # edge steps of both, inside their pieces


def test_a_plan_without_limits_and_with_an_empty_batch() -> None:
    instance, _, _ = toy()
    said = texts(timeline.plan_figure(instance, plan_of([1, 0, 0], [2, 10, 10])))
    assert "server 0: 1.60 GPU-s, no limit; nobody in batch 2" in said


def test_steps_that_do_not_fit_their_piece_stand_behind_the_bar() -> None:
    instance, _, _ = toy()
    slow = replace(instance, local_step=jnp.array([100.0, 0.5, 0.15]))
    said = texts(timeline.plan_figure(slow, plan_of([0, 2, 0], [10, 2, 10])))
    assert "8 + 2" in said


@pytest.mark.parametrize("granted", [0, 15, 100])
def test_a_plan_of_100_users_fits_about_a_page(granted) -> None:
    instance = crowd(100)
    assignment = [1 + i % 2 if i < granted else 0 for i in range(100)]
    plan = plan_of(assignment, [4 if batch else 10 for batch in assignment])
    figure = timeline.plan_figure(instance, plan)
    assert figure.get_size_inches()[1] < 14
    assert {f"user {i}" for i in range(100)} <= set(texts(figure))


def test_one_user_and_a_method_that_looks_like_mathematics() -> None:
    plan = plan_of([0], [10], method=r"<b>$\frac$</b>")
    said = texts(timeline.plan_figure(crowd(1), plan))
    assert r"<b>$\frac$</b>: U = -8.50 s" in said


def test_pieces_of_a_plan_are_told_apart() -> None:
    """By readers of colours, in grey print and on a dark screen."""
    own = luminance(timeline.LOCAL_COLOUR)
    for colour in timeline.EDGE_COLOURS:
        assert luminance(colour) < own / 2
        number = timeline.LIGHT if colour in timeline.DARKER else timeline.DARK
        assert contrast(colour, number) >= 4.2
    outlines = [timeline.OUTLINES.get(c, c) for c in (timeline.LOCAL_COLOUR, timeline.WAIT_COLOUR)]
    for colour in (*timeline.EDGE_COLOURS, timeline.AIR_COLOUR, *outlines):
        assert min(contrast(colour, "#ffffff"), contrast(colour, "#111111")) >= 3


def test_tables_of_a_page() -> None:
    table = Table(
        ["method", "mean gap %", "ms", "what"],
        [["<b>", "0.10", "1,000", "a & b"], ["c", "0.10", "20", "3"], ["d", "1.00", "±30", "4"]],
        least=("mean gap %", "ms", "what"),
    )
    text = page("T", "t", [Section("All <i>", table=table)])
    assert re.findall("<strong>(.*?)</strong>", text) == ["0.10", "0.10", "20"]
    assert '<th scope="row" class="words">&lt;b&gt;</th><td><strong>0.10</strong></td>' in text
    assert '<td class="words">a &amp; b</td>' in text
    assert '<th scope="col">mean gap\u00a0%</th>' in text
    assert "<b>" not in text
    assert "<i>" not in text


def test_a_page_is_whole_by_itself() -> None:
    instance, assignment, _ = toy()
    drawn = timeline.plan_figure(instance, plan_of(assignment.tolist(), [2, 2, 10]))
    same = [Section("Plan", svg=figures.svg(drawn, name), caption='"<b>') for name in ("a", "b")]
    text = page("<b>", "<b>", [*same, Section("§"), Section("Empty", table=Table(["a"], []))])
    ElementTree.fromstring(text[text.index("<body>") : text.index("</html>")])
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:url\(|href=")#([^")]+)', text)
    assert set(used) <= set(ids)
    addresses = set(re.findall(r"https?://[^\"'\s]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    for absent in ("@import", "<script", "<link", "<b>"):
        assert absent not in text
    for style in ("prefers-color-scheme: dark", "@media print", "overflow-x: auto"):
        assert style in text
    assert text.count('role="img" aria-label="Plan: &quot;&lt;b&gt;"') == 2
