"""What the fold keeps of a task handed out, of the episodes that came back, and of those who brought them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from contracts.records import Disposition, Fault, Task


class Stage(Enum):
    """Where a group stands."""

    OPEN = "open"
    PENDING = "pending"
    FAULTY = "faulty"
    HELD = "held"
    READY = "ready"
    BATCHED = "batched"
    ENDED = "ended"


class Verdict(Enum):
    """What was said of a group by HOLD and REVIEW."""

    NONE = "none"
    HELD = "held"
    ACCEPTED = "accepted"
    REJECTED = "rejected"


@dataclass(slots=True)
class Member:
    """What the fold keeps of an episode that may still be trained on."""

    valid: bool
    oldest_version: int
    reward: float | None
    reward_lsn: int  # the FEEDBACK that counts, or the episode itself
    ready_lsn: int  # from here on it has a reward
    deadline: float | None  # wall time (s)


@dataclass(slots=True)
class Group:
    """All tries of one task under one lease."""

    lease: int
    task: Task
    lsns: dict[int, int] = field(default_factory=dict)  # member → LSN of its episode
    members: dict[int, Member] = field(default_factory=dict)  # forgotten when the group ends
    stage: Stage = Stage.OPEN
    disposition: Disposition | None = None
    closed_at: int | None = None  # data LSN from which on its episodes are late
    num_late: int = 0
    faults: dict[int, Fault] = field(default_factory=dict)  # quarantined member → what is wrong with it
    verdict: Verdict = Verdict.NONE
    verdict_lsn: int = -1  # the HOLD or REVIEW that said so

    @property
    def missing(self) -> tuple[int, ...]:
        return tuple(member for member in range(self.task.group_size) if member not in self.lsns)

    @property
    def oldest_version(self) -> int | None:
        return min((member.oldest_version for member in self.members.values()), default=None)

    @property
    def ready_lsn(self) -> int:
        """LSN of the record after which it could be trained on."""
        return max(self.verdict_lsn, *(member.ready_lsn for member in self.members.values()))

    @property
    def reward_lsn(self) -> int:
        """The newest LSN of a reward that counts."""
        return max(member.reward_lsn for member in self.members.values())

    @property
    def last_lsn(self) -> int:
        return max(self.verdict_lsn, self.lease, *self.lsns.values())

    def end(self, disposition: Disposition) -> None:
        """Forget what only a group that may still be trained on needs."""
        self.disposition = disposition
        self.members.clear()
        self.verdict, self.verdict_lsn = Verdict.NONE, -1
        if self.task.payload is not None:
            self.task = replace(self.task, payload=None)

    def unended_stage(self) -> Stage:
        if len(self.lsns) < self.task.group_size:
            return Stage.OPEN
        if self.verdict is Verdict.REJECTED or not all(member.valid for member in self.members.values()):
            return Stage.FAULTY
        if self.verdict is Verdict.HELD:
            return Stage.HELD
        if any(member.reward is None for member in self.members.values()):
            return Stage.PENDING
        return Stage.READY


@dataclass(slots=True)
class Producer:
    """How far one producer came: the newest sequence number of its newest epoch, and where that record lies."""

    epoch: int
    newest: int
    newest_lsn: int
