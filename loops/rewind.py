"""A run computed again without some of its experience: a branch run of its own beside it, which shares its segments.

    cut ─► a folder that shares what the run has ─► SKIP what was left open ─► steps up to the fork, hashes compared
        ─► BRANCH ─► for each batch from the first use on: BATCH less what is left out ─► compute ─► VERSION
        ─► CHECKPOINT every so often and at the end                       └─ nothing left: SKIP

Every write is compare-and-append, and what is written follows from the folder's own log and the request: done again
after a kill it goes on at the newest checkpoint and ends with the same bits. The run itself is only read.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from buffers import branching, snapshots
from buffers.view import StoreView
from contracts.errors import RunFolderError
from contracts.protocols import Learner, StepResult
from contracts.records import (
    Batch,
    Branch,
    Checkpoint,
    Closed,
    ControlRecord,
    Decision,
    Episode,
    Evaluation,
    Kind,
    Review,
    Row,
    Session,
    Skip,
    Version,
)
from loops.ancestry import TRUNK, Ancestry
from loops.checksums import checksums
from loops.exclusion import Plan, Request, make_plan
from loops.replay import Gone

REASON = "rewind"
LEFT_OPEN = "its branch ended before it was computed"
EMPTY = "nothing of it is left"
EXCLUDED = "left out by a rewind"
ESS_EPISODES = 512


class RewindStore(Protocol):
    """The part of a store's owner that a rewind needs."""

    def open_session(self, record: ControlRecord) -> int: ...

    def append_chosen(self, batch: Batch, session: int) -> tuple[int, Batch]: ...

    def decide(self, record: Decision, session: int) -> int: ...

    def review(self, record: Review) -> bool: ...

    def read(self, lsns: Sequence[int]) -> list[Episode]: ...

    def decisions(self, *, start: int = 0, kinds: Sequence[Kind] = ()) -> list[tuple[int, ControlRecord]]: ...


@dataclass(frozen=True, kw_only=True)
class RewoundStep:
    """One step of the work. `logged` (before the fork): whether the weights are those of the log."""

    step: int
    last_step: int  # of the work
    version: int
    num_rows: int
    num_left_out: int
    is_before: bool
    is_logged: bool
    stats: Mapping[str, float] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------- the branch's folder


def mark_of(request: Request) -> str:
    """Tells this request from any other; the same for the same."""
    text = json.dumps([request.text, request.descendants])
    return f"{REASON}-{blake2b(text.encode(), digest_size=4).hexdigest()}"


def cut_branch(run: Path, *, to: Path, request: Request) -> bool:
    """A folder at `to` that shares what `run` has now; False where an earlier call with the same request made it.

    Raises RunFolderError where there is something else, or what `make_plan` raises: nothing is made then.
    """
    with _alone(to.parent), StoreView.open(run / "store") as view:
        for left in to.parent.glob(f".{to.name}.*.tmp"):  # of a call that was killed
            shutil.rmtree(left)
        if to.exists():
            _check_ours(run, to=to, request=request)
            return False
        records = view.decisions()
        ancestry, plan = Ancestry.of(records), make_plan(records, folder=run, request=request)
        before = plan.first.step
        taken = to.with_name(f".{to.name}.taken.tmp")
        try:
            snapshots.take(
                run, taken, name=mark_of(request), wanted=lambda one: one.step < before and ancestry.has(one)
            )
            branching.restore(taken, to, share=True)
        finally:
            shutil.rmtree(taken, ignore_errors=True)
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time cuts branches into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _check_ours(run: Path, *, to: Path, request: Request) -> None:
    try:
        came_from = json.loads((to / "manifest.json").read_text())["from"]
    except (OSError, ValueError, KeyError):
        came_from = {}
    here = json.loads((run / "manifest.json").read_text())
    if came_from.get("snapshot") != mark_of(request) or came_from.get("run") not in (run.name, here.get("run")):
        raise RunFolderError(
            f"a rewind of {run.name} in {to}", "there is something else already", "name another with --as"
        )


def read_cut(folder: Path) -> int:
    """LSN of the control log at which the branch left its run."""
    return int(json.loads((folder / "manifest.json").read_text())["from"]["control_lsn"])


# ---------------------------------------------------------------------------------------------- the work


