"""Does it pay to generate while learning? `python -m benchmarks.overlap [--quick] [--rounds N] [--curves]
[--json FILE]`.

The quickstart, with engine and update worker pinned to one core each, in `async` and in `sync` mode; the peer is `sync`
with every process free to use both cores. Completions a second are counted from the run's own metrics between two
steps, after everything is warm. With --curves: the same run to its end at staleness 1, 2 and 4, on three seeds.

Pinning is done from outside, thread by thread, once the run stands; other processes of the run stay free.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import Job
from benchmarks.runs import QUICKSTART, finish, scratch_folder, start_run
from evaluation.intervals import bootstrap
from telemetry.logs import read_lines

WARM_STEPS = 30  # before the clock starts: the queue is full, caches are warm
GOAL_OVERLAP, GOAL_FREE = 1.3, 1.0
STALENESS, SEEDS = (1, 2, 4), (0, 1, 2)
PINNED = {"engine-0": 0, "update-0": 1}  # role → core
PARTS = ("wait_s", "update_s", "publish_s")
RUN_S = 1800.0


@dataclass(frozen=True, kw_only=True)
class Variant:
    name: str
    settings: tuple[str, ...]
    pinned: bool


VARIANTS = (
    Variant(name="async, pinned", settings=("mode=async", "max_staleness=1"), pinned=True),
    Variant(name="sync, pinned", settings=("mode=sync", "max_staleness=0"), pinned=True),
    Variant(name="sync, free", settings=("mode=sync", "max_staleness=0"), pinned=False),
)


def measure(variant: Variant, *, settings: Sequence[str], steps: int, scratch: Path) -> dict[str, Any]:
    """Completions a second between step WARM_STEPS and `steps`, and the mean seconds of a step's parts."""
    runs = scratch / variant.name.replace(", ", "-")
    every = (*settings, *variant.settings, f"steps={steps}", "evaluate.samples=1", "environment.held_out_items=16")
    job = start_run(QUICKSTART, settings=every, root=runs)
    try:
        wait_for_step(job, runs, step=WARM_STEPS // 3)
        if variant.pinned:
            for role, core in PINNED.items():
                pin(process_id(runs, role), core=core)
        finish(job, timeout_s=RUN_S)
    finally:
        job.kill()
    lines = [line for line in read_lines(runs.resolve() / "latest" / "metrics.jsonl") if line["phase"] == "step"]
    first, last = lines[WARM_STEPS - 1], lines[-1]
    window = lines[WARM_STEPS:]
    seconds = last["time"] - first["time"]
    status = json.loads((runs / "latest" / "status.json").read_text())
    return {
        "variant": variant.name,
        "completions_per_s": round(sum(line["episodes"] for line in window) / seconds, 1),
        "step_s": round(seconds / len(window), 4),
        **{part: round(sum(line[part] for line in window) / len(window), 4) for part in PARTS},
        "idle": status.get("idle"),
        "load": round(os.getloadavg()[0], 1),
        "steps": len(window),
    }


def wait_for_step(job: Job, runs: Path, *, step: int) -> None:
    deadline = time.monotonic() + RUN_S
    while time.monotonic() < deadline and not job.ended:
        file = runs / "latest" / "metrics.jsonl"
        if file.exists() and any(line["phase"] == "step" and line["step"] >= step for line in read_lines(file)):
            return
        time.sleep(0.2)
    raise SystemExit(f"no step {step}: the run ended, or took too long")


def process_id(runs: Path, role: str) -> int:
    started = [line["pid"] for line in read_lines(runs / "latest" / "logs" / f"{role}.jsonl") if "pid" in line]
    return int(started[-1])


def pin(pid: int, *, core: int) -> None:
    """Every thread that the process has now; later ones inherit it."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def curve(staleness: int, seed: int, *, settings: Sequence[str], steps: int, scratch: Path) -> dict[str, Any]:
    """Held-out accuracy of one run to its end."""
    runs = scratch / f"staleness-{staleness}-seed-{seed}"
    fixed = (f"max_staleness={staleness}", f"seed={seed}", f"steps={steps}", f"learner.decay_steps={steps}")
    job = start_run(QUICKSTART, settings=[*settings, *fixed], root=runs)
    try:
        scores = finish(job, timeout_s=RUN_S)["held_out"]
    finally:
        job.kill()
    lines = [line for line in read_lines(runs / "latest" / "metrics.jsonl") if line["phase"] == "step"]
    return {
        "staleness": staleness,
        "seed": seed,
        "mean_staleness": round(sum(line["staleness"] for line in lines) / len(lines), 3),
        "first": round(scores["first"], 4),
        "last": round(scores["last"], 4),
        "greedy": round(scores["last_scores"]["greedy_accuracy"], 4),
    }


def compare(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each staleness's mean gain and its interval over seeds; the goal is that all intervals meet."""
    summary = []
    for staleness in STALENESS:
        gains = [row["last"] - row["first"] for row in rows if row["staleness"] == staleness]
        interval = bootstrap(np.asarray(gains))
        summary.append({"staleness": staleness, "gain": interval.mean, "low": interval.low, "high": interval.high})
    return summary


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="60 steps a variant instead of 200")
    parser.add_argument(
        "--rounds", type=int, default=1, help="how often each variant runs (0: curves only); medians count"
    )
    parser.add_argument("--curves", action="store_true", help="the learning curves too: nine runs of some minutes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("two cores are needed: one for the engine, one for the update worker")
    with scratch_folder(None) as scratch:
        steps = 60 if options.quick else 200
        rows = []
        for number in range(options.rounds):
            for variant in VARIANTS:
                row = measure(variant, settings=options.settings, steps=steps, scratch=scratch / str(number))
                rows.append({"round": number, **row})
                print(json.dumps(rows[-1]), flush=True)
        goals = compare_speeds(rows) if rows else []
        if options.curves:
            curves = []
            for seed in SEEDS:
                for staleness in STALENESS:
                    steps = 100 if options.quick else 300
                    curves.append(curve(staleness, seed, settings=options.settings, steps=steps, scratch=scratch))
                    print(json.dumps(curves[-1]), flush=True)
            summary = compare(curves)
            for row in summary:
                print(json.dumps(row))
            gap = max(one["low"] for one in summary) - min(one["high"] for one in summary)
            goals.append(goal("gap between the intervals of the gains", 0.0, gap, at_most=True))
            rows += [*curves, *summary]
    for one in goals:
        print(f"{one['name']}: {one['measured']}, goal {one['goal']}, {'met' if one['met'] else 'missed'}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "goals": goals}, indent=1))
    return 0


def compare_speeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    overlapped, pinned, free = (median_speed(rows, variant.name) for variant in VARIANTS)
    return [
        goal("async pinned / sync pinned", GOAL_OVERLAP, overlapped / pinned),
        goal("async pinned / sync free", GOAL_FREE, overlapped / free),
    ]


def median_speed(rows: Sequence[dict[str, Any]], variant: str) -> float:
    return statistics.median(float(row["completions_per_s"]) for row in rows if row["variant"] == variant)


def goal(name: str, wanted: float, measured: float, *, at_most: bool = False) -> dict[str, Any]:
    met = measured <= wanted if at_most else measured >= wanted
    return {"name": name, "goal": wanted, "measured": round(measured, 3), "met": met}


if __name__ == "__main__":
    raise SystemExit(main())
