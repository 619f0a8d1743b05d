"""Text rollouts: prompts are shown to a language model, and the environment judges what it answers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from configs.schema import RunConfig
from contracts.errors import PromptTooLongError
from contracts.protocols import Completion, Prompt, Request, Sampling, Verdict
from contracts.records import Episode, IntArray, Lease, Purpose, Span, Step, StopReason
from loops.tasks import derive_seed
from telemetry.spans import span

SPOKEN = (StopReason.TERMINATED, StopReason.LENGTH)
_CALLS = itertools.count()


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
        with span("generate", requests=len(sent)):
            answers = iter(self.engine.generate(sent, timeout_s=timeout_s))
        return [next(answers) if len(request.prompt_ids) else refused(request) for request in requests]

    def judge(
        self, completions: Sequence[Completion], *, environment: TextEnvironment, items: Sequence[tuple[str, int]]
    ) -> list[Verdict]:
        """The environment's word on each completion of (split, index); one that never came has no reward."""
        verdicts = [Verdict(reward=None, parts={}, stop_reason=one.stop_reason) for one in completions]
        spoken = [i for i, one in enumerate(completions) if one.stop_reason in SPOKEN]
        texts = [(*items[i], self.codec.decode(completions[i].token_ids)) for i in spoken]
        with span("reward", completions=len(texts)):
            scored = environment.score(texts)
        for i, verdict in zip(spoken, scored, strict=True):
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


class TextPlayer:
    """loops.rollout.Player for one text environment."""

    def __init__(self, policy: Policy, environment: TextEnvironment, *, config: RunConfig) -> None:
        self._policy, self._environment, self._config = policy, environment, config

    @property
    def capacity(self) -> int:
        return self._config.rollout.chunk

    def play(self, leases: Sequence[Lease]) -> list[Episode]:
        """Episodes of every missing member, in lease and member order."""
        prompts = self._environment.prompts("train", [lease.task.index for lease in leases])
        work = [
            (lease, member, self._policy.encode(prompt.text))
            for lease, prompt in zip(leases, prompts, strict=True)
            for member in lease.missing
        ]
        call = f"{os.getpid()}.{next(_CALLS)}"  # unique among the requests in flight from all workers of a machine
        requests = [self._request(call, lease, member, prompt_ids) for lease, member, prompt_ids in work]
        completions = self._policy.complete(requests, timeout_s=self._config.engine.timeout_s)
        asked = [("train", lease.task.index) for lease, _, _ in work]
        verdicts = self._policy.judge(completions, environment=self._environment, items=asked)
        return [
            self._episode(lease, member, prompt_ids, completion, verdict)
            for (lease, member, prompt_ids), completion, verdict in zip(work, completions, verdicts, strict=True)
        ]

    def _request(self, call: str, lease: Lease, member: int, prompt_ids: IntArray) -> Request:
        engine = self._config.engine
        # Seeds hang on the task's place, not on the lease: the same run twice draws the same tokens. vLLM on the CPU
        # pays a generator per sequence for a seed, and cannot promise the same bits anyway.
        seeded = engine.backend == "transformers"
        seed = derive_seed(self._config.seed, lease.task.position, member) if seeded else None
        return Request(
            request_id=f"{lease.lsn}:{member}:{call}",
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
        stop_reason = verdict.stop_reason
        if stop_reason is StopReason.TERMINATED and completion.stop_reason is StopReason.LENGTH:
            stop_reason = StopReason.LENGTH
        return Episode(
            episode_id="",  # signed by the slot
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
            retries=verdict.retries,
        )
