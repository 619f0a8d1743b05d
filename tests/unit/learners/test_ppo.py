"""The PPO step: the loss is the paper's, a failed step changes nothing, the state survives on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import Control, Learner, Ppo
from contracts.errors import FormatError, LearnerError
from contracts.protocols import Actions, ActRequest, Spaces
from contracts.records import Batch, Episode, FloatArray, IntArray, Purpose, Row, Span, Step, StopReason
from learners.advantages import Float64Array
from learners.ppo import PpoLearner
from models.actor_critic import init_policy

DISCRETE = Spaces(observation_size=3, num_actions=2)
CONTINUOUS = Spaces(observation_size=3, low=(-1.0, -2.0), high=(1.0, 2.0))
SETTINGS = Learner(algorithm="ppo", group_size=1, learning_rate=1e-2, warmup_steps=0, precision="fp32")
LENGTHS = (5, 9)  # of the two stretches of an episode
BOTH = pytest.mark.parametrize("spaces", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])


def make_learner(folder: Path, spaces: Spaces = DISCRETE, **changes: object) -> PpoLearner:
    if not folder.exists():
        init_policy(folder, spaces=spaces, hidden=(8,), seed=3)
    ppo = Ppo.model_validate({"epochs": 2, "minibatch_steps": 16, **changes})
    return PpoLearner(folder, SETTINGS, ppo=ppo, control=Control(id="any"), seed=0)


def make_episodes(learner: PpoLearner, *, num: int = 4, off: float = 0.1, seed: int = 0) -> list[Episode]:
    """Random play whose behaviour log-probs are the learner's own, moved by up to `off` nats."""
    draws = np.random.default_rng(seed)
    return [make_episode(learner, lease, draws, off=off) for lease in range(num)]


def make_episode(learner: PpoLearner, lease: int, draws: np.random.Generator, *, off: float) -> Episode:
    steps = tuple(make_step(learner, length, draws, off=off) for length in LENGTHS)
    return Episode(
        episode_id=f"{lease:032x}",
        lease=lease,
        member=0,
        task_id=f"any/{lease}",
        environment="any",
        environment_version="1",
        purpose=Purpose.TRAIN,
        steps=(replace(steps[0], end=StopReason.TERMINATED), steps[1]),
        spans=(Span(start=0, version=0),),
        stop_reason=StopReason.TRUNCATED,
        reward=1.0,
        reward_parts={"finished": 1.0, "return_sum": 5.0, "length_sum": 5.0},
    )


def make_step(learner: PpoLearner, length: int, draws: np.random.Generator, *, off: float) -> Step:
    spaces = learner.spaces
    seen = draws.normal(size=(length + 1, 3)).astype(np.float32)
    if spaces.num_actions:
        action = draws.integers(0, 2, length).astype(np.int32)
    else:
        action = draws.normal(size=(length, 2)).astype(np.float32)
    log_probs = score(learner, seen[:-1], action) + draws.uniform(-off, off, length).astype(np.float32)
    rewards = draws.normal(size=length).astype(np.float32)
    return Step(observation=seen, action=action, log_probs=log_probs, rewards=rewards)


def score(learner: PpoLearner, seen: IntArray | FloatArray, action: IntArray | FloatArray) -> FloatArray:
    request = ActRequest(request_id="x", observations=seen.astype(np.float32), noise=None)
    answer = Actions(request_id="x", actions=action, log_probs=np.zeros(len(action), np.float32), version=0)
    return learner.score([request], [answer])[0]


def make_batch(episodes: list[Episode], *, step: int = 1) -> Batch:
    rows = tuple(Row(episode_lsn=one.lease, reward_lsn=one.lease, lease=one.lease) for one in episodes)
    return Batch(branch=0, step=step, parent_version=step - 1, rows=rows, seed=step)


@BOTH
def test_the_first_loss_is_the_papers(tmp_path: Path, spaces: Spaces) -> None:
    """One epoch of one minibatch: clipped surrogate of normalised advantages, half squared value error, from NumPy."""
    learner = make_learner(tmp_path / "policy", spaces, epochs=1, minibatch_steps=1000)
    episodes = make_episodes(learner, off=0.5)
    steps = [step for episode in episodes for step in episode.steps]
    ratios = np.concatenate([np.exp(score(learner, s.observation[:-1], s.action) - s.log_probs) for s in steps])
    stats = learner.step(make_batch(episodes), episodes).stats
    clipped = np.clip(ratios, 1 - 0.2, 1 + 0.2)
    assert (clipped != ratios).any()
    assert stats["ratio_mean"] == pytest.approx(float(ratios.mean()), rel=1e-5)
    assert stats["importance_ess"] == pytest.approx(ratios.sum() ** 2 / (len(ratios) * (ratios**2).sum()), rel=1e-5)
    assert stats["gradient_steps"] == 1
    # The loss itself needs the advantages: take the critic away, and they are the discounted scaled rewards.
    blind = make_learner(tmp_path / "policy", spaces, epochs=1, minibatch_steps=1000, gae_lambda=0.0, discount=1e-9)
    values = [values_of(blind, step.observation) for step in steps]
    returns = np.concatenate([step.rewards.astype(np.float64) for step in steps if step.rewards is not None])
    scale = np.sqrt(returns.var() + 1e-8)
    advantages = returns / scale - np.concatenate([value[:-1] for value in values])
    normalised = (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8)
    expected = np.maximum(-normalised * ratios, -normalised * clipped).mean()
    found = blind.step(make_batch(episodes), episodes).stats
    assert found["loss"] == pytest.approx(expected, abs=1e-5)
    assert found["value_loss"] == pytest.approx(0.5 * (advantages**2).mean(), rel=1e-4)


