"""The network that learns: packed log-probs are those of the plain forward pass, weights travel as copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from contracts.errors import FormatError, UserError
from learners.packing import Sample, pack
from learners.policy import PolicyModel
from models.causal_lm import load_model
from models.registry import root_hash
from tests.unit.learners.builders import make_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


def make_samples(*, groups: int = 5) -> list[Sample]:
    generator = np.random.default_rng(0)
    samples = []
    for _ in range(groups):
        prompt_ids = generator.integers(0, 256, generator.integers(1, 9)).astype(np.int32)
        for _ in range(4):
            completion_ids = generator.integers(0, 258, generator.integers(1, 40)).astype(np.int32)
            samples.append(Sample(prompt_ids=prompt_ids, completion_ids=completion_ids))
    return samples


def plain_log_probs(folder: Path, samples: list[Sample], *, temperature: float) -> list[Any]:
    """The textbook way: one sequence at a time, all logits."""
    model = load_model(folder, attention="eager", dtype=torch.float32)
    scores = []
    for sample in samples:
        ids = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.completion_ids])).long()
        with torch.no_grad():
            log_probs = (model(input_ids=ids[None]).logits[0] / temperature).log_softmax(-1)
        start = len(sample.prompt_ids)
        scores.append(log_probs[start - 1 : -1].gather(1, ids[start:, None])[:, 0].numpy())
    return scores


def test_of_several_turns_the_policys_own_tokens_are_scored_in_the_context_of_all(folder: Path) -> None:
    """Against masks made by hand: what the environment said is read, and has no log-probability of its own."""
    generator = np.random.default_rng(1)
    masks = [[1, 1, 0, 0, 0, 1, 1, 1], [1, 0, 0, 1, 1, 0, 1], [1, 1, 1]]
    prompt_ids = np.array([97, 98, 61], dtype=np.int32)
    samples = [
        Sample(
            prompt_ids=prompt_ids,
            completion_ids=generator.integers(0, 258, len(mask)).astype(np.int32),
            acted=np.array(mask, dtype=np.bool_),
        )
        for mask in masks
    ]
    expected = plain_log_probs(folder, samples, temperature=1.0)
    scores = PolicyModel(folder).score(samples, max_tokens=500, temperature=1.0)
    for score, plain, mask in zip(scores, expected, masks, strict=True):
        np.testing.assert_allclose(score, plain[np.array(mask) == 1], atol=2e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_log_probs_are_the_plain_ones(folder: Path, attention: str, temperature: float) -> None:
    model = PolicyModel(folder, attention="eager" if attention == "eager" else "sdpa")
    samples = make_samples()
    expected = plain_log_probs(folder, samples, temperature=temperature)
    for max_tokens in (100, 10_000):
        scores = model.score(samples, max_tokens=max_tokens, temperature=temperature)
        for score, plain in zip(scores, expected, strict=True):
            np.testing.assert_allclose(score, plain, atol=2e-6)
            assert score.dtype == np.float32


def test_bf16_is_close_and_temperature_0_is_taken_as_1(folder: Path) -> None:
    samples = make_samples()
    exact = PolicyModel(folder).score(samples, max_tokens=500, temperature=1.0)
    greedy = PolicyModel(folder).score(samples, max_tokens=500, temperature=0.0)
    rounded = PolicyModel(folder, precision="bf16").score(samples, max_tokens=500, temperature=1.0)
    np.testing.assert_array_equal(np.concatenate(exact), np.concatenate(greedy))
    assert 0 < np.abs(np.concatenate(exact) - np.concatenate(rounded)).max() < 0.02


def test_logits_in_parts_give_the_same_numbers_and_gradients(folder: Path) -> None:
    (batch,) = pack(make_samples(groups=2), max_tokens=10_000)
    whole, parts = PolicyModel(folder), PolicyModel(folder, max_logits=258 * 10)
    results = []
    for model in (whole, parts):
        log_probs = model.log_probs(batch)
        torch.autograd.backward(log_probs.square().sum())
        results.append((log_probs.detach(), model.parameters()["model.embed_tokens.weight"].grad))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-6, rtol=0)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-5, rtol=1e-4)


def test_an_architecture_that_does_more_than_body_and_head_is_refused(folder: Path) -> None:
    """Gemma 2 squashes its logits: packed log-probs would silently be another distribution's."""
    config = Gemma2Config(
        vocab_size=258,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.05,
    )
    Gemma2ForCausalLM(config).save_pretrained(folder)
    with pytest.raises(UserError, match="Gemma2ForCausalLM answers otherwise"):
        PolicyModel(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_said(folder: Path) -> None:
    with pytest.raises(UserError, match="torch sees no GPU"):
        PolicyModel(folder, device="cuda")


def test_weights_are_float32_copies_with_their_hash(folder: Path) -> None:
    model = PolicyModel(folder, precision="bf16")
    weights = model.weights(5)
    assert (weights.version, set(weights.dtypes.values())) == (5, {"float32"})
    assert weights.root_hash == model.root_hash() == root_hash(weights.tensors, weights.dtypes)
    with torch.no_grad():
        next(iter(model.parameters().values())).add_(1.0)
    model.changed()
    assert model.root_hash() != weights.root_hash == root_hash(weights.tensors, weights.dtypes)


def test_restoring_another_network_changes_nothing(folder: Path) -> None:
    model = PolicyModel(folder)
    before = model.root_hash()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model.tensors().items()}
    zeros["model.norm.weight"] = torch.zeros(3)
    with pytest.raises(FormatError, match="another network"):
        model.restore(zeros)
    model.changed()
    assert model.root_hash() == before


def test_a_copy_does_not_follow(folder: Path) -> None:
    model = PolicyModel(folder)
    twin, before = model.copy(), model.root_hash()
    with torch.no_grad():
        next(iter(model.parameters().values())).add_(1.0)
    model.changed()
    twin.changed()
    assert twin.root_hash() == before != model.root_hash()
    assert twin.parameters() == {}


def test_the_fingerprint_says_what_bits_depend_on(folder: Path) -> None:
    fingerprint = PolicyModel(folder, precision="bf16", threads=1).fingerprint()
    assert (fingerprint["threads"], fingerprint["precision"], fingerprint["deterministic"]) == (1, "bf16", True)
    assert fingerprint["torch"] == torch.__version__
    assert len(str(fingerprint["code"])) == 64
    assert fingerprint["device"]
