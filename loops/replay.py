"""Re-execute the recorded batches from a checkpoint and compare every step's weights with the log, hash by hash.

Needs the run's folder (or a snapshot of it) and a learner; no engine, no environment, no Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from contracts.errors import ReplayMismatchError, RunFolderError
from contracts.protocols import Learner
from contracts.records import Batch, Checkpoint, ControlRecord, Episode, Erased, Skip, Trim, Version
from loops.ancestry import Ancestry
from loops.checksums import find_differing


class History(Protocol):
    """A store that is only read."""

    def decisions(self) -> list[tuple[int, ControlRecord]]: ...

    def episodes(self, lsns: Sequence[int]) -> list[Episode]: ...


@dataclass(frozen=True, kw_only=True)
class ReplayedStep:
    """One step computed again. `version` is the logged one that it is compared with; LSNs are of the control log.

    `lost`: it could not be: episodes of it, or of a step before it, were erased or trimmed; `computed` is then empty.
    `tensors`: those that are not as logged, in the order of their names; () also where the log does not say.
    """

    step: int
    version: int
    batch_lsn: int
    version_lsn: int
    logged: str
    computed: str
    lost: bool = False
    tensors: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        return self.logged == self.computed


def replay(
    history: History,
    *,
    folder: Path,
    learner: Learner,
    until: int | None = None,
    on_step: Callable[[ReplayedStep], None] = lambda step: None,
) -> list[ReplayedStep]:
    """All steps of the newest branch, with those that it goes on from, from the oldest kept checkpoint to `until`
    (included; None: the end). Raises RunFolderError.

    After a step that differs the next kept checkpoint is loaded: one difference does not make all later steps differ.
    The same after a step whose episodes were erased or trimmed; those up to that checkpoint are told as lost.
    """
    records = history.decisions()
    start = _load(records, folder=folder, learner=learner, newest_up_to=None)
    checkpoints = {checkpoint.step: checkpoint for checkpoint in kept_checkpoints(records, folder=folder)}
    versions, gone = _versions_by_batch(records), Gone.of(records)
    steps: list[ReplayedStep] = []
    stands, previous = True, start.step  # whether the learner has the state after step `previous`, the one before
    for lsn, batch in computed_batches(records, after=start.step, until=until):
        before = next((checkpoints[one] for one in range(batch.step - 1, previous - 1, -1) if one in checkpoints), None)
        if not stands and before is not None:
            learner.load(str(folder / before.folder), before.state_hash)
            stands = True
        if not stands or gone.count(batch):
            version_lsn, logged = versions[lsn][0]
            step = ReplayedStep(
                step=batch.step,
                version=logged.version,
                batch_lsn=lsn,
                version_lsn=version_lsn,
                logged=logged.root_hash,
                computed="",
                lost=True,
            )
            stands = False
        else:
            step = _compute(history, learner, lsn, batch, versions[lsn])
        previous = batch.step
        steps.append(step)
        on_step(step)
        if not step.equal and not step.lost and step.step in checkpoints:
            learner.load(str(folder / checkpoints[step.step].folder), checkpoints[step.step].state_hash)
    return steps


def rebuild(history: History, *, folder: Path, learner: Learner, version: int) -> Version:
    """Bring `learner` to `version` from the newest checkpoint at or below it.

    Raises RunFolderError where the log has no such version, no checkpoint is left, or episodes that it takes were
    erased or trimmed; ReplayMismatchError where this machine computes other bits than the log has.
    """
    records = history.decisions()
    versions = {record.version: record for _, record in records if isinstance(record, Version)}
    if version not in versions:
        raise RunFolderError(
            f"version {version} of {folder.name}",
            f"its log has the versions {min(versions, default=-1)} to {max(versions, default=-1)}",
            "name one of those",
        )
    wanted = versions[version]
    start = _load(records, folder=folder, learner=learner, newest_up_to=wanted.step, branch=wanted.branch)
    made, gone = _versions_by_batch(records), Gone.of(records)
    for lsn, batch in computed_batches(records, after=start.step, until=wanted.step, branch=wanted.branch):
        gone.refuse(batch, folder=folder)
        _compute(history, learner, lsn, batch, made[lsn])
    if learner.root_hash() != wanted.root_hash:
        raise ReplayMismatchError(
            f"version {version} was {wanted.root_hash[:16]}, this machine computes {learner.root_hash()[:16]}: "
            "its threads, libraries or processor are others than the run's"
        )
    return wanted


@dataclass(frozen=True)
class Gone:
    """Which episodes a log no longer has: those that were erased, and all below where it was trimmed."""

    erased: frozenset[int]
    trimmed_lsn: int

    @classmethod
    def of(cls, records: Sequence[tuple[int, ControlRecord]]) -> Gone:
        erased = frozenset(lsn for _, record in records if isinstance(record, Erased) for lsn in record.lsns)
        return cls(erased, max((record.data_lsn for _, record in records if isinstance(record, Trim)), default=0))

    def count(self, batch: Batch) -> int:
        """Rows of the batch that cannot be read again."""
        return sum(row.episode_lsn in self.erased or row.episode_lsn < self.trimmed_lsn for row in batch.rows)

    def refuse(self, batch: Batch, *, folder: Path) -> None:
        """Raises RunFolderError where a batch cannot be computed again."""
        if gone := self.count(batch):
            raise RunFolderError(
                f"step {batch.step} of {folder.name} again",
                f"{gone} of its {len(batch.rows)} episodes were erased or trimmed: no version can be computed from it",
                "take a version from a checkpoint that was kept at or after that step",
            )


def _versions_by_batch(records: Sequence[tuple[int, ControlRecord]]) -> dict[int, list[tuple[int, Version]]]:
    """With their LSNs. A batch that was computed twice with other bits (another machine, another thread count) has
    several."""
    versions: dict[int, list[tuple[int, Version]]] = {}
    for lsn, record in records:
        if isinstance(record, Version):
            versions.setdefault(record.batch_lsn, []).append((lsn, record))
    return versions


def _compute(
    history: History, learner: Learner, lsn: int, batch: Batch, versions: Sequence[tuple[int, Version]]
) -> ReplayedStep:
    """One step; it is equal when the computed hash is that of any of its versions."""
    result = learner.step(batch, history.episodes([row.reward_lsn for row in batch.rows]))
    match = next((one for one in versions if one[1].root_hash == result.root_hash), None)
    version_lsn, logged = match or versions[0]
    return ReplayedStep(
        step=batch.step,
        version=logged.version,
        batch_lsn=lsn,
        version_lsn=version_lsn,
        logged=logged.root_hash,
        computed=result.root_hash,
        tensors=() if match else find_differing(learner.weights(logged.version), logged.checksums),
    )


def computed_batches(
    records: Sequence[tuple[int, ControlRecord]],
    *,
    after: int = 0,
    until: int | None = None,
    branch: int | None = None,
) -> list[tuple[int, Batch]]:
    """(LSN, batch) of every step after `after` and up to `until` that became a version, in order, along the ancestry of
    `branch` (None: the newest one)."""
    skipped = {record.batch_lsn for _, record in records if isinstance(record, Skip)}
    made = {record.batch_lsn for _, record in records if isinstance(record, Version)}
    ancestry = Ancestry.of(records, branch=branch)
    return [
        (lsn, batch)
        for lsn, batch in records
        if isinstance(batch, Batch) and batch.step > after and lsn in made and lsn not in skipped
        if (until is None or batch.step <= until) and ancestry.has(batch)
    ]


def kept_checkpoints(
    records: Sequence[tuple[int, ControlRecord]], *, folder: Path, branch: int | None = None
) -> list[Checkpoint]:
    """The checkpoints along the ancestry of `branch` (None: the newest one) whose folders are still there, oldest
    first."""
    ancestry = Ancestry.of(records, branch=branch)
    return [
        one
        for _, one in records
        if isinstance(one, Checkpoint) and ancestry.has(one) and (folder / one.folder).is_dir()
    ]


def _load(
    records: Sequence[tuple[int, ControlRecord]],
    *,
    folder: Path,
    learner: Learner,
    newest_up_to: int | None,
    branch: int | None = None,
) -> Checkpoint:
    """The oldest checkpoint that is kept, or the newest at or below a step."""
    found = kept_checkpoints(records, folder=folder, branch=branch)
    kept = [one for one in found if newest_up_to is None or one.step <= newest_up_to]
    if not kept:
        raise RunFolderError(
            f"replay {folder}",
            "none of the checkpoints that its log names is in the folder",
            "restore the folder's checkpoints, or replay a snapshot of the run",
        )
    chosen = kept[0] if newest_up_to is None else kept[-1]
    learner.load(str(folder / chosen.folder), chosen.state_hash)
    return chosen
