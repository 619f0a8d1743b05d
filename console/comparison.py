"""What a sweep found: scores of each variant over its seeds, and variants compared on equal seeds.

report = compare(outcomes)          # plain JSON
print(render_text(report))          # the same as a table
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.intervals import CONFIDENCE, bootstrap, paired_difference

Report = dict[str, Any]
COLUMNS = {"last": "", "gain": "+"}  # key of a variant's interval, and how its sign is shown
NOTE = (
    f"Brackets: {CONFIDENCE:.0%} bootstrap intervals over seeds. Of fewer than about ten seeds they are too narrow; "
    "they say nothing of other held-out items or data sets."
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one run ended. `scores`: the `held_out` part of its status; None unless it is finished."""

    variant: str
    seed: int
    run: str
    state: str
    scores: Mapping[str, Any] | None


def compare(outcomes: Sequence[Outcome]) -> Report:
    """Means and intervals over the finished runs' last scores and gains; differences of variants on equal seeds."""
    names = list(dict.fromkeys(outcome.variant for outcome in outcomes))
    found = {name: [one for one in outcomes if one.variant == name] for name in names}
    return {
        "confidence": CONFIDENCE,
        "seeds": sorted({outcome.seed for outcome in outcomes}),
        "variants": [_variant(name, found[name]) for name in names],
        "differences": [
            difference
            for before, after in itertools.combinations(names, 2)
            if (difference := _difference(found[before], found[after])) is not None
        ],
    }


def render_text(report: Report) -> str:
    """The tables for a terminal."""
    parts = [_align(table) for table in _tables(report)]
    return "\n\n".join([*parts, NOTE])


def render_markdown(report: Report) -> str:
    """The same as Markdown."""
    parts = []
    for head, *rows in _tables(report):
        lines = [head, ["---"] * len(head), *rows]
        parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in lines))
    return "\n\n".join([*parts, NOTE]) + "\n"


def write(report: Report, folder: Path) -> None:
    """report.json and report.md in `folder`, each whole or not at all."""
    for name, text in (("report.json", json.dumps(report, indent=1) + "\n"), ("report.md", render_markdown(report))):
        draft = folder / f".{name}.{os.getpid()}"
        draft.write_text(text, encoding="utf-8")
        draft.replace(folder / name)


def _variant(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    scored = [one.scores for one in outcomes if one.scores is not None]
    last = np.array([scores["last"] for scores in scored])
    first = np.array([scores["first"] for scores in scored])
    return {
        "name": name,
        "metric": scored[0]["metric"] if scored else None,
        "items": scored[0]["items"] if scored else None,
        "num_seeds": len(scored),
        "last": asdict(bootstrap(last)) if scored else None,
        "gain": asdict(bootstrap(last - first)) if scored else None,
        "runs": [_run(one) for one in outcomes],
    }


def _run(outcome: Outcome) -> dict[str, Any]:
    scores = outcome.scores or {}
    shown = {key: scores.get(key) for key in ("first", "best", "last")}
    return {"run": outcome.run, "seed": outcome.seed, "state": outcome.state, **shown}


def _difference(before: Sequence[Outcome], after: Sequence[Outcome]) -> dict[str, Any] | None:
    """after - before in the last score, over the seeds that both have; None where there is nothing to compare."""
    old = {one.seed: one.scores for one in before if one.scores is not None}
    new = {one.seed: one.scores for one in after if one.scores is not None}
    seeds = sorted(seed for seed in old.keys() & new.keys() if old[seed]["metric"] == new[seed]["metric"])
    if not seeds:
        return None
    interval = paired_difference(
        np.array([old[seed]["last"] for seed in seeds]), np.array([new[seed]["last"] for seed in seeds])
    )
    return {"from": before[0].variant, "to": after[0].variant, "seeds": seeds, "last": asdict(interval)}


def _tables(report: Report) -> list[list[list[str]]]:
    """Rows of text, the first of each table its head."""
    metrics = sorted({variant["metric"] for variant in report["variants"] if variant["metric"]})
    head = ["variant", *(f"seed {seed}" for seed in report["seeds"]), ", ".join(metrics) or "score", "gain"]
    rows = [head]
    for variant in report["variants"]:
        by_seed = {run["seed"]: run for run in variant["runs"]}
        cells = [_cell(by_seed.get(seed)) for seed in report["seeds"]]
        interval = [_interval(variant[key], variant["num_seeds"], sign=sign) for key, sign in COLUMNS.items()]
        rows.append([variant["name"] or "all", *cells, *interval])
    tables = [rows]
    if report["differences"]:
        differences = [["on equal seeds", "seeds", "difference"]]
        for one in report["differences"]:
            text = _interval(one["last"], len(one["seeds"]), sign="+")
            differences.append([f"{one['to']} against {one['from']}", str(len(one["seeds"])), text])
        tables.append(differences)
    return tables


def _cell(run: Mapping[str, Any] | None) -> str:
    if run is None:
        return ""
    return run["state"] if run["last"] is None else f"{run['last']:.3f}"


def _interval(interval: Mapping[str, float] | None, num_seeds: int, *, sign: str = "") -> str:
    if interval is None:
        return ""
    if num_seeds == 1:
        return f"{interval['mean']:{sign}.3f} (one seed)"
    return f"{interval['mean']:{sign}.3f} [{interval['low']:{sign}.3f}, {interval['high']:{sign}.3f}]"


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
