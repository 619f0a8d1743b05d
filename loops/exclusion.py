"""What a rewind leaves out, and from where the run has to be computed again: a function of the log alone.

    query ─► their groups ─► the first batch that read one ─► what learned from it, and what came of that: tainted
                                              └─► fork: its parent           └─► what tainted versions made: descendants

The horizon is the oldest kept checkpoint after which everything that is to be read is still there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.compute as pc

from buffers.query import Query, find
from contracts.errors import RunFolderError, UserError
from contracts.records import Batch, Checkpoint, ControlRecord, Version
from loops.refold import Excludes, Exclusion, leave_out
from loops.replay import Gone, computed_batches, kept_checkpoints

Descendants = Literal["keep", "drop"]
Records = Sequence[tuple[int, ControlRecord]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """`queries`: what fits any of them goes; `text` is how they were asked for."""

    queries: tuple[Query, ...]
    text: str
    descendants: Descendants = "drop"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`before`: recorded batches from `base` up to the fork; `after`: those from the first use on, less what goes."""

    selected: Exclusion  # what the queries name
    descendants: Exclusion  # what tainted versions made, other than that
    first: Batch  # the first one that read what is selected
    base: Checkpoint
    before: tuple[tuple[int, Batch], ...]
    after: tuple[tuple[int, Batch], ...]
    later: tuple[Batch, ...]  # as recorded: the first one and those after it
    last_step: int  # of the run

    @property
    def fork_version(self) -> int:
        """As recorded: the one that the first batch was computed from."""
        return self.first.parent_version

    @property
    def end(self) -> int:
        """The branch's last step: there is nothing left of the batches after it."""
        return self.after[-1][1].step if self.after else self.first.step - 1

    def count_later(self) -> tuple[int, int]:
        """Rows that the run learned from since the first use and that no query names, and those of them that tainted
        versions made."""
        rows = [row for batch in self.later for row in batch.rows if not self.selected(row)]
        return len(rows), sum(map(self.descendants, rows))

    def list_descendants(self) -> list[int]:
        """Reward LSNs of the rows that tainted versions made and that the run learned from, in order."""
        rows = (row for batch in self.later for row in batch.rows)
        return [row.reward_lsn for row in rows if self.descendants(row) and not self.selected(row)]


def make_plan(records: Records, *, folder: Path, request: Request, from_first_use: bool = False) -> Plan:
    """`records`: all decisions of the store in `folder`.

    `from_first_use`: begin at the newest checkpoint before the first use, not at the oldest. Raises UserError where
    nothing of what is named was learned from, RunFolderError where the first use lies beyond the horizon.
    """
    store, batches = folder / "store", computed_batches(records)
    selected = select(store, request.queries)
    first = next((place for place, (_, batch) in enumerate(batches) if leave_out(batch, selected) is not batch), None)
    if first is None:
        raise UserError(
            f"{folder.name} without {request.text}",
            f"{len(selected.episode_lsns)} episodes fit, and the model learned from none of them",
            "look for what it learned from with `ratchet store query`",
        )
    tainted = find_tainted(records, selected)
    descendants = find_made_by(store, tainted)
    excluded = selected | descendants if request.descendants == "drop" else selected
    after = [(lsn, leave_out(batch, excluded)) for lsn, batch in batches[first:]]
    while after and not after[-1][1].rows:  # the branch ends where there is something left
        after.pop()
    step = batches[first][1].step
    starts = _find_starts(records, folder=folder, batches=[*batches[:first], *after], asked=request.text, step=step)
    base = starts[-1 if from_first_use else 0]
    return Plan(
        selected=selected,
        descendants=descendants,
        first=batches[first][1],
        base=base,
        before=tuple((lsn, batch) for lsn, batch in batches[:first] if batch.step > base.step),
        after=tuple(after),
        later=tuple(batch for _, batch in batches[first:]),
        last_step=batches[-1][1].step,
    )


def select(store: Path, queries: Sequence[Query]) -> Exclusion:
    """The groups of which an episode fits one of the queries, whole."""
    leases = {lease for query in queries for table in find(store, query) for lease in table["lease"].to_pylist()}
    return _take_groups(store, frozenset(leases))


def find_made_by(store: Path, versions: frozenset[int]) -> Exclusion:
    """The groups of which one of these versions made a token, whole."""
    wanted, leases = np.fromiter(versions, dtype=np.int64), set[int]()
    for table in find(store, Query()):
        column = table["versions"].combine_chunks()
        rows = pc.list_parent_indices(column).to_numpy()[np.isin(pc.list_flatten(column).to_numpy(), wanted)]
        leases.update(table["lease"].to_numpy()[np.unique(rows)].tolist())
    return _take_groups(store, frozenset(leases))


def _take_groups(store: Path, leases: frozenset[int]) -> Exclusion:
    wanted, lsns = np.fromiter(leases, dtype=np.int64), set[int]()
    for table in find(store, Query()) if leases else ():
        lsns.update(table["lsn"].to_numpy()[np.isin(table["lease"].to_numpy(), wanted)].tolist())
    return Exclusion(leases, frozenset(lsns))


def find_tainted(records: Records, excludes: Excludes) -> frozenset[int]:
    """Versions that learned from what is excluded, and those that came of them, on every branch."""
    read = {lsn for lsn, one in records if isinstance(one, Batch) and any(map(excludes, one.rows))}
    tainted: set[int] = set()
    for _, one in records:
        if isinstance(one, Version) and (one.batch_lsn in read or one.parent in tainted):
            tainted.add(one.version)
    return frozenset(tainted)


def _find_starts(
    records: Records, *, folder: Path, batches: Sequence[tuple[int, Batch]], asked: str, step: int
) -> list[Checkpoint]:
    """The kept checkpoints before `step` after which everything that is to be read is there, oldest first."""
    gone = Gone.of(records)
    lost = max((batch.step for _, batch in batches if gone.count(batch)), default=-1)
    kept = [one for one in kept_checkpoints(records, folder=folder) if one.step >= lost]
    starts = [one for one in kept if one.step < step]
    if starts:
        return starts
    horizon = "nothing is left to begin at: the run cannot be computed again"
    todo = "restore the folder's checkpoints, or rewind a snapshot of the run that reaches further back"
    if kept:
        reached = tell_time(records, kept[0])
        horizon = f"its horizon is step {kept[0].step}, of {reached}: what comes before was trimmed, erased or pruned"
        todo = f"leave out only what came later (since={reached}), or rewind a snapshot that reaches further back"
    raise RunFolderError(f"{folder.name} without {asked}, which it first learned from at step {step}", horizon, todo)


def tell_time(records: Records, checkpoint: Checkpoint) -> str:
    """When the checkpoint's version was made (UTC)."""
    times = [one.wall_time for _, one in records if isinstance(one, Version) and one.version == checkpoint.version]
    return f"{datetime.fromtimestamp(times[-1] if times else 0.0, UTC):%Y-%m-%dT%H:%M:%S}"
