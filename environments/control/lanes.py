"""Lanes: environments of one Gymnasium id beside each other, each stepped and reset by itself.

    lanes = Lanes(Control(id="CartPole-v1", lanes=16))
    observation = lanes.reset(0, seed=7)            # float32 [D]
    outcome = lanes.step(0, np.int32(1))            # Outcome(observation=..., reward=1.0, end=None)

A lane whose environment raises or returns nonsense costs what was played in it since the last record: the outcome says
so, and the lane gets a new environment. Not covered: an environment that hangs, which is found by its lease's deadline.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from configs.schema import Control
from contracts.errors import UserError
from contracts.protocols import Spaces
from contracts.records import FloatArray, StopReason

log = logging.getLogger(__name__)
NO_LIMIT_STEPS = 10_000  # after which an episode of an environment without a step limit is truncated


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one step brought. `end`: TERMINATED, TRUNCATED, a fault (ENV_ERROR, ENV_INVALID: observation and reward then
    mean nothing), or None while the episode goes on."""

    observation: FloatArray
    reward: float
    end: StopReason | None


class Lanes:
    """Not thread-safe: each rollout slot has lanes of its own."""

    def __init__(self, control: Control, *, num: int | None = None) -> None:
        """`num` environments, by default `control.lanes`. Raises UserError where Gymnasium cannot make them, or their
        spaces are not vectors."""
        self._control = control
        self._environments = [_make(control) for _ in range(num or control.lanes)]
        self.spaces = read_spaces(self._environments[0], name=str(control.id))
        self._steps = [0] * len(self._environments)
        self._is_limited = getattr(self._environments[0].spec, "max_episode_steps", None) is not None
        self._action = self._action_rule()

    @property
    def version(self) -> str:
        """The environment's id and the library that carries it."""
        return f"{self._control.id} gymnasium-{gymnasium.__version__}"

    def __len__(self) -> int:
        return len(self._environments)

    def reset(self, lane: int, *, seed: int) -> FloatArray:
        """A new episode's first observation, float32 [D]. Raises UserError where two environments in a row fail."""
        self._steps[lane] = 0
        for last in (False, True):
            try:
                observation = _vector(self._environments[lane].reset(seed=seed % 2**31)[0])
                if observation.shape == (self.spaces.observation_size,) and np.isfinite(observation).all():
                    return observation
                reason = f"its first observation is {observation!r:.200}"
            except Exception as error:  # noqa: BLE001 - a named border: what an environment raises is data
                reason = f"{type(error).__name__}: {error}"
            if last:
                raise UserError(f"to reset {self._control.id}", reason, "correct the environment")
            self._renew(lane, reason)
        raise AssertionError("unreachable")

    def step(self, lane: int, action: Any) -> Outcome:
        """One step with an action of the policy; continuous ones are clipped to the space's bounds."""
        try:
            seen, reward, terminated, truncated, _ = self._environments[lane].step(self._action(action))
        except Exception as error:  # noqa: BLE001 - a named border: what an environment raises is data
            return self._fault(lane, StopReason.ENV_ERROR, f"{type(error).__name__}: {error}")
        observation, reward = _vector(seen), float(reward)
        if observation.shape != (self.spaces.observation_size,) or not np.isfinite(observation).all():
            return self._fault(lane, StopReason.ENV_INVALID, f"an observation is {observation!r:.200}")
        if not math.isfinite(reward):
            return self._fault(lane, StopReason.ENV_INVALID, f"a reward is {reward}")
        self._steps[lane] += 1
        truncated = truncated or (not self._is_limited and self._steps[lane] >= NO_LIMIT_STEPS)
        end = StopReason.TERMINATED if terminated else StopReason.TRUNCATED if truncated else None
        return Outcome(observation=observation, reward=reward, end=end)

    def close(self) -> None:
        for environment in self._environments:
            environment.close()

    def _fault(self, lane: int, kind: StopReason, reason: str) -> Outcome:
        self._renew(lane, reason)
        nothing = np.zeros(self.spaces.observation_size, dtype=np.float32)
        return Outcome(observation=nothing, reward=0.0, end=kind)

    def _renew(self, lane: int, reason: str) -> None:
        log.warning("an environment failed and was made anew", extra={"lane": lane, "detail": reason})
        self._environments[lane] = _make(self._control)

    def _action_rule(self) -> Callable[[Any], Any]:
        """From the policy's numbers to what the environment takes."""
        spaces = self.spaces
        if spaces.num_actions:
            first = spaces.first_action
            return lambda action: int(action) + first
        low, high = np.asarray(spaces.low, np.float32), np.asarray(spaces.high, np.float32)
        return lambda action: np.clip(action, low, high)


def spaces_of(control: Control) -> Spaces:
    """The spaces of the configured environment. Raises UserError."""
    environment = _make(control)
    try:
        return read_spaces(environment, name=str(control.id))
    finally:
        environment.close()


def read_spaces(environment: gymnasium.Env[Any, Any], *, name: str) -> Spaces:
    """Raises UserError where observations are no vector or actions neither discrete nor a vector."""
    seen, done = environment.observation_space, environment.action_space
    if not isinstance(seen, gymnasium.spaces.Box) or len(seen.shape) != 1:
        raise UserError(
            f"control.id {name}",
            f"its observations are {seen}, not vectors",
            "choose an environment with a one-dimensional Box, or wrap it (gymnasium.wrappers.FlattenObservation)",
        )
    size = int(seen.shape[0])
    if isinstance(done, gymnasium.spaces.Discrete):
        return Spaces(observation_size=size, num_actions=int(done.n), first_action=int(done.start))
    if isinstance(done, gymnasium.spaces.Box) and len(done.shape) == 1:
        return Spaces(observation_size=size, low=tuple(map(float, done.low)), high=tuple(map(float, done.high)))
    raise UserError(
        f"control.id {name}",
        f"its actions are {done}, neither discrete nor vectors",
        "choose an environment with Discrete or one-dimensional Box actions",
    )


def _make(control: Control) -> gymnasium.Env[Any, Any]:
    try:
        return gymnasium.make(str(control.id), disable_env_checker=True, **control.parameters)
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise UserError(
            f"control.id {control.id}",
            f"Gymnasium cannot make it: {error}",
            "name a registered id (gymnasium.pprint_registry() lists them) and install what it needs",
        ) from None


def _vector(observation: Any) -> FloatArray:
    return np.asarray(observation, dtype=np.float32)
