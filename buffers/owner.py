"""The store's one owner: opens and recovers both logs, then answers rollout workers and learners.

The work is done next door: buffers/dispenser.py (leases), intake.py (episodes), decider.py (decisions), over one
shared buffers/state.py. Thread-safe; callers share one fsync (group commit).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from uuid import UUID

from buffers.decider import Decider
from buffers.dispenser import Dispenser
from buffers.following import Following
from buffers.footers import FooterWriter
from buffers.groups import Stage
from buffers.index import Index, IndexDamagedError
from buffers.indexing import Indexer
from buffers.intake import Intake
from buffers.log.files import in_store_errors, write_durably
from buffers.log.identity import BEGUN, Claim, claim, create_store, read_identity
from buffers.log.writer import LogWriter
from buffers.plain import check_values
from buffers.reading import Records
from buffers.retention import Retention, Trimmed, resume_trim
from buffers.state import StoreState
from buffers.window import Window
from configs.schema import RunConfig
from contracts.errors import StoreError, StoreIdentityError, StoreStoppedError
from contracts.protocols import BatchRequest, TaskSource
from contracts.records import (
    Ack,
    Batch,
    ControlRecord,
    Decision,
    Dropped,
    Episode,
    Feedback,
    Hold,
    Kind,
    Lease,
    Ledger,
    Review,
    Session,
    Task,
)
from contracts.shards import News, Offer, Standing


def episode_id(store_uuid: str, lease: int, member: int) -> str:
    """The one id of an episode: the same try under the same lease has the same id, whoever makes it."""
    return blake2b(f"{UUID(store_uuid)}/{lease}/{member}".encode(), digest_size=16).hexdigest()


class StoreOwner:
    """Implements contracts.protocols.Store; what a call promises is said there."""

    def __init__(
        self,
        state: StoreState,
        *,
        folder: Path,
        held: Claim,
        records: Records,
        source: TaskSource,
        resources: ExitStack,
    ) -> None:
        self.uuid: UUID = held.uuid
        self.epoch: int = held.epoch
        self._state, self._records, self._resources = state, records, resources
        self._dispenser = Dispenser(state, source=source, store_epoch=held.epoch)
        self._intake = Intake(state)
        window = Window(state, records=records)
        self._decider = Decider(state, records=records, window=window)
        self._retention = Retention(state, records=records, folder=folder, window=window)
        self._following = Following(state, decider=self._decider)

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        config: RunConfig,
        source: TaskSource,
        uuid: UUID | str | None = None,
        create: bool = False,
        take_over: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> StoreOwner:
        """Own the store in `folder`. `uuid`: the one that the run's manifest names; `create`: first give it one.

        `clock` (s) times leases. Raises StoreIdentityError (missing, or another store), StoreBusyError (a live process
        owns it; `take_over` ends that process first), RotError (strict mode).
        """
        found = create_store(folder) if create else read_identity(folder)
        if uuid is not None and UUID(str(uuid)) != found:
            raise StoreIdentityError(f"{folder} holds store {found}, not {uuid}, which was asked for")
        with ExitStack() as resources:
            held = claim(folder, uuid=found, take_over=take_over)
            resources.callback(held.release)
            with in_store_errors(f"{folder} cannot be opened"):
                index = _open_index(folder, uuid=found, config=config)
            resources.callback(index.close)
            data = _open_log(folder / "data", held=held, config=config, known_lsn=index.data_lsn)
            resources.callback(data.close)
            control = _open_log(folder / "control", held=held, config=config, known_lsn=index.control_lsn)
            resources.callback(control.close)
            with in_store_errors(f"{folder} cannot be opened"):
                if not (folder / BEGUN).exists():
                    write_durably(folder / BEGUN, b"")
                records = Records(folder, uuid=found)
                indexer = _recover(folder, index, records=records, config=config, data=data, control=control)
            resources.callback(indexer.close)
            state = StoreState(data=data, control=control, config=config, index=indexer, clock=clock)
            state.leases.orphans = set(state.fold.stages[Stage.OPEN])
            resources.callback(state.close)
            owner = cls(state, folder=folder, held=held, records=records, source=source, resources=resources)
            owner.open_session(Session(role="owner", epoch=held.epoch, wall_time=time.time()))
            owner._resources = resources.pop_all()
        return owner

    def close(self) -> None:
        """Sync, finish the index, and let go of the store. Idempotent."""
        self._resources.close()

    # ------------------------------------------------------------------------------------------ workers

    def attach(self, producer: str) -> int:
        return self._dispenser.attach(producer)

    def lease(
        self, producer: str, epoch: int, *, max_tasks: int, rank: int = 0, world: int = 1, wait_s: float = 0.0
    ) -> list[Lease]:
        return self._state.ask_until(
            lambda: self._dispenser.lease(producer, epoch, max_tasks=max_tasks, rank=rank, world=world), wait_s=wait_s
        )

    def adopt(self, tasks: Sequence[tuple[str, int, bytes]], *, producer: str, epoch: int) -> list[Lease]:
        """Leases of tasks from outside, (task id, group size, payload) each, for experience that is there already.
        Admission does not bound them; the queue holds them before anything else is handed out."""
        return self._dispenser.adopt(tasks, producer=producer, epoch=epoch)

    def list_adopted(self, producer: str) -> set[str]:
        """Ids of the tasks that `producer` had adopted and completed. Reads the data log."""
        state, found = self._state, set[str]()
        for lsn, record in self._records.scan_data(state.fold.trimmed_lsn, state.data.writer.durable_lsn):
            if isinstance(record, Task) and record.producer == producer:
                with state.lock:
                    group = state.fold.groups.get(lsn)
                    if group is not None and not group.missing:
                        found.add(record.task_id)
        return found

    def append(self, episodes: Sequence[Episode]) -> list[Ack]:
        return self._intake.append(episodes)

    def append_feedback(self, feedback: Feedback) -> int:
        """Keep a late or corrected reward; its LSN. It counts until the group's batch is cut.

        A correction may name the LSN of the reward that it corrects. Raises StoreError where the episode is not there
        or another, or the reward is not finite, or a value is none.
        """
        check_values(feedback)
        feedback = replace(feedback, episode_lsn=self._records.find_episode(int(feedback.episode_lsn)))
        (episode,) = self._records.read_episodes([feedback.episode_lsn])
        if episode.episode_id != feedback.episode_id:
            raise StoreError(
                f"feedback on {feedback.episode_id} is not kept: LSN {feedback.episode_lsn} is {episode.episode_id}"
            )
        return self._intake.append_feedback(feedback)

    def hold(self, record: Hold) -> bool:
        """Keep a group back until somebody has looked at it. False: its batch was cut before, it is too late."""
        return self._intake.judge(record)

    def review(self, record: Review) -> bool:
        """Say what was found. The group may then be trained on, or ends as quarantined. False: it has ended, or may
        not be changed any more."""
        return self._intake.judge(record)

    def trim(self) -> Trimmed | None:
        """Let go of the oldest segments of the data log, as far as `store.retention` says and nobody needs them."""
        return self._retention.trim()

    # ------------------------------------------------------------------------------------------ learners

    def open_session(self, record: ControlRecord) -> int:
        return self._decider.open_session(record)

    def append_batch(self, request: BatchRequest, *, wait_s: float = 0.0) -> tuple[int, Batch] | None:
        return self._state.ask_until(lambda: self._decider.append_batch(request), wait_s=wait_s)

    def append_chosen(self, batch: Batch, session: int) -> tuple[int, Batch]:
        """Append a batch whose rows are given: what a batch of another branch read, less what is left out.

        Compare-and-append by (branch, step). Its groups keep the end that they have. Raises FencedError, StoreError.
        """
        return self._decider.append_chosen(batch, session)

    def decide(self, record: Decision, session: int) -> int:
        return self._decider.decide(record, session)

    def read(self, lsns: Sequence[int]) -> list[Episode]:
        return self._records.read_episodes(lsns)

    def decisions(self, *, start: int = 0, kinds: Sequence[Kind] = ()) -> list[tuple[int, ControlRecord]]:
        return self._records.read_decisions(start, self._state.control.writer.durable_lsn, kinds)

    # ------------------------------------------------------------------------------------------ one shard of several

    def check(self, producer: str, epoch: int) -> None:
        """This and what follows: see contracts.shards.Shard."""
        self._dispenser.check(producer, epoch)

    def join(self, producer: str, epoch: int) -> None:
        self._dispenser.join(producer, epoch)

    def follow(self, news: News) -> Standing:
        return self._following.follow(news)

    def offer(self, request: BatchRequest) -> Offer:
        return self._following.offer(request)

    def release(self, dropped: Sequence[Dropped]) -> None:
        self._following.release(dropped)

    def find_batch(self, request: BatchRequest) -> tuple[int, Batch] | None:
        return self._decider.find_batch(request)

    def commit(self, batch: Batch, session: int) -> tuple[int, Batch]:
        return self._decider.commit(batch, session)

    # ------------------------------------------------------------------------------------------ everyone

    def ledger(self) -> Ledger:
        with self._state.lock:
            return self._state.fold.ledger()

    def status(self) -> dict[str, object]:
        """Numbers for metrics and people: queue lengths, how far the logs are, how long syncs take."""
        state = self._state
        data, control = state.data.writer, state.control.writer
        with state.lock:
            fold = state.fold
            numbers: dict[str, object] = {
                "uuid": str(self.uuid),
                "epoch": self.epoch,
                "environment": state.config.environment_label,
                **{stage.value: len(leases) for stage, leases in fold.stages.items() if stage is not Stage.HELD},
                Stage.ENDED.value: sum(fold.ended.values()),
                "outstanding": fold.num_outstanding + len(state.reserved),
                "held": len(state.leases),
                "held_groups": len(fold.stages[Stage.HELD]),
                "doubled": fold.num_doubled,
                "unresolved": fold.num_unresolved,
                "served": fold.served,
                "head": fold.head(fold.branch),
                "step": fold.last_step(fold.branch),
            }
        return {
            **numbers,
            "indexed_lsn": state.index.data_lsn,
            "data_lsn": data.durable_lsn,
            "control_lsn": control.durable_lsn,
            "data_lag_bytes": data.end_lsn - data.durable_lsn,
            "control_lag_bytes": control.end_lsn - control.durable_lsn,
            "data": data.stats(),
            "control": control.stats(),
        }


def _open_log(folder: Path, *, held: Claim, config: RunConfig, known_lsn: int) -> LogWriter:
    """A log of a store that has begun must be there; before that, one that is not there is made."""
    store, is_data = config.store, folder.name == "data"
    is_new = not (folder.parent / BEGUN).exists() and not any(folder.glob("*.seg"))
    return LogWriter.open(
        folder,
        store_uuid=held.uuid,
        epoch=held.epoch,
        create=is_new,
        segment_bytes=(store.segment_mib if is_data else store.control_segment_mib) << 20,
        chained=not is_data,
        commit_bytes=store.commit_bytes,
        commit_wait_s=store.commit_wait_ms / 1000,
        reserve_bytes=store.reserve_mib << 20 if is_data else 0,
        strict=store.strict,
        known_lsn=known_lsn,
        still_owner=held.still_owner,
    )


def _open_index(folder: Path, *, uuid: UUID, config: RunConfig) -> Index:
    return Index.open(folder / "index", uuid=uuid, map_bytes=config.store.index_map_mib << 20)


def _recover(
    folder: Path, index: Index, *, records: Records, config: RunConfig, data: LogWriter, control: LogWriter
) -> Indexer:
    """Take the fold up where the index has it, and fold what came after; without a good index, both logs whole."""

    def sync(lsn: int) -> int:
        return data.durable_lsn if data.durable_lsn >= lsn else data.sync()

    lock = Lock()
    try:
        if index.data_lsn > data.recovery.end_lsn or index.control_lsn > control.recovery.end_lsn:
            raise IndexDamagedError("the index is ahead of the logs")
        indexer = Indexer(index, lock=lock, sync=sync)
    except (IndexDamagedError, StoreStoppedError):
        index.distrust()
        index.close()
        index = _open_index(folder, uuid=records.uuid, config=config)
        indexer = Indexer(index, lock=lock, sync=sync)
    try:
        fold = indexer.fold
        if fold.control_end == 0:
            records.begin(fold, control_end=control.end_lsn)
        resume_trim(folder, fold.trimmed_lsn)
        since = max(fold.data_end, fold.trimmed_lsn)
        indexer.write_footers(FooterWriter(folder, uuid=records.uuid, since=since))
        part = {
            "data": (max(fold.data_end, fold.trimmed_lsn), data.end_lsn),
            "control": (fold.control_end, control.end_lsn),
        }
        frames = data.take_recovered()
        if data.recovery.begin_lsn > part["data"][0]:
            frames = None
        for lsn, record in records.replay(**part, frames=frames):
            indexer.recall(lsn, record)
        indexer.start()
    except BaseException:
        index.close()
        raise
    return indexer
