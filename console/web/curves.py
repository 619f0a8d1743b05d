"""Line charts as inline SVG: no script, no library, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 520, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 12, 30
MOST_POINTS = 400  # of one line: more than the pixels that show it


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart. `role` is its class in the style sheet: main, second, or faint (the raw values behind)."""

    name: str
    points: Points
    role: str = "main"
    marks: bool = False  # a dot at each point, with its value on hover


def draw_chart(lines: Sequence[Line], *, title: str, note: str, low: float | None = None) -> str:
    """A figure with `lines` over the step; "" where there is nothing to draw. `low` fixes the bottom of the axis."""
    shown = [line for line in lines if line.points]
    if not shown:
        return ""
    xs = [x for line in shown for x, _ in line.points]
    ys = [y for line in shown for _, y in line.points]
    bottom = min(ys) if low is None else min(low, *ys)
    y_ticks = _ticks(bottom, max(ys), 4)
    x_ticks = [tick for tick in _ticks(min(xs), max(xs), 5) if min(xs) <= tick <= max(xs)]
    frame = _Frame(min(xs), max(xs), y_ticks[0], y_ticks[-1])
    named = [line for line in shown if line.role != "faint"]
    lowest = min(named, key=lambda line: line.points[-1][1]) if len(named) > 1 else None
    body = [_grid(frame, x_ticks, y_ticks), *(_draw(line, frame, below=line is lowest) for line in shown)]
    keys = "".join(f'<span class="key {line.role}">{escape(line.name)}</span>' for line in named if len(named) > 1)
    return (
        f'<figure><figcaption><b>{escape(title)}</b>{keys}<span class="note">{escape(note)}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(body)}</svg></figure>'
    )


def smooth(points: Points) -> list[tuple[float, float]]:
    """Centred moving mean over a thirtieth of the points."""
    half = len(points) // 60
    means = []
    for i, (x, _) in enumerate(points):
        near = points[max(0, i - half) : i + half + 1]
        means.append((x, sum(y for _, y in near) / len(near)))
    return means


@dataclass(frozen=True)
class _Frame:
    """From data to pixels."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        span = self.x_high - self.x_low or 1.0
        return LEFT + (value - self.x_low) / span * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        span = self.y_high - self.y_low or 1.0
        return HEIGHT - BOTTOM - (value - self.y_low) / span * (HEIGHT - TOP - BOTTOM)


def _draw(line: Line, frame: _Frame, *, below: bool) -> str:
    """The line, its dots, and its last value: above it, or `below` so that two lines' values do not meet."""
    points = _thin(line.points)
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    drawn = f'<polyline class="{line.role}" points="{path}"/>'
    if line.marks:
        drawn += "".join(
            f'<circle class="{line.role}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.5">'
            f"<title>{escape(line.name)}, step {x:g}: {y:.3f}</title></circle>"
            for x, y in points
        )
    if line.role != "faint":
        x, y = points[-1]
        anchor = f'x="{frame.x(x) - 6:.1f}" y="{frame.y(y) + 18 if below else max(frame.y(y) - 8, 10):.1f}"'
        drawn += f'<text class="value {line.role}" {anchor}>{_label(y)}</text>'
    return drawn


def _grid(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    drawn = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{frame.y(tick):.1f}" y2="{frame.y(tick):.1f}"/>'
        f'<text class="y" x="{LEFT - 8}" y="{frame.y(tick) + 4:.1f}">{_label(tick)}</text>'
        for tick in y_ticks
    ]
    drawn.append(f'<text class="y" x="{LEFT - 8}" y="{HEIGHT - 10}">step</text>')
    drawn += [f'<text class="x" x="{frame.x(tick):.1f}" y="{HEIGHT - 10}">{_label(tick)}</text>' for tick in x_ticks]
    return "".join(drawn)


def _thin(points: Points) -> Points:
    """At most MOST_POINTS, each the mean of its neighbours; the last point stays."""
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(len(points) / MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    means = [(group[len(group) // 2][0], sum(y for _, y in group) / len(group)) for group in groups]
    return [*means[:-1], points[-1]]


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round values that cover [low, high], about `count` intervals: steps of 1, 2 or 5 times a power of ten."""
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-6):
        pad = abs(low) * 0.1 or 1.0
        low, high = (low, low + pad) if low >= 0 else (low - pad, high + pad)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _label(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{round(value, 3):,g}" if abs(value) < 1e4 else f"{value:,.0f}"
