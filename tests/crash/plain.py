"""The whole protocol in one process and without torch: a 30-line numpy learner, its engine, and a guessing game.

The policy is one logit per token; the game rewards the token that the task's index names modulo the vocabulary. Small
enough to stop at every point of the protocol, real enough that its weights' hash depends on every episode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from buffers.owner import StoreOwner, episode_id
from configs.schema import CheckpointRule, Engine, Environment, Learner, Rollout, RunConfig, Store
from contracts.protocols import Completion, InFlight, Prompt, Request, Sampling, StepResult, Verdict, WeightSet
from contracts.records import Batch, Episode, Evaluation, FloatArray, IntArray, Session, Span, StopReason
from inference.parity import text_gap
from loops.publish import Publisher
from loops.rollout import Place, RolloutSlot
from loops.tasks import PermutedSource, SharedSource
from loops.text import Policy, TextPlayer
from loops.update import UpdateLoop, UpdatePorts

VOCABULARY = 4


def plain_config(
    *, mode: str = "sync", steps: int = 6, checkpoint_every: int = 2, loss: str = "grpo", **more: Any
) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "plain",
            "mode": mode,
            "steps": steps,
            "max_staleness": 0 if mode == "sync" else 1,
            "learner": Learner(groups_per_step=2, group_size=2, loss=loss),
            "engine": Engine(backend="transformers", max_tokens=1),
            "rollout": Rollout(chunk=2, slots=1),
            "store": Store(segment_mib=1, control_segment_mib=1, reserve_mib=0, index_map_mib=16),
            "checkpoint": CheckpointRule(every_steps=checkpoint_every, keep=2),
            **more,
        }
    )


class NumpyLearner:
    """REINFORCE on one logit per token. contracts.protocols.Learner."""

    def __init__(self, *, fail_on_steps: Sequence[int] = ()) -> None:
        self.logits: NDArray[np.float32] = np.zeros(VOCABULARY, dtype=np.float32)
        self._fail_on_steps = fail_on_steps
        self.base_hash = self.root_hash()

    def step(
        self, batch: Batch, episodes: Sequence[Episode], *, before_change: Callable[[], None] = lambda: None
    ) -> StepResult:
        from contracts.errors import LearnerError

        if batch.step in self._fail_on_steps:
            raise LearnerError(f"step {batch.step} cannot be computed")
        before_change()
        rewards = np.array([episode.reward for episode in episodes], dtype=np.float32)
        for episode, advantage in zip(episodes, rewards - rewards.mean(), strict=True):
            gradient = -np.exp(log_softmax(self.logits))
            gradient[episode.steps[0].action[0]] += 1
            self.logits = (self.logits + 0.5 * advantage * gradient).astype(np.float32)
        return StepResult(root_hash=self.root_hash(), stats={"reward_mean": float(rewards.mean())})

    def root_hash(self) -> str:
        return hashlib.sha256(self.logits.tobytes()).hexdigest()

    def weights(self, version: int) -> WeightSet:
        return WeightSet(version=version, root_hash=self.root_hash(), tensors={"logits": self.logits.copy()}, dtypes={})

    def score(self, completions: Sequence[tuple[IntArray, IntArray]]) -> list[FloatArray]:
        return [log_softmax(self.logits)[answer] for _, answer in completions]

    def log_probs(self, episodes: Sequence[Episode]) -> list[FloatArray]:
        return [log_softmax(self.logits)[np.concatenate([step.action for step in one.steps])] for one in episodes]

    def save(self, folder: str) -> str:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "logits.bin").write_bytes(self.logits.tobytes())
        return self.root_hash()

    def load(self, folder: str, state_hash: str) -> None:
        self.logits = np.frombuffer((Path(folder) / "logits.bin").read_bytes(), dtype=np.float32)
        assert self.root_hash() == state_hash

    def fingerprint(self) -> Mapping[str, str]:
        return {"numpy": np.__version__}


class NumpyEngine:
    """Draws tokens from pushed logits; also the fleet of one that the publisher pushes to."""

    def __init__(self) -> None:
        self.version, self._logits = -1, np.zeros(VOCABULARY, dtype=np.float32)
        self.asleep = False

    def generate(self, requests: Sequence[Request], *, timeout_s: float, guard: bool = False) -> list[Completion]:
        assert not self.asleep, "asked while the learner has the device"
        return [self._draw(request) for request in requests]

    def _draw(self, request: Request) -> Completion:
        log_probs = log_softmax(self._logits)
        seed = request.sampling.seed
        token = np.random.default_rng(seed).choice(VOCABULARY, p=np.exp(log_probs) / np.exp(log_probs).sum())
        return Completion(
            request_id=request.request_id,
            token_ids=np.array([token], dtype=np.int32),
            log_probs=log_probs[[token]],
            spans=(Span(start=0, version=self.version),),
            stop_reason=StopReason.TERMINATED,
        )

    def pause(self, in_flight: InFlight) -> None:
        assert in_flight is InFlight.FINISH

    def push(self, weights: WeightSet) -> None:
        assert not self.asleep, "pushed to while the learner has the device"
        self.version, self._logits = weights.version, np.asarray(weights.tensors["logits"], dtype=np.float32)

    def sleep(self) -> None:
        self.asleep = True

    def wake(self) -> None:
        self.asleep = False

    def probe(self, requests: Sequence[Request]) -> list[list[Completion]]:
        return [self.generate(requests, timeout_s=1.0, guard=True)]

    def resume(self) -> None:
        return None


class GuessingGame:
    """Rewards the token that the item's index names. loops.text.TextEnvironment."""

    name, version, reward_code = Environment().label, "1", "guess-1"

    def prompts(self, split: str, indices: Sequence[int]) -> list[Prompt]:
        return [Prompt(task_id=f"guess/{split}/{index}", index=index, text=str(index)) for index in indices]

    def score(self, items: Sequence[tuple[str, int, Sequence[str]]]) -> list[Verdict]:
        return [self._verdict(index, answers[-1]) for _, index, answers in items]

    def _verdict(self, index: int, text: str) -> Verdict:
        reward = float(int(text) == index % (VOCABULARY - 1))
        return Verdict(reward=reward, parts={"exact": reward}, stop_reason=StopReason.TERMINATED)


