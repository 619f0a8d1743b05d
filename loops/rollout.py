"""One rollout slot: lease tasks, have them played, sign the episodes, append them, again. Knows no kind of task."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Protocol

from contracts.errors import StoreUnreachableError
from contracts.protocols import Store
from contracts.records import Ack, Episode, Lease
from telemetry.spans import begin, span

WAIT_S = 0.5  # how long the store may wait for a task to hand out; a slot that is told to stop notices after it
IDLE_FIRST_S, IDLE_MOST_S = 0.002, 0.05  # how long an empty-handed slot waits before it asks again


class Player(Protocol):
    """Turns leases into episodes: loops/text.py for text, loops/control.py for control. Single-threaded."""

    @property
    def capacity(self) -> int:
        """Leases that one call of `play` takes at most."""
        ...

    def play(self, leases: Sequence[Lease]) -> list[Episode]:
        """Episodes of every missing member, in lease and member order, not signed yet: the slot fills in id, producer,
        epoch, sequence number and time. Raises what the engine raises; a bad environment is data."""
        ...


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which slot of which worker this is; `rank` of `world` workers shares the hand-out in sync mode."""

    producer: str
    rank: int = 0
    world: int = 1


class RolloutSlot:
    """Single-threaded. A slot is one producer: its appends carry rising sequence numbers."""

    def __init__(
        self,
        store: Store,
        *,
        player: Player,
        store_uuid: str,
        place: Place,
        episode_id: Callable[[str, int, int], str],
        hear: Callable[[Episode, Ack], None] = lambda episode, ack: None,
    ) -> None:
        self._store, self._player = store, player
        self._uuid, self._place, self._episode_id, self._hear = store_uuid, place, episode_id, hear
        self._epoch, self._seq = -1, 0
        self._kept: list[list[Episode]] = []  # by lease: their shard is away, they are brought again at each turn
        self._end_wait: Callable[[], None] | None = None  # of the span of a slot that has nothing in hand

    def run(self, stop: Event) -> None:
        """Until `stop`. Raises what the store and the player raise."""
        self._epoch = self._store.attach(self._place.producer)
        idle_s = IDLE_FIRST_S
        while not stop.is_set():
            if self.turn(wait_s=WAIT_S):
                idle_s = IDLE_FIRST_S
            else:
                stop.wait(idle_s)
                idle_s = min(idle_s * 2, IDLE_MOST_S)

    def turn(self, *, wait_s: float = 0.0) -> int:
        """One round; the number of episodes appended (0: nothing was handed out for `wait_s`)."""
        if self._epoch < 0:
            self._epoch = self._store.attach(self._place.producer)
        place = self._place
        kept, self._kept = self._kept, []
        num_brought = sum(map(self._bring, kept))
        self._end_wait = self._end_wait or begin("lease")
        leases = self._store.lease(
            place.producer,
            self._epoch,
            max_tasks=self._player.capacity,
            rank=place.rank,
            world=place.world,
            wait_s=wait_s,
        )
        if not leases:
            return num_brought
        self._end_wait()
        self._end_wait = None
        with span("play", groups=len(leases)):
            episodes = [self._sign(episode) for episode in self._player.play(leases)]
        with span("append", episodes=len(episodes)):
            return num_brought + self._bring(episodes)

    def _bring(self, episodes: list[Episode]) -> int:
        """Append; what a shard that is away cannot take is kept, no more than was in hand when it went."""
        try:
            acks = self._store.append(episodes)
        except StoreUnreachableError:
            leases = dict.fromkeys(episode.lease for episode in episodes)
            if len(leases) == 1:
                self._kept.append(episodes)
                return 0
            return sum(self._bring([one for one in episodes if one.lease == lease]) for lease in leases)
        for episode, ack in zip(episodes, acks, strict=True):
            self._hear(episode, ack)
        return len(episodes)

    def _sign(self, episode: Episode) -> Episode:
        self._seq += 1
        return replace(
            episode,
            episode_id=self._episode_id(self._uuid, episode.lease, episode.member),
            producer=self._place.producer,
            producer_epoch=self._epoch,
            seq=self._seq,
            wall_time=time.time(),
        )
