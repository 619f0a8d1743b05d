"""The policy engine: what it answers is the network's, callers share a pass, a push waits for a pause."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import Engine
from contracts.errors import EngineError
from contracts.protocols import ActRequest, InFlight, Spaces, WeightSet
from contracts.records import FloatArray
from inference.policy_engine import TorchPolicyEngine
from models.actor_critic import init_policy, load_policy
from models.registry import arrays_of, root_hash

DISCRETE = Spaces(observation_size=4, num_actions=3, first_action=0)
CONTINUOUS = Spaces(observation_size=4, low=(-1.0, -1.0), high=(1.0, 1.0))
BOTH = pytest.mark.parametrize("spaces", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
SETTINGS = Engine(backend="torch")


def make_engine(folder: Path, spaces: Spaces, *, seed: int = 0) -> TorchPolicyEngine:
    init_policy(folder, spaces=spaces, hidden=(8, 8), seed=seed)
    return TorchPolicyEngine(folder, SETTINGS, version=7)


def ask(rows: int, *, noise: FloatArray | None = None, seed: int = 0) -> ActRequest:
    seen = np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)
    return ActRequest(request_id=f"{rows}-{seed}", observations=seen, noise=noise)


def weights_of(folder: Path, *, version: int) -> WeightSet:
    tensors, dtypes = arrays_of(load_policy(folder).state_dict())
    return WeightSet(version=version, root_hash=root_hash(tensors, dtypes), tensors=tensors, dtypes=dtypes)


@BOTH
def test_log_probs_are_the_networks(tmp_path: Path, spaces: Spaces) -> None:
    engine, network = make_engine(tmp_path / "policy", spaces), load_policy(tmp_path / "policy")
    draws = np.random.default_rng(1)
    noise = draws.random(5, np.float32) if spaces.num_actions else draws.standard_normal((5, 2), np.float32)
    for request in (ask(5, noise=noise), ask(5)):
        [answer] = engine.generate([request], timeout_s=5)
        with torch.no_grad():
            expected = network.act(torch.from_numpy(request.observations)).log_probs(torch.from_numpy(answer.actions))
        np.testing.assert_allclose(answer.log_probs, expected.numpy(), atol=1e-5)
        assert answer.version == 7
        assert answer.actions.dtype == (np.int32 if spaces.num_actions else np.float32)


def test_discrete_draws_follow_the_distribution(tmp_path: Path) -> None:
    """Evenly spread noise gives each action its probability's share, to within one draw."""
    engine = make_engine(tmp_path / "policy", DISCRETE)
    num = 3_000
    seen = np.repeat(ask(1).observations, num, axis=0)
    noise = ((np.arange(num) + 0.5) / num).astype(np.float32)
    [answer] = engine.generate([ActRequest(request_id="x", observations=seen, noise=noise)], timeout_s=5)
    with torch.no_grad():
        probabilities = load_policy(tmp_path / "policy").act(torch.from_numpy(seen[:1])).parameters_NA.softmax(-1)[0]
    shares = np.bincount(answer.actions.astype(int), minlength=3) / num
    np.testing.assert_allclose(shares, probabilities.numpy(), atol=2 / num)


def test_continuous_draws_follow_the_distribution(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "policy", CONTINUOUS)
    seen = np.repeat(ask(1).observations, 2, axis=0)
    noise = np.array([[0.0, 0.0], [1.0, -2.0]], np.float32)
    [drawn] = engine.generate([ActRequest(request_id="x", observations=seen, noise=noise)], timeout_s=5)
    [likeliest] = engine.generate([ActRequest(request_id="y", observations=seen, noise=None)], timeout_s=5)
    np.testing.assert_allclose(drawn.actions[0], likeliest.actions[0], atol=1e-6)
    np.testing.assert_allclose(drawn.actions[1] - drawn.actions[0], noise[1], atol=1e-6)  # the first deviation is 1


def test_callers_that_wait_together_share_a_pass(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "policy", DISCRETE)
    requests = [ask(2, seed=seed) for seed in range(8)]
    alone = [engine.generate([request], timeout_s=5)[0] for request in requests]
    engine.pause(InFlight.FINISH, timeout_s=5)
    passes = engine.stats()["passes"]
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(engine.generate, [request], timeout_s=30) for request in requests]
        while len(engine._calls) < 8:  # all wait for the engine to go on
            threading.Event().wait(0.001)
        engine.resume()
        together = [future.result()[0] for future in futures]
    assert engine.stats()["passes"] < passes + 8
    for one, other in zip(alone, together, strict=True):
        assert one.request_id == other.request_id
        assert one.actions.tolist() == other.actions.tolist()
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)


def test_a_push_needs_a_pause_and_the_guard_runs_in_it(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "policy", DISCRETE)
    init_policy(tmp_path / "other", spaces=DISCRETE, hidden=(8, 8), seed=1)
    weights = weights_of(tmp_path / "other", version=8)
    [before] = engine.generate([ask(6)], timeout_s=5)
    with pytest.raises(EngineError, match="before pause"):
        engine.push(weights)
    engine.pause(InFlight.FINISH, timeout_s=5)
    engine.push(weights)
    [checked] = engine.generate([ask(6)], timeout_s=5, guard=True)
    with pytest.raises(EngineError, match="time allowed"):
        engine.generate([ask(6)], timeout_s=0.01)
    engine.resume()
    [after] = engine.generate([ask(6)], timeout_s=5)
    assert (before.version, checked.version, after.version) == (7, 8, 8)
    assert not np.allclose(before.log_probs, after.log_probs)
    np.testing.assert_array_equal(checked.log_probs, after.log_probs)


def test_weights_of_another_network_leave_the_engine_as_it_was(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "policy", DISCRETE)
    init_policy(tmp_path / "other", spaces=DISCRETE, hidden=(9,), seed=1)
    [before] = engine.generate([ask(6)], timeout_s=5)
    engine.pause(InFlight.FINISH, timeout_s=5)
    with pytest.raises(EngineError, match="not pushed"):
        engine.push(weights_of(tmp_path / "other", version=8))
    engine.resume()
    [after] = engine.generate([ask(6)], timeout_s=5)
    np.testing.assert_array_equal(before.log_probs, after.log_probs)
    assert engine.version == 7


def test_requests_that_do_not_fit_are_refused_and_a_closed_engine_says_so(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "policy", DISCRETE)
    wide = ActRequest(request_id="w", observations=np.zeros((2, 5), np.float32), noise=None)
    with pytest.raises(EngineError, match=r"float32 \[N, 4\]"):
        engine.generate([wide], timeout_s=5)
    with pytest.raises(EngineError, match="noise has shape"):
        engine.generate([ask(2, noise=np.zeros(3, np.float32))], timeout_s=5)
    assert engine.generate([], timeout_s=5) == []
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.generate([ask(1)], timeout_s=5)
