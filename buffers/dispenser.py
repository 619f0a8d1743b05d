"""Hands out tasks: to whom, how many, and which first."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from itertools import islice

from buffers.admission import choose_positions, is_open, is_share, new_positions
from buffers.plain import check_values
from buffers.state import StoreState
from contracts.protocols import TaskSource
from contracts.records import Lease, Task

EPOCH_BITS = 20  # the low bits of a producer's epoch count attachments, those above them the store's own epochs


class Dispenser:
    def __init__(self, state: StoreState, *, source: TaskSource, store_epoch: int) -> None:
        self._state, self._source = state, source
        self._last_epoch = store_epoch << EPOCH_BITS

    def attach(self, producer: str) -> int:
        """See contracts.protocols.Store."""
        state = self._state
        with state.lock:
            self._last_epoch += 1
            epoch = state.epochs[producer] = self._last_epoch
            state.leases.release_older(producer, epoch=epoch)
        state.sweep()
        return epoch

    def check(self, producer: str, epoch: int) -> None:
        """See contracts.shards.Shard."""
        with self._state.lock:
            self._state.check_producer_locked(producer, epoch)

    def join(self, producer: str, epoch: int) -> None:
        """See contracts.shards.Shard."""
        state = self._state
        with state.lock:
            if state.epochs.get(producer, -1) > epoch:
                state.check_producer_locked(producer, epoch)
            state.epochs[producer] = epoch
            state.leases.release_older(producer, epoch=epoch)
        state.sweep()

    def lease(self, producer: str, epoch: int, *, max_tasks: int, rank: int, world: int) -> list[Lease]:
        """First what an earlier owner's workers left unfinished, then abandoned tasks, then new ones."""
        state = self._state
        state.sweep()
        with state.lock:
            state.check_producer_locked(producer, epoch)
            if not is_open(state.fold, state.config):
                return []
            resumed = self._resume(producer, epoch, max_tasks=max_tasks, rank=rank, world=world)
            positions = choose_positions(
                state.fold,
                state.config,
                max_tasks=max_tasks - len(resumed),
                reserved=state.reserved,
                rank=rank,
                world=world,
            )
            tasks = [self._make_task(position, producer) for position in positions]
            future = self._submit(tasks, producer, epoch) if tasks else None
        lsns = [] if future is None else state.finish(future)
        return resumed + [
            Lease(lsn=lsn, task=task, missing=tuple(range(task.group_size)))
            for lsn, task in zip(lsns, tasks, strict=True)
        ]

    def adopt(self, tasks: Sequence[tuple[str, int, bytes]], *, producer: str, epoch: int) -> list[Lease]:
        """Leases of tasks from outside, (task id, group size, payload) each, at the next free positions, whatever
        admission says. Whoever brings them completes them: they are handed to nobody else."""
        state = self._state
        with state.lock:
            state.check_producer_locked(producer, epoch)
            branch = state.fold.branch
            positions = islice(new_positions(state.fold, state.reserved), len(tasks))
            made = [
                Task(
                    task_id=task_id,
                    position=position,
                    index=-1,
                    group_size=group_size,
                    producer=producer,
                    branch=branch,
                    payload=payload,
                )
                for (task_id, group_size, payload), position in zip(tasks, positions, strict=True)
            ]
            future = self._submit(made, producer, epoch)
        lsns = state.finish(future)
        return [
            Lease(lsn=lsn, task=task, missing=tuple(range(task.group_size)))
            for lsn, task in zip(lsns, made, strict=True)
        ]

    def _resume(self, producer: str, epoch: int, *, max_tasks: int, rank: int, world: int) -> list[Lease]:
        """Leases that nobody holds, with the members that are missing."""
        state = self._state
        groups = [state.fold.groups[lease] for lease in sorted(state.leases.orphans) if lease not in state.ending]
        mine = [
            group
            for group in groups
            if state.can_resume_locked(group) and is_share(group.task.position, state.config, rank=rank, world=world)
        ][:max_tasks]
        state.leases.hold([group.lease for group in mine], producer=producer, epoch=epoch, now_s=state.clock())
        return [Lease(lsn=group.lease, task=group.task, missing=group.missing) for group in mine]

    def _make_task(self, position: int, producer: str) -> Task:
        fold, config = self._state.fold, self._state.config
        earlier = fold.positions.get(position)
        task_id, index = self._source(position)
        return Task(
            task_id=task_id,
            position=position,
            index=index,
            group_size=config.learner.group_size,
            producer=producer,
            branch=fold.branch,
            attempt=0 if earlier is None else earlier[1] + 1,
        )

    def _submit(self, tasks: Sequence[Task], producer: str, epoch: int) -> Future[list[int]]:
        state, positions = self._state, [task.position for task in tasks]
        for task in tasks:
            check_values(task)

        def settle(lsns: list[int] | None) -> None:
            state.reserved.difference_update(positions)
            state.leases.hold(lsns or (), producer=producer, epoch=epoch, now_s=state.clock())

        future = state.data.submit(tasks, settle=settle)
        state.reserved.update(positions)
        return future
