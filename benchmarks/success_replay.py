"""What success replay is worth: `python -m benchmarks.success_replay [--quick] [--folder FOLDER] [--json FILE]`.

A sparse task: a whole word backward or nothing, 128 tasks met twenty times each, by a model that gets three samples in
a hundred. GRPO alone, GRPO with success replay, and the control, which puts failures back; each on the same seeds,
so on the same tasks and first weights. With --folder what is finished stays there, and a second call goes on from it.

`reward` is that of fresh samples alone, as the engine made them, over the last 20 versions (replayed rows are not
generated again and count nowhere); `held out` is on words of no task. Differences are paired by seed, with Student's t
over seeds at 95 %. Not covered: other learning rates, group sizes and tasks; tasks that are met once have no success to
put back.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rft_vs_trl import T_95
from benchmarks.runs import QUICKSTART, ratchet, scratch_folder, set_words

LAST = 20  # versions
VARIANTS: dict[str, tuple[str, ...]] = {
    "off": ("replay.enabled=false",),
    "success": ("replay.enabled=true", "replay.source=success"),
    "failure": ("replay.enabled=true", "replay.source=failure"),
}
TASK = (
    "environment.parameters={min_word_len: 5, max_word_len: 6}",
    "environment.verifier=exact",
    "engine.backend=transformers",
)
BASE = ("warm_start.steps=75", "steps=1")  # on 20,000 other words
STEPS = 160
RUN = (
    "warm_start.steps=0",
    "environment.train_items=128",
    "learner.groups_per_step=16",
    "learner.decay_steps=160",
)


def make_base(folder: Path, settings: Sequence[str]) -> Path:
    """A model that gets few of the tasks: supervised fine-tuning, stopped early."""
    model = folder / "base"
    if not model.exists():
        root = folder / "runs" / "base"
        ratchet("run", str(QUICKSTART), "--json", *set_words([*TASK, *BASE, *settings, f"root={root}"]))
        ratchet("model", "export", str((root / "latest").resolve()), "--version", "0", "--out", str(model))
    return model


def train(folder: Path, base: Path, variant: str, *, seed: int, settings: Sequence[str]) -> Path:
    """The finished run of `variant`: one that lies there, or a new one."""
    root = folder / "runs" / f"{variant}-{seed}"
    for status in sorted(root.glob("*/status.json")):
        if json.loads(status.read_text())["state"] == "finished":
            return status.parent
    every = [*TASK, *RUN, *VARIANTS[variant], f"model.path={base}", f"seed={seed}", *settings, f"root={root}"]
    ratchet("run", str(QUICKSTART), "--json", *set_words(every))
    return (root / "latest").resolve()


def summarise(run: Path, variant: str, *, seed: int) -> dict[str, Any]:
    asked = json.loads(ratchet("store", "ask", str(run), "reward-by-version", "--json"))["rows"]
    last = max(row["version"] for row in asked)
    tail = [row for row in asked if row["version"] > last - LAST]
    held_out = json.loads(ratchet("status", str(run), "--json"))["held_out"]
    episodes = sum(row["episodes"] for row in tail)
    return {
        "variant": variant,
        "seed": seed,
        "reward": round(sum(row["reward_mean"] * row["episodes"] for row in tail) / episodes, 4),
        "episodes": episodes,
        "held_out_first": round(held_out["first_scores"]["sampled_accuracy"], 4),
        "held_out_last": round(held_out["last_scores"]["sampled_accuracy"], 4),
    }


def compare(rows: Sequence[Mapping[str, Any]], variant: str, key: str) -> dict[str, float]:
    """`variant` against `off` on equal seeds: mean difference and Student's t interval."""
    values = {(row["variant"], row["seed"]): row[key] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    gains = np.array([values[variant, seed] - values["off", seed] for seed in seeds])
    half = T_95[len(gains)] * gains.std(ddof=1) / np.sqrt(len(gains))
    return {"mean": float(gains.mean()), "low": float(gains.mean() - half), "high": float(gains.mean() + half)}


def judge(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    gains = {variant: compare(rows, variant, "reward") for variant in ("success", "failure")}
    words = {v: f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" for v, gain in gains.items()}
    return [
        {
            "name": "reward with success replay against without",
            "goal": "interval above 0",
            "measured": words["success"],
            "met": gains["success"]["low"] > 0,
        },
        {
            "name": "reward with failures replayed against without (control)",
            "goal": "interval not above 0",
            "measured": words["failure"],
            "met": gains["failure"]["low"] <= 0,
        },
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds, 25 steps and 64 held-out items")
    parser.add_argument("--folder", type=Path, help="where base and runs are kept; default: thrown away")
    parser.add_argument("--seeds", type=int, choices=sorted(T_95), default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    seeds = 2 if options.quick else options.seeds
    settings = [f"steps={25 if options.quick else STEPS}"]
    settings += ["environment.held_out_items=64", "evaluate.samples=1"] if options.quick else []
    rows = []
    with scratch_folder(options.folder) as folder:
        base = make_base(folder, settings[1:])
        for seed in range(seeds):
            for variant in VARIANTS:
                run = train(folder, base, variant, seed=seed, settings=settings)
                rows.append(summarise(run, variant, seed=seed))
                print(json.dumps(rows[-1]), flush=True)
    goals = judge(rows)
    for variant in ("success", "failure"):
        gain = compare(rows, variant, "held_out_last")
        print(f"{variant}, held out against off: {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]")
    for goal in goals:
        print(f"{goal['name']}: {goal['measured']}, goal {goal['goal']}, {'met' if goal['met'] else 'missed'}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "goals": goals}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
