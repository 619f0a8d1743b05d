"""The records of the two logs: what happened (data) and what was decided (control).

A record is a frozen dataclass of scalars, strings, tuples, dicts, enums, nested records, and little-endian numpy
arrays. `buffers/codec.py` turns it into bytes and back by its fields alone; a field that is added later needs a
default, so that old bytes still read. An LSN is a byte position in the logical log: it names a record for ever. All
kinds stand in this one file, long as it is, since they name each other.

    data      TASK ─► EPISODE × group_size ─► (FEEDBACK)          producer: rollout workers
                      QUARANTINED in place of one that is no good
                      (HOLD ─► REVIEW) of a group, PRIORITY of groups
    control   SESSION ─► BATCH ─► VERSION ─► SERVED | GUARD       producer: update worker, supervisor

    a task's life:  handed ─► in flight ─► ready ─► exactly one Disposition
                                  └──────► abandoned, then handed again under a new lease
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]
Scalar = str | int | float | bool | None


class Kind(IntEnum):
    """Frame type of each record. Numbers are for ever; control kinds start at 64."""

    SCHEMA = 1
    TASK = 2
    EPISODE = 3
    FEEDBACK = 4
    QUARANTINED = 5
    HOLD = 6
    REVIEW = 7
    PRIORITY = 8
    SESSION = 64
    BATCH = 65
    VERSION = 66
    SERVED = 67
    GUARD = 68
    CHECKPOINT = 69
    BRANCH = 70
    SKIP = 71
    CLOSED = 72
    FAILURE = 73
    EVALUATION = 74
    TRIM = 75
    ERASED = 76
    FOLLOWED = 77


class Purpose(str, Enum):
    """Why an episode was generated. Only `train` is ever sampled."""

    TRAIN = "train"
    EVALUATE = "evaluate"


class StopReason(str, Enum):
    """Why an episode ended. The last five carry no reward: they are never a reward of 0."""

    TERMINATED = "terminated"  # the environment said so
    TRUNCATED = "truncated"  # step limit
    LENGTH = "length"  # token limit of a completion; the environment still scored it
    ENV_ERROR = "env_error"  # the environment raised, after all retries
    ENV_TIMEOUT = "env_timeout"  # the environment hung, after all retries
    ENV_INVALID = "env_invalid"  # it returned nonsense (wrong shape, NaN, infinite reward), after all retries
    ENGINE_ERROR = "engine_error"  # no completion came
    PROMPT_TOO_LONG = "prompt_too_long"  # and `model.truncation` is `refuse`: nothing was generated


class Fault(str, Enum):
    """What is wrong with an episode that no learner may read."""

    IDENTITY = "identity"  # no id, or a negative sequence number
    LEASE = "lease"  # no such lease in this store, or it is of another task, or has no such member
    PURPOSE = "purpose"  # not made to be trained on
    ENVIRONMENT = "environment"  # not the run's environment
    VERSION = "version"  # a version acted that the log does not know
    REWARD = "reward"  # one that is not finite, is missing, or belongs to an episode that ended in an error
    EMPTY = "empty"  # no step, or no action
    DTYPE = "dtype"
    SHAPE = "shape"
    LOG_PROB = "log_prob"  # one that is not finite
    OBSERVATION = "observation"  # one, or a step's reward, that is not finite
    SPANS = "spans"  # they do not cover the actions, each once
    OVERSIZED = "oversized"  # more bytes than a frame may have
    UNREADABLE = "unreadable"  # a value that the format cannot hold


class Disposition(str, Enum):
    """How a handed-out task ended. Each task has exactly one; until then it is in flight."""

    TRAINED = "trained"
    ZERO_SPREAD = "zero_spread"  # every member had the same return, in a batch or dropped before it (dynamic sampling)
    STALE = "stale"  # older than the bound when its turn came
    LATE = "late"  # its episodes came only after the lease was closed
    OFF_BRANCH = "off_branch"  # made by a version that is not an ancestor of the learner's
    QUARANTINED = "quarantined"  # a member is invalid
    ABANDONED = "abandoned"  # not completed; its task was handed out again under a new lease
    REWARD_TIMEOUT = "reward_timeout"  # a pending reward did not come in time
    SKIPPED = "skipped"  # its batch failed twice


@dataclass(frozen=True, kw_only=True)
class Task:
    """One prompt handed out to be tried `group_size` times. The LSN of this record is the lease.

    Example: Task(task_id="spell_backward:7:1041", position=12, index=1041, group_size=8, producer="rollout-0", ...)
    """

    KIND: ClassVar[Kind] = Kind.TASK
    task_id: str  # unique in its source; the same again when it is handed out again
    position: int  # place in the source's order, from 0
    index: int  # generated tasks: the item's index in its data set; external tasks: -1
    group_size: int
    producer: str  # who holds the lease
    branch: int
    attempt: int = 0  # times this task was handed out before
    payload: bytes | None = None  # external tasks travel with their payload: they cannot be generated again


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A task as its holder sees it: the record, where it stands, and which members are still missing."""

    lsn: int
    task: Task
    missing: tuple[int, ...]  # members to generate; fewer than group_size after a resume


