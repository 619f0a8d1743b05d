"""What a crash costs, here and in TRL: `python -m benchmarks.crash_cost [--quick] [--kills N] [--json FILE]`.

Both learn the same task from the same weights (case `words` of benchmarks/cases.py) and are killed with SIGKILL, the
whole process tree at once, at random moments: a uniform number of steps, at most a checkpoint's interval, after they
are back. TRL saves a checkpoint every 20 steps and resumes its own way (`resume_from_checkpoint=True`); Ratchet is
resumed by `ratchet resume`. Counted from outside in TRL (its reward function writes down, synced, which prompts came at
which step) and from the log in Ratchet:

    skipped      prompts handed out before the run's last one that the final weights never learned from, nor ever will
    twice        prompts that the final weights learned from more than once; there are more than the run needs
    again        completions whose step had been generated before the kill, generated once more; in Ratchet an upper
                 bound: those of tasks in flight that no acknowledgement had reached
    back         seconds from the kill until the learner stands at the step it had finished, ready for the next

A power loss is not modelled, nor the death of one process of several, which Ratchet turns into the end of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cases import WORDS, Case, items_in_order, prepare_model, start_ratchet, start_trl
from benchmarks.peers import peer_python
from benchmarks.processes import Job, Tail
from benchmarks.runs import resume_run, scratch_folder
from buffers.groups import Stage
from buffers.view import StoreView
from contracts.records import Batch, Kind, Version

EVERY_STEPS = 20  # between two checkpoints, of both
LOOK_S = 0.05
LONGEST_STEP_S = 0.5
LOST_S = 900.0  # without a new step
RATCHET = ("engine.backend=transformers", "mode=async", "max_staleness=1", "engine.in_flight=continue")


@dataclass(frozen=True, kw_only=True)
class Account:
    """What the final weights have learned from: positions in the order of handing out, and how often."""

    steps: int
    learned: Counter[int]
    waiting: frozenset[int]  # handed out and not ended: still to come

    @property
    def skipped(self) -> int:
        """Positions before the last learned one that were not learned from and will not come."""
        return sum(place not in self.learned and place not in self.waiting for place in range(max(self.learned)))

    @property
    def twice(self) -> int:
        return sum(count > 1 for count in self.learned.values())


class TrlRun:
    """TRL, seen from outside through the lines that benchmarks/trl_child.py writes."""

    name = "TRL"

    def __init__(self, case: Case, *, settings: Sequence[str], folder: Path) -> None:
        self._case, self._settings, self._folder = case, settings, folder
        self._steps, self._calls = Tail(folder / "steps.jsonl"), Tail(folder / "rewards.jsonl")

    def start(self) -> Job:
        return start_trl(
            peer_python("trl"),
            self._case,
            settings=self._settings,
            folder=self._folder,
            threads=len(os.sched_getaffinity(0)),
            save_steps=EVERY_STEPS,
            audit=True,
            resume=any(self._folder.glob("checkpoint-*")),
        )

    def step(self, *, since: float = 0.0) -> int:
        """The step that was finished last, of those finished after `since` (wall time)."""
        return max((line["step"] for line in self._steps.lines()[-1:] if line["time"] > since), default=0)

    def back_at(self, step: int, *, killed_at: float) -> float | None:
        """Wall time at which the resumed run had finished `step` again, or a later one."""
        lines = (line for line in self._steps.lines() if line["time"] > killed_at)
        return next((line["time"] for line in lines if line["step"] >= step), None)

    def note_death(self) -> int:
        """What was generated so far; read while nothing runs."""
        return len(self._calls.lines())

    def again(self, note: int) -> int:
        """Completions generated since `note` for steps that had been generated before it."""
        calls = self._calls.lines()
        before = {call["step"] for call in calls[:note]}
        return sum(len(call["prompts"]) for call in calls[note:] if call["step"] in before)

    def account(self) -> Account:
        """A step's last call is the one that its weights learned from: what came before was rolled back."""
        last, config = self.step(), self._case.config(*self._settings)
        made = {call["step"]: call["prompts"] for call in self._calls.lines() if call["step"] <= last}
        items = items_in_order(self._case, config, num_items=config.environment.train_items)
        position = {item["prompt"]: place for place, item in enumerate(items)}
        size = config.learner.group_size
        learned = Counter(position[prompt] for prompts in made.values() for prompt in prompts[::size])
        return Account(steps=last, learned=learned, waiting=frozenset())


class RatchetRun:
    """Ratchet, seen from outside through its log."""

    name = "Ratchet"

    def __init__(self, case: Case, *, settings: Sequence[str], folder: Path) -> None:
        self._case, self._root = case, folder
        self._settings = (*settings, *RATCHET, f"checkpoint.every_steps={EVERY_STEPS}")
        run = folder / "latest"
        self._steps, self._log, self._store = (
            Tail(run / "metrics.jsonl"),
            Tail(run / "logs/update-0.jsonl"),
            run / "store",
        )

    def start(self) -> Job:
        if (self._root / "latest").exists():
            return resume_run(self._root)
        return start_ratchet(self._case, settings=self._settings, root=self._root)

    def step(self, *, since: float = 0.0) -> int:
        lines = self._steps.lines()
        return max((line["step"] for line in lines if line["phase"] == "step" and line["time"] > since), default=0)

    def back_at(self, step: int, *, killed_at: float) -> float | None:
        """When the recovered learner, which stands at the log's end, was served."""
        served = (line["time"] for line in self._log.lines() if line["message"] == "version served")
        times = (datetime.fromisoformat(time).timestamp() for time in served)
        return next((time for time in times if time > killed_at), None)

    def note_death(self) -> int:
        """Members that were handed out and that no acknowledgement had reached."""
        view = StoreView.open(self._store)
        return sum(len(view.fold.groups[lease].missing) for lease in view.fold.stages[Stage.OPEN])

    def again(self, note: int) -> int:
        return note

    def account(self) -> Account:
        view = StoreView.open(self._store)
        made = [record for _, record in view.decisions(kinds=[Kind.VERSION]) if isinstance(record, Version)]
        batches = {lsn: record for lsn, record in view.decisions(kinds=[Kind.BATCH]) if isinstance(record, Batch)}
        used = [batches[lsn] for lsn in {version.batch_lsn for version in made} if lsn in batches]
        groups = view.fold.groups
        learned = Counter(groups[lease].task.position for batch in used for lease in {row.lease for row in batch.rows})
        waiting = frozenset(group.task.position for group in groups.values() if group.stage is not Stage.ENDED)
        return Account(steps=len(used), learned=learned, waiting=waiting)


