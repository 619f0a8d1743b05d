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


class History(Protocol):
    """A store that is only read."""

    def decisions(self) -> list[tuple[int, ControlRecord]]: ...

    def episodes(self, lsns: Sequence[int]) -> list[Episode]: ...


@dataclass(frozen=True, kw_only=True)
class ReplayedStep:
    """One step computed again. `version` is the logged one that it is compared with.

    `lost`: it could not be: episodes of it, or of a step before it, were erased or trimmed; `computed` is then empty.
    """

    step: int
    version: int
    batch_lsn: int
    logged: str
    computed: str
    lost: bool = False

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
    """All steps from the oldest kept checkpoint to `until` (included; None: the end). Raises RunFolderError.

    After a step that differs the next kept checkpoint is loaded: one difference does not make all later steps differ.
    The same after a step whose episodes were erased or trimmed; those up to that checkpoint are told as lost.
    """
    records = history.decisions()
    start = _load(records, folder=folder, learner=learner, newest_up_to=None)
    checkpoints = {checkpoint.step: checkpoint for checkpoint in kept_checkpoints(records, folder=folder)}
    versions, gone = _versions_by_batch(records), Gone.of(records)
    steps: list[ReplayedStep] = []
    stands_at = start.step  # the step whose state the learner has
    for lsn, batch in computed_batches(records, after=start.step, until=until):
        before = checkpoints.get(batch.step - 1)
        if stands_at != batch.step - 1 and before is not None:
            learner.load(str(folder / before.folder), before.state_hash)
            stands_at = before.step
        if stands_at != batch.step - 1 or gone.count(batch):
            logged = versions[lsn][0]
            step = ReplayedStep(
                step=batch.step, version=logged.version, batch_lsn=lsn, logged=logged.root_hash, computed="", lost=True
            )
        else:
            step = _compute(history, learner, lsn, batch, versions[lsn])
            stands_at = batch.step
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
    start = _load(records, folder=folder, learner=learner, newest_up_to=wanted.step)
    made, gone = _versions_by_batch(records), Gone.of(records)
    for lsn, batch in computed_batches(records, after=start.step, until=wanted.step):
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


def _versions_by_batch(records: Sequence[tuple[int, ControlRecord]]) -> dict[int, list[Version]]:
    """A batch that was computed twice with other bits (another machine, another thread count) has several versions."""
    versions: dict[int, list[Version]] = {}
    for _, record in records:
        if isinstance(record, Version):
            versions.setdefault(record.batch_lsn, []).append(record)
    return versions


def _compute(history: History, learner: Learner, lsn: int, batch: Batch, versions: Sequence[Version]) -> ReplayedStep:
    """One step; it is equal when the computed hash is that of any of its versions."""
    result = learner.step(batch, history.episodes([row.reward_lsn for row in batch.rows]))
    match = next((made for made in versions if made.root_hash == result.root_hash), versions[0])
    return ReplayedStep(
        step=batch.step, version=match.version, batch_lsn=lsn, logged=match.root_hash, computed=result.root_hash
    )


def computed_batches(
    records: Sequence[tuple[int, ControlRecord]], *, after: int = 0, until: int | None = None
) -> list[tuple[int, Batch]]:
    """(LSN, batch) of every step after `after` and up to `until` that became a version, in order."""
    skipped = {record.batch_lsn for _, record in records if isinstance(record, Skip)}
    made = {record.batch_lsn for _, record in records if isinstance(record, Version)}
    return [
        (lsn, batch)
        for lsn, batch in records
        if isinstance(batch, Batch) and batch.step > after and lsn in made and lsn not in skipped
        if until is None or batch.step <= until
    ]


def kept_checkpoints(records: Sequence[tuple[int, ControlRecord]], *, folder: Path) -> list[Checkpoint]:
    """The checkpoints whose folders are still there, oldest first."""
    return [one for _, one in records if isinstance(one, Checkpoint) and (folder / one.folder).is_dir()]


def _load(
    records: Sequence[tuple[int, ControlRecord]], *, folder: Path, learner: Learner, newest_up_to: int | None
) -> Checkpoint:
    """The oldest checkpoint that is kept, or the newest at or below a step."""
    kept = [one for one in kept_checkpoints(records, folder=folder) if newest_up_to is None or one.step <= newest_up_to]
    if not kept:
        raise RunFolderError(
            f"replay {folder}",
            "none of the checkpoints that its log names is in the folder",
            "restore the folder's checkpoints, or replay a snapshot of the run",
        )
    chosen = kept[0] if newest_up_to is None else kept[-1]
    learner.load(str(folder / chosen.folder), chosen.state_hash)
    return chosen
