"""The fold to and from an index: its shelves entry by entry, the rest as one small value.

`save` and `load` are each other's inverse at any cut; a fold that was loaded and folded on is the one that a fold over
the whole log gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from buffers.codec import decode
from buffers.fold import Fold
from buffers.groups import Group, Member, Producer, Stage, Verdict
from buffers.index import Index, IndexView, Plain
from contracts.records import (
    Batch,
    Branch,
    Checkpoint,
    ControlRecord,
    Disposition,
    Fault,
    Kind,
    Task,
    Trim,
    Version,
)

K = TypeVar("K")
V = TypeVar("V")

_COUNTS = (
    "frontier", "num_handed", "num_episodes", "num_late", "num_trained", "num_doubled", "num_replaced",
    "num_unresolved", "branch", "newest_version", "served", "data_end", "control_end",
    "followed",
)  # fmt: skip
_MAPS = ("heads", "last_steps", "skip_lsns", "sessions")


@dataclass(frozen=True)
class _Shape(Generic[K, V]):
    """How the entries of one shelf travel."""

    pack: Callable[[V], Plain]
    unpack: Callable[[Plain], V]
    key: Callable[[Plain], K] = lambda plain: cast(K, plain)


class IndexShelf(Generic[K, V]):
    """What lies behind a shelf (buffers/shelf.py): a table of the index."""

    def __init__(self, index: Index | IndexView, name: str) -> None:
        self._index, self._name, self._shape = index, name, _SHAPES[name]

    def find(self, key: K) -> V | None:
        plain = self._index.find(self._name, key)
        return None if plain is None else self._shape.unpack(plain)

    def scan(self) -> Iterable[tuple[K, V]]:
        shape = self._shape
        return [(shape.key(key), shape.unpack(plain)) for key, plain in self._index.scan(self._name)]


def load(index: Index | IndexView) -> Fold:
    """The fold as of the index's cut, with the index behind its shelves. Raises StoreError on damage."""
    fold = Fold()
    for name, shelf in fold.shelves.items():
        shelf.backing = IndexShelf[Any, Any](index, name)
    if index.state is not None:
        _unpack_state(fold, index.state)
    return fold


def save_shelves(fold: Fold) -> dict[str, list[tuple[Plain, Plain]]]:
    """Take what changed on the fold's shelves since the last call."""
    return {
        name: [(key, _SHAPES[name].pack(value)) for key, value in sorted(shelf.take_changes(), key=_by_key)]
        for name, shelf in fold.shelves.items()
    }


def save_state(fold: Fold) -> Plain:
    """Everything else: as small as what is in flight. Records stand in it as they are: the index encodes them later."""
    return {
        "counts": [getattr(fold, name) for name in _COUNTS],
        "maps": [dict(getattr(fold, name)) for name in _MAPS],
        "quarantined": {fault.value: count for fault, count in fold.quarantined.items()},
        "ended": {disposition.value: count for disposition, count in fold.ended.items()},
        "unended": sorted(lease for leases in fold.stages.values() for lease in leases),
        "positions": [[position, *newest] for position, newest in fold.positions.items()],
        "trim": fold.trim,
        "ahead": sorted(fold.ahead),
        "to_hand_again": sorted(fold.to_hand_again),
        "branches": list(fold.branches.values()),
        "open_batches": dict(fold.open_batches),
        "checkpoints": list(fold.checkpoints.values()),
    }


def _unpack_state(fold: Fold, state: Plain) -> None:
    for name, value in zip(_COUNTS, state["counts"], strict=True):
        setattr(fold, name, value)
    for name, value in zip(_MAPS, state["maps"], strict=True):
        setattr(fold, name, value)
    fold.ended = Counter({Disposition(name): count for name, count in state["ended"].items()})
    fold.quarantined = Counter({Fault(name): count for name, count in state["quarantined"].items()})
    fold.positions = {position: (lease, attempt) for position, lease, attempt in state["positions"]}
    fold.trim = None if state["trim"] is None else cast(Trim, decode(Kind.TRIM, state["trim"]))
    fold.ahead, fold.to_hand_again = set(state["ahead"]), set(state["to_hand_again"])
    for payload in state["branches"]:
        branch = cast(Branch, decode(Kind.BRANCH, payload))
        fold.branches[branch.branch] = branch
    fold.open_batches = {
        lsn: cast(Batch, decode(Kind.BATCH, payload)) for lsn, payload in state["open_batches"].items()
    }
    for lsn, payload in state["checkpoints"]:
        checkpoint = cast(Checkpoint, decode(Kind.CHECKPOINT, payload))
        fold.checkpoints[checkpoint.branch] = (lsn, checkpoint)
    for lease in state["unended"]:
        fold.stages[fold.groups[lease].stage].add(lease)  # the shelf keeps it in memory: it has not ended


