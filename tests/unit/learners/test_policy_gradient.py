"""The step: its gradient is the formula's, a failed one changes nothing, the state survives a process."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.formulas import Aggregation
from contracts.errors import FormatError, LearnerError, UserError
from contracts.protocols import Learner
from contracts.records import Batch, Episode, FloatArray
from learners.checkpoint import load_state
from learners.losses import group_advantages
from learners.policy_gradient import PolicyGradientLearner
from learners.rows import sample_of
from models.causal_lm import load_model
from tests.unit.learners.builders import (
    MAX_TOKENS,
    SETTINGS,
    first_gradient,
    make_batch,
    make_learner,
    make_model,
    with_log_probs,
)

AGGREGATIONS: list[Aggregation] = ["token", "sequence", "constant"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("learner") / "model")


def assert_close(one: Mapping[str, Tensor], other: Mapping[str, Tensor], *, atol: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=atol, rtol=0)
    assert max(float(tensor.abs().max()) for tensor in one.values()) > 100 * atol


def plain_gradient(
    folder: Path, episodes: list[Episode], *, aggregation: Aggregation, cap: float, kl: float
) -> dict[str, Tensor]:
    """The loss as papers write it: one sequence at a time, loops over tokens, PPO's clips spelled out."""
    model = load_model(folder, attention="eager", dtype=torch.float32)
    rewards, groups = np.array([e.reward for e in episodes]), np.array([e.lease for e in episodes])
    advantages = group_advantages(rewards, groups, advantage="unbiased_std")
    total = sum(len(e.steps[0].action) for e in episodes)
    loss = torch.zeros(())
    for episode, advantage in zip(episodes, advantages, strict=True):
        step = episode.steps[0]
        ids = torch.from_numpy(np.concatenate([step.observation, step.action])).long()
        log_probs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        size = {"token": total, "sequence": len(episodes) * len(step.action), "constant": len(episodes) * MAX_TOKENS}
        for t, token in enumerate(step.action):
            log_prob = log_probs[len(step.observation) + t - 1, token]
            start = float(log_prob.detach())
            ratio = (log_prob - start).exp() * min(cap, math.exp(start - float(step.log_probs[t])))
            clipped = ratio.clamp(1 - 0.2, 1 + 0.28)
            term = -torch.minimum(ratio * advantage, clipped * advantage)
            loss = loss + (term + kl * (math.e ** (start - log_prob) - (start - log_prob) - 1)) / size[aggregation]
    torch.autograd.backward(loss)
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def score(learner: PolicyGradientLearner, episodes: list[Episode]) -> list[FloatArray]:
    samples = [sample_of(episode) for episode in episodes]
    return learner.score([(sample.prompt_ids, sample.completion_ids) for sample in samples])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize(("cap", "kl"), [(1.2, 0.0), (2.0, 0.1)])