def values_of(learner: PpoLearner, seen: IntArray | FloatArray) -> Float64Array:
    with torch.no_grad():
        values: Float64Array = learner._network.values(torch.from_numpy(seen)).numpy().astype(np.float64)
    return values


@BOTH
def test_the_same_batches_give_the_same_bits_after_a_reload(tmp_path: Path, spaces: Spaces) -> None:
    whole = make_learner(tmp_path / "policy", spaces)
    batches = [make_episodes(whole, seed=seed) for seed in range(3)]
    first = whole.step(make_batch(batches[0], step=1), batches[0])
    state = whole.save(str(tmp_path / "checkpoint"))
    hashes = [whole.step(make_batch(batches[k], step=k + 1), batches[k]).root_hash for k in (1, 2)]
    again = make_learner(tmp_path / "policy", spaces)
    again.load(str(tmp_path / "checkpoint"), state)
    assert again.root_hash() == first.root_hash
    assert [again.step(make_batch(batches[k], step=k + 1), batches[k]).root_hash for k in (1, 2)] == hashes
    assert len({first.root_hash, *hashes}) == 3


def test_the_whole_step_sees_what_the_engine_saw(tmp_path: Path) -> None:
    """Observation statistics are those of the step before until the step has ended, then those of everything seen."""
    learner = make_learner(tmp_path / "policy")
    episodes = make_episodes(learner, off=0.0)
    stats = learner.step(make_batch(episodes), episodes).stats
    assert stats["log_prob_gap"] > 0, "later minibatches are off the behaviour policy"
    seen = np.concatenate([step.observation[:-1] for one in episodes for step in one.steps])
    weights = {name: array.astype(np.float64) for name, array in learner.weights(1).tensors.items()}
    np.testing.assert_allclose(weights["mean_D"], seen.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(weights["variance_D"], seen.var(axis=0), atol=1e-6)


def test_what_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    learner = make_learner(tmp_path / "policy")
    good, bad = make_episodes(learner, seed=0), make_episodes(learner, seed=1)
    learner.step(make_batch(good), good)
    before, state = learner.root_hash(), learner.save(str(tmp_path / "a"))
    [first, *rest] = bad[0].steps
    seen = first.observation.copy()
    seen[2] = np.nan
    bad[0] = replace(bad[0], steps=(replace(first, observation=seen), *rest))
    result = learner.step(make_batch(bad, step=2), bad)
    assert result.skipped
    assert result.stats["num_skipped"] == 1
    assert learner.root_hash() == result.root_hash == before
    twin = make_learner(tmp_path / "policy")
    twin.load(str(tmp_path / "a"), state)
    assert learner.step(make_batch(good, step=3), good).root_hash == twin.step(make_batch(good, step=3), good).root_hash


def test_a_batch_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    learner = make_learner(tmp_path / "policy")
    episodes, before = make_episodes(learner), learner.root_hash()
    text = replace(episodes[0], steps=(replace(episodes[0].steps[0], rewards=None),))
    wide = replace(episodes[0], steps=(replace(episodes[0].steps[0], observation=np.zeros((6, 4), np.float32)),))
    other = replace(episodes[0], lease=9)
    for wrong, reason in ((text, "no control episode"), (wide, "could not be computed"), (other, "another group")):
        with pytest.raises(LearnerError, match=reason):
            learner.step(make_batch(episodes), [wrong, *episodes[1:]])
    with pytest.raises(LearnerError, match="coefficients"):
        learner.step(replace(make_batch(episodes), coefficients={"learning_rate": 1.0}), episodes)
    assert learner.root_hash() == before
    learner.step(make_batch(episodes), episodes)
    with pytest.raises(LearnerError, match="learned from twice"):
        learner.step(make_batch(episodes), episodes)


def test_the_state_of_another_network_is_refused(tmp_path: Path) -> None:
    small = make_learner(tmp_path / "small")
    init_policy(tmp_path / "large", spaces=DISCRETE, hidden=(16,), seed=3)
    large = make_learner(tmp_path / "large")
    state = large.save(str(tmp_path / "state"))
    with pytest.raises(FormatError, match="another network"):
        small.load(str(tmp_path / "state"), state)


def test_it_learns_which_of_two_actions_pays(tmp_path: Path) -> None:
    """Control: with rewards that do not depend on the action, the policy stays where it is."""
    for pays, gained in ((True, True), (False, False)):
        learner = make_learner(tmp_path / f"policy-{pays}", epochs=4, entropy_coefficient=0.0)
        seen = np.random.default_rng(9).normal(size=(64, 3)).astype(np.float32)
        ones = np.ones(64, dtype=np.int32)
        before = np.exp(score(learner, seen, ones)).mean()
        for step in range(1, 6):
            episodes = [paid(one, pays=pays) for one in make_episodes(learner, num=8, off=0.0, seed=step)]
            learner.step(make_batch(episodes, step=step), episodes)
        after = np.exp(score(learner, seen, ones)).mean()
        assert bool(after - before > 0.2) is gained, (before, after)


def paid(episode: Episode, *, pays: bool) -> Episode:
    def step(one: Step) -> Step:
        noise = np.random.default_rng(len(one.action)).normal(size=len(one.action))
        return replace(one, rewards=(one.action if pays else noise).astype(np.float32))

    return replace(episode, steps=tuple(step(one) for one in episode.steps))


@BOTH
def test_log_probs_are_those_that_the_play_had(tmp_path: Path, spaces: Spaces) -> None:
    learner = make_learner(tmp_path / "policy", spaces)
    episodes = make_episodes(learner, num=2, off=0.0)
    for episode, log_probs in zip(episodes, learner.log_probs(episodes), strict=True):
        np.testing.assert_allclose(log_probs, np.concatenate([step.log_probs for step in episode.steps]), atol=1e-6)
