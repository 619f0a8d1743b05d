"""Charts: valid SVG inside its frame, whatever the numbers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.web.curves import HEIGHT, MOST_POINTS, WIDTH, Line, _ticks, draw_chart, smooth

VALUES = st.floats(min_value=-1e9, max_value=1e9, allow_nan=False)


@given(st.lists(st.tuples(st.integers(0, 10**6), VALUES), min_size=1, max_size=50))
def test_every_point_lies_inside_the_picture(points: list[tuple[int, float]]) -> None:
    points = sorted(points)
    drawn = draw_chart([Line(name="a<b", points=points, marks=True)], title="T & U", note="n")
    figure = ET.fromstring(drawn)
    (polyline,) = figure.iter("polyline")
    for x, y in (pair.split(",") for pair in polyline.attrib["points"].split()):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT
    assert len(list(figure.iter("circle"))) == len(points)


@given(VALUES, VALUES)
def test_ticks_are_round_and_cover_the_values(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = _ticks(low, high, 4)
    slack = 1e-6 * max(abs(low), abs(high), 1e-6)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 8
    steps = {f"{later - sooner:.3e}" for sooner, later in pairwise(ticks)}
    assert all(re.match(r"[1259]\.\d", step) for step in steps)


def test_long_lines_are_thinned_and_keep_their_end() -> None:
    points = [(float(step), step % 7 / 7) for step in range(10_000)] + [(10_000.0, 1.0)]
    drawn = draw_chart([Line(name="long", points=points)], title="t", note="")
    (polyline,) = ET.fromstring(drawn).iter("polyline")
    pairs = polyline.attrib["points"].split()
    assert len(pairs) <= MOST_POINTS
    assert pairs[-1].startswith(f"{WIDTH - 16:.1f},")


def test_no_points_make_no_chart() -> None:
    assert draw_chart([Line(name="none", points=[])], title="t", note="") == ""


def test_smoothing_keeps_length_and_mean() -> None:
    points = [(float(step), float(step % 2)) for step in range(600)]
    smoothed = smooth(points)
    assert len(smoothed) == 600
    assert [y for _, y in smoothed[20:-20]] == pytest.approx([0.5] * 560, abs=0.03)
