"""A store on a real folder with a worker and a learner that tests drive by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from buffers.owner import StoreOwner, episode_id
from configs.schema import RunConfig
from contracts.protocols import BatchRequest, TaskSource
from contracts.records import (
    Ack,
    Batch,
    Episode,
    Lease,
    Purpose,
    Served,
    Session,
    Span,
    Step,
    StopReason,
    Version,
)

GROUP_SIZE = 2
GROUPS_PER_STEP = 2


class Clock:
    """Time that only moves when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def name_task(position: int) -> tuple[str, int]:
    """A TaskSource."""
    return f"task/{position}", position


def small_config(*, mode: str = "async", steps: int = 100, max_staleness: int = 1, **store: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "mode": mode,
            "steps": steps,
            "max_staleness": 0 if mode == "sync" else max_staleness,
            "learner": {"groups_per_step": GROUPS_PER_STEP, "group_size": GROUP_SIZE},
            "rollout": {"lease_timeout_s": 60.0},
            "store": {
                "segment_mib": 1,
                "control_segment_mib": 1,
                "reserve_mib": 0,
                "index_map_mib": 16,
                "commit_wait_ms": 0.0,
                **store,
            },
        }
    )


class Bench:
    """One owner, one producer, one learner session (a new one unless given). `owner` is there for the rest."""

    def __init__(self, owner: StoreOwner, *, producer: str = "rollout-0", session: int | None = None) -> None:
        self.owner, self.producer = owner, producer
        self.epoch = owner.attach(producer)
        record = Session(role="learner", epoch=owner.epoch)
        self.session = owner.open_session(record) if session is None else session
        self.seq = 0

    def serve(self, version: int, *, step: int = 0, batch_lsn: int = -1, parent: int | None = None) -> None:
        """VERSION and SERVED."""
        self.decide_version(version, step=step, batch_lsn=batch_lsn, parent=parent)
        self.owner.decide(Served(version=version, gap=0.0), self.session)

    def decide_version(self, version: int, *, step: int = 0, batch_lsn: int = -1, parent: int | None = None) -> int:
        parent = version - 1 if parent is None else parent
        record = Version(
            version=version, parent=parent, branch=0, step=step, root_hash=f"hash-{version}", batch_lsn=batch_lsn
        )
        return self.owner.decide(record, self.session)

    def lease(self, max_tasks: int = 100, *, rank: int = 0, world: int = 1, wait_s: float = 0.0) -> list[Lease]:
        return self.owner.lease(self.producer, self.epoch, max_tasks=max_tasks, rank=rank, world=world, wait_s=wait_s)

    def make(self, lease: Lease, member: int, **changes: Any) -> Episode:
        """A valid episode of 3 tokens by version 0; `changes` are fields, and `version`."""
        self.seq += 1
        fields: dict[str, Any] = {
            "episode_id": episode_id(str(self.owner.uuid), lease.lsn, member),
            "lease": lease.lsn,
            "member": member,
            "task_id": lease.task.task_id,
            "environment": self.owner._state.config.environment.label,
            "environment_version": "1",
            "purpose": Purpose.TRAIN,
            "steps": (make_step(),),
            "spans": (Span(start=0, version=changes.pop("version", 0)),),
            "stop_reason": StopReason.TERMINATED,
            "reward": float(member),
            "producer": self.producer,
            "producer_epoch": self.epoch,
            "seq": self.seq,
        }
        return Episode(**{**fields, **changes})

    def play(self, leases: Sequence[Lease], **changes: Any) -> list[Ack]:
        """Append every missing member of `leases` in one call."""
        return self.owner.append([self.make(lease, member, **changes) for lease in leases for member in lease.missing])

    def request(self, step: int, *, parent_version: int = 0, **changes: Any) -> BatchRequest:
        fields: dict[str, Any] = {
            "session": self.session,
            "branch": 0,
            "step": step,
            "parent_version": parent_version,
            "num_groups": GROUPS_PER_STEP,
            "max_staleness": 1,
            "seed": 7,
            "coefficients": {"kl": 0.5},
        }
        return BatchRequest(**{**fields, **changes})

    def cut(self, step: int, *, parent_version: int = 0, **changes: Any) -> tuple[int, Batch]:
        cut = self.owner.append_batch(self.request(step, parent_version=parent_version, **changes))
        assert cut is not None
        return cut


def make_step(num_tokens: int = 3) -> Step:
    return Step(
        observation=np.arange(4, dtype=np.int32),
        action=np.arange(num_tokens, dtype=np.int32),
        log_probs=np.full(num_tokens, -0.5, dtype=np.float32),
    )


@contextmanager
def opened(
    folder: Path, *, config: RunConfig | None = None, clock: Clock | None = None, source: TaskSource = name_task
) -> Iterator[Bench]:
    """The store in `folder`, made if there is none, closed at the end."""
    owner = StoreOwner.open(
        folder,
        config=small_config() if config is None else config,
        source=source,
        create=not (folder / "store.json").exists(),
        clock=Clock() if clock is None else clock,
    )
    try:
        yield Bench(owner)
    finally:
        owner.close()
