"""Who holds which open lease, until when, and which of its members are on their way into the log. Memory only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass


@dataclass(slots=True)
class _Holding:
    producer: str
    epoch: int
    deadline_s: float  # monotonic


class Leases:
    """The owner's lock guards every call."""

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._holdings: dict[int, _Holding] = {}
        self._earliest_s = math.inf  # no deadline lies before it
        self._arriving: dict[int, dict[int, Future[list[int]]]] = {}  # lease → member → its append
        self.orphans: set[int] = set()  # open leases that nobody holds: their holder died with an earlier owner

    def __len__(self) -> int:
        return len(self._holdings)

    def hold(self, leases: Iterable[int], *, producer: str, epoch: int, now_s: float) -> None:
        deadline_s = now_s + self._timeout_s
        self._earliest_s = min(self._earliest_s, deadline_s)
        for lease in leases:
            self.orphans.discard(lease)
            self._holdings[lease] = _Holding(producer, epoch, deadline_s)

    def release(self, lease: int) -> None:
        """The lease is complete or closed."""
        self._holdings.pop(lease, None)
        self.orphans.discard(lease)

    def release_older(self, producer: str, *, epoch: int) -> None:
        """What `producer` held before `epoch` has expired now."""
        for holding in self._holdings.values():
            if holding.producer == producer and holding.epoch < epoch:
                holding.deadline_s = -math.inf
                self._earliest_s = -math.inf

    def is_any_due(self, now_s: float) -> bool:
        """Whether a lease may be past its deadline."""
        return now_s >= self._earliest_s

    def find_expired(self, now_s: float) -> list[int]:
        """Leases past their deadline."""
        if now_s < self._earliest_s:
            return []
        expired = [lease for lease, holding in self._holdings.items() if holding.deadline_s <= now_s]
        self._earliest_s = min((holding.deadline_s for holding in self._holdings.values()), default=math.inf)
        return expired

    # ------------------------------------------------------------------------------------------ members on their way

    def expect(self, members: Iterable[tuple[int, int]], future: Future[list[int]]) -> None:
        for lease, member in members:
            self._arriving.setdefault(lease, {})[member] = future

    def find_arriving(self, lease: int, member: int) -> Future[list[int]] | None:
        waiting = self._arriving.get(lease)
        return None if waiting is None else waiting.get(member)

    @property
    def are_arriving(self) -> bool:
        """Whether any episode is on its way into the log."""
        return bool(self._arriving)

    def is_awaited(self, lease: int) -> bool:
        """Whether an episode of it is on its way into the log."""
        return lease in self._arriving

    @property
    def oldest_awaited(self) -> int | None:
        """The oldest lease of which an episode is on its way into the log."""
        return min(self._arriving, default=None)

    def arrived(self, members: Iterable[tuple[int, int]]) -> None:
        """Their append was applied, or failed."""
        for lease, member in members:
            waiting = self._arriving[lease]
            del waiting[member]
            if not waiting:
                del self._arriving[lease]
