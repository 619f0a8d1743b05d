"""A learner with adapters: they alone learn and are kept, on a base that stays; the same bits from the same state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import Lora, WarmStart
from contracts.errors import FormatError
from learners.checkpoint import load_state
from learners.policy_gradient import PolicyGradientLearner
from learners.rows import sample_of
from learners.supervised import warm_start
from models.causal_lm import load_model, named_weights
from models.registry import arrays_of, root_hash
from tests.unit.learners.builders import make_batch, make_learner, make_model

LORA = Lora(rank=4, alpha=8)
DROPOUT = LORA.model_copy(update={"dropout": 0.3})
WARM = WarmStart(steps=3, batch_size=2, learning_rate=1e-2)
PAIR = (np.array([97, 98, 99], np.int32), np.array([99, 98, 257], np.int32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("learner") / "model")


def base_of(learner: PolicyGradientLearner) -> dict[str, torch.Tensor]:
    """Everything in the learner's network but adapters, by its name in the plain network."""
    state = named_weights(learner.model._model)
    return {name.replace(".base_layer", ""): one.detach() for name, one in state.items() if ".lora_" not in name}


def test_only_the_adapters_are_learned_hashed_and_kept(folder: Path, tmp_path: Path) -> None:
    plain = named_weights(load_model(folder, attention="eager", dtype=torch.float32))
    learner = make_learner(folder, lora=LORA, kl_coefficient=0.1)
    assert learner.model.base_hash == root_hash(*arrays_of(plain)) == make_learner(folder).root_hash()
    before = learner.root_hash()
    result = learner.step(*make_batch())
    assert result.root_hash == learner.root_hash() != before
    assert all(torch.equal(tensor, plain[name]) for name, tensor in base_of(learner).items())
    assert base_of(learner).keys() == plain.keys()
    weights = learner.weights(1)
    assert weights.root_hash == root_hash(weights.tensors, weights.dtypes) == result.root_hash
    assert all(".lora_A." in name or ".lora_B." in name for name in weights.tensors)
    parts, _ = load_state(tmp_path, learner.save(str(tmp_path)))
    assert parts["weights"].keys() == parts["reference"].keys() == weights.tensors.keys()
    assert len(parts["optimizer"]) == 2 * len(weights.tensors) + 1
    assert not any(tensor.shape == plain["lm_head.weight"].shape for part in parts.values() for tensor in part.values())


def test_steps_make_what_was_rewarded_likelier(folder: Path) -> None:
    learner = make_learner(folder, lora=LORA, learning_rate=1e-2)
    batch, episodes = make_batch([[1, 0, 0, 0]])
    sample = sample_of(episodes[0])
    best = [(sample.prompt_ids, sample.completion_ids)]
    before = learner.score(best)[0]
    for step in range(1, 6):
        learner.step(replace(batch, step=step), episodes)
    assert float((learner.score(best)[0] - before).mean()) > 0.05


@pytest.mark.parametrize("lora", [LORA, DROPOUT], ids=["plain", "dropout"])
def test_a_loaded_state_goes_on_bit_for_bit(folder: Path, tmp_path: Path, lora: Lora) -> None:
    first, second = (make_learner(folder, lora=lora, precision="bf16", kl_coefficient=0.1) for _ in range(2))
    warm_start(first.model, [PAIR], settings=WARM, seed=0)
    first.reset()
    for step in (1, 2):
        first.step(*make_batch(step=step))
    whole = first.save(str(tmp_path / "state"))
    torch.rand(3)  # whatever else draws in this process
    second.load(str(tmp_path / "state"), whole)
    assert second.save(str(tmp_path / "again")) == whole
    for step in (3, 4):
        one, other = (learner.step(*make_batch(step=step)) for learner in (first, second))
        assert one.root_hash == other.root_hash
        assert one.stats["kl_reference"] == other.stats["kl_reference"]


def test_dropout_is_drawn_by_the_batch_and_only_in_a_step(folder: Path) -> None:
    steps = []
    for seed in (1, 1, 2):
        learner = make_learner(folder, lora=DROPOUT)
        learner.step(*make_batch(step=1, seed=0))  # B is no longer zero: what A's input loses shows
        assert np.array_equal(learner.score([PAIR])[0], learner.score([PAIR])[0])
        batch, episodes = make_batch(step=2, seed=0)
        steps.append(learner.step(replace(batch, seed=seed), episodes).root_hash)
    assert steps[0] == steps[1] != steps[2]


def test_the_reference_is_the_adapters_at_reset_on_the_same_base(folder: Path) -> None:
    learner = make_learner(folder, lora=LORA, kl_coefficient=0.1)
    learner.step(*make_batch(step=1))
    learner.reset()
    reference = learner._reference
    assert reference is not None
    at_reset = {name: tensor.clone() for name, tensor in learner.model.tensors().items()}
    learner.step(*make_batch(step=1))
    assert all(torch.equal(reference.tensors()[name], tensor) for name, tensor in at_reset.items())
    assert not all(torch.equal(learner.model.tensors()[name], tensor) for name, tensor in at_reset.items())
    twin, own = (dict(model._model.named_parameters()) for model in (reference, learner.model))
    shared = {name for name, one in twin.items() if one.data_ptr() == own[name].data_ptr()}
    assert shared == {name for name in own if ".lora_" not in name}


def test_a_warm_start_trains_the_adapters(folder: Path) -> None:
    fresh, learners = make_learner(folder, lora=DROPOUT), [make_learner(folder, lora=DROPOUT) for _ in range(2)]
    for learner in learners:
        warm_start(learner.model, [PAIR], settings=WARM, seed=0)
        assert root_hash(*arrays_of(base_of(learner))) == fresh.model.base_hash
    assert learners[0].root_hash() == learners[1].root_hash() != fresh.root_hash()


def test_a_state_without_adapters_is_refused(folder: Path, tmp_path: Path) -> None:
    whole = make_learner(folder).save(str(tmp_path))
    with pytest.raises(FormatError, match="another network"):
        make_learner(folder, lora=LORA).load(str(tmp_path), whole)
    assert "peft" in make_learner(folder, lora=LORA).fingerprint()
