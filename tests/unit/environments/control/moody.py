"""An environment with moods: pays the sum of what it was given, and fails as its mood says at the second step."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

MOODY = "RatchetMoody-v0"
Observation = NDArray[np.float32]


class Moody(gymnasium.Env[Observation, Any]):
    def __init__(self, mood: str = "fine") -> None:
        self._mood, self._steps = mood, 0
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space: gymnasium.Space[Any] = gymnasium.spaces.Discrete(2)
        if mood == "starts at 5":
            self.action_space = gymnasium.spaces.Discrete(3, start=5)
        if mood == "takes vectors":
            self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        if mood == "takes pairs":
            self.action_space = gymnasium.spaces.MultiDiscrete([2, 2])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        if self._mood == "never resets":
            raise RuntimeError("never ready")
        self._steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        second = self._steps == 2
        if second and self._mood == "raises":
            raise RuntimeError("a fault of its own")
        seen = np.full(3 if second and self._mood == "grows" else 2, 0.5, np.float32)
        if second and self._mood == "says nan":
            seen[0] = np.nan
        reward = float("inf") if second and self._mood == "pays infinity" else float(np.sum(action))
        return seen, reward, False, False, {}


def make_moody(**parameters: Any) -> Moody:
    return Moody(**parameters)


def register() -> None:
    gymnasium.register(MOODY, make_moody)
