"""Control rollouts: what is recorded is what was played, records join, faults are data, evaluation is repeatable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from buffers.checks import find_flaw
from configs.loader import load
from configs.schema import RunConfig
from contracts.errors import UserError
from contracts.records import Episode, Lease, StopReason, Task
from environments.control.lanes import Lanes, spaces_of
from inference.policy_engine import TorchPolicyEngine
from loops.control import ControlPlayer, evaluate
from loops.tasks import derive_seed, task_source
from models.actor_critic import init_policy
from tests.unit.environments.control.moody import MOODY, register

CONFIG = Path("configs/control_cartpole.yaml")
HORIZON = 24


@pytest.fixture(autouse=True)
def moody() -> Iterator[None]:
    register()
    yield
    gymnasium.registry.pop(MOODY)


def make_config(identifier: str = "CartPole-v1", *changes: str) -> RunConfig:
    small = ["control.lanes=3", f"control.horizon={HORIZON}", "control.evaluation_episodes=4"]
    return load(CONFIG, [f"control.id={identifier}", *small, *changes])


def make_engine(folder: Path, config: RunConfig) -> TorchPolicyEngine:
    if not folder.exists():
        init_policy(folder, spaces=spaces_of(config.control), hidden=(8,), seed=1)
    return TorchPolicyEngine(folder, config.engine, version=4)


def make_player(folder: Path, config: RunConfig) -> ControlPlayer:
    return ControlPlayer(make_engine(folder, config), Lanes(config.control), config=config, name="rollout-0.0")


def leases(config: RunConfig, *positions: int) -> list[Lease]:
    source = task_source(config)
    tasks = [
        Task(task_id=source(place)[0], position=place, index=place, group_size=1, producer="rollout-0.0", branch=0)
        for place in positions
    ]
    return [Lease(lsn=100 + task.position, task=task, missing=(0,)) for task in tasks]


def signed(episode: Episode) -> Episode:
    return replace(episode, episode_id=f"{episode.lease:032x}", producer="rollout-0.0", seq=1)


@pytest.mark.parametrize("identifier", ["CartPole-v1", "Pendulum-v1"])
def test_what_is_recorded_is_what_was_played(tmp_path: Path, identifier: str) -> None:
    """A fresh environment, reset to the same seeds and given the recorded actions, shows the same and pays the same."""
    config = make_config(identifier)
    [episode] = make_player(tmp_path / "policy", config).play(leases(config, 7))
    assert find_flaw(signed(episode)) is None
    assert sum(len(step.action) for step in episode.steps) == HORIZON
    again = Lanes(config.control, num=1)
    for number, step in enumerate(episode.steps):
        seed = derive_seed(config.seed, "reset", 7, number)
        seen = [again.reset(0, seed=seed)]
        outcomes = [again.step(0, action) for action in step.action]
        seen += [outcome.observation for outcome in outcomes]
        np.testing.assert_array_equal(step.observation, np.stack(seen))
        assert step.rewards is not None
        assert step.rewards.tolist() == [np.float32(outcome.reward) for outcome in outcomes]
        assert [outcome.end for outcome in outcomes] == [None] * (len(outcomes) - 1) + [step.end]
    paid = [float(step.rewards.sum()) for step in episode.steps if step.rewards is not None]
    assert episode.reward == pytest.approx(sum(paid), rel=1e-6)
    assert [(span.start, span.version) for span in episode.spans] == [(0, 4)]


def test_records_of_a_lane_join_and_their_sums_carry_over(tmp_path: Path) -> None:
    config = make_config()
    player = make_player(tmp_path / "policy", config)
    records = [player.play(leases(config, *range(start, start + 3))) for start in (0, 3, 6)]
    returns: list[float] = []
    running, discounted = 0.0, 0.0
    for record in [one[1] for one in records]:  # lane 1
        assert record.reward_parts["discounted_before"] == pytest.approx(discounted, abs=1e-6)
        finished = []
        for step in record.steps:
            assert step.rewards is not None
            for reward in map(float, step.rewards):
                running, discounted = running + reward, discounted * config.ppo.discount + reward
            if step.end is not None:
                finished.append(running)
                running, discounted = 0.0, 0.0
        assert record.reward_parts["finished"] == len(finished)
        assert record.reward_parts["return_sum"] == pytest.approx(sum(finished))
        returns += finished
    assert returns, "a policy that knows nothing drops the pole within 72 steps"
    for before, after in pairwise(records):
        for earlier, later in zip(before, after, strict=True):
            if earlier.steps[-1].end is None:
                np.testing.assert_array_equal(earlier.steps[-1].observation[-1], later.steps[0].observation[0])


def test_the_same_tasks_give_the_same_bits(tmp_path: Path) -> None:
    config = make_config("Pendulum-v1")
    one, other = (make_player(tmp_path / "policy", config).play(leases(config, 0, 1, 2)) for _ in range(2))
    for first, second in zip(one, other, strict=True):
        for mine, theirs in zip(first.steps, second.steps, strict=True):
            assert mine.action.tobytes() == theirs.action.tobytes()
            assert mine.log_probs.tobytes() == theirs.log_probs.tobytes()
    assert one[0].steps[0].action.tobytes() != one[1].steps[0].action.tobytes(), "each task draws by its own place"


def test_a_fault_costs_its_own_record(tmp_path: Path) -> None:
    """One lane's environment fails at its second step; its record has no reward, and the next one begins anew."""
    config = make_config(MOODY, "control.parameters={mood: raises}")
    player = make_player(tmp_path / "policy", config)
    for start in (0, 3):
        failed = player.play(leases(config, *range(start, start + 3)))
        for episode in failed:
            assert find_flaw(signed(episode)) is None
            assert (episode.reward, episode.stop_reason) == (None, StopReason.ENV_ERROR)
            assert [len(step.action) for step in episode.steps] == [1]


def test_evaluation_starts_from_the_same_states_and_refuses_to_guess(tmp_path: Path) -> None:
    config = make_config()
    engine = make_engine(tmp_path / "policy", config)
    first, second = (evaluate(engine, config=config, version=4, step=step) for step in (0, 9))
    assert first.scores == second.scores
    assert first.items == 4
    assert first.scores["greedy_return_worst"] <= first.scores["greedy_return_low"] <= first.scores["greedy_return"]
    broken = make_config(MOODY, "control.parameters={mood: raises}")
    with pytest.raises(UserError, match="env_error"):
        evaluate(make_engine(tmp_path / "moody", broken), config=broken, version=0, step=0)
