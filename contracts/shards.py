"""What the shards of one store say to each other: the port of a shard, and what crosses it.

    shard 0     the coordinator: its control log alone decides (SESSION, BATCH, VERSION); holds groups like any other
    shard k     holds groups; its control log ends leases by itself (CLOSED) and copies what concerns it of shard 0's

    a batch     follow (each shard takes in what was decided) ─► offer (its ready groups, durable, promised)
                ─► shard 0 writes BATCH: decided, once ─► follow

An address is a (shard, LSN) pair in one integer: `shard * SHARD_SPAN + LSN`. Those of shard 0 are its LSNs, so a store
of one shard knows nothing of all this. Outside a shard every lease and LSN is an address; inside, its own LSN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from contracts.protocols import BatchRequest, Store
from contracts.records import Batch, ControlRecord, Dropped, Feedback, Hold, Review, Row

SHARD_SPAN = 1 << 48  # bytes of one data log that can be addressed: 256 TiB
MAX_SHARDS = 1 << 15  # addresses are signed 64-bit integers


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of a step's groups a shard hands out: the `rank`-th of `world` parts that are as equal as can be."""

    rank: int = 0
    world: int = 1

    def of(self, num_groups: int) -> int:
        """This part of `num_groups`; those of all ranks sum up to it."""
        return num_groups // self.world + (self.rank < num_groups % self.world)


@dataclass(frozen=True, kw_only=True)
class News:
    """What was decided since a shard last followed: the control records of shard 0 from `start` on that concern it, of
    a batch the part that lies there."""

    session: int  # the learner's, who brings them: older ones than the newest are fenced
    start: int
    records: tuple[tuple[int, ControlRecord], ...]
    share: Share
    served: int  # the version that the engines have now; -1: none


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a shard has followed, which version it believes the engines have, and where its own control log ends."""

    followed: int
    served: int
    control_end: int


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A group that a batch may have, by its shard's own LSNs."""

    lease: int
    position: int
    rows: tuple[Row, ...]
    zero_spread: bool


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What one shard has for a batch, all of it durable below `mark`."""

    mark: int
    candidates: tuple[Candidate, ...]  # in the order in which they became ready
    dropped: tuple[Dropped, ...]  # met on the way: too old, off the branch, without spread


class Shard(Store, Protocol):
    """One owner among several. Every call may be retried. Errors beside Store's: StoreUnreachableError, it is lost."""

    def append_feedback(self, feedback: Feedback) -> int: ...

    def hold(self, record: Hold) -> bool: ...

    def review(self, record: Review) -> bool: ...

    def check(self, producer: str, epoch: int) -> None:
        """Raises FencedError where `epoch` is not the newest that this owner gave or took for `producer`."""
        ...

    def join(self, producer: str, epoch: int) -> None:
        """Take an epoch that shard 0 gave. Raises FencedError where a newer one is known."""
        ...

    def follow(self, news: News) -> Standing:
        """Take in what was decided. News that do not begin where this shard stands change nothing."""
        ...

    def offer(self, request: BatchRequest) -> Offer:
        """Up to `num_groups` ready groups, promised: they are not held or reviewed before `follow` or `release`."""
        ...

    def release(self, dropped: Sequence[Dropped]) -> None:
        """No batch comes of the last offer: nothing is promised, and these of its groups end now."""
        ...

    def find_batch(self, request: BatchRequest) -> tuple[int, Batch] | None:
        """Shard 0: the stored batch of this (branch, step). Raises FencedError for an older session."""
        ...

    def commit(self, batch: Batch, session: int) -> tuple[int, Batch]:
        """Shard 0: decide a batch. Compare-and-append: where there is one for (branch, step), that one."""
        ...
