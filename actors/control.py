"""The control tenant: a small policy network acts in Gymnasium environments and learns by PPO."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from configs.schema import RunConfig
from contracts.protocols import Actions, ActRequest, Fleet, InFlight, PolicyEngine
from contracts.records import Batch, Episode, Evaluation
from environments.control.lanes import Lanes, spaces_of
from learners.stretches import measure_influences
from loops.control import ControlPlayer, evaluate, measure
from loops.publish import Publisher

if TYPE_CHECKING:
    from learners.ppo import PpoLearner

NUM_PROBES = 64  # observations that the parity guard has every engine act on


class ControlTenant:
    """actors.tenants.Tenant."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def make_model(self, folder: Path) -> None:
        from models.actor_critic import init_policy

        control = self._config.control
        init_policy(folder, spaces=spaces_of(control), hidden=control.hidden, seed=self._config.seed)

    def build_engine(self, model_folder: Path) -> PolicyEngine:
        from inference.policy_engine import TorchPolicyEngine

        return TorchPolicyEngine(model_folder, self._config.engine, version=-1)

    def build_learner(self, folder: Path, *, own_code: Path | None = None) -> PpoLearner:
        from learners.ppo import PpoLearner

        config = self._config
        return PpoLearner(folder / "model", config.learner, ppo=config.ppo, control=config.control, seed=config.seed)

    def build_publisher(self, learner: PpoLearner, fleet: Fleet[ActRequest, Actions]) -> Publisher[ActRequest, Actions]:
        from inference.parity import gap

        config = self._config
        draws = np.random.default_rng(config.seed)
        size = (NUM_PROBES, learner.spaces.observation_size)
        probe = ActRequest(request_id="probe", observations=draws.standard_normal(size, dtype=np.float32), noise=None)
        return Publisher(
            fleet,
            probes=[probe],
            gap=lambda answers: max(
                gap([one.log_probs for one in acted], learner.score([probe], acted)) for acted in answers
            ),
            parity_gap=config.engine.parity_gap,
            in_flight=InFlight(config.engine.in_flight),
            patience=config.max_staleness,
        )

    def prepare(
        self, learner: PpoLearner, folder: Path, on_progress: Callable[[int, float], None]
    ) -> Mapping[str, float]:
        """There is nothing to imitate: genesis has the seeded weights."""
        return {}

    def influences(self, batch: Batch, episodes: Sequence[Episode]) -> NDArray[np.float64]:
        return measure_influences(batch, episodes, discount=self._config.ppo.discount)

    def open_stage(self, folder: Path, engine: Any, *, rank: int) -> ControlStage:
        return ControlStage(self._config, engine=engine, rank=rank)


class ControlStage:
    """actors.tenants.Stage: every slot has lanes of its own."""

    def __init__(self, config: RunConfig, *, engine: Any, rank: int) -> None:
        self._config, self._engine, self._rank = config, engine, rank
        self._lanes: list[Lanes] = []

    def player(self, slot: int) -> ControlPlayer:
        lanes = Lanes(self._config.control)
        self._lanes.append(lanes)
        return ControlPlayer(self._engine, lanes, config=self._config, name=f"rollout-{self._rank}.{slot}")

    def evaluate(self, version: int, step: int) -> Evaluation:
        return evaluate(self._engine, config=self._config, version=version, step=step)

    def measure(self, step: int) -> Mapping[str, NDArray[np.float64]]:
        return measure(self._engine, config=self._config, step=step)

    def status(self) -> Mapping[str, Any]:
        return {"items": None}

    def close(self) -> None:
        for lanes in self._lanes:
            lanes.close()
