"""Lanes: spaces that are refused, environments that fail, episodes without a limit, seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from configs.schema import Control
from contracts.errors import UserError
from contracts.protocols import Spaces
from contracts.records import StopReason
from environments.control.lanes import NO_LIMIT_STEPS, Lanes, spaces_of
from tests.unit.environments.control.moody import MOODY, register


@pytest.fixture(autouse=True)
def moody() -> Iterator[None]:
    register()
    yield
    gymnasium.registry.pop(MOODY)


def lanes(mood: str, *, num: int = 2) -> Lanes:
    return Lanes(Control(id=MOODY, parameters={"mood": mood}, lanes=num))


def test_spaces_of_known_environments() -> None:
    assert spaces_of(Control(id="CartPole-v1")) == Spaces(observation_size=4, num_actions=2)
    assert spaces_of(Control(id="Pendulum-v1")) == Spaces(observation_size=3, low=(-2.0,), high=(2.0,))


@pytest.mark.parametrize(
    ("identifier", "parameters", "found"),
    [
        ("NoSuchThing-v0", {}, "cannot make it"),
        ("CartPole-v1", {"no_such": 1}, "cannot make it"),
        ("FrozenLake-v1", {}, "not vectors"),
        (MOODY, {"mood": "takes pairs"}, "neither discrete nor vectors"),
    ],
)
def test_what_cannot_be_played_is_said(identifier: str, parameters: dict[str, Any], found: str) -> None:
    with pytest.raises(UserError) as caught:
        Lanes(Control(id=identifier, parameters=parameters, lanes=1))
    assert identifier in caught.value.asked
    assert found in caught.value.found
    assert caught.value.todo


def test_the_same_seed_resets_to_the_same_state() -> None:
    cart = Lanes(Control(id="CartPole-v1", lanes=2))
    first, second = cart.reset(0, seed=2**62 + 5), cart.reset(1, seed=2**62 + 5)
    assert first.tolist() == second.tolist() != cart.reset(0, seed=2**62 + 6).tolist()
    assert first.dtype == np.float32
    cart.close()


@pytest.mark.parametrize(
    ("mood", "kind"),
    [
        ("raises", StopReason.ENV_ERROR),
        ("says nan", StopReason.ENV_INVALID),
        ("pays infinity", StopReason.ENV_INVALID),
        ("grows", StopReason.ENV_INVALID),
    ],
)
def test_a_step_that_fails_ends_the_record_and_the_lane_goes_on(mood: str, kind: StopReason) -> None:
    both = lanes(mood)
    for lane in (0, 1):
        both.reset(lane, seed=1)
        assert both.step(lane, np.int32(0)).end is None
    assert both.step(0, np.int32(0)).end is kind
    both.reset(0, seed=2)
    assert both.step(0, np.int32(0)).end is None, "it was made anew"
    assert both.step(1, np.int32(0)).end is kind, "the other lane went on where it was"
    both.close()


def test_an_environment_that_cannot_be_reset_ends_the_run_with_its_reason() -> None:
    with pytest.raises(UserError, match="never ready"):
        lanes("never resets").reset(0, seed=0)


def test_an_episode_without_a_limit_is_truncated() -> None:
    endless = lanes("fine", num=1)
    endless.reset(0, seed=0)
    ends = [endless.step(0, np.int32(0)).end for _ in range(NO_LIMIT_STEPS)]
    assert ends[-1] is StopReason.TRUNCATED
    assert set(ends[:-1]) == {None}


def test_discrete_actions_count_from_the_spaces_start_and_continuous_ones_are_clipped() -> None:
    shifted = lanes("starts at 5", num=1)
    assert shifted.spaces == Spaces(observation_size=2, num_actions=3, first_action=5)
    shifted.reset(0, seed=0)
    assert shifted.step(0, np.int32(2)).reward == 7.0, "the environment pays the action it was given"
    pendulum = lanes("takes vectors", num=1)
    pendulum.reset(0, seed=0)
    assert pendulum.step(0, np.array([0.25, 9.0], np.float32)).reward == 1.25
