"""Reinforcement fine-tuning beside TRL's GRPOTrainer: `python -m benchmarks.rft_vs_trl [--quick] [--json FILE]`.

Both start from the same weights and tokenizer and are given the same prompts in the same order, the same group size,
lengths, learning rates and precision (benchmarks/cases.py), on the same cores, one after the other in every round.

Ratchet here is `ratchet run`: its processes under Ray, every completion durable in the log before it is trained on,
every version's weights synced to disk, the parity guard at every push, a checkpoint every 20 steps. TRL writes nothing.

    short   256 completions of 6 tokens a step           at least 1.5 times as fast, with equal work
    long    256 completions of 3 to 255 tokens a step    at least 3 times

Equal work: groups whose rewards are all equal are computed as well, though they have no gradient; leaving them out
(Ratchet's default) is stated apart. Counted between two steps after everything is warm, from each system's own clock;
CPU seconds are those of all its processes. `--curves` adds the learning curves of the short case, on three seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import LONG, SHORT, Case, placed, prepare_model, start_ratchet, start_trl
from benchmarks.peers import peer_python
from benchmarks.processes import Job, Tail, Used, seconds_between
from benchmarks.runs import scratch_folder
from telemetry.spans import read

GOALS = {"short": 1.5, "long": 3.0}
STEP_S = 120.0  # without a step for so long, a run is given up
LOOK_S = 0.05
BIN_STEPS = 25  # of a learning curve
T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t by number of seeds, two-sided


@dataclass(frozen=True, kw_only=True)
class System:
    """One way to run a case. `settings` is None for TRL."""

    name: str
    settings: tuple[str, ...] | None
    threads: int = 1
    judged: bool = True  # whether the goal is about it


ASYNC = ("mode=async", "max_staleness=1", "engine.in_flight=continue")
EQUAL = "learner.skip_zero_spread=false"
TRANSFORMERS = (*ASYNC, "engine.backend=transformers", "rollout.chunk=32")
VLLM = (*ASYNC, "engine.backend=vllm")
SYSTEMS = (
    System(name="TRL, 2 threads", settings=None, threads=2),
    System(name="TRL, 1 thread", settings=None, threads=1),
    System(name="Ratchet, transformers", settings=(*TRANSFORMERS, EQUAL)),
    System(name="Ratchet, vLLM", settings=(*VLLM, EQUAL)),
    System(name="Ratchet, transformers, no zero spread", settings=TRANSFORMERS, judged=False),
    System(name="Ratchet, vLLM, no zero spread", settings=VLLM, judged=False),
)


def start(case: Case, system: System, *, settings: Sequence[str], folder: Path) -> tuple[Job, Tail]:
    """The system at work, and its lines: one a finished step, among others."""
    if system.settings is None:
        job = start_trl(peer_python("trl"), case, settings=settings, folder=folder, threads=system.threads)
        return job, Tail(folder / "steps.jsonl")
    job = start_ratchet(case, settings=[*settings, *system.settings], root=folder)
    return job, Tail(folder / "latest" / "metrics.jsonl")


def steps_in(tail: Tail) -> list[dict[str, Any]]:
    return [line for line in tail.lines() if line.get("phase", "step") == "step"]


def follow(job: Job, tail: Tail, *, marks: Sequence[int], look: Callable[[], None]) -> None:
    """Call `look` when each step of `marks` is done; wait for the end. Raises SystemExit where it fails or hangs."""
    seen, left, heard = 0, list(marks), time.monotonic()
    while not job.ended:
        done = len(steps_in(tail))
        if done > seen:
            seen, heard = done, time.monotonic()
        while left and done >= left[0]:
            left.pop(0)
            look()
        if time.monotonic() - heard > STEP_S:
            raise SystemExit(f"no step for {STEP_S:g} s: {job.log}")
        time.sleep(LOOK_S)
    if job.code or left:
        raise SystemExit(f"the run ended with code {job.code} and without step {left}: {job.log}")


def measure(
    case: Case, system: System, *, model: Path, steps: tuple[int, int], seed: int, folder: Path
) -> dict[str, Any]:
    """One run of `system`; its speed from step steps[0] to step steps[1]."""
    first, last = steps
    settings = (f"model.path={model}", f"steps={last}", f"seed={seed}")
    started, looks = time.monotonic(), list[Used]()
    job, tail = start(case, system, settings=settings, folder=folder)
    try:
        follow(job, tail, marks=steps, look=lambda: looks.append(job.cpu_seconds()))
    finally:
        job.kill()
    lines = steps_in(tail)
    window, clock = lines[first:last], lines[last - 1]["time"] - lines[first - 1]["time"]
    count, used = last - first, seconds_between(*looks)
    learner = case.config().learner
    batch = learner.groups_per_step * learner.group_size
    return {
        "case": case.name,
        "system": system.name,
        "completions_per_s": round(batch * count / clock, 1),
        "step_s": round(clock / count, 4),
        "cpu_s_a_step": round(sum(used.values()) / count, 4),
        "cpu_by_process": {role: round(seconds / count, 4) for role, seconds in used.items() if seconds / count > 5e-4},
        "tokens_a_completion": round(sum(line["tokens"] for line in window) / count / batch, 2),
        "reward_first_last": [round(lines[0]["reward_mean"], 3), round(lines[-1]["reward_mean"], 3)],
        "parts_s": parts_of(window) if system.settings is None else ratchet_parts(tail.path.parent, window),
        "steps": count,
        "load": round(os.getloadavg()[0], 1),
        "run_s": round(time.monotonic() - started, 1),
    }


def parts_of(window: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean seconds a step of everything that the lines time."""
    names = sorted({name for line in window for name in line if name.endswith("_s")})
    return {name: round(sum(line.get(name, 0.0) for line in window) / len(window), 4) for name in names}


