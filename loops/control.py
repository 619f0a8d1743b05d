"""Control rollouts: lanes of environments step together, the engine acts for all of them in one call.

A task is `horizon` steps in one lane; its episode record holds the stretches of play in it, each up to a reset or to
the record's end. A lane goes on where its last record ended.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from configs.schema import RunConfig
from contracts.errors import UserError
from contracts.protocols import Actions, ActRequest, Spaces
from contracts.records import Episode, Evaluation, FloatArray, Lease, Purpose, Span, Step, StopReason
from environments.control.lanes import Lanes
from evaluation.intervals import bootstrap
from learners.stretches import FINISHED, LENGTH_SUM, RETURN_BEFORE, RETURN_SUM
from loops.tasks import derive_seed

METRIC = "greedy_return"
ENDS = (StopReason.TERMINATED, StopReason.TRUNCATED)


class Act(Protocol):
    """The part of a policy engine that a rollout needs."""

    def generate(self, requests: Sequence[ActRequest], *, timeout_s: float, guard: bool = False) -> list[Actions]: ...


class ControlPlayer:
    """loops.rollout.Player: the lanes of one slot. Lease number i of a call is played in lane i."""

    def __init__(self, engine: Act, lanes: Lanes, *, config: RunConfig, name: str) -> None:
        self._engine, self._lanes, self._config, self._name = engine, lanes, config, name
        self._calls = itertools.count()
        self._tracks: list[Track | None] = [None] * len(lanes)

    @property
    def capacity(self) -> int:
        return len(self._lanes)

    def play(self, leases: Sequence[Lease]) -> list[Episode]:
        config, horizon = self._config, self._config.control.horizon
        tracks = [self._track(lane, lease) for lane, lease in enumerate(leases)]
        noise = [draw_noise(self._lanes.spaces, config.seed, lease.task.position, horizon) for lease in leases]
        records = [Recording(track) for track in tracks]
        playing = list(range(len(leases)))
        for t in range(horizon):
            if not playing:
                break
            answer = self._act([tracks[lane] for lane in playing], np.stack([noise[lane][t] for lane in playing]))
            for place, lane in enumerate(list(playing)):
                if not self._step(lane, leases[lane], records[lane], answer, place):
                    playing.remove(lane)
        return [self._episode(lease, record) for lease, record in zip(leases, records, strict=True)]

    def _act(self, tracks: Sequence[Track], noise: FloatArray) -> Actions:
        request = ActRequest(
            request_id=f"{self._name}:{next(self._calls)}",
            observations=np.stack([track.observation for track in tracks]),
            noise=noise,
        )
        return self._engine.generate([request], timeout_s=self._config.engine.timeout_s)[0]

    def _step(self, lane: int, lease: Lease, record: Recording, answer: Actions, place: int) -> bool:
        """One step of one lane; False where the environment failed, which ends the record without a reward."""
        track = record.track
        outcome = self._lanes.step(lane, answer.actions[place])
        if outcome.end is not None and outcome.end not in ENDS:
            record.fault = outcome.end
            self._tracks[lane] = None
            return False
        record.add(answer.actions[place], answer.log_probs[place], outcome.reward, answer.version)
        track.advance(outcome.observation, outcome.reward, discount=self._config.ppo.discount)
        if outcome.end is not None:
            record.close(outcome.end)
            track.restart(self._reset(lane, lease, len(record.steps)))
        record.see(track.observation, is_new=outcome.end is not None)
        return True

    def _track(self, lane: int, lease: Lease) -> Track:
        track = self._tracks[lane]
        if track is None:
            track = self._tracks[lane] = Track(self._reset(lane, lease, 0))
        return track

    def _reset(self, lane: int, lease: Lease, number: int) -> FloatArray:
        """Seeds hang on the task's place: the same run twice resets to the same states."""
        return self._lanes.reset(lane, seed=derive_seed(self._config.seed, "reset", lease.task.position, number))

    def _episode(self, lease: Lease, record: Recording) -> Episode:
        steps = record.finish(self._lanes.spaces)
        rewards = [float(step.rewards.sum()) for step in steps if step.rewards is not None]
        return Episode(
            episode_id="",  # signed by the slot
            lease=lease.lsn,
            member=0,
            task_id=lease.task.task_id,
            environment=self._config.control.id or "",
            environment_version=self._lanes.version,
            purpose=Purpose.TRAIN,
            steps=steps,
            spans=record.spans or (Span(start=0, version=-1),),
            stop_reason=record.fault or StopReason.TRUNCATED,
            reward=None if record.fault else sum(rewards),
            reward_parts=record.parts,
        )


class Track:
    """Where a lane's environment stands: what was seen last, and the sums of its present episode."""

    def __init__(self, observation: FloatArray) -> None:
        self.restart(observation)

    def restart(self, observation: FloatArray) -> None:
        self.observation = observation
        self.return_, self.discounted, self.length = 0.0, 0.0, 0

    def advance(self, observation: FloatArray, reward: float, *, discount: float) -> None:
        self.observation = observation
        self.return_ += reward
        self.discounted = self.discounted * discount + reward
        self.length += 1


