"""Takes episodes and late rewards in: checks them, knows second copies, and answers when they are safe.

An episode that no learner may read is no reason to stop a run and none to forget it: it is kept as QUARANTINED, with
what is wrong, in its member's place. Its group ends as `quarantined` and is never sampled.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import repeat
from typing import NamedTuple, cast

from buffers.checks import Flaw, examine, quarantine
from buffers.codec import decode, encode
from buffers.groups import Stage
from buffers.plain import check_values
from buffers.state import StoreState
from contracts.errors import NotFollowedError, StoreError
from contracts.records import Ack, Episode, Fault, Feedback, Hold, Kind, Quarantined, Review


class _Arrival(NamedTuple):
    """An episode and what becomes of it: its own record, or one that says why not."""

    episode: Episode
    record: Episode | Quarantined
    payload: bytes
    member: tuple[int, int] | None  # (lease, member), or None where it belongs to no lease of this store
    fault: Fault | None = None


RETRY_WINDOW = 1 << 10  # newest records of each producer that are known by their sequence numbers
_NONE = array("q")


class Retries:
    """Where each producer's newest records lie, in 16 bytes each. Memory only: an epoch of a producer does not outlive
    the owner."""

    def __init__(self) -> None:
        # producer → (its epoch, sequence number and LSN of each record at twice its number modulo the window)
        self._places: dict[str, tuple[int, array[int]]] = {}

    def remember(self, episode: Episode, lsn: int) -> None:
        if episode.seq < 0:
            return
        epoch, places = self._places.get(episode.producer, (-1, _NONE))
        if epoch < episode.producer_epoch:
            places = array("q")
            self._places[episode.producer] = (episode.producer_epoch, places)
        slot = 2 * (episode.seq % RETRY_WINDOW)
        if slot >= len(places):
            places.extend(repeat(-1, slot + 2 - len(places)))
        places[slot], places[slot + 1] = episode.seq, lsn

    def find(self, episode: Episode) -> int | None:
        epoch, places = self._places.get(episode.producer, (-1, _NONE))
        slot = 2 * (episode.seq % RETRY_WINDOW)
        if epoch != episode.producer_epoch or slot >= len(places) or episode.seq < 0 or places[slot] != episode.seq:
            return None
        return places[slot + 1]


class Intake:
    def __init__(self, state: StoreState) -> None:
        self._state = state
        self._environment = state.config.environment_label
        self._retries = Retries()

    def append(self, episodes: Sequence[Episode]) -> list[Ack]:
        """See contracts.protocols.Store. All are kept or none. Raises FencedError for an older epoch of a producer."""
        state = self._state
        checked = [examine(episode) for episode in episodes]
        state.sweep()
        with state.lock:
            for producer, epoch in dict.fromkeys((one.producer, one.producer_epoch) for one, _ in checked):
                state.check_producer_locked(producer, epoch)
            arrivals = [self._receive(episode, found) for episode, found in checked]
            fresh = self._find_fresh(arrivals)
            waiting = self._find_waits(arrivals)
            acks: list[Ack] = []
            own = self._submit([arrivals[place] for place in fresh], acks) if fresh else None
        for future in waiting:
            state.finish(future)
        lsns = dict(zip(fresh, state.finish(own), strict=True)) if own is not None else {}
        if not waiting and len(fresh) == len(arrivals):
            return acks
        with state.lock:
            return [self._acknowledge(arrival, lsns.get(place)) for place, arrival in enumerate(arrivals)]

    def judge(self, record: Hold | Review) -> bool:
        """Keep a HOLD or REVIEW; whether it came before the group's batch was cut. Raises StoreError on no lease,
        NotFollowedError where another shard is about to decide."""
        check_values(record)
        state, lease = self._state, record.lease
        with state.lock:
            if lease < state.fold.trimmed_lsn or state.fold.groups.get(lease) is None:
                raise StoreError(f"{lease} is no lease of this store")
            if state.promised is None or lease in state.promised:
                raise NotFollowedError(f"{lease} may be in a batch that is being decided: ask again")
            ending = state.ending.get(lease)
            future = ending or state.data.submit([record], settle=lambda _: state.judging.remove(lease))
            if ending is None:
                state.judging.append(lease)
        state.finish(future)
        if ending is not None:
            return self.judge(record)
        with state.lock:
            group = state.fold.groups[record.lease]
            return group.stage not in (Stage.BATCHED, Stage.ENDED)

    def append_feedback(self, feedback: Feedback) -> int:
        """Keep a late or corrected reward, checked; its LSN. It counts until the group's batch is cut."""
        if not math.isfinite(feedback.reward):
            raise StoreError(f"feedback on {feedback.episode_id} is not kept: its reward is {feedback.reward}")
        with self._state.lock:
            future = self._state.data.submit([feedback])
        return self._state.finish(future)[0]

    def _receive(self, episode: Episode, checked: bytes | Flaw) -> _Arrival:
        """`checked`: its record, or what is wrong with it by itself."""
        flaw, member = self._check_lease(episode), (episode.lease, episode.member)
        if isinstance(checked, Flaw):
            if flaw is not None and checked.fault is Fault.UNREADABLE:
                flaw = Flaw(flaw.fault, checked.detail)  # which may be why it has no lease
            flaw = flaw or checked
        else:
            flaw = flaw or self._check_origin(episode)
            if flaw is None:
                return _Arrival(episode, episode, checked, member)
        payload = encode(quarantine(episode, flaw))
        record = cast(Quarantined, decode(Kind.QUARANTINED, payload))
        return _Arrival(episode, record, payload, None if flaw.fault is Fault.LEASE else member, flaw.fault)

    def _check_lease(self, episode: Episode) -> Flaw | None:
        state = self._state
        lease = episode.lease
        if 0 <= lease < state.kept_lsn:
            return Flaw(Fault.LEASE, f"{lease} ended so long ago that it was trimmed")
        group = state.fold.groups.get(lease)
        if group is None:
            return Flaw(Fault.LEASE, f"{lease} is no lease of this store")
        task = group.task
        if 0 <= episode.member < task.group_size and episode.task_id == task.task_id:
            return None
        return Flaw(
            Fault.LEASE,
            f"lease {group.lease} is task {task.task_id} with members 0 to {task.group_size - 1}, "
            f"not member {episode.member} of {episode.task_id}",
        )

    def _check_origin(self, episode: Episode) -> Flaw | None:
        if episode.environment != self._environment:
            return Flaw(
                Fault.ENVIRONMENT, f"it is from {episode.environment!r}; this run's environment is {self._environment}"
            )
        versions = self._state.fold.versions
        unknown = [span.version for span in episode.spans if versions.get(span.version) is None]
        if unknown and self._state.fold.followed and max(unknown) > self._state.fold.newest_version:
            raise NotFollowedError(f"this shard has not followed shard 0 up to version {max(unknown)}: ask again")
        if unknown and episode.valid:
            return Flaw(Fault.VERSION, f"the log knows no version {min(unknown)}")
        return None

    def _find_fresh(self, arrivals: Sequence[_Arrival]) -> list[int]:
        """Places of the episodes that are no second copies, in the log, on their way there, or in this call."""
        fresh: dict[tuple[int, int] | str, int] = {}
        for place, arrival in enumerate(arrivals):
            member = arrival.member
            on_its_way = member is not None and self._state.leases.find_arriving(*member) is not None
            if self._find_copy(arrival) is None and not on_its_way:
                fresh.setdefault(member or f"place {place}", place)
        return list(fresh.values())

    def _find_copy(self, arrival: _Arrival) -> int | None:
        """LSN of the copy in the log: the same lease and member, or, of an episode of no lease, the same producer,
        epoch and sequence number. Raises StoreError where that was another member's: it would be lost in silence."""
        episode = arrival.episode
        if arrival.member is None:
            return self._retries.find(episode)
        copy = self._state.fold.groups[episode.lease].lsns.get(episode.member)
        if copy is None and (known := self._retries.find(episode)) is not None:
            raise StoreError(
                f"{episode.producer}: member {episode.member} of lease {episode.lease} came as number {episode.seq}, "
                f"which was another record's (LSN {known}); numbers rise by one a record"
            )
        return copy

    def _find_waits(self, arrivals: Sequence[_Arrival]) -> set[Future[list[int]]]:
        """What must be safe before the answer: first copies on their way, and records that end an episode's lease."""
        state = self._state
        if not (state.leases.are_arriving or state.ending):
            return set()
        members = [arrival.member for arrival in arrivals if arrival.member is not None]
        found = [state.leases.find_arriving(*member) for member in members]
        found += [state.ending.get(lease) for lease, _ in members]
        return {future for future in found if future is not None}

    def _submit(self, arrivals: Sequence[_Arrival], acks: list[Ack]) -> Future[list[int]]:
        """`acks` gets the answers as soon as the fold has the records: nothing but they can end a lease that waits for
        them."""
        state = self._state
        members = [arrival.member for arrival in arrivals if arrival.member is not None]

        def settle(lsns: list[int] | None) -> None:
            for arrival, lsn in zip(arrivals, lsns or (), strict=False):
                self._retries.remember(arrival.episode, lsn)
                acks.append(self._acknowledge(arrival, lsn))
            state.leases.arrived(members)
            for lease in {lease for lease, _member in members}:
                if state.fold.groups[lease].stage is not Stage.OPEN:
                    state.leases.release(lease)

        future = state.data.submit(
            [arrival.record for arrival in arrivals],
            payloads=[arrival.payload for arrival in arrivals],
            settle=settle,
        )
        state.leases.expect(members, future)
        return future

    def _acknowledge(self, arrival: _Arrival, lsn: int | None) -> Ack:
        is_fresh = lsn is not None
        lsn = self._find_copy(arrival) if lsn is None else lsn
        assert lsn is not None  # its first copy's append has been applied
        closed_at = None if arrival.member is None else self._state.fold.groups[arrival.episode.lease].closed_at
        return Ack(
            lsn=lsn,
            duplicate=not is_fresh,
            late=closed_at is not None and lsn >= closed_at,
            fault=arrival.fault,
        )
