"""Where versions came from and what became of them: read off a run's decisions, nothing computed.

lineage = Lineage.of(view.decisions())
[one.version for one in lineage.ancestry(7)]        # [0, 1, 2, 4, 7]: along the parents, genesis first
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from contracts.errors import UserError
from contracts.records import Batch, Branch, Checkpoint, ControlRecord, Evaluation, Guard, Served, Session, Version


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What the log says of one version beside how it was made, each in the log's order."""

    evaluations: list[Evaluation] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    guards: list[Guard] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)

    @property
    def metric(self) -> tuple[str, float] | None:
        """Name and value of the main score of its last evaluation."""
        if not self.evaluations:
            return None
        last = self.evaluations[-1]
        return last.metric, last.scores[last.metric]


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Every version of a log, whichever branch made it."""

    versions: Mapping[int, Version]
    fates: Mapping[int, Fate]
    lsns: Mapping[int, int]  # version → LSN of its record
    sessions: Mapping[int, Session]  # version → the learner's session that made it
    batches: Mapping[int, Batch]  # BATCH LSN → batch, of those that became versions
    branches: tuple[Branch, ...]

    @classmethod
    def of(cls, records: Iterable[tuple[int, ControlRecord]]) -> Lineage:
        versions: dict[int, Version] = {}
        fates: dict[int, Fate] = {}
        batches: dict[int, Batch] = {}
        branches: list[Branch] = []
        lsns: dict[int, int] = {}
        sessions: dict[int, Session] = {}
        session: Session | None = None
        for lsn, record in records:
            match record:
                case Version():
                    versions[record.version], lsns[record.version] = record, lsn
                    if session is not None:
                        sessions[record.version] = session
                case Session(role="learner"):
                    session = record
                case Batch():
                    batches[lsn] = record
                case Branch():
                    branches.append(record)
                case Evaluation():
                    _fate(fates, record.version).evaluations.append(record)
                case Served():
                    _fate(fates, record.version).served.append(record)
                case Guard():
                    _fate(fates, record.version).guards.append(record)
                case Checkpoint():
                    _fate(fates, record.version).checkpoints.append(record)
                case _:
                    pass
        made = {version.batch_lsn for version in versions.values()}
        return cls(
            versions=versions,
            fates={number: fates.get(number, Fate()) for number in versions},
            lsns=lsns,
            sessions=sessions,
            batches={lsn: batch for lsn, batch in batches.items() if lsn in made},
            branches=tuple(branches),
        )

    def find(self, number: int | None) -> Version:
        """The version, or the newest one for None. Raises UserError where the log has none of that number."""
        wanted = max(self.versions, default=-1) if number is None else number
        if wanted not in self.versions:
            there = f"{min(self.versions)} to {max(self.versions)}" if self.versions else "none yet"
            raise UserError(f"version {'' if number is None else number}".strip(), f"the log has {there}", "name one")
        return self.versions[wanted]

    def ancestry(self, number: int) -> list[Version]:
        """Genesis, …, the version itself. Raises UserError where the log has none of that number."""
        found = [self.find(number)]
        while found[-1].parent >= 0:
            found.append(self.find(found[-1].parent))
        return found[::-1]

    def path(self, older: int, newer: int) -> list[Version]:
        """From `older` to `newer`, both included. Raises UserError unless `older` is an ancestor of `newer`."""
        ancestry = self.ancestry(newer)
        places = [place for place, one in enumerate(ancestry) if one.version == self.find(older).version]
        if not places:
            raise UserError(
                f"the way from version {older} to version {newer}",
                f"{older} is no ancestor of {newer}",
                "name an ancestor: `ratchet version list` draws the tree",
            )
        return ancestry[places[0] :]

    def common(self, one: int, other: int) -> Version | None:
        """The newest version that both come from, or are; None where they share none."""
        ours = {version.version for version in self.ancestry(one)}
        return next((version for version in reversed(self.ancestry(other)) if version.version in ours), None)

    def children(self, number: int) -> list[Version]:
        return [version for version in self.versions.values() if version.parent == number]

    def batch_of(self, version: Version) -> Batch | None:
        """What it was learned from; None of genesis."""
        return self.batches.get(version.batch_lsn)


def draw(versions: Sequence[Version]) -> list[tuple[str, int | None]]:
    """The tree as lines of a terminal, newest version first: (the edges, version or None where only edges meet).

    `versions` fall in number. Where a parent is not among them, its line ends.
    """
    lines: list[tuple[str, int | None]] = []
    awaited: list[int] = []  # the version that each column's line leads down to
    shown = {version.version for version in versions}
    for version in versions:
        columns = [place for place, number in enumerate(awaited) if number == version.version]
        if not columns:
            awaited.append(version.version)
            columns = [len(awaited) - 1]
        first, *others = columns
        for place in reversed(others):  # lines of other children come in from the right
            lines.append((_edges(len(awaited), joined=place), None))
            del awaited[place]
        lines.append(("".join("* " if place == first else "| " for place in range(len(awaited))), version.version))
        if version.parent in shown:
            awaited[first] = version.parent
        else:
            del awaited[first]
    return lines


def _edges(columns: int, *, joined: int) -> str:
    return "".join("|" + ("/" if place + 1 == joined else " ") for place in range(columns) if place != joined)


def _fate(fates: dict[int, Fate], number: int) -> Fate:
    return fates.setdefault(number, Fate())