@dataclass(frozen=True)
class Milestones:
    """How far a run is, of the control log below `control_lsn`."""

    version: int = -1  # the newest one, -1 before genesis
    checkpoints: tuple[Checkpoint, ...] = ()  # of each branch the newest, and maybe others, in log order
    control_lsn: int = 0

    def go_on(self, records: Iterable[tuple[int, ControlRecord]]) -> Milestones:
        """With what came after; records below `control_lsn` are passed over."""
        later = [record for lsn, record in records if lsn >= self.control_lsn]
        return Milestones(
            max([self.version, *(record.version for record in later if isinstance(record, Version))]),
            (*self.checkpoints, *(record for record in later if isinstance(record, Checkpoint))),
        )


def find_milestones(index: Index | IndexView) -> Milestones:
    """As of the index's cut."""
    if index.state is None:
        return Milestones()
    version = index.state["counts"][_COUNTS.index("newest_version")]
    payloads = [payload for _, payload in sorted(index.state["checkpoints"])]
    checkpoints = tuple(cast(Checkpoint, decode(Kind.CHECKPOINT, payload)) for payload in payloads)
    return Milestones(version, checkpoints, index.control_lsn)


# ---------------------------------------------------------------------------------------------- shelves


def _pack_group(group: Group) -> Plain:
    task = group.task
    return [
        [task.task_id, task.position, task.index, task.group_size, task.producer, task.branch, task.attempt],
        task.payload,
        group.lease,
        group.stage.value,
        None if group.disposition is None else group.disposition.value,
        list(group.lsns.items()),
        [_pack_member(number, member) for number, member in group.members.items()],
        group.closed_at,
        group.num_late,
        [[member, fault.value] for member, fault in group.faults.items()],
        group.verdict.value,
        group.verdict_lsn,
    ]


def _pack_member(number: int, of: Member) -> Plain:
    return [number, of.valid, of.oldest_version, of.reward, of.reward_lsn, of.ready_lsn, of.deadline]


def _unpack_group(plain: Plain) -> Group:
    (task_id, position, index, group_size, producer, branch, attempt), payload, lease, stage, disposition, *rest = plain
    lsns, members, closed_at, num_late, faults, verdict, verdict_lsn = rest
    task = Task(
        task_id=task_id, position=position, index=index, group_size=group_size, producer=producer, branch=branch,
        attempt=attempt, payload=payload,
    )  # fmt: skip
    return Group(
        lease=lease,
        task=task,
        lsns=dict(lsns),
        members={number: Member(*fields) for number, *fields in members},
        stage=Stage(stage),
        disposition=None if disposition is None else Disposition(disposition),
        closed_at=closed_at,
        num_late=num_late,
        faults={member: Fault(fault) for member, fault in faults},
        verdict=Verdict(verdict),
        verdict_lsn=verdict_lsn,
    )


def _as_it_is(value: Any) -> Any:
    return value


_NUMBERS: _Shape[Any, Any] = _Shape(_as_it_is, _as_it_is, key=tuple)
_SHAPES: dict[str, _Shape[Any, Any]] = {
    "groups": _Shape(_pack_group, _unpack_group),
    "producers": _Shape(lambda of: [of.epoch, of.newest, of.newest_lsn], lambda plain: Producer(*plain)),
    "versions": _Shape(_as_it_is, lambda plain: cast(Version, decode(Kind.VERSION, plain))),
    "version_lsns": _NUMBERS,
    "batch_lsns": _NUMBERS,
    "successes": _Shape(list, lambda plain: tuple(map(tuple, plain))),
    "priorities": _Shape(_as_it_is, _as_it_is),
    "late": _Shape(_as_it_is, _as_it_is),
    "settled": _Shape(_as_it_is, _as_it_is),
}


def _by_key(entry: tuple[Any, Any]) -> Any:
    return entry[0]