@dataclass(frozen=True, kw_only=True)
class Step:
    """Text: one exchange, what the policy was shown since its last action and what it answered.
    Control: one stretch of T actions in an environment that was not reset in between.

    observation: token ids int32 [P]; or float32 [T + 1, D], what each action saw and what was seen after the last one.
    action: token ids int32 [C]; or int32 [T] (discrete), float32 [T, A] (before they are clipped to the bounds).
    log_probs: float32 [C] or [T], of the distribution that was sampled from (after temperature and top-p).
    rewards: float32 [T]; None for text, where the episode's reward is all there is.
    end: why a stretch ended (TERMINATED, TRUNCATED); None: it is text, or goes on in a later episode.
    """

    observation: IntArray | FloatArray
    action: IntArray | FloatArray
    log_probs: FloatArray
    rewards: FloatArray | None = None
    end: StopReason | None = None


@dataclass(frozen=True, kw_only=True)
class Span:
    """From action token `start` of the episode on (all steps' actions concatenated), `version` acted."""

    start: int
    version: int


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One try of one task: producer rollout worker, consumer update worker. Immutable once acknowledged."""

    KIND: ClassVar[Kind] = Kind.EPISODE
    episode_id: str  # hash(store uuid, lease, member): 32 hex digits
    lease: int  # LSN of the Task record; the group is the lease
    member: int  # 0 .. group_size - 1
    task_id: str
    environment: str
    environment_version: str
    purpose: Purpose
    steps: tuple[Step, ...]
    spans: tuple[Span, ...]
    stop_reason: StopReason
    reward: float | None  # None: pending or, with an error stop reason, never
    reward_parts: dict[str, float] = field(default_factory=dict)
    reward_code: str = ""  # hash of the verifier's code
    reward_deadline: float | None = None  # wall time (s) after which a pending reward is given up
    producer: str = ""
    producer_epoch: int = 0
    seq: int = 0  # rises by one per append of this producer epoch: duplicates are recognised by it
    wall_time: float = 0.0  # s since 1970; metadata only: nothing is ordered by it
    retries: int = 0  # environment retries that this episode needed

    @property
    def valid(self) -> bool:
        """Whether a learner may read it: it has a reward or may still get one."""
        return self.stop_reason in (StopReason.TERMINATED, StopReason.TRUNCATED, StopReason.LENGTH)

    @property
    def oldest_version(self) -> int:
        return min([span.version for span in self.spans])


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """A late or corrected reward of one episode."""

    KIND: ClassVar[Kind] = Kind.FEEDBACK
    episode_id: str
    episode_lsn: int
    reward: float
    reward_code: str = ""
    producer: str = ""
    wall_time: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A group is not to be trained on before somebody has looked at it. Counts until its batch is cut."""

    KIND: ClassVar[Kind] = Kind.HOLD
    lease: int
    reason: str
    producer: str = ""  # who asks
    wall_time: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Review:
    """Somebody looked at a group: it may be trained on, or ends as quarantined."""

    KIND: ClassVar[Kind] = Kind.REVIEW
    lease: int
    accepted: bool
    reason: str
    producer: str = ""  # who looked
    wall_time: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Priority:
    """How often groups are to be learned from again, each in proportion to its number; the last one counts.

    Integers, so that sums are exact. 0: not again. A group that none names has the highest there is.
    """

    KIND: ClassVar[Kind] = Kind.PRIORITY
    leases: tuple[int, ...]
    priorities: tuple[int, ...]  # 0 .. 2^31 - 1, one a lease
    producer: str = ""
    wall_time: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """An episode that no learner may read, kept as it came, with the reason. It is its member's try: never another."""

    KIND: ClassVar[Kind] = Kind.QUARANTINED
    fault: Fault
    detail: str  # one sentence
    episode_id: str
    lease: int  # as the episode says; with Fault.LEASE it names no lease of this store
    member: int
    task_id: str
    producer: str
    producer_epoch: int
    seq: int
    wall_time: float
    num_bytes: int  # of the episode's own record; 0 where the format cannot hold it
    payload: ByteArray  # that record, see buffers/codec.py; empty where it has no bytes or too many


