"""Takes episodes and late rewards in: checks them, knows second copies, and answers when they are safe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future

from buffers.checks import check_episode
from buffers.codec import encode
from buffers.groups import Stage
from buffers.state import StoreState
from contracts.errors import StoreError
from contracts.records import Ack, Episode, Feedback


class Intake:
    def __init__(self, state: StoreState) -> None:
        self._state = state

    def append(self, episodes: Sequence[Episode]) -> list[Ack]:
        """See contracts.protocols.Store. All are kept or none.

        Raises FencedError for an older epoch of a producer, StoreError for an episode that no learner could read.
        """
        for episode in episodes:
            check_episode(episode)
        payloads = [encode(episode) for episode in episodes]
        state = self._state
        state.sweep()
        with state.lock:
            for episode in episodes:
                state.check_producer_locked(episode.producer, episode.producer_epoch)
                self._check_lease(episode)
            fresh = self._find_fresh(episodes)
            waiting = self._find_waits(episodes)
            if fresh:
                waiting.add(self._submit([episodes[i] for i in fresh], [payloads[i] for i in fresh]))
        for future in waiting:
            state.finish(future)
        with state.lock:
            return [self._acknowledge(episode, is_fresh=i in fresh) for i, episode in enumerate(episodes)]

    def append_feedback(self, feedback: Feedback) -> int:
        """Keep a late or corrected reward; its LSN. It counts until the group's batch is cut."""
        if not math.isfinite(feedback.reward):
            raise StoreError(f"feedback on {feedback.episode_id} is not kept: its reward is {feedback.reward}")
        with self._state.lock:
            future = self._state.data.submit([feedback])
        return self._state.finish(future)[0]

    def _check_lease(self, episode: Episode) -> None:
        group = self._state.fold.groups.get(episode.lease)
        if group is None:
            raise StoreError(f"episode {episode.episode_id}: {episode.lease} is no lease of this store")
        task = group.task
        if not 0 <= episode.member < task.group_size or episode.task_id != task.task_id:
            raise StoreError(
                f"episode {episode.episode_id}: lease {group.lease} is task {task.task_id} with members 0 to "
                f"{task.group_size - 1}, not member {episode.member} of {episode.task_id}"
            )

    def _find_fresh(self, episodes: Sequence[Episode]) -> list[int]:
        """Places of the episodes that are no second copies, in the log, on their way there, or in this call."""
        fresh: dict[tuple[int, int], int] = {}
        for place, episode in enumerate(episodes):
            key = (episode.lease, episode.member)
            if self._find_copy(episode) is None and self._state.leases.find_arriving(*key) is None:
                fresh.setdefault(key, place)
        return list(fresh.values())

    def _find_copy(self, episode: Episode) -> int | None:
        """LSN of the copy in the log: the same lease and member, or the same producer, epoch and sequence number."""
        fold = self._state.fold
        known = fold.groups[episode.lease].lsns.get(episode.member)
        if known is None:
            producer = fold.producers.get(episode.producer)
            if producer is not None and producer.epoch == episode.producer_epoch:
                known = producer.lsns.get(episode.seq)
        return known

    def _find_waits(self, episodes: Sequence[Episode]) -> set[Future[list[int]]]:
        """What must be safe before the answer: first copies on their way, and records that end an episode's lease."""
        state = self._state
        found = [state.leases.find_arriving(episode.lease, episode.member) for episode in episodes]
        found += [state.ending.get(episode.lease) for episode in episodes]
        return {future for future in found if future is not None}

    def _submit(self, episodes: Sequence[Episode], payloads: Sequence[bytes]) -> Future[list[int]]:
        state, members = self._state, [(episode.lease, episode.member) for episode in episodes]

        def settle(_: list[int] | None) -> None:
            state.leases.arrived(members)
            for lease, _member in members:
                if state.fold.groups[lease].stage is not Stage.OPEN:
                    state.leases.release(lease)

        future = state.data.submit(episodes, payloads=payloads, settle=settle)
        state.leases.expect(members, future)
        return future

    def _acknowledge(self, episode: Episode, *, is_fresh: bool) -> Ack:
        lsn = self._find_copy(episode)
        assert lsn is not None  # its append, or its first copy's, has been applied
        closed_at = self._state.fold.groups[episode.lease].closed_at
        return Ack(lsn=lsn, duplicate=not is_fresh, late=closed_at is not None and lsn >= closed_at)
