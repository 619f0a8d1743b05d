"""Progress lines: every fact that is known, no fact that is not."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from console.progress import HeldOut, render_duration, render_line, render_panel

RUNNING = {
    "state": "running",
    "phase": "step",
    "step": 12,
    "steps": 600,
    "reward": 0.51239,
    "tokens_per_s": 8123.4,
    "completions_per_s": 900.2,
    "staleness": 0.75,
    "lag": 3,
    "eta_s": 3700.4,
}


def test_a_line_names_every_fact() -> None:
    assert render_line(RUNNING) == (
        "running: step 12/600  reward 0.512  tokens/s 8,123  completions/s 900  staleness 0.75  lag 3  left 1:01:40"
    )


def test_unknown_facts_are_left_out() -> None:
    assert render_line({"state": "starting", "steps": 600}) == "starting: step 0/600"
    assert render_line({}) == "starting"


def test_the_panel_says_the_same() -> None:
    out = io.StringIO()
    Console(file=out, width=120, force_terminal=False).print(render_panel(RUNNING))
    for piece in ("running  step 12 of 600", "reward 0.512", "tokens/s 8,123", "left 1:01:40"):
        assert piece in out.getvalue()


def test_held_out_scores_are_read_as_the_file_grows(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    scores = HeldOut(file)
    assert scores.read() is None
    file.write_text('{"metric": "exact", "exact": 0.31}\n{"phase": "step"}\n{"metric": "exact", "ex')
    assert scores.read() == "0.310"
    with file.open("a") as more:
        more.write('act": 0.4}\n{"metric": "exact", "exact": 0.52}\n')
    assert scores.read() == scores.read() == "0.310 → 0.520"


def test_durations() -> None:
    assert [render_duration(seconds) for seconds in (None, 0.4, 85, 3700)] == [None, "0:00", "1:25", "1:01:40"]