@dataclass(frozen=True, kw_only=True)
class Session:
    """A process of the run began its work. The LSN of the learner's newest one is its fencing token."""

    KIND: ClassVar[Kind] = Kind.SESSION
    role: str  # "learner", "owner"
    epoch: int
    config_hash: str = ""
    code_hash: str = ""
    base_weights: str = ""  # root hash of the weights the run starts from (before any warm start)
    tokenizer: str = ""
    reward_code: str = ""
    fingerprint: dict[str, Scalar] = field(default_factory=dict)  # what the bits depend on
    step_repeats: bool | None = None  # whether one step run twice gave one hash; None: not tried
    wall_time: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One episode in a batch, in training order."""

    episode_lsn: int  # these three: an address, (shard, LSN), where there are several shards (contracts/shards.py)
    reward_lsn: int  # the FEEDBACK that counts, or the episode itself
    lease: int  # of the group that it counts in
    weight: float = 1.0
    replayed: bool = False  # in the place of a fresh member: a success of another lease; in all rows of a lease: again


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A group that left the queue without being trained on."""

    lease: int
    disposition: Disposition


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one learner step reads: everything that fixes its bits. Compare-and-append: one per (branch, step)."""

    KIND: ClassVar[Kind] = Kind.BATCH
    branch: int
    step: int  # 1-based: step k makes the version of step k
    parent_version: int
    rows: tuple[Row, ...]  # whole groups, members in order
    zero_spread: tuple[int, ...] = ()  # leases among rows whose returns are all equal
    dropped: tuple[Dropped, ...] = ()
    micro_batches: tuple[int, ...] = ()  # rows in each micro-batch, in order; () lets the learner's fixed rule cut
    seed: int = 0
    data_lsn: int = 0  # durable watermark of the data log when it was cut
    control_lsn: int = 0
    coefficients: dict[str, float] = field(default_factory=dict)  # from outside: learning rate, KL, ...
    remembered: tuple[Row, ...] = ()  # fresh members that the success store holds from here on (buffers/successes.py)
    shard_lsns: tuple[int, ...] = ()  # several shards: each one's durable watermark then; -1: it did not answer


@dataclass(frozen=True, kw_only=True)
class Version:
    """A model version. Numbers rise and are never used again."""

    KIND: ClassVar[Kind] = Kind.VERSION
    version: int
    parent: int  # -1 for genesis
    branch: int
    step: int
    root_hash: str  # of all weights, see models/registry.py
    batch_lsn: int = -1  # -1 for genesis
    stats: dict[str, float] = field(default_factory=dict)
    wall_time: float = 0.0
    checksums: tuple[int, ...] = ()  # CRC32C of each tensor's bytes, in the order of their names; (): an old record


@dataclass(frozen=True, kw_only=True)
class Served:
    """A version reached the engines and passed the parity guard."""

    KIND: ClassVar[Kind] = Kind.SERVED
    version: int
    gap: float  # mean |engine log-prob - learner log-prob| over the guard's tokens
    wall_time: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Guard:
    """A verdict on a version: good, bad, refused."""

    KIND: ClassVar[Kind] = Kind.GUARD
    version: int
    verdict: str
    reason: str
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The learner's whole state at a version lies, synced, in `folder` (relative to the run)."""

    KIND: ClassVar[Kind] = Kind.CHECKPOINT
    version: int
    step: int
    branch: int
    folder: str
    root_hash: str
    state_hash: str  # weights, optimizer and schedule together


