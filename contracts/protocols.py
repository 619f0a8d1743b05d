"""The ports through which the loops talk to everything else. `actors/` wires them; tests wire them without Ray.

One rollout: TaskSource (inside the store's owner) → Environment → Engine → Store → Learner → WeightPublisher → Engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from contracts.records import (
    Ack,
    Batch,
    ControlRecord,
    Decision,
    Episode,
    FloatArray,
    IntArray,
    Kind,
    Lease,
    Ledger,
    Span,
    StopReason,
)

Array = NDArray[np.generic]


# ---------------------------------------------------------------------------------------------- engines


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy (then log-probs are of the unscaled distribution)."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None  # fixes the draw where the engine can (transformers); vLLM on the CPU pays for it


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt. `request_id` is unique among requests in flight."""

    request_id: str
    prompt_ids: IntArray  # int32 [P]
    sampling: Sampling


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What the policy answered, stop token included. Every token carries its log-prob and, by span, its version."""

    request_id: str
    token_ids: IntArray  # int32 [C]
    log_probs: FloatArray  # float32 [C], of the distribution sampled from
    spans: tuple[Span, ...]  # starts at 0, relative to this completion
    stop_reason: StopReason  # TERMINATED (a stop token), LENGTH, ENGINE_ERROR


class InFlight(str, Enum):
    """What a push does with sequences that are being generated."""

    FINISH = "finish"  # they end under the old weights first
    CONTINUE = "continue"  # they go on under the new weights; their spans say where


@dataclass(frozen=True, kw_only=True)
class WeightSet:
    """The weights of one version, Hugging Face parameter names to arrays.

    bf16 travels as uint16 views with `dtypes[name] == "bfloat16"`: numpy has no bfloat16.
    """

    version: int
    root_hash: str
    tensors: Mapping[str, Array]
    dtypes: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Spaces:
    """What a control environment shows and takes. Discrete: `num_actions` numbers from `first_action` on; continuous:
    a vector inside `low` and `high` (infinite where it has no bound)."""

    observation_size: int
    num_actions: int = 0
    first_action: int = 0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def action_size(self) -> int:
        """Numbers in one action's distribution: logits, or means."""
        return self.num_actions or len(self.low)


@dataclass(frozen=True, kw_only=True)
class ActRequest:
    """What several control environments see now, to be acted on in one call.

    `noise` is what the draw uses, so that an engine is a pure function of weights and request: uniform numbers [N] for
    discrete actions, normal ones [N, A] for continuous ones; None: the likeliest action of each.
    """

    request_id: str
    observations: FloatArray  # float32 [N, D], as the environments gave them: the policy normalises
    noise: FloatArray | None


@dataclass(frozen=True, kw_only=True)
class Actions:
    """The policy's actions for one ActRequest; one version acted."""

    request_id: str
    actions: IntArray | FloatArray  # int32 [N] (discrete) or float32 [N, A] (before they are clipped to the bounds)
    log_probs: FloatArray  # float32 [N]
    version: int


Ask_contra = TypeVar("Ask_contra", contravariant=True)
Answer = TypeVar("Answer")


class InferenceEngine(Protocol[Ask_contra, Answer]):
    """What acts. Thread-safe: many callers of `generate`, one publisher.

    Publisher's order: pause → push → generate(guard=True) → resume. Requests that come while paused wait.
    Where a learner shares the device: sleep → (it computes) → wake, and only then the publisher's turn.
    """

    @property
    def version(self) -> int:
        """The version that acts now."""
        ...

    def generate(self, requests: Sequence[Ask_contra], *, timeout_s: float, guard: bool = False) -> list[Answer]:
        """Answers in the order of the requests. `guard`: runs even while paused. Raises EngineError."""
        ...

    def pause(self, in_flight: InFlight, *, timeout_s: float) -> None:
        """Hold new requests; FINISH: return when the running ones have ended."""
        ...

    def push(self, weights: WeightSet) -> None:
        """Replace all weights, empty the prefix cache. Only while paused. Raises EngineError on a missing tensor."""
        ...

    def resume(self) -> None: ...

    def sleep(self, *, timeout_s: float) -> None:
        """End what is running, hold new requests, and free the device's memory as far as the engine can."""
        ...

    def wake(self) -> None:
        """Take the memory back, with the weights that were served, and go on. Nothing where it is awake."""
        ...

    def stats(self) -> Mapping[str, float]:
        """Counters since start: `requests`, `prompt_tokens`, `completion_tokens`, `busy_s`, `pushes`."""
        ...

    def close(self) -> None: ...


Engine = InferenceEngine[Request, Completion]  # a language model
PolicyEngine = InferenceEngine[ActRequest, Actions]  # a small policy network


