"""Live progress of a run: a panel on a terminal, a line every ten seconds elsewhere. Reads status.json, asks nobody."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from console.status import read_status

_PANEL_S, _LINE_S = 1.0, 10.0


class Progress:
    """Draws on standard error from its own thread inside a `with` block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._scores = HeldOut(folder / "metrics.jsonl")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _draw(self) -> None:
        if sys.stderr.isatty():
            self._draw_panel()
        else:
            self._draw_lines()

    def _draw_panel(self) -> None:
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(stderr=True), auto_refresh=False) as live:
            while True:
                ended = self._done.wait(_PANEL_S)
                live.update(render_panel(self._read()), refresh=True)
                if ended:
                    return

    def _draw_lines(self) -> None:
        last = ""
        while True:
            ended = self._done.wait(_LINE_S)
            line = render_line(self._read())
            if line != last:
                print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)
            last = line
            if ended:
                return

    def _read(self) -> dict[str, Any]:
        return {**read_status(self._folder), "held_out": self._scores.read()}


class HeldOut:
    """The first and the newest held-out score, read from metrics.jsonl as it grows."""

    def __init__(self, file: Path) -> None:
        self._file, self._at = file, 0
        self._scores: list[float] = []

    def read(self) -> str | None:
        """ "0.310" or "0.310 → 0.520"; None before the first evaluation."""
        if self._file.exists():
            with self._file.open("rb") as file:
                file.seek(self._at)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._at += len(whole) + len(newline)
            lines = [json.loads(line) for line in whole.splitlines() if b'"metric"' in line]
            self._scores += [line[line["metric"]] for line in lines]
        shown = self._scores[:1] + self._scores[1:][-1:]
        return " → ".join(f"{score:.3f}" for score in shown) or None


def render_line(status: Mapping[str, Any]) -> str:
    """One line: where the run stands."""
    if "state" not in status:
        return "starting"
    parts = [f"{status['state']}: step {status.get('step', 0)}/{status['steps']}"]
    parts += [f"{name} {value}" for name, value in _facts(status)]
    return "  ".join(parts)


def render_panel(status: Mapping[str, Any]) -> Any:
    """The same as a rich renderable: a bar and a row of facts."""
    from rich.columns import Columns
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    if "state" not in status:
        return Text("starting", style="dim")
    head = Text.assemble((status["state"], "bold"), f"  step {status.get('step', 0)} of {status['steps']}")
    bar = ProgressBar(total=max(status["steps"], 1), completed=status.get("step", 0), width=60, complete_style="cyan")
    facts = [Text.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in _facts(status)]
    panel = Table.grid()
    for row in (head, bar, Columns(facts, padding=(0, 3))):
        panel.add_row(row)
    return panel


def _facts(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    def number(key: str, form: str) -> str | None:
        value = status.get(key)
        return None if value is None else format(value, form)

    phase = status.get("phase")
    shown = (
        ("phase", phase if phase not in ("step", "starting", status.get("state")) else None),
        ("reward", number("reward", ".3f")),
        ("held-out", status.get("held_out")),
        ("tokens/s", number("tokens_per_s", ",.0f")),
        ("completions/s", number("completions_per_s", ",.0f")),
        ("staleness", number("staleness", ".2f")),
        ("lag", number("lag", ",.0f")),
        ("left", render_duration(status.get("eta_s"))),
    )
    return [(name, value) for name, value in shown if value]


def render_duration(seconds: float | None) -> str | None:
    """85 → "1:25", 3700 → "1:01:40"; None stays None."""
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
