"""Text rollouts: prompts are shown to a language model, and the environment judges what it answers.

An episode has one turn or several: after a wrong answer that is not the last, the environment's remark follows, and the
policy may try again. The engine is asked in rounds, each time for the episodes that are still open; what it reads is
everything so far as token ids, never tokenised again.

    prompt  answer  remark  answer  remark  answer          ids of one sequence, at most engine.max_context_tokens
    ░░░░░░  ██████  ░░░░░░  ██████  ░░░░░░  ██████          █ the policy's own tokens: they alone are actions
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from configs.schema import Engine as EngineSettings
from configs.schema import RunConfig
from contracts.errors import PromptTooLongError
from contracts.protocols import Completion, Prompt, Request, Sampling, Verdict
from contracts.records import Episode, IntArray, Lease, Purpose, Span, Step, StopReason
from loops.tasks import derive_seed
from telemetry.spans import span

SPOKEN = (StopReason.TERMINATED, StopReason.LENGTH)
CHUNK = 16  # groups in one call: while the engine answers one slot's, another slot's are judged
_CALLS = itertools.count()


class TextCodec(Protocol):
    """Text to token ids and back, as the policy's tokenizer does it."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]: ...

    def encode_prompt(self, text: str) -> IntArray:
        """Raises PromptTooLongError where long prompts are refused."""
        ...

    def encode_remark(self, text: str) -> IntArray:
        """What comes between an answer, end token included, and the next one."""
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

    def score(self, items: Sequence[tuple[str, int, Sequence[str]]]) -> list[Verdict]:
        """Verdicts for (split, index, answers so far). Never raises for a bad item: its stop reason says so."""
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
        self,
        completions: Sequence[Completion],
        *,
        environment: TextEnvironment,
        items: Sequence[tuple[str, int, Sequence[str]]],
    ) -> list[Verdict]:
        """The environment's word on each (split, index, answers so far), of which the completion is the last; one that
        never came has no reward."""
        verdicts = [Verdict(reward=None, parts={}, stop_reason=one.stop_reason) for one in completions]
        spoken = [i for i, one in enumerate(completions) if one.stop_reason in SPOKEN]
        with span("reward", completions=len(spoken)):
            scored = environment.score([items[i] for i in spoken])
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


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How an episode begins."""

    split: str
    index: int
    prompt_ids: IntArray  # [P]; none at all: it was refused as too long
    request_id: str  # of the first turn
    temperature: float
    seed: tuple[int | str, ...] | None = None  # what the draws hang on; None: the engine draws as it likes


class Talk:
    """One episode as it goes on, turn by turn."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.steps: list[Step] = []
        self.spans: list[Span] = []
        self.verdicts: list[Verdict] = []  # one a turn
        self.stop_reason: StopReason | None = None  # None: it is open
        self._answers: list[str] = []
        self._shown = opening.prompt_ids  # since the last action
        self._context = opening.prompt_ids  # all so far

    @property
    def verdict(self) -> Verdict:
        return self.verdicts[-1]

    @property
    def item(self) -> tuple[str, int, Sequence[str]]:
        """What the environment is asked."""
        return self.opening.split, self.opening.index, tuple(self._answers)

    def request(self, engine: EngineSettings, stop_token_ids: tuple[int, ...]) -> Request:
        opening, turn = self.opening, len(self.steps)
        parts = (*(opening.seed or ()), *([turn] if turn else []))
        return Request(
            request_id=f"{opening.request_id}:{turn}" if turn else opening.request_id,
            prompt_ids=self._context,
            sampling=Sampling(
                max_tokens=min(engine.max_tokens, engine.context_tokens - len(self._context)),
                temperature=opening.temperature,
                stop_token_ids=stop_token_ids,
                seed=derive_seed(*parts) if opening.seed is not None else None,
            ),
        )

    def hear(self, completion: Completion, text: str) -> None:
        """The policy's next answer."""
        num_acted = sum(len(step.action) for step in self.steps)
        for part in completion.spans:
            if len(completion.token_ids) and (not self.spans or self.spans[-1].version != part.version):
                self.spans.append(Span(start=num_acted + part.start, version=part.version))
        self.steps.append(Step(observation=self._shown, action=completion.token_ids, log_probs=completion.log_probs))
        self._context = np.concatenate([self._context, completion.token_ids])
        self._answers.append(text)

    def take(self, verdict: Verdict, completion: Completion, *, codec: TextCodec, context_tokens: int) -> None:
        """The environment's word: the end, or the remark, if the answer was whole and there is room for another one."""
        self.verdicts.append(verdict)
        if verdict.reward is None:
            self.stop_reason = verdict.stop_reason
        elif completion.stop_reason is StopReason.LENGTH and verdict.stop_reason is StopReason.TERMINATED:
            self.stop_reason = StopReason.LENGTH
        elif verdict.remark is None:
            self.stop_reason = verdict.stop_reason
        else:
            self._shown = codec.encode_remark(verdict.remark)
            self._context = np.concatenate([self._context, self._shown])
            if len(self._context) >= context_tokens:
                self.stop_reason = StopReason.TRUNCATED