class Recording:
    """One episode record as it is made."""

    def __init__(self, track: Track) -> None:
        self.track = track
        self.steps: list[Step] = []
        self.fault: StopReason | None = None
        self._seen = [track.observation]
        self._actions: list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = []
        self._log_probs: list[float] = []
        self._rewards: list[float] = []
        self._spans: list[Span] = []
        self._num_actions = 0
        self.parts = {RETURN_BEFORE: track.discounted, FINISHED: 0.0, RETURN_SUM: 0.0, LENGTH_SUM: 0.0}

    def add(
        self, action: np.ndarray[tuple[int, ...], np.dtype[np.generic]], log_prob: float, reward: float, version: int
    ) -> None:
        if not self._spans or self._spans[-1].version != version:
            self._spans.append(Span(start=self._num_actions, version=version))
        self._num_actions += 1
        self._actions.append(action)
        self._log_probs.append(log_prob)
        self._rewards.append(reward)

    def see(self, observation: FloatArray, *, is_new: bool) -> None:
        """`is_new`: it is the first one after a reset."""
        self._seen = [observation] if is_new else [*self._seen, observation]

    def close(self, end: StopReason) -> None:
        """The environment's episode ended with the action added last; the track still stands there."""
        track = self.track
        self._seen.append(track.observation)
        self._cut(end)
        self.parts[FINISHED] += 1
        self.parts[RETURN_SUM] += track.return_
        self.parts[LENGTH_SUM] += track.length

    def finish(self, spaces: Spaces) -> tuple[Step, ...]:
        """The stretches; a record that failed at once has one without actions."""
        if self._actions:
            self._cut(None)
        if not self.steps:
            nothing = np.empty(0, np.float32)
            action = np.empty(0, np.int32) if spaces.num_actions else np.empty((0, spaces.action_size), np.float32)
            self.steps.append(Step(observation=np.stack(self._seen), action=action, log_probs=nothing, rewards=nothing))
        return tuple(self.steps)

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple(self._spans)

    def _cut(self, end: StopReason | None) -> None:
        self.steps.append(
            Step(
                observation=np.stack(self._seen),
                action=np.stack(self._actions),
                log_probs=np.asarray(self._log_probs, dtype=np.float32),
                rewards=np.asarray(self._rewards, dtype=np.float32),
                end=end,
            )
        )
        self._actions, self._log_probs, self._rewards = [], [], []


def draw_noise(spaces: Spaces, seed: int, position: int, horizon: int) -> FloatArray:
    """What the policy draws with in one task: uniform numbers [T], or normal ones [T, A]. Hangs on the task's place."""
    draws = np.random.Generator(np.random.Philox(derive_seed(seed, "act", position)))
    if spaces.num_actions:
        return draws.random(horizon, dtype=np.float32)
    return draws.standard_normal((horizon, spaces.action_size), dtype=np.float32)


def evaluate(engine: Act, *, config: RunConfig, version: int, step: int) -> Evaluation:
    """Mean return of `evaluation_episodes` greedy episodes, each in an environment of its own, reset to its own seed.

    Two versions start from the same states. Raises UserError where an environment fails: no score is made up.
    """
    returns, lengths = _play_greedily(engine, config=config, step=step)
    interval = bootstrap(np.asarray(returns))
    return Evaluation(
        version=version,
        step=step,
        metric=METRIC,
        scores={
            METRIC: interval.mean,
            f"{METRIC}_low": interval.low,
            f"{METRIC}_high": interval.high,
            f"{METRIC}_worst": min(returns),
            "episode_steps_mean": float(np.mean(lengths)),
        },
        items=len(returns),
        samples=1,
        wall_time=time.time(),
    )


def measure(engine: Act, *, config: RunConfig, step: int) -> dict[str, NDArray[np.float64]]:
    """The same for each episode, float64 [episodes]. Raises what `evaluate` raises."""
    return {METRIC: np.asarray(_play_greedily(engine, config=config, step=step)[0])}


def _play_greedily(engine: Act, *, config: RunConfig, step: int) -> tuple[list[float], list[int]]:
    lanes = Lanes(config.control, num=config.control.evaluation_episodes)
    try:
        return _play(engine, lanes, config=config, step=step)
    finally:
        lanes.close()


def _play(engine: Act, lanes: Lanes, *, config: RunConfig, step: int) -> tuple[list[float], list[int]]:
    num = len(lanes)
    seen = [lanes.reset(lane, seed=derive_seed(config.seed, "evaluate", lane)) for lane in range(num)]
    returns, lengths = [0.0] * num, [0] * num
    playing = list(range(num))
    for t in itertools.count():
        if not playing:
            return returns, lengths
        observations = np.stack([seen[lane] for lane in playing])
        request = ActRequest(request_id=f"evaluate:{step}:{t}", observations=observations, noise=None)
        [answer] = engine.generate([request], timeout_s=config.engine.timeout_s)
        for place, lane in enumerate(list(playing)):
            outcome = lanes.step(lane, answer.actions[place])
            if outcome.end is not None and outcome.end not in ENDS:
                raise UserError(f"to evaluate in {config.control.id}", f"an episode ended with {outcome.end.value}")
            seen[lane] = outcome.observation
            returns[lane] += outcome.reward
            lengths[lane] += 1
            if outcome.end is not None:
                playing.remove(lane)
    raise AssertionError("unreachable")