class Rewind:
    """`run` from one thread. `folder`: the branch's, made by `cut_branch`; `store`: its owner."""

    def __init__(
        self,
        store: RewindStore,
        learner: Learner,
        *,
        folder: Path,
        request: Request,
        from_first_use: bool = False,
        checkpoint_every: int,
        keep: int,
        session: Session,
        on_step: Callable[[RewoundStep], None] = lambda step: None,
    ) -> None:
        self._store, self._learner, self._folder = store, learner, folder
        self._request, self._every, self._keep = request, checkpoint_every, keep
        self._on_step = on_step
        self._cut = read_cut(folder)
        records = store.decisions()
        self._records = [(lsn, one) for lsn, one in records if lsn < self._cut]  # as they were when the run was left
        self.plan: Plan = make_plan(self._records, folder=folder, request=request, from_first_use=from_first_use)
        self._session = store.open_session(session)
        ours = [one for lsn, one in records if lsn >= self._cut and isinstance(one, Branch)]
        self._branch = ours[0] if ours else None
        self._made: dict[int, list[Version]] = {}
        for _, one in records:
            if isinstance(one, Version):
                self._made.setdefault(one.batch_lsn, []).append(one)
        self._last_number = max(one.version for versions in self._made.values() for one in versions)
        self._own = [one for lsn, one in records if lsn >= self._cut and isinstance(one, Checkpoint)]
        self._at = (-1, -1)  # version and step of the learner

    @property
    def version(self) -> int:
        return self._at[0]

    @property
    def step(self) -> int:
        return self._at[1]

    def run(self) -> None:
        """To the end, from wherever an earlier one was stopped. Raises LearnerError, StoreError."""
        self._settle()
        self._load()
        for lsn, batch in self.plan.before:
            if batch.step > self.step:
                self._compute(lsn, batch, recorded=batch, is_before=True)
        branch = self._open_branch()
        for place, (_, left) in enumerate(self.plan.after):
            if left.step > self.step:
                self._follow(place, left, branch=branch)
        if not any((one.branch, one.step) == (branch, self.step) for one in self._own):
            self._checkpoint(branch)

    def note(self, evaluation: Evaluation) -> None:
        """Into the branch's own log, once."""
        known = [one for _, one in self._store.decisions(start=self._cut) if isinstance(one, Evaluation)]
        if evaluation.version not in [one.version for one in known]:
            self._decide(evaluation)

    def _settle(self) -> None:
        """End what the run had open: a batch that was not computed, groups of what is left out that still wait."""
        ended = {one.batch_lsn for _, one in self._records if isinstance(one, Version | Skip)}
        for lsn, one in self._records:
            if isinstance(one, Batch) and lsn not in ended:
                self._decide(Skip(batch_lsn=lsn, step=one.step, branch=one.branch, reason=LEFT_OPEN))
        trimmed_lsn = Gone.of(self._records).trimmed_lsn
        for lease in sorted(self.plan.selected.leases - _find_ended(self._records)):
            if lease >= trimmed_lsn:
                self._store.review(
                    Review(lease=lease, accepted=False, reason=EXCLUDED, producer=REASON, wall_time=time.time())
                )

    def _load(self) -> None:
        """The newest checkpoint of our own, else where the plan begins."""
        start = self._own[-1] if self._own else self.plan.base
        self._learner.load(str(self._folder / start.folder), start.state_hash)
        self._at = (start.version, start.step)

    def _open_branch(self) -> int:
        """Its number."""
        if self._branch is None:
            numbers = [one.branch for _, one in self._records if isinstance(one, Branch)]
            self._branch = Branch(
                branch=max(numbers, default=TRUNK) + 1,
                parent_branch=Ancestry.of(self._records).branch,
                from_version=self.version,
                reason=REASON,
                exclude=json.dumps({"exclude": self._request.text, "descendants": self._request.descendants}),
            )
            self._decide(self._branch)
        return self._branch.branch

    def _follow(self, place: int, left: Batch, *, branch: int) -> None:
        """One batch from the first use on."""
        recorded = self.plan.later[place]
        remembered = left.remembered if place else (*self._remember_before(), *left.remembered)
        chosen = replace(left, branch=branch, parent_version=self.version, dropped=(), remembered=remembered)
        lsn, batch = self._store.append_chosen(chosen, self._session)
        if batch.rows:
            self._compute(lsn, batch, recorded=recorded, is_before=False)
            return
        self._decide(Skip(batch_lsn=lsn, step=batch.step, branch=batch.branch, reason=EMPTY))
        self._at = (self.version, batch.step)
        self._report(recorded, batch, is_before=False, is_logged=False, stats={})

    def _remember_before(self) -> tuple[Row, ...]:
        """The successes stored up to the fork: a branch begins without any (buffers/fold.py)."""
        ancestry, first = Ancestry.of(self._records), self.plan.first.step
        batches = [one for _, one in self._records if isinstance(one, Batch) and one.step < first and ancestry.has(one)]
        return tuple(row for one in batches for row in one.remembered if not self.plan.selected(row))

    # ------------------------------------------------------------------------------------------ one step

    def _compute(self, lsn: int, batch: Batch, *, recorded: Batch, is_before: bool) -> None:
        """Before the fork, the version of the log where the bits are equal; else a new one."""
        result = self._learner.step(batch, self._store.read([row.reward_lsn for row in batch.rows]))
        same = [one for one in self._made.get(lsn, ()) if one.root_hash == result.root_hash]
        number = same[-1].version if same else self._new_version(lsn, batch, result)
        self._at = (number, batch.step)
        self._report(recorded, batch, is_before=is_before, is_logged=bool(same), stats=result.stats)
        if batch.step % self._every == 0:
            self._checkpoint(batch.branch)

    def _new_version(self, lsn: int, batch: Batch, result: StepResult) -> int:
        number = self._last_number + 1
        version = Version(
            version=number,
            parent=self.version,
            branch=batch.branch,
            step=batch.step,
            root_hash=result.root_hash,
            batch_lsn=lsn,
            stats=dict(result.stats),
            wall_time=time.time(),
            checksums=checksums(self._learner.weights(number)),
        )
        self._decide(version)
        self._made.setdefault(lsn, []).append(version)
        self._last_number = number
        return number

    def _checkpoint(self, branch: int) -> None:
        folder = f"checkpoints/step-{self.step:06d}-v{self.version:06d}-{REASON}"  # never one that the run has
        state_hash = self._learner.save(str(self._folder / folder))
        checkpoint = Checkpoint(
            version=self.version,
            step=self.step,
            branch=branch,
            folder=folder,
            root_hash=self._learner.root_hash(),
            state_hash=state_hash,
        )
        self._decide(checkpoint)
        self._own.append(checkpoint)
        for old in self._own[: -self._keep]:
            shutil.rmtree(self._folder / old.folder, ignore_errors=True)

    def _decide(self, record: Decision) -> int:
        return self._store.decide(record, self._session)

    def _report(
        self, recorded: Batch, batch: Batch, *, is_before: bool, is_logged: bool, stats: Mapping[str, Any]
    ) -> None:
        self._on_step(
            RewoundStep(
                step=batch.step,
                last_step=self.plan.end,
                version=self.version,
                num_rows=len(batch.rows),
                num_left_out=len(recorded.rows) - len(batch.rows),
                is_before=is_before,
                is_logged=is_logged,
                stats=dict(stats),
            )
        )