def test_the_gradient_is_the_papers(
    folder: Path, tmp_path: Path, aggregation: Aggregation, cap: float, kl: float
) -> None:
    batch, episodes = make_batch()
    learner = make_learner(folder, aggregation=aggregation, importance_cap=cap, kl_coefficient=kl)
    expected = plain_gradient(folder, episodes, aggregation=aggregation, cap=cap, kl=kl)
    assert_close(first_gradient(learner, tmp_path, batch, episodes), expected, atol=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_leaving_out_groups_without_spread_leaves_the_gradient(
    folder: Path, tmp_path: Path, aggregation: Aggregation
) -> None:
    batch, episodes = make_batch()
    gradients = [
        first_gradient(
            make_learner(folder, aggregation=aggregation, skip_zero_spread=skip), tmp_path / str(skip), batch, episodes
        )
        for skip in (True, False)
    ]
    assert_close(gradients[0], gradients[1], atol=1e-6)


def test_micro_batches_leave_the_gradient(folder: Path, tmp_path: Path) -> None:
    batch, episodes = make_batch()
    whole = first_gradient(make_learner(folder), tmp_path / "whole", batch, episodes)
    by_tokens = first_gradient(make_learner(folder, micro_batch_tokens=1), tmp_path / "tokens", batch, episodes)
    cut = replace(batch, micro_batches=(1, 2, 3, 6))
    assert_close(whole, by_tokens, atol=1e-6)
    assert_close(whole, first_gradient(make_learner(folder), tmp_path / "cut", cut, episodes), atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_make_what_was_rewarded_likelier(folder: Path, precision: str) -> None:
    learner = make_learner(folder, precision=precision, kl_coefficient=0.01)
    batch, episodes = make_batch([[1, 0, 0, 0]])
    before = score(learner, episodes)
    for step in range(1, 6):
        episodes = [with_log_probs(e, now) for e, now in zip(episodes, score(learner, episodes), strict=True)]
        result = learner.step(replace(batch, step=step), episodes)
        assert result.root_hash == learner.root_hash()
        assert result.stats["log_prob_gap"] < 0.05
    rise = [float((after - start).mean()) for after, start in zip(score(learner, episodes), before, strict=True)]
    assert rise[0] > 0.05
    assert rise[0] > max(rise[1:]) + 0.05


def test_stats_by_hand(folder: Path) -> None:
    learner = make_learner(folder, importance_cap=2.0, dual_clip=1.5, advantage="mean_only")
    batch, episodes = make_batch([[1, 0]])
    scores = score(learner, episodes)
    gaps = [np.linspace(-0.3, 1.2, len(score), dtype=np.float32) for score in scores]
    episodes = [with_log_probs(e, s - gap) for e, s, gap in zip(episodes, scores, gaps, strict=True)]
    stats = learner.step(batch, episodes).stats
    up, down = (np.minimum(2.0, np.exp(gap.astype(np.float64))) for gap in gaps)
    d, ratios = np.concatenate(gaps).astype(np.float64), np.concatenate([up, down])
    losses = np.concatenate([-0.5 * np.minimum(up, 1.28), np.minimum(0.5 * np.maximum(down, 0.8), 0.75)])
    expected = {
        "reward_mean": 0.5,
        "advantage_std": 0.5,
        "zero_spread_groups": 0,
        "loss": losses.mean(),
        "ratio_mean": ratios.mean(),
        "importance_ess": ratios.sum() ** 2 / (len(ratios) * (ratios**2).sum()),
        "clip_fraction_low": (down < 0.8).sum() / len(ratios),
        "clip_fraction_high": (up > 1.28).sum() / len(ratios),
        "clip_fraction_dual": (down > 1.5).sum() / len(ratios),
        "kl": (np.exp(d) - d - 1).mean(),
        "log_prob_gap": np.abs(d).mean(),
        "entropy": -np.concatenate(scores).mean(),
        "tokens": len(ratios),
        "tokens_computed": len(ratios),
        "skipped": 0,
    }
    assert {name: stats[name] for name in expected} == pytest.approx(expected, abs=2e-5)
    assert stats["grad_norm"] > 0
    assert min(stats[f"{part}_s"] for part in ("forward", "backward", "optimizer", "step")) > 0


def test_the_temperature_is_the_engines(folder: Path) -> None:
    pair = (np.array([97, 98], np.int32), np.array([99, 257], np.int32))
    cold = PolicyGradientLearner(folder, SETTINGS, seed=0, temperature=0.5, max_tokens=8)
    warm = PolicyGradientLearner(folder, SETTINGS, seed=0, temperature=1.0, max_tokens=8)
    assert not np.allclose(cold.score([pair])[0], warm.score([pair])[0], atol=1e-4)
    batch, episodes = make_batch([[1, 0]])
    scores = score(cold, episodes)
    exact = [with_log_probs(e, score) for e, score in zip(episodes, scores, strict=True)]
    assert cold.step(batch, exact).stats["log_prob_gap"] < 1e-6
    assert warm.step(batch, exact).stats["log_prob_gap"] > 1e-3


def test_a_batch_without_any_spread_still_lets_momentum_act(folder: Path) -> None:
    skipping, computing = make_learner(folder), make_learner(folder, skip_zero_spread=False)
    first = skipping.step(*make_batch([[1, 0]], step=1))
    assert computing.step(*make_batch([[1, 0]], step=1)).root_hash == first.root_hash
    second = skipping.step(*make_batch([[1, 1]], step=2))
    assert computing.step(*make_batch([[1, 1]], step=2)).root_hash == second.root_hash != first.root_hash
    assert second.stats["tokens_computed"] == 0
    assert "log_prob_gap" not in second.stats
    assert not second.skipped


def test_the_schedule_follows_the_batchs_step_and_a_coefficient_overrules_it(folder: Path) -> None:
    learner = make_learner(folder, warmup_steps=4, learning_rate=1.0, decay_steps=10)
    batch, episodes = make_batch(step=2)
    assert learner.step(batch, episodes).stats["learning_rate"] == 0.5
    batch, episodes = make_batch(step=7)
    assert learner.step(batch, episodes).stats["learning_rate"] == 0.5
    batch, episodes = make_batch(step=8)
    given = replace(batch, coefficients={"learning_rate": 0.125})
    assert learner.step(given, episodes).stats["learning_rate"] == 0.125


# ---------------------------------------------------------------------------------------------- nothing changes


def saved(learner: PolicyGradientLearner, folder: Path) -> str:
    return learner.save(str(folder))


def break_tokens(batch: Batch, episodes: list[Episode]) -> tuple[Batch, list[Episode]]:
    """The last row names a token beyond the vocabulary: torch raises when the first rows are already computed."""
    (step,) = episodes[-1].steps
    wrong = replace(step, observation=np.full_like(step.observation, 258))
    return replace(batch, micro_batches=(11, 1)), [*episodes[:-1], replace(episodes[-1], steps=(wrong,))]


def break_step(batch: Batch, episodes: list[Episode]) -> tuple[Batch, list[Episode]]:
    return replace(batch, step=1), episodes


def break_coefficient(batch: Batch, episodes: list[Episode]) -> tuple[Batch, list[Episode]]:
    return replace(batch, coefficients={"votes": 1.0}), episodes


@pytest.mark.parametrize("damage", [break_tokens, break_step, break_coefficient])
def test_an_error_changes_nothing(folder: Path, tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    learner, untouched = make_learner(folder), make_learner(folder)
    for one in (learner, untouched):
        one.step(*make_batch(step=1))
    before = saved(learner, tmp_path / "before")
    with pytest.raises(LearnerError):
        learner.step(*damage(*make_batch(step=2)))
    assert saved(learner, tmp_path / "after") == before
    assert learner.step(*make_batch(step=2)).root_hash == untouched.step(*make_batch(step=2)).root_hash


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_step_that_is_not_finite_is_skipped_and_counted(folder: Path, tmp_path: Path, value: float) -> None:
    learner = make_learner(folder)
    learner.step(*make_batch(step=1))
    saved(learner, tmp_path / "before")
    batch, episodes = make_batch(step=2)
    with torch.no_grad():  # a weight of the network went bad
        bias = learner.model.tensors()["model.norm.weight"]
        kept = bias.clone()
        bias[0] = value
    learner.model.changed()
    result = learner.step(batch, episodes)
    assert (result.skipped, result.stats["skipped"], result.stats["num_skipped"]) == (True, 1.0, 1.0)
    with torch.no_grad():
        bias.copy_(kept)
    learner.model.changed()
    saved(learner, tmp_path / "after")
    for part in ("weights", "optimizer"):
        name = f"{part}.safetensors"
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


def test_a_log_prob_that_is_no_number_skips_the_step(folder: Path) -> None:
    learner = make_learner(folder)
    batch, episodes = make_batch()
    wrong = np.full_like(episodes[0].steps[0].log_probs, np.nan)
    before = learner.root_hash()
    result = learner.step(batch, [with_log_probs(episodes[0], wrong), *episodes[1:]])
    assert result.skipped
    assert result.root_hash == learner.root_hash() == before
    assert math.isnan(result.stats["grad_norm"])


# ---------------------------------------------------------------------------------------------- the state


def test_it_is_the_contracts_learner(folder: Path) -> None:
    learner: Learner = make_learner(folder)
    weights = learner.weights(3)
    assert (weights.version, weights.root_hash) == (3, learner.root_hash())
    assert learner.fingerprint() == make_learner(folder).fingerprint()


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_a_loaded_state_goes_on_bit_for_bit(folder: Path, tmp_path: Path, kl: float) -> None:
    first, second = make_learner(folder, kl_coefficient=kl), make_learner(folder, kl_coefficient=kl)
    for step in (1, 2):
        first.step(*make_batch(step=step))
    whole = first.save(str(tmp_path / "state"))
    second.load(str(tmp_path / "state"), whole)
    assert second.save(str(tmp_path / "again")) == whole
    for step in (3, 4):
        one, other = (learner.step(*make_batch(step=step)) for learner in (first, second))
        assert one.root_hash == other.root_hash
        assert one.stats.get("kl_reference") == other.stats.get("kl_reference")


def test_a_state_before_the_first_step_is_loaded_too(folder: Path, tmp_path: Path) -> None:
    learner, fresh = make_learner(folder), make_learner(folder)
    whole = learner.save(str(tmp_path / "state"))
    learner.step(*make_batch(step=1))
    learner.load(str(tmp_path / "state"), whole)
    assert learner.step(*make_batch(step=1)).root_hash == fresh.step(*make_batch(step=1)).root_hash


def test_a_refused_state_changes_nothing(folder: Path, tmp_path: Path) -> None:
    learner, other = make_learner(folder), make_learner(folder, kl_coefficient=0.1)
    learner.step(*make_batch(step=1))
    whole = learner.save(str(tmp_path / "state"))
    learner.step(*make_batch(step=2))
    before = learner.root_hash()
    with pytest.raises(FormatError, match="hashes to"):
        learner.load(str(tmp_path / "state"), "0" * 64)
    with pytest.raises(FormatError, match="no whole checkpoint"):
        learner.load(str(tmp_path / "nowhere"), whole)
    assert learner.root_hash() == before
    with pytest.raises(FormatError, match=r"another learner\.kl_coefficient"):
        other.load(str(tmp_path / "state"), whole)


def test_genesis_knows_its_own_reference(folder: Path, tmp_path: Path) -> None:
    """Before the first step the reference is the weights, so a KL term may come or go."""
    learner, other = make_learner(folder), make_learner(folder, kl_coefficient=0.1)
    plain, with_reference = learner.save(str(tmp_path / "a")), other.save(str(tmp_path / "b"))
    expected = other.step(*make_batch(step=1)).root_hash
    other.load(str(tmp_path / "a"), plain)
    assert other.step(*make_batch(step=1)).root_hash == expected
    learner.load(str(tmp_path / "b"), with_reference)
    assert learner.step(*make_batch(step=1)).root_hash == make_learner(folder).step(*make_batch(step=1)).root_hash


def test_reset_begins_anew_from_the_present_weights(folder: Path, tmp_path: Path) -> None:
    learner = make_learner(folder, kl_coefficient=0.1)
    learner.step(*make_batch(step=1))
    weights = learner.root_hash()
    learner.reset()
    parts, numbers = load_state(tmp_path, learner.save(str(tmp_path)))
    assert (learner.root_hash(), parts["optimizer"], numbers) == (weights, {}, {"last_step": 0, "num_skipped": 0})
    assert all(torch.equal(parts["reference"][name], tensor) for name, tensor in parts["weights"].items())


def test_a_missing_model_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        make_learner(tmp_path / "nowhere")


CHILD = """
import json, sys
from pathlib import Path
from tests.unit.learners.builders import make_batch, make_learner

model, state, start, steps, load = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
learner = make_learner(model, precision="bf16", gradient_clip=1.0)
if load:
    learner.load(state, load)
for step in range(start, start + steps):
    print(json.dumps([learner.step(*make_batch(step=step)).root_hash, learner.save(state)]), flush=True)
sys.stdin.read()
"""


def run_child(folder: Path, state: Path, *, start: int, steps: int, load: str = "") -> list[list[str]]:
    """Steps in a fresh process; it is killed (SIGKILL) after the last, while it waits."""
    arguments = [str(folder), str(state), str(start), str(steps), load]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        try:
            lines = [child.stdout.readline() for _ in range(steps)]
        finally:
            child.kill()
    return [json.loads(line) for line in lines]


@pytest.mark.timeout(240)  # two fresh processes, each of which imports torch
def test_a_killed_learner_goes_on_in_a_fresh_process_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    learner = make_learner(folder, precision="bf16", gradient_clip=1.0)
    uninterrupted = [
        [learner.step(*make_batch(step=step)).root_hash, learner.save(str(tmp_path / "one"))] for step in (1, 2, 3, 4)
    ]
    before = run_child(folder, tmp_path / "two", start=1, steps=2)
    after = run_child(folder, tmp_path / "two", start=3, steps=2, load=before[-1][1])
    assert before + after == uninterrupted
    assert len({root_hash for root_hash, _ in uninterrupted}) == 4


def test_log_probs_are_of_the_episodes_own_tokens(folder: Path) -> None:
    """Of several turns, too: what the environment said in between is left out."""
    learner = make_learner(folder)
    _, episodes = make_batch()
    for found, expected in zip(learner.log_probs(episodes), score(learner, episodes), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    first, second = (episode.steps[0] for episode in episodes[:2])
    talk = replace(episodes[0], steps=(first, second))
    (found,) = learner.log_probs([talk])
    assert len(found) == len(first.action) + len(second.action)
    np.testing.assert_allclose(found[: len(first.action)], score(learner, episodes)[0], atol=1e-5)