Run = TrlRun | RatchetRun


def reached(run: Run, step: int, *, since: float) -> bool:
    return run.step(since=since) >= step


def wait_for(ready: Callable[[], Any], job: Job, *, what: str) -> Any:
    deadline = time.monotonic() + LOST_S
    while not (found := ready()):
        if job.ended or time.monotonic() > deadline:
            raise SystemExit(f"{what}: nothing in {LOST_S:g} s, or it ended by itself (code {job.code}): {job.log}")
        time.sleep(LOOK_S)
    return found


def torture(run: Run, *, kills: int, chance: random.Random) -> list[dict[str, Any]]:
    """Kill `run` again and again, each time at most a checkpoint's interval after it was back; a row a kill."""
    rows: list[dict[str, Any]] = []
    job = run.start()
    died_at, killed_at = 0, time.time()
    try:
        for number in range(kills):
            target = died_at + chance.randint(1, EVERY_STEPS)
            wait_for(partial(reached, run, target, since=killed_at), job, what=f"{run.name}: step {target}")
            time.sleep(chance.random() * LONGEST_STEP_S)  # anywhere in the steps that follow
            killed_at = time.time()
            job.kill()
            died_at, note = run.step(), run.note_death()
            job = run.start()
            back = wait_for(partial(run.back_at, died_at, killed_at=killed_at), job, what=f"{run.name}: back")
            wait_for(partial(reached, run, died_at + 1, since=killed_at), job, what=f"{run.name}: a new step")
            row = {"system": run.name, "died_at_step": died_at, "again": run.again(note)}
            rows.append({**row, "back_s": round(back - killed_at, 2), "load": round(os.getloadavg()[0], 1)})
            print(f"{run.name:8} kill {number + 1}/{kills}: {rows[-1]}", flush=True)
    finally:
        job.kill()
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 kills of each")
    parser.add_argument("--kills", type=int, help="of each (default 20, quick 2)")
    parser.add_argument("--only", choices=["TRL", "Ratchet"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder, and the starting weights")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    kills = options.kills or (2 if options.quick else 20)
    peer_python("trl")
    with scratch_folder(options.keep) as folder:
        report = compare(kills=kills, seed=options.seed, folder=folder, only=options.only)
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    return 0


def compare(*, kills: int, seed: int, folder: Path, only: str | None) -> dict[str, Any]:
    model = prepare_model(WORDS, seed=seed, folder=folder)
    steps = WORDS.config().environment.train_items // WORDS.config().learner.groups_per_step
    settings = (f"model.path={model}", f"seed={seed}", f"steps={steps}")  # every prompt once
    rows: list[dict[str, Any]] = []
    totals: list[dict[str, Any]] = []
    for kind in (TrlRun, RatchetRun):
        if only not in (None, kind.name):
            continue
        shutil.rmtree(folder / kind.name, ignore_errors=True)
        (folder / kind.name).mkdir(parents=True)
        run: Run = kind(WORDS, settings=settings, folder=folder / kind.name)
        mine = torture(run, kills=kills, chance=random.Random(seed))
        account = run.account()
        rows += mine
        totals.append(
            {
                "system": run.name,
                "steps": account.steps,
                "prompts": len(account.learned),
                "skipped": account.skipped,
                "twice": account.twice,
                "again": sum(row["again"] for row in mine),
                "again_a_kill": round(statistics.mean(row["again"] for row in mine), 1),
                "back_median_s": round(statistics.median(row["back_s"] for row in mine), 2),
                "back_worst_s": max(row["back_s"] for row in mine),
            }
        )
    ours = [total for total in totals if total["system"] == RatchetRun.name]
    goals = [
        {"name": f"prompts {what} over {kills} kills", "goal": 0, "measured": total[what], "met": total[what] == 0}
        for total in ours
        for what in ("skipped", "twice")
    ]
    return {"rows": rows, "totals": totals, "goals": goals}


def show(report: dict[str, Any]) -> None:
    columns = ("steps", "prompts", "skipped", "twice", "again", "again_a_kill", "back_median_s", "back_worst_s")
    print(f"\n{'system':10}" + "".join(f"{name:>15}" for name in columns))
    for total in report["totals"]:
        print(f"{total['system']:10}" + "".join(f"{total[name]:>15}" for name in columns))
    for goal in report["goals"]:
        print(f"{goal['name']}: {goal['measured']}, goal {goal['goal']}: {'met' if goal['met'] else 'missed'}")


if __name__ == "__main__":
    sys.exit(main())