def converse(
    policy: Policy, openings: Sequence[Opening], *, environment: TextEnvironment, engine: EngineSettings
) -> list[Talk]:
    """Every episode played to its end, in rounds. Raises what the engine raises."""
    talks = [Talk(opening) for opening in openings]
    live = talks
    while live:
        requests = [talk.request(engine, policy.codec.stop_token_ids) for talk in live]
        completions = policy.complete(requests, timeout_s=engine.timeout_s)
        for talk, completion in zip(live, completions, strict=True):
            talk.hear(completion, policy.codec.decode(completion.token_ids))
        verdicts = policy.judge(completions, environment=environment, items=[talk.item for talk in live])
        for talk, verdict, completion in zip(live, verdicts, completions, strict=True):
            talk.take(verdict, completion, codec=policy.codec, context_tokens=engine.context_tokens)
        live = [talk for talk in live if talk.stop_reason is None]
    return talks


class TextPlayer:
    """loops.rollout.Player for one text environment."""

    def __init__(self, policy: Policy, environment: TextEnvironment, *, config: RunConfig) -> None:
        self._policy, self._environment, self._config = policy, environment, config

    @property
    def capacity(self) -> int:
        rollout, mode = self._config.rollout, self._config.mode
        if rollout.chunk is not None:
            return rollout.chunk
        # In sync mode nothing is judged or learned while the engine works: the fewer calls, the shorter the step.
        return CHUNK if mode == "async" else -(-self._config.learner.groups_per_step // rollout.workers)

    def play(self, leases: Sequence[Lease]) -> list[Episode]:
        """Episodes of every missing member, in lease and member order."""
        prompts = self._environment.prompts("train", [lease.task.index for lease in leases])
        encoded = [self._policy.encode(prompt.text) for prompt in prompts]
        work = [
            (lease, member, prompt_ids)
            for lease, prompt_ids in zip(leases, encoded, strict=True)
            for member in lease.missing
        ]
        call = f"{os.getpid()}.{next(_CALLS)}"  # unique among the requests in flight from all workers of a machine
        openings = [self._opening(call, lease, member, prompt_ids) for lease, member, prompt_ids in work]
        talks = converse(self._policy, openings, environment=self._environment, engine=self._config.engine)
        return [self._episode(lease, member, talk) for (lease, member, _), talk in zip(work, talks, strict=True)]

    def _opening(self, call: str, lease: Lease, member: int, prompt_ids: IntArray) -> Opening:
        # Seeds hang on the task's place, not on the lease: the same run twice draws the same tokens. vLLM on the CPU
        # pays a generator per sequence for a seed, and cannot promise the same bits anyway.
        seeded = self._config.engine.backend == "transformers"
        return Opening(
            split="train",
            index=lease.task.index,
            prompt_ids=prompt_ids,
            request_id=f"{lease.lsn}:{member}:{call}",
            temperature=self._config.engine.temperature,
            seed=(self._config.seed, lease.task.position, member) if seeded else None,
        )

    def _episode(self, lease: Lease, member: int, talk: Talk) -> Episode:
        assert talk.stop_reason is not None
        return Episode(
            episode_id="",  # signed by the slot
            lease=lease.lsn,
            member=member,
            task_id=lease.task.task_id,
            environment=self._environment.name,
            environment_version=self._environment.version,
            purpose=Purpose.TRAIN,
            steps=tuple(talk.steps),
            spans=tuple(talk.spans) or (Span(start=0, version=-1),),
            stop_reason=talk.stop_reason,
            reward=talk.verdict.reward,
            reward_parts=dict(talk.verdict.parts),
            reward_code=self._environment.reward_code,
            retries=sum(verdict.retries for verdict in talk.verdicts),
        )
