"""Six losses on one recorded log: `python -m benchmarks.algorithms [--quick] [--folder FOLDER] [--json FILE]`.

Records a run of configs/quickstart.yaml, then trains a branch with each loss, as published, on exactly its batches
(`ratchet replay RUN --set learner.loss=NAME --seeds 3`), and one with the run's own settings; prints held-out accuracy
with intervals, and how far each branch went from the recorded policy. With --folder what is finished stays there, and a
second call goes on from it.

Intervals (95 %, bootstrap): seeds are drawn with replacement, and the items' own error is added, taken from each seed's
bootstrap over items. A seed is a resampling of each batch's prompts (loops/retrain.py). Not covered: other initial
weights, other samples, other tasks; and a branch is no run, since its data are those of another policy.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runs import QUICKSTART, ratchet, set_words
from configs.formulas import FORMULAS, KEYS
from evaluation.intervals import bootstrap_seeds

OWN = "own-settings"
STATS = ("importance_ess", "kl", "clip_fraction_low", "clip_fraction_high", "grad_norm")


def record(folder: Path, *, steps: int, settings: Sequence[str]) -> Path:
    """The recorded run: the first that is finished under `folder`, or a new one."""
    for status in sorted(folder.glob("runs/*/status.json")):
        if json.loads(status.read_text())["state"] == "finished":
            return status.parent
    every = [f"steps={steps}", f"learner.decay_steps={steps}", *settings, f"root={folder / 'runs'}"]
    ratchet("run", str(QUICKSTART), "--json", *set_words(every))
    return (folder / "runs" / "latest").resolve()


def branch(run: Path, loss: str, *, folder: Path, seeds: int) -> dict[str, Any]:
    """The report of `ratchet replay`; an earlier one of the same run and loss where there is one. A published loss has
    none of the keys that the run sets beside its own."""
    keys = [] if loss == OWN else [f"learner.loss={loss}", *(f"learner.{key}=null" for key in KEYS)]
    settings = [word for key in keys for word in ("--set", key)]
    out = folder / "branches" / loss
    if not (out / "report.json").exists():
        draft = Path(tempfile.mkdtemp(prefix=f"{loss}-", dir=folder))
        ratchet("replay", str(run), *settings, "--seeds", str(seeds), "--out", str(draft), "--json")
        out.parent.mkdir(exist_ok=True)
        draft.rename(out)
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def summarise(loss: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """One row: the mean over seeds and its interval, each seed's own, and the last tenth's statistics."""
    scores = [one["scores"] for one in report["branches"]]
    means = np.array([one["sampled_accuracy"] for one in scores])
    errors = np.array([one["sampled_accuracy_high"] - one["sampled_accuracy_low"] for one in scores]) / (2 * 1.96)
    interval = bootstrap_seeds(means, item_error=float(errors.mean()))
    ends = [one["summary"]["end"] for one in report["branches"]]
    stats = {name: round(float(np.mean([end.get(name, 0.0) for end in ends])), 4) for name in STATS}
    return {
        "loss": loss,
        "sampled": round(interval.mean, 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        "seeds": [round(float(mean), 4) for mean in means],
        "greedy": round(float(np.mean([one["greedy_accuracy"] for one in scores])), 4),
        **stats,
    }


def judge(
    run: Path, reports: Mapping[str, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The run's own loss reproduces the run; every loss leaves genesis behind."""
    evaluated = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"evaluate"' in line]
    genesis = float(evaluated[0]["sampled_accuracy"])
    same = reports[OWN]["branches"][0]["root_hash"] == reports[OWN]["recorded"]["root_hash"]
    better = sum(row["low"] > genesis for row in rows)
    return [
        {
            "name": "seed 0 with the run's own settings has the run's hash",
            "goal": 1,
            "measured": int(same),
            "met": same,
        },
        {
            "name": f"losses whose interval lies above genesis ({genesis:.3f})",
            "goal": len(rows),
            "measured": better,
            "met": better == len(rows),
        },
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 steps and 64 held-out items instead of 150 and 512")
    parser.add_argument("--folder", type=Path, help="where run and branches are kept; default: thrown away")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="of the run")
    options = parser.parse_args(arguments)
    small = ["environment.held_out_items=64", "evaluate.samples=1"] if options.quick else []
    with tempfile.TemporaryDirectory(prefix="ratchet-algorithms-") as scratch:
        folder = (options.folder or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        run = record(folder, steps=20 if options.quick else 150, settings=[*small, *options.settings])
        reports = {}
        for loss in (OWN, *FORMULAS):
            reports[loss] = branch(run, loss, folder=folder, seeds=options.seeds)
            print(json.dumps(summarise(loss, reports[loss])), flush=True)
        rows = [summarise(loss, report) for loss, report in reports.items()]
        goals = judge(run, reports, rows)
    for one in goals:
        print(f"{one['name']}: {one['measured']} of {one['goal']}, {'met' if one['met'] else 'missed'}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "goals": goals}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