@dataclass(frozen=True, kw_only=True)
class Branch:
    KIND: ClassVar[Kind] = Kind.BRANCH
    branch: int
    parent_branch: int
    from_version: int
    reason: str
    exclude: str = ""


@dataclass(frozen=True, kw_only=True)
class Skip:
    """A batch that failed twice: its groups are `skipped`, its version has the parent's weights."""

    KIND: ClassVar[Kind] = Kind.SKIP
    batch_lsn: int
    step: int
    branch: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Closed:
    """Leases that ended outside a batch."""

    KIND: ClassVar[Kind] = Kind.CLOSED
    leases: tuple[int, ...]
    disposition: Disposition
    reason: str
    data_lsn: int = 0  # durable watermark of the data log when they ended: what they bring from there on is late


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A process died or a step failed, as the survivor saw it."""

    KIND: ClassVar[Kind] = Kind.FAILURE
    role: str
    detail: str
    batch_lsn: int = -1  # the batch the learner was computing, -1 if none


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of a version on held-out items."""

    KIND: ClassVar[Kind] = Kind.EVALUATION
    version: int
    step: int
    metric: str  # the main one, a key of scores
    scores: dict[str, float]
    items: int
    samples: int
    wall_time: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Trim:
    """The data log begins at `data_lsn` from now on. What is gone is kept as sums: over all tasks handed out below it,
    each with everything that came of it, wherever that lies."""

    KIND: ClassVar[Kind] = Kind.TRIM
    data_lsn: int
    reason: str
    handed: int
    ended: dict[str, int]  # Disposition value -> tasks
    episodes: int
    episodes_late: int
    quarantined: dict[str, int]  # Fault value -> episodes
    frontier: int  # the smallest position never handed out
    ahead: tuple[int, ...]  # positions above it that were
    wall_time: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Erased:
    """The contents of these records of the data log are gone for good: what is left says who, when and how rewarded.

    Written before they are taken out. A version whose batch names one of them cannot be computed again.
    """

    KIND: ClassVar[Kind] = Kind.ERASED
    lsns: tuple[int, ...]
    reason: str
    wall_time: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Followed:
    """In a shard's control log: what shard 0's control log decided below this LSN is taken in (contracts/shards.py)."""

    KIND: ClassVar[Kind] = Kind.FOLLOWED
    control_lsn: int
    session: int  # the learner's that brought it


DataRecord = Task | Episode | Feedback | Quarantined | Hold | Review | Priority
ControlRecord = (
    Session
    | Batch
    | Version
    | Served
    | Guard
    | Checkpoint
    | Branch
    | Skip
    | Closed
    | Failure
    | Evaluation
    | Trim
    | Erased
    | Followed
)
Record = DataRecord | ControlRecord
# What a learner writes; the rest is the owner's own: it trims and erases.
Decision = Version | Served | Guard | Checkpoint | Branch | Skip | Failure | Evaluation | Priority


@dataclass(frozen=True, kw_only=True)
class Ack:
    """Answer to an append: the record is kept at `lsn`."""

    lsn: int
    duplicate: bool = False  # the first copy stays; `lsn` is the first copy's
    late: bool = False  # its lease was closed before: stored, never trained
    fault: Fault | None = None  # it is quarantined: stored as `Quarantined`, never trained


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The sums over every task handed out. `handed == sum(ended.values()) + in_flight` always (`balanced`)."""

    handed: int
    ended: dict[str, int]  # Disposition value -> tasks
    in_flight: int  # leased and not complete, or complete and waiting in the queue
    ready: int  # the part of in_flight that waits in the queue
    episodes: int  # acknowledged
    episodes_late: int
    episodes_trained: int  # rows of batches that became versions
    quarantined: dict[str, int] = field(default_factory=dict)  # Fault value -> episodes, beside those acknowledged

    @property
    def balanced(self) -> bool:
        return self.handed == sum(self.ended.values()) + self.in_flight