# ---------------------------------------------------------------------------------------------- what it came to


def summarise(plan: Plan, records: Sequence[tuple[int, ControlRecord]], *, cut: int) -> dict[str, Any]:
    """Plain JSON. `records`: all decisions of the branch's store, `cut`: where it left its run."""
    own = [one for lsn, one in records if lsn >= cut]
    (branch,) = [one for one in own if isinstance(one, Branch)]
    made = [one for one in own if isinstance(one, Version)]
    num_later, num_tainted = plan.count_later()
    return {
        "selected": {"groups": len(plan.selected.leases), "episodes": len(plan.selected.episode_lsns)},
        "first_step": plan.first.step,
        "last_step": plan.last_step,
        "fork_version": branch.from_version,
        "begun_at_step": plan.base.step,
        "before_with_other_bits": sum(one.branch != branch.branch for one in made),
        "steps": sum(one.branch == branch.branch for one in made),
        "skipped": [one.step for one in own if isinstance(one, Skip) and one.branch == branch.branch],
        "ends_at_step": plan.end,
        "rows": sum(len(one.rows) for one in plan.later),
        "rows_kept": sum(len(one.rows) for _, one in plan.after),
        "later": {"rows": num_later, "by_tainted": num_tainted, "share": num_tainted / max(1, num_later)},
    }


def measure_ess(plan: Plan, *, learner: Learner, read: Callable[[Sequence[int]], list[Episode]]) -> dict[str, Any]:
    """Effective sample size, as a share, of what tainted versions made under the learner's weights (Kong 1992):
    w = π(rebuilt) / π(behaviour), neither cut off nor normalised, by tokens and by whole episodes.

    Over at most ESS_EPISODES episodes, evenly spaced. {} where there is none.
    """
    lsns = plan.list_descendants()
    chosen = [
        lsns[place] for place in np.unique(np.linspace(0, len(lsns) - 1, min(len(lsns), ESS_EPISODES), dtype=int))
    ]
    if not chosen:
        return {}
    episodes = read(chosen)
    behaviours = [np.concatenate([step.log_probs for step in one.steps]).astype(np.float64) for one in episodes]
    gaps = [now - then for now, then in zip(learner.log_probs(episodes), behaviours, strict=True)]
    return {
        "episodes": len(episodes),
        "by_token": effective_share(np.concatenate(gaps)),
        "by_episode": effective_share(np.array([gap.sum() for gap in gaps])),
    }


def effective_share(log_weights: NDArray[np.float64]) -> float:
    """(Σw)² / (n Σw²) of weights given as logarithms [n]: 1 where all are equal, 1/n where one is all there is."""
    weights = np.exp(log_weights - log_weights.max())
    return float(weights.sum() ** 2 / (len(weights) * np.square(weights).sum()))


def _find_ended(records: Sequence[tuple[int, ControlRecord]]) -> set[int]:
    """Leases that a batch read or dropped, or that were closed."""
    ended: set[int] = set()
    for _, one in records:
        if isinstance(one, Batch):
            ended.update(row.lease for row in one.rows)
            ended.update(drop.lease for drop in one.dropped)
        elif isinstance(one, Closed):
            ended.update(one.leases)
    return ended