def ratchet_parts(run: Path, window: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The update worker's own parts, and what other processes did meanwhile, from their spans. They overlap."""
    start, end = window[0]["time"], window[-1]["time"]
    parts = {f"update worker: {name}": seconds for name, seconds in parts_of(window).items()}
    for session in read(run / "spans"):
        for span in session.spans:
            if span.name in ("generate", "reward", "append", "push", "probe", "pause") and (
                start <= span.start_ns / 1e9 <= end
            ):
                name = f"{session.role}: {span.name}_s"
                parts[name] = parts.get(name, 0.0) + span.duration_ns / 1e9 / len(window)
    return {name: round(seconds, 4) for name, seconds in parts.items()}


# ------------------------------------------------------------------------------------------ learning curves


def curves(case: Case, systems: Sequence[System], *, seeds: Sequence[int], steps: int, folder: Path) -> dict[str, Any]:
    """Mean reward of each stretch of BIN_STEPS steps, mean and 95 % interval over the seeds."""
    rewards: dict[str, list[list[float]]] = {system.name: [] for system in systems}
    for seed in seeds:
        model = prepare_model(case, seed=seed, folder=folder)
        for system in systems:
            where = folder / f"curve-{seed}-{systems.index(system)}"
            settings = (f"model.path={model}", f"steps={steps}", f"seed={seed}")
            job, tail = start(case, system, settings=settings, folder=where)
            try:
                follow(job, tail, marks=(steps,), look=lambda: None)
            finally:
                job.kill()
            lines = [line["reward_mean"] for line in steps_in(tail)]
            rewards[system.name].append([float(np.mean(lines[i : i + BIN_STEPS])) for i in range(0, steps, BIN_STEPS)])
    return {name: [interval(list(point)) for point in zip(*one, strict=True)] for name, one in rewards.items()}


def interval(values: Sequence[float]) -> dict[str, float]:
    mean = statistics.mean(values)
    half = T_95[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4)}


def agreement(first: Sequence[dict[str, float]], second: Sequence[dict[str, float]]) -> float:
    """Share of the stretches in which the two intervals overlap."""
    return statistics.mean(a["low"] <= b["high"] and b["low"] <= a["high"] for a, b in zip(first, second, strict=True))