class DigitCodec:
    """One token, one digit. loops.text.TextCodec."""

    stop_token_ids: tuple[int, ...] = ()

    def encode_prompt(self, text: str) -> IntArray:
        return np.array([int(text) % VOCABULARY], dtype=np.int32)

    def encode_remark(self, text: str) -> IntArray:
        return np.array([int(letter) for letter in text], dtype=np.int32)

    def decode(self, token_ids: IntArray) -> str:
        return "".join(map(str, token_ids))


def log_softmax(logits: NDArray[np.float32]) -> FloatArray:
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), dtype=np.float32)


class AtOnce(Executor):
    """Does what it is given before `submit` returns."""

    def submit(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*given, **named))
        return future


class AtLast(Executor):
    """Does what it is given when somebody asks for the result."""

    def submit(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        return _Put(lambda: work(*given, **named))


class _Put(Future[Any]):
    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__()
        self._work = work

    def result(self, timeout: float | None = None) -> Any:
        return self._work()


Wrap = Callable[[str, Any], Any]


PROBES = [Request(request_id="probe", prompt_ids=DigitCodec().encode_prompt("0"), sampling=Sampling(max_tokens=1))]


class PlainRun:
    """One process's worth of a run: open, recover, learn. `wrap(name, port)` may put a tripwire on a port."""

    def __init__(
        self,
        folder: Path,
        *,
        config: RunConfig,
        wrap: Wrap = lambda name, port: port,
        base: str = "",
        beside: Executor | None = None,
        num_items: int = 50,
    ) -> None:
        self.folder, self.config = folder, config
        tasks = PermutedSource("guess", num_items=num_items, seed=1)
        self.source = SharedSource(tasks, shard=0, num_shards=config.store.shards)
        self.uuid = self._identity()
        self.owner = StoreOwner.open(folder / "store", uuid=self.uuid, config=config, source=self.source)
        self.learner, self.engine = NumpyLearner(), NumpyEngine()
        shared = config.mode == "sync"  # the device; in async mode both are at work at once
        if shared:
            self.engine.sleep()
        self.acknowledged: list[tuple[str, int]] = []
        store = wrap("store", self.owner)
        publisher = Publisher(
            wrap("fleet", self.engine),
            probes=PROBES,
            gap=text_gap(PROBES, score=self.learner.score),
            parity_gap=0.1,
            in_flight=InFlight.FINISH,
            patience=config.max_staleness,
        )
        ports = UpdatePorts(
            store=RollingStore(store, self),
            learner=wrap("learner", self.learner),
            publisher=publisher,
            prepare=dict,
            save_version=lambda weights: None,
            prune=lambda: None,
            evaluate=self._evaluate,
            beside=beside or AtOnce(),
        )
        if shared:
            ports = replace(ports, sleep=self.engine.sleep, wake=self.engine.wake)
        session = Session(role="learner", epoch=0, base_weights=base, fingerprint=dict(self.learner.fingerprint()))
        self.loop = UpdateLoop(ports, config=config, folder=folder, session=session)
        self.slot = RolloutSlot(
            store,
            player=TextPlayer(Policy(engine=self.engine, codec=DigitCodec()), GuessingGame(), config=config),
            store_uuid=str(self.uuid),
            place=Place(producer="rollout-0.0"),
            episode_id=episode_id,
            hear=lambda episode, ack: self.acknowledged.append((episode.episode_id, ack.lsn)),
        )

    def go(self) -> None:
        self.loop.recover()
        self.loop.run(Event())

    def close(self) -> None:
        self.owner.close()

    def _identity(self) -> UUID:
        named = self.folder / "uuid"
        if not named.exists():
            owner = StoreOwner.open(self.folder / "store", config=self.config, source=self.source, create=True)
            owner.close()
            named.write_text(str(owner.uuid))
        return UUID(named.read_text())

    def _evaluate(self, version: int, step: int) -> Evaluation:
        score = float(np.exp(log_softmax(self.learner.logits))[: VOCABULARY - 1].sum())
        return Evaluation(version=version, step=step, metric="mass", scores={"mass": score}, items=1, samples=1)


class RollingStore:
    """The learner's store in one thread: when the queue is not full yet, the rollout slot takes its turn."""

    def __init__(self, store: Any, run: PlainRun) -> None:
        self._store, self._run = store, run

    def append_batch(self, request: Any, *, wait_s: float = 0.0) -> Any:
        got = self._store.append_batch(request)
        if got is None:
            self._run.slot.turn()
        return got

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)