class Fleet(Protocol[Ask_contra, Answer]):
    """All engines of a run as the publisher sees them."""

    def pause(self, in_flight: InFlight) -> None: ...

    def push(self, weights: WeightSet) -> None: ...

    def probe(self, requests: Sequence[Ask_contra]) -> list[list[Answer]]:
        """Guard answers, one list per engine."""
        ...

    def resume(self) -> None: ...


# ---------------------------------------------------------------------------------------------- environments


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One item of a text data set: what the policy is asked, as text, and where it came from."""

    task_id: str
    index: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an environment says of an episode up to now. `reward` None with a stop reason that carries none."""

    reward: float | None
    parts: Mapping[str, float]
    stop_reason: StopReason
    remark: str | None = None  # what the policy reads next, before another answer; None: the episode is over
    retries: int = 0
    detail: str = ""


# ---------------------------------------------------------------------------------------------- store


class TaskSource(Protocol):
    """The endless order of tasks. Pure: the same position always names the same task."""

    def __call__(self, position: int) -> tuple[str, int]:
        """(task_id, item index) at `position`, from 0."""
        ...


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """What a learner asks of the queue. Compare-and-append: the same (branch, step) gets the stored BATCH back."""

    session: int  # the learner's SESSION lsn: an older one than the newest is fenced
    branch: int
    step: int
    parent_version: int
    num_groups: int
    max_staleness: int  # versions between the oldest token and the parent version, along its ancestry
    seed: int
    coefficients: Mapping[str, float]
    with_spread: bool = False  # groups whose returns are all equal are dropped, and others take their place


class Store(Protocol):
    """The experience store as rollout workers and learners see it. Every call may be retried.

    Errors: FencedError, StoreFullError, StoreStoppedError.
    """

    def attach(self, producer: str) -> int:
        """A new producer epoch for `producer`; what an older epoch of it still holds is abandoned."""
        ...

    def lease(
        self, producer: str, epoch: int, *, max_tasks: int, rank: int = 0, world: int = 1, wait_s: float = 0.0
    ) -> list[Lease]:
        """Tasks to try now; empty where admission stays closed for `wait_s`, or sooner while many wait already.

        With world > 1 in `sync` mode, the share of `rank`.
        """
        ...

    def append(self, episodes: Sequence[Episode]) -> list[Ack]:
        """Keep episodes; returns when they are as safe as the store's ack level says."""
        ...

    def open_session(self, record: ControlRecord) -> int:
        """Append a SESSION: its LSN fences every older session of the same role."""
        ...

    def append_batch(self, request: BatchRequest, *, wait_s: float = 0.0) -> tuple[int, Batch] | None:
        """Cut the next batch, or None where fewer than `num_groups` groups are ready; `wait_s` as for `lease`."""
        ...

    def read(self, lsns: Sequence[int]) -> list[Episode]:
        """Episodes by LSN; by that of a FEEDBACK, its episode with that reward: a batch's rows are read by
        `reward_lsn`."""
        ...

    def decide(self, record: Decision, session: int) -> int:
        """Append one decision; its LSN. VERSION is compare-and-append by (branch, step, root hash)."""
        ...

    def decisions(self, *, start: int = 0, kinds: Sequence[Kind] = ()) -> list[tuple[int, ControlRecord]]:
        """Control records with LSN >= start, in order."""
        ...

    def ledger(self) -> Ledger: ...


# ---------------------------------------------------------------------------------------------- learners


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one update did. `skipped`: loss or gradient was not finite and the weights are unchanged."""

    root_hash: str
    stats: Mapping[str, float]
    skipped: bool = False


class Learner(Protocol):
    """The fold: state × batch → state. Deterministic on an equal fingerprint."""

    @property
    def base_hash(self) -> str:
        """Root hash of the base model it was built on, whichever part of it learns."""
        ...

    def step(
        self, batch: Batch, episodes: Sequence[Episode], *, before_change: Callable[[], None] = lambda: None
    ) -> StepResult:
        """One update on the batch's rows in order. Raises LearnerError; the state is then unchanged.

        `before_change` is called once, before the first weight changes: until then others may read the weights as they
        were before the step, from other threads. What it raises goes through, and the state is unchanged.
        """
        ...

    def root_hash(self) -> str: ...

    def log_probs(self, episodes: Sequence[Episode]) -> list[FloatArray]:
        """Of each episode's actions, float32 [C]: their log-probabilities under the weights as they are now."""
        ...

    def weights(self, version: int) -> WeightSet:
        """A copy of the weights as engines take them."""
        ...

    def save(self, folder: str) -> str:
        """Write and sync the whole state; returns its hash."""
        ...

    def load(self, folder: str, state_hash: str) -> None:
        """Read the whole state back. Raises FormatError where the hash differs."""
        ...

    def fingerprint(self) -> Mapping[str, str | int | float | bool | None]: ...