# ------------------------------------------------------------------------------------------ the command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of few steps, TRL with two threads only")
    parser.add_argument("--case", choices=["short", "long"], action="append", help="one case (default: both)")
    parser.add_argument("--only", metavar="TEXT", action="append", help="systems whose name holds it")
    parser.add_argument("--curves", action="store_true", help="also learning curves, three seeds (an hour)")
    parser.add_argument("--rounds", type=int, help="how often each system runs (default 3, quick 1; 0: curves only)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder, and the starting weights")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    peer_python("trl")
    with scratch_folder(options.keep) as folder:
        report = compare(options, folder)
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    return 0


def compare(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    systems = [one for one in SYSTEMS if not options.only or any(text in one.name for text in options.only)]
    if options.quick and not options.only:
        systems = [one for one in systems if one.name != "TRL, 1 thread"]
    rows: list[dict[str, Any]] = []
    for case in (placed(one, scratch) for one in (SHORT, LONG) if not options.case or one.name in options.case):
        model = prepare_model(case, seed=options.seed, folder=scratch)
        steps = case.quick_steps if options.quick else case.full_steps
        for number in range((1 if options.quick else 3) if options.rounds is None else options.rounds):
            for system in systems:
                folder = scratch / f"{case.name}-{number}-{SYSTEMS.index(system)}"
                shutil.rmtree(folder, ignore_errors=True)
                row = measure(case, system, model=model, steps=steps, seed=options.seed, folder=folder)
                rows.append({"round": number, **row})
                print(f"{case.name:6}{system.name:40}{row['completions_per_s']:9.0f} completions/s", flush=True)
    report: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "rows": rows, "goals": goals_of(rows)}
    if options.curves:
        chosen = [one for one in systems if one.judged and one.name != "TRL, 1 thread"]
        drawn = curves(SHORT, chosen, seeds=(0, 1, 2), steps=50 if options.quick else 250, folder=scratch)
        report["curves"] = drawn
        peer = next(name for name in drawn if name.startswith("TRL"))
        for name in (name for name in drawn if name != peer):
            share = agreement(drawn[peer], drawn[name])
            report["goals"].append(
                {"name": f"curve of {name} within TRL's interval", "goal": 1.0, "measured": share, "met": share == 1.0}
            )
    return report


def goals_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ratchet's faster engine against TRL's faster number of threads, medians over the rounds."""
    goals = []
    for case, goal in GOALS.items():
        for what, number, sense in (("", "completions_per_s", 1), (" by CPU seconds", "cpu_s_a_step", -1)):
            best: dict[bool, float] = {}
            for system in (one for one in SYSTEMS if one.judged):
                found = [row[number] for row in rows if row["case"] == case and row["system"] == system.name]
                if found:
                    speed = statistics.median(found) ** sense
                    peer = system.settings is None
                    best[peer] = max(best.get(peer, 0.0), speed)
            if len(best) == 2:
                ratio = best[False] / best[True]
                goals.append(
                    {
                        "name": f"{case}: times as fast as TRL{what}",
                        "goal": goal if not what else None,
                        "measured": round(ratio, 2),
                        "met": ratio >= goal if not what else None,
                    }
                )
    return goals


def show(report: dict[str, Any]) -> None:
    print(f"\n{'case':6}{'system':40}{'completions/s':>14}{'step s':>9}{'CPU s':>8}{'tokens':>8}{'load':>6}")
    for row in report["rows"]:
        print(
            f"{row['case']:6}{row['system']:40}{row['completions_per_s']:14.0f}{row['step_s']:9.3f}"
            f"{row['cpu_s_a_step']:8.3f}{row['tokens_a_completion']:8.1f}{row['load']:6.1f}"
        )
    for row in report["rows"]:
        print(f"\n{row['case']}, {row['system']}: seconds a step")
        for name, seconds in row["parts_s"].items():
            print(f"    {seconds:8.4f}  {name}")
        print("    CPU: " + ", ".join(f"{role} {seconds:.3f}" for role, seconds in row["cpu_by_process"].items()))
    for goal in report["goals"]:
        judged = "" if goal["met"] is None else f", goal {goal['goal']:g}: {'met' if goal['met'] else 'missed'}"
        print(f"{goal['name']}: {goal['measured']:.2f}{judged}")


if __name__ == "__main__":
    raise SystemExit(main())
