"""One rollout slot: lease tasks, show them to the engine, let the environment judge, append episodes, again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Protocol

import numpy as np

from configs.schema import RunConfig
from contracts.errors import PromptTooLongError
from contracts.protocols import Completion, Prompt, Request, Sampling, Store, Verdict
from contracts.records import Ack, Episode, IntArray, Lease, Purpose, Span, Step, StopReason
from loops.tasks import derive_seed

SPOKEN = (StopReason.TERMINATED, StopReason.LENGTH)
IDLE_FIRST_S, IDLE_MOST_S = 0.002, 0.05  # how long an empty-handed slot waits before it asks again


class TextCodec(Protocol):
    """Text to token ids and back, as the policy's tokenizer does it."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]: ...

    def encode_prompt(self, text: str) -> IntArray:
        """Raises PromptTooLongError where long prompts are refused."""
        ...

    def decode(self, token_ids: IntArray) -> str:
        """The text without special tokens."""
        ...


class TextEnvironment(Protocol):
    """Prompts and their judge, for one data set."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def reward_code(self) -> str: ...

    def prompts(self, split: str, indices: Sequence[int]) -> list[Prompt]: ...

    def score(self, items: Sequence[tuple[str, int, str]]) -> list[Verdict]:
        """Verdicts for (split, index, completion text). Never raises for a bad item: its stop reason says so."""
        ...


class Generate(Protocol):
    """The part of an engine that a rollout needs."""

    def generate(self, requests: Sequence[Request], *, timeout_s: float, guard: bool = False) -> list[Completion]: ...


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What acts: an engine and the tokenizer that goes with it."""

    engine: Generate
    codec: TextCodec

    def encode(self, text: str) -> IntArray:
        """Prompt ids, or none at all for a prompt that is refused as too long."""
        try:
            return self.codec.encode_prompt(text)
        except PromptTooLongError:
            return np.empty(0, dtype=np.int32)

    def complete(self, requests: Sequence[Request], *, timeout_s: float) -> list[Completion]:
        """A completion for each request, in order; requests without a prompt are not sent."""
        sent = [request for request in requests if len(request.prompt_ids)]
        answers = iter(self.engine.generate(sent, timeout_s=timeout_s))
        return [next(answers) if len(request.prompt_ids) else refused(request) for request in requests]

    def judge(
        self, completions: Sequence[Completion], *, environment: TextEnvironment, items: Sequence[tuple[str, int]]
    ) -> list[Verdict]:
        """The environment's word on each completion of (split, index); one that never came has no reward."""
        verdicts = [Verdict(reward=None, parts={}, stop_reason=one.stop_reason) for one in completions]
        spoken = [i for i, one in enumerate(completions) if one.stop_reason in SPOKEN]
        texts = [(*items[i], self.codec.decode(completions[i].token_ids)) for i in spoken]
        for i, verdict in zip(spoken, environment.score(texts), strict=True):
            verdicts[i] = verdict
        return verdicts


def refused(request: Request) -> Completion:
    """What stands for the answer to a prompt that was too long."""
    return Completion(
        request_id=request.request_id,
        token_ids=np.empty(0, dtype=np.int32),
        log_probs=np.empty(0, dtype=np.float32),
        spans=(),
        stop_reason=StopReason.PROMPT_TOO_LONG,
    )


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
        policy: Policy,
        environment: TextEnvironment,
        config: RunConfig,
        store_uuid: str,
        place: Place,
        episode_id: Callable[[str, int, int], str],
        hear: Callable[[Episode, Ack], None] = lambda episode, ack: None,
    ) -> None:
        self._store, self._policy, self._environment, self._config = store, policy, environment, config
        self._uuid, self._place, self._episode_id, self._hear = store_uuid, place, episode_id, hear
        self._epoch, self._seq = -1, 0

    def run(self, stop: Event) -> None:
        """Until `stop`. Raises what the store and the engine raise; a bad environment is data."""
        self._epoch = self._store.attach(self._place.producer)
        idle_s = IDLE_FIRST_S
        while not stop.is_set():
            if self.turn():
                idle_s = IDLE_FIRST_S
            else:
                stop.wait(idle_s)
                idle_s = min(idle_s * 2, IDLE_MOST_S)

    def turn(self) -> int:
        """One round; the number of episodes appended (0: nothing was handed out)."""
        if self._epoch < 0:
            self._epoch = self._store.attach(self._place.producer)
        place, rollout = self._place, self._config.rollout
        leases = self._store.lease(
            place.producer, self._epoch, max_tasks=rollout.chunk, rank=place.rank, world=place.world
        )
        if not leases:
            return 0
        episodes = self.play(leases)
        for episode, ack in zip(episodes, self._store.append(episodes), strict=True):
            self._hear(episode, ack)
        return len(episodes)

    def play(self, leases: Sequence[Lease]) -> list[Episode]:
        """Episodes of every missing member, in lease and member order."""
        prompts = self._environment.prompts("train", [lease.task.index for lease in leases])
        work = [
            (lease, member, self._policy.encode(prompt.text))
            for lease, prompt in zip(leases, prompts, strict=True)
            for member in lease.missing
        ]
        requests = [self._request(lease, member, prompt_ids) for lease, member, prompt_ids in work]
        completions = self._policy.complete(requests, timeout_s=self._config.engine.timeout_s)
        asked = [("train", lease.task.index) for lease, _, _ in work]
        verdicts = self._policy.judge(completions, environment=self._environment, items=asked)
        return [
            self._episode(lease, member, prompt_ids, completion, verdict)
            for (lease, member, prompt_ids), completion, verdict in zip(work, completions, verdicts, strict=True)
        ]

    def _request(self, lease: Lease, member: int, prompt_ids: IntArray) -> Request:
        engine = self._config.engine
        # Seeds hang on the task's place, not on the lease: the same run twice draws the same tokens. vLLM on the CPU
        # pays a generator per sequence for a seed, and cannot promise the same bits anyway.
        seeded = engine.backend == "transformers"
        seed = derive_seed(self._config.seed, lease.task.position, member) if seeded else None
        return Request(
            request_id=f"{lease.lsn}:{member}:{lease.task.attempt}:{self._epoch}",
            prompt_ids=prompt_ids,
            sampling=Sampling(
                max_tokens=engine.max_tokens,
                temperature=engine.temperature,
                stop_token_ids=self._policy.codec.stop_token_ids,
                seed=seed,
            ),
        )

    def _episode(
        self, lease: Lease, member: int, prompt_ids: IntArray, completion: Completion, verdict: Verdict
    ) -> Episode:
        self._seq += 1
        stop_reason = verdict.stop_reason
        if stop_reason is StopReason.TERMINATED and completion.stop_reason is StopReason.LENGTH:
            stop_reason = StopReason.LENGTH
        return Episode(
            episode_id=self._episode_id(self._uuid, lease.lsn, member),
            lease=lease.lsn,
            member=member,
            task_id=lease.task.task_id,
            environment=self._environment.name,
            environment_version=self._environment.version,
            purpose=Purpose.TRAIN,
            steps=(Step(observation=prompt_ids, action=completion.token_ids, log_probs=completion.log_probs),),
            spans=completion.spans or (Span(start=0, version=-1),),
            stop_reason=stop_reason,
            reward=verdict.reward,
            reward_parts=dict(verdict.parts),
            reward_code=self._environment.reward_code,
            producer=self._place.producer,
            producer_epoch=self._epoch,
            seq=self._seq,
            wall_time=time.time(),
            retries=verdict.retries,
        )
