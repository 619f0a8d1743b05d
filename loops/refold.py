"""Fold a run's recorded batches again from a checkpoint, with some of what they read left out.

    checkpoint ─► batch 21 ─► batch 22 less a group ─► batch 23, of which nothing is left: passed over ─► batch 24 …

Groups go whole: an advantage is among a group's members. Step numbers, seeds and coefficients stay the recorded ones,
and with them the learning rates. Exact for the data; what other policies would have generated is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path

from contracts.errors import RunFolderError
from contracts.protocols import Learner
from contracts.records import Batch, Checkpoint, ControlRecord, Row
from loops.replay import Gone, History, computed_batches, kept_checkpoints

Excludes = Callable[[Row], bool]  # whether an episode is to be left out, and with it its group


@dataclass(frozen=True)
class Exclusion:
    """Whole groups, wherever they are read: also a stored success of one in the place of another group's member."""

    leases: frozenset[int] = frozenset()
    episode_lsns: frozenset[int] = frozenset()  # of those groups

    def __call__(self, row: Row) -> bool:
        return row.lease in self.leases or row.episode_lsn in self.episode_lsns

    def __or__(self, other: Exclusion) -> Exclusion:
        return Exclusion(self.leases | other.leases, self.episode_lsns | other.episode_lsns)


@dataclass(frozen=True, kw_only=True)
class RefoldedStep:
    """One recorded batch, folded again. `num_rows` 0: nothing was left of it, the weights are those of the step before.

    `learner.weights(…)` in `on_step` are this step's.
    """

    step: int
    batch_lsn: int  # of the recorded batch
    num_rows: int
    num_left_out: int
    root_hash: str
    stats: Mapping[str, float] = field(default_factory=dict)


def refold(
    history: History,
    *,
    folder: Path,
    learner: Learner,
    start: Checkpoint,
    until: int | None = None,
    excludes: Excludes = Exclusion(),
    on_step: Callable[[RefoldedStep], None] = lambda step: None,
) -> list[RefoldedStep]:
    """Load `start`, and fold every batch after it up to step `until` (included; None: all). Nothing is written.

    Raises RunFolderError where episodes that are to be read were erased or trimmed; LearnerError, FormatError.
    """
    records = history.decisions()
    learner.load(str(folder / start.folder), start.state_hash)
    batches = computed_batches(records, after=start.step, until=until)
    return fold_on(history, learner, batches, gone=Gone.of(records), folder=folder, excludes=excludes, on_step=on_step)


def fold_on(
    history: History,
    learner: Learner,
    batches: Iterable[tuple[int, Batch]],
    *,
    gone: Gone,
    folder: Path,
    excludes: Excludes = Exclusion(),
    on_step: Callable[[RefoldedStep], None] = lambda step: None,
) -> list[RefoldedStep]:
    """Take `learner`, as it stands, through these (LSN, batch)es. Raises what `refold` raises."""
    steps: list[RefoldedStep] = []
    for lsn, batch in batches:
        left = leave_out(batch, excludes)
        stats: Mapping[str, float] = {}
        if left.rows:
            gone.refuse(left, folder=folder)
            stats = learner.step(left, history.episodes([row.reward_lsn for row in left.rows])).stats
        step = RefoldedStep(
            step=batch.step,
            batch_lsn=lsn,
            num_rows=len(left.rows),
            num_left_out=len(batch.rows) - len(left.rows),
            root_hash=learner.root_hash(),
            stats=dict(stats),
        )
        steps.append(step)
        on_step(step)
    return steps


def leave_out(batch: Batch, excludes: Excludes) -> Batch:
    """The batch without the groups of which `excludes` names a row; the same object where it names none."""
    out = {row.lease for row in batch.rows if excludes(row)}
    remembered = tuple(row for row in batch.remembered if row.lease not in out and not excludes(row))
    if not out and len(remembered) == len(batch.remembered):
        return batch
    kept = [row.lease not in out for row in batch.rows]
    return replace(
        batch,
        rows=tuple(row for row, stays in zip(batch.rows, kept, strict=True) if stays),
        zero_spread=tuple(lease for lease in batch.zero_spread if lease not in out),
        micro_batches=_cut(batch.micro_batches, kept),
        remembered=remembered,
    )


def _cut(micro_batches: Sequence[int], kept: Sequence[bool]) -> tuple[int, ...]:
    """Sizes of the micro-batches without the rows that go; those that are empty then are none."""
    sizes = (sum(kept[start:end]) for start, end in pairwise(accumulate(micro_batches, initial=0)))
    return tuple(size for size in sizes if size)


def checkpoint_before(
    records: Sequence[tuple[int, ControlRecord]], *, folder: Path, step: int, branch: int | None = None
) -> Checkpoint:
    """The newest kept checkpoint that has not learned from the batch of `step`. Raises RunFolderError."""
    kept = [one for one in kept_checkpoints(records, folder=folder, branch=branch) if one.step < step]
    if not kept:
        raise RunFolderError(
            f"step {step} of {folder.name} again",
            "none of the checkpoints before it that its log names is in the folder",
            "restore the folder's checkpoints, or take a snapshot of the run that has one",
        )
    return kept[-1]
