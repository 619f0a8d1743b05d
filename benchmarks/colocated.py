"""What sharing costs: `python -m benchmarks.colocated [--quick] [--rounds N] [--config FILE] [--json FILE]`.

The same run, engine and update worker each in a place of its own against all in one place, taking turns
(cluster.mode=colocated, which is always `sync`), one after the other in every round. Whoever has the turn uses all
cores: --engines of one thread each, then an update worker of --threads; apart, each has what the run file gives it.
Seconds are from the command to its report, start-up, warm start and evaluations included; the rest is from the run's
own metrics and spans. Memory is the largest sum of the resident sizes of the run's processes, which counts shared
pages more than once; on a GPU see the run's own metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.runs import finish, scratch_folder, start_run
from telemetry.logs import read_lines
from telemetry.spans import read

TURNS = ("cluster.mode=colocated", "mode=sync", "max_staleness=0")
GOAL = 1.3  # times as long, at most
LOOK_S = 1.0
RUN_S = 3600.0
PARTS = ("wait_s", "update_s", "save_s", "publish_s")
PAUSES = ("pause", "push", "probe", "sleep", "wake")


def measure(mode: str, *, config: str, settings: Sequence[str], root: Path) -> dict[str, Any]:
    """One run to its end. Raises SystemExit where it fails."""
    started, sizes = time.monotonic(), list[int]()
    job = start_run(Path(config), settings=settings, root=root)
    try:
        status = finish(job, timeout_s=RUN_S, look=lambda: sizes.append(job.resident_bytes()), every_s=LOOK_S)
    finally:
        job.kill()
    seconds = time.monotonic() - started
    run = (root / "latest").resolve()
    lines = [line for line in read_lines(run / "metrics.jsonl") if line["phase"] == "step"]
    window = lines[len(lines) // 10 :]
    clock = window[-1]["time"] - window[0]["time"]
    return {
        "mode": mode,
        "seconds": round(seconds, 1),
        "step_s": round(clock / (len(window) - 1), 4),
        "completions_per_s": round(sum(line["episodes"] for line in window[1:]) / clock, 1),
        "tokens_per_s": round(sum(line["tokens"] for line in window[1:]) / clock, 1),
        "parts_s": {part: round(statistics.median(line[part] for line in window), 4) for part in PARTS},
        "pauses_s": pauses(run),
        "memory_gib": round(max(sizes) / 2**30, 2),
        "idle": status.get("idle"),
        "held_out": [round(status["held_out"][key], 4) for key in ("first", "last")],
        "load": round(os.getloadavg()[0], 1),
    }


def pauses(run: Path) -> dict[str, float]:
    """Median seconds of what keeps the engines from generating."""
    found: dict[str, list[float]] = {name: [] for name in PAUSES}
    for session in read(run / "spans"):
        if session.role.startswith("engine"):
            for span in session.spans:
                if span.name in found:
                    found[span.name].append(span.duration_ns / 1e9)
    return {name: round(statistics.median(times), 4) for name, times in found.items() if times}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 steps, few held-out items")
    parser.add_argument("--rounds", type=int, default=1, help="how often each runs; medians are compared")
    parser.add_argument("--config", default="configs/quickstart.yaml")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--engines", type=int, default=cores, help="that take turns with the update worker")
    parser.add_argument("--threads", type=int, default=cores, help="of the update worker that takes turns with them")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    quick = ["steps=60", "environment.held_out_items=32", "evaluate.samples=1"] if options.quick else []
    engines = (f"engine.count={options.engines}", f"rollout.workers={options.engines}")
    turns = (*TURNS, *engines, f"learner.threads={options.threads}")
    modes: dict[str, tuple[str, ...]] = {"separate": (), "colocated": turns}
    rows = []
    with scratch_folder(None) as scratch:
        for number in range(options.rounds):
            for mode, own in modes.items():
                every = [*quick, *options.settings, *own]
                row = measure(mode, config=options.config, settings=every, root=scratch / f"{mode}-{number}")
                rows.append({"round": number, **row})
                print(json.dumps(rows[-1]), flush=True)
    apart, together = (statistics.median(row["seconds"] for row in rows if row["mode"] == mode) for mode in modes)
    ratio = round(together / apart, 3)
    goal = {"name": "colocated: times as long as separate", "goal": GOAL, "measured": ratio, "met": ratio <= GOAL}
    print(f"{goal['name']}: {ratio}, goal {GOAL}, {'met' if goal['met'] else 'missed'}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "goals": [goal]}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
