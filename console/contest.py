"""What several learners made of one log, as a table and as a page of curves: `ratchet replay RUN --set KEY=A,B`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from console.web.curves import Line, draw_chart
from console.web.report import STYLE

Report = Mapping[str, Any]
COLUMNS = ("importance_ess", "kl", "grad_norm")
NOTE = (
    "Brackets: 95% bootstrap intervals over held-out items; of several seeds, over seeds with the items' error added. "
    "Against: the difference from the first line, item by item. Seeds draw the recorded groups again with replacement."
)


def render_text(report: Report) -> list[str]:
    """The table for a terminal."""
    rows = _rows(report)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, "", NOTE, f"written to {report['out']}: report.html, report.json"]


def write_page(report: Report) -> Path:
    """OUT/report.html, whole or not at all: the table, and a chart of each learner beside the run itself."""
    path = Path(report["out"]) / "report.html"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(render_page(report), encoding="utf-8")
    draft.replace(path)
    return path


def render_page(report: Report) -> str:
    head, *rows = _rows(report)
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    charts = "".join(_chart(report, variant) for variant in report["variants"])
    title = f"{len(rows)} learners on the log of {escape(report['run'])}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE.read_text()}</style>'
        f"<main><header><h1>{title}</h1><p>{escape(NOTE)}</p></header>"
        f'<h2>Scores</h2><div class="card"><table><tr>{cells}</tr>{body}</table></div>'
        f'<h2>Held out, along the log</h2><div class="charts">{charts}</div></main></html>\n'
    )


def _chart(report: Report, variant: Report) -> str:
    curve = variant["curve"]
    lines = [
        Line(name="low", points=[(one["step"], one["low"]) for one in curve], role="faint"),
        Line(name="high", points=[(one["step"], one["high"]) for one in curve], role="faint"),
        Line(name=variant["name"], points=[(one["step"], one["mean"]) for one in curve], marks=True),
        Line(
            name="the run itself",
            points=[(one["step"], one["score"]) for one in report["recorded"]],
            role="second",
            marks=True,
        ),
    ]
    return draw_chart(lines, title=variant["name"], note=f"{report['metric']} over the step, with its interval")


def _rows(report: Report) -> list[list[str]]:
    variants: Sequence[Report] = report["variants"]
    columns = [name for name in COLUMNS if all(name in one["end"] for one in variants)]
    rows = [["learner", report["metric"], "against", *columns]]
    for place, one in enumerate(variants):
        against = _interval(one["against_first"], sign="+") if place else ""
        rows.append([one["name"], _interval(one["last"]), against, *(f"{one['end'][name]:.4f}" for name in columns)])
    return rows


def _interval(one: Mapping[str, float], *, sign: str = "") -> str:
    return f"{one['mean']:{sign}.3f} [{one['low']:{sign}.3f}, {one['high']:{sign}.3f}]"
