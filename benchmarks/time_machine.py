"""A poison found, named and taken out: `python -m benchmarks.time_machine [--quick]`.

Runs of benchmarks/sites.py, 2,000 steps, in which one of four producers hands in its rewards the wrong way round from
some step on. `ratchet bisect` is to name the first of those batches, `ratchet blame` the producer, and `ratchet rewind`
to give a model as good as that of a run which never had the poison: the peer, with the same seed. Scores are of 1,000
held-out sessions, the same ones for every model of a seed, and compared in pairs.

The goal for a rewind is its default, `--descendants drop`. With `keep` the branch learns on without the site that only
the poisoned producer plays, and a policy of its last few batches forgets that site: shown, and no fault of the rewind.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from actors.offline import measure_version
from benchmarks import sites
from benchmarks.runs import ratchet
from buffers.view import StoreView
from contracts.records import Kind
from evaluation.intervals import paired_difference
from loops.lineage import Lineage

METRIC = sites.METRIC
POISONED = f"site-{sites.NUM_SITES - 1}"
COST_POINTS, BACK_POINTS = 10.0, 3.0
MORE_REFOLDS = 2  # than log2 of the versions between good and bad
GOOD_SHARE = 0.7  # of the steps before the poison: the version that is told to be good
Row = dict[str, Any]


def measure_seed(root: Path, *, seed: int, steps: int, flips_from: int, held_out: int, share: float) -> Row:
    """One poisoned run and its clean peer; what the time machine makes of it."""
    config = sites.configure(steps=steps, seed=seed, root=root, held_out=held_out)
    began = time.monotonic()
    clean = sites.play(config, name=f"clean-{seed}")
    poisoned = sites.play(config, name=f"poisoned-{seed}", flips_from=flips_from)
    row: Row = {"seed": seed, "steps": steps, "flips_from": flips_from, "runs_s": time.monotonic() - began}
    before = hash_files(poisoned)
    good, bad = int(GOOD_SHARE * flips_from), newest_version(poisoned)
    row["bisect"] = _bisect(poisoned, good=good, bad=bad, share=share)
    row["blame"] = _blame(poisoned, last_good=row["bisect"]["last_good"], bad=bad)
    rewound = {what: _rewind(poisoned, descendants=what, flips_from=flips_from) for what in ("drop", "keep")}
    row["untouched"] = hash_files(poisoned) == before
    scores = {
        "clean": measure_version(clean, None)[METRIC],
        "poisoned": measure_version(poisoned, None)[METRIC],
        **{what: measure_version(Path(one["folder"]), one["version"])[METRIC] for what, one in rewound.items()},
    }
    row["rewind_s"] = {what: one["seconds"] for what, one in rewound.items()}
    row["scores"] = {name: float(np.mean(one)) for name, one in scores.items()}
    row["points"] = {
        name: {key: 100.0 * value for key, value in asdict(paired_difference(scores["clean"], one)).items()}
        for name, one in scores.items()
        if name != "clean"
    }
    return row


def _bisect(run: Path, *, good: int, bad: int, share: float) -> Row:
    began = time.monotonic()
    words = ("bisect", str(run), "--metric", METRIC, "--good", str(good), "--bad", str(bad), "--share", str(share))
    found: Row = json.loads(ratchet(*words, "--json"))
    kept = {name: found[name] for name in ("first_bad", "last_good", "step", "sure", "refolds", "steps", "versions")}
    culprits = found["culprits"]
    guilty = sorted({one["producer"] for one in culprits["episodes"]}) if culprits else []
    return {**kept, "good": good, "bad": bad, "guilty": guilty, "seconds": time.monotonic() - began}


def _blame(run: Path, *, last_good: int, bad: int) -> Row:
    began = time.monotonic()
    found = json.loads(ratchet("blame", str(run), str(bad), "--since", str(last_good), "--json"))
    producers = [(one["name"], one["share"], one["suspicion"]) for one in found["sources"]["producer"]]
    return {"producers": producers, "seconds": time.monotonic() - began}


def _rewind(run: Path, *, descendants: str, flips_from: int) -> Row:
    """Without what the poisoned producer handed in from then on."""
    began = time.monotonic()
    query = f"producer={POISONED} version={flips_from - 1}:"  # the version that acted is that of the step before
    words = ("rewind", str(run), "--exclude", query, "--descendants", descendants)
    found: Row = json.loads(ratchet(*words, "--as", f"{run.name}-{descendants}", "--json"))
    return {**found, "seconds": time.monotonic() - began}


def newest_version(run: Path) -> int:
    return Lineage.of(StoreView.open(run / "store").decisions(kinds=[Kind.VERSION])).find(None).version


def hash_files(folder: Path) -> str:
    """Over the names and bytes of all files but the index's lock file, in which LMDB notes who reads."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "lock.mdb":
            digest.update(f"{path.relative_to(folder)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def judge(rows: Sequence[Row]) -> list[Row]:
    """Each goal, over all seeds: the worst one counts."""

    def goal(name: str, goal: float, measured: float, *, most: bool) -> Row:
        return {
            "name": name,
            "goal": goal,
            "measured": round(measured, 3),
            "met": measured <= goal if most else measured >= goal,
        }

    def worst(values: Sequence[float]) -> float:
        return max(values)

    allowed = [math.ceil(math.log2(row["bisect"]["versions"])) + MORE_REFOLDS for row in rows]
    over = [row["bisect"]["refolds"] - most for row, most in zip(rows, allowed, strict=True)]
    return [
        goal("points that the poison cost, least", COST_POINTS, -worst(_points(rows, "poisoned")), most=False),
        goal(
            "steps that bisect is off", 0, worst([abs(r["bisect"]["step"] - r["flips_from"]) for r in rows]), most=True
        ),
        goal("re-folds over log2(n) + 2", 0, worst(over), most=True),
        goal("runs whose poisoned producer is not first", 0, _count_missed(rows), most=True),
        goal("points below the clean run after rewind", BACK_POINTS, _most_below(rows, "drop"), most=True),
        goal("runs that were touched", 0, float(sum(not row["untouched"] for row in rows)), most=True),
    ]


def _points(rows: Sequence[Row], name: str) -> list[float]:
    return [row["points"][name]["mean"] for row in rows]


def _most_below(rows: Sequence[Row], name: str) -> float:
    return max(-points for points in _points(rows, name))


def _count_missed(rows: Sequence[Row]) -> float:
    return float(sum(row["blame"]["producers"][0][0] != POISONED for row in rows))


def describe(row: Row) -> list[str]:
    found, scores = row["bisect"], row["scores"]
    shown = "  ".join(f"{name} {score:.3f}" for name, score in scores.items())
    first = ", ".join(f"{name} {share:.0%} ({suspicion:.2f})" for name, share, suspicion in row["blame"]["producers"])
    refolds = f"{found['refolds']} re-folds of {found['steps']:,} steps for {found['versions']:,} versions"
    guilty, rewind_s = ", ".join(found["guilty"]) or "nobody alone", row["rewind_s"]
    return [
        f"seed {row['seed']}: poison from step {row['flips_from']} of {row['steps']}; {shown}",
        f"  bisect: step {found['step']}, {found['sure']:.1%} sure, {refolds}, {found['seconds']:.0f} s",
        f"  guilty in that batch: {guilty}",
        f"  blame: {first}, {row['blame']['seconds']:.0f} s",
        f"  rewind: drop {rewind_s['drop']:.0f} s, keep {rewind_s['keep']:.0f} s; two runs {row['runs_s']:.0f} s",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed of 300 steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--held-out", type=int, default=1_000)
    parser.add_argument("--share", type=float, default=0.25, help="of bisect")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    steps, seeds = (300, 1) if options.quick else (options.steps, options.seeds)
    rows = []
    with tempfile.TemporaryDirectory(prefix="ratchet-time-", dir=options.folder) as scratch:
        for seed in range(seeds):
            flips_from = int(np.random.default_rng((17, seed)).integers(steps // 2, 3 * steps // 4))
            rows.append(
                measure_seed(
                    Path(scratch),
                    seed=seed,
                    steps=steps,
                    flips_from=flips_from,
                    held_out=options.held_out,
                    share=options.share,
                )
            )
            print("\n".join(describe(rows[-1])), flush=True)
    goals = judge(rows)
    for one in goals:
        print(f"{one['name']}: {one['measured']} (goal {one['goal']}), {'met' if one['met'] else 'missed'}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "goals": goals}, indent=1))
    return 0 if all(one["met"] for one in goals) else 1


if __name__ == "__main__":
    raise SystemExit(main())
