"""Re-execute the recorded batches from a checkpoint and compare every step's weights with the log, hash by hash.

Needs the run's folder (or a snapshot of it) and a learner; no engine, no environment, no Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from contracts.errors import RunFolderError
from contracts.protocols import Learner
from contracts.records import Batch, Checkpoint, ControlRecord, Episode, Skip, Version


class History(Protocol):
    """A store that is only read."""

    def decisions(self) -> list[tuple[int, ControlRecord]]: ...

    def episodes(self, lsns: Sequence[int]) -> list[Episode]: ...


@dataclass(frozen=True, kw_only=True)
class ReplayedStep:
    step: int
    version: int  # the logged version it is compared with
    batch_lsn: int
    logged: str
    computed: str

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
    """All steps from the oldest kept checkpoint to `until` (included; None: the end).

    A batch that was computed twice with other bits (another machine, another thread count) has several versions; the
    step is equal when the computed hash is that of any of them. Raises RunFolderError where no checkpoint is left.
    """
    records = [(lsn, record) for lsn, record in history.decisions()]
    skipped = {record.batch_lsn for _, record in records if isinstance(record, Skip)}
    versions: dict[int, list[Version]] = {}
    for _, record in records:
        if isinstance(record, Version):
            versions.setdefault(record.batch_lsn, []).append(record)
    start = _load_oldest(records, folder=folder, learner=learner)
    steps: list[ReplayedStep] = []
    for lsn, batch in records:
        if not isinstance(batch, Batch) or batch.step <= start.step or lsn in skipped or lsn not in versions:
            continue
        if until is not None and batch.step > until:
            break
        result = learner.step(batch, history.episodes([row.episode_lsn for row in batch.rows]))
        made = versions[lsn]
        match = next((version for version in made if version.root_hash == result.root_hash), made[0])
        step = ReplayedStep(
            step=batch.step,
            version=match.version,
            batch_lsn=lsn,
            logged=match.root_hash,
            computed=result.root_hash,
        )
        steps.append(step)
        on_step(step)
    return steps


def _load_oldest(records: Sequence[tuple[int, ControlRecord]], *, folder: Path, learner: Learner) -> Checkpoint:
    for _, record in records:
        if isinstance(record, Checkpoint) and (folder / record.folder).is_dir():
            learner.load(str(folder / record.folder), record.state_hash)
            return record
    raise RunFolderError(
        f"replay {folder}",
        "none of the checkpoints that its log names is in the folder",
        "restore the folder's checkpoints, or replay a snapshot of the run",
    )
