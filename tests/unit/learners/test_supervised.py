"""The warm start: learns, on completions only, the same way each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import WarmStart
from contracts.errors import LearnerError, UserError
from contracts.records import IntArray
from learners.policy import PolicyModel
from learners.supervised import warm_start
from tests.unit.learners.builders import make_model

SETTINGS = WarmStart(steps=25, batch_size=8, learning_rate=3e-2, warmup_steps=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


def make_pairs(count: int = 20) -> list[tuple[IntArray, IntArray]]:
    """Say the prompt's first letter twice, then end."""
    pairs = []
    for place in range(count):
        prompt = np.array([97 + place % 5, 61, *range(97, 97 + place % 3)], dtype=np.int32)
        pairs.append((prompt, np.array([prompt[0], prompt[0], 257], dtype=np.int32)))
    return pairs


def test_the_loss_falls_and_is_reported_each_step(folder: Path) -> None:
    losses: dict[int, float] = {}
    stats = warm_start(
        PolicyModel(folder),
        make_pairs(),
        settings=SETTINGS,
        seed=0,
        on_progress=lambda step, loss: losses.update({step: loss}),
    )
    assert list(losses) == list(range(1, 26))
    assert losses[1] == pytest.approx(np.log(258), abs=0.05)  # a model that knows nothing
    assert losses[25] < 1.5
    assert (stats["loss"], stats["tokens"]) == (losses[25], 25 * 8 * 3)


def test_the_same_seed_gives_the_same_bits(folder: Path) -> None:
    hashes = []
    for seed in (0, 0, 1):
        model = PolicyModel(folder, precision="bf16")
        warm_start(model, make_pairs(), settings=SETTINGS.model_copy(update={"steps": 4}), seed=seed)
        hashes.append(model.root_hash())
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_loss_is_the_mean_over_the_completions_tokens_alone(folder: Path) -> None:
    """At rate ~0 the reported loss is that of the start: computed here the plain way, one pair at a time."""
    model, pairs = PolicyModel(folder), make_pairs(8)
    pairs[3] = (pairs[3][0], np.array([99, 257], dtype=np.int32))
    settings = WarmStart(steps=1, batch_size=8, learning_rate=1e-30, weight_decay=0)
    losses = []
    for prompt, completion in pairs:
        ids = torch.from_numpy(np.concatenate([prompt, completion])).long()
        with torch.no_grad():
            scores = model._model(input_ids=ids[None]).logits[0].log_softmax(-1)
        losses += [-float(scores[place - 1, ids[place]]) for place in range(len(prompt), len(ids))]
    assert warm_start(model, pairs, settings=settings, seed=0)["loss"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_no_pairs_is_a_user_error(folder: Path) -> None:
    with pytest.raises(UserError, match="no pair of prompt and completion"):
        warm_start(PolicyModel(folder), [], settings=SETTINGS, seed=0)


def test_a_loss_that_is_not_finite_is_an_error(folder: Path) -> None:
    model = PolicyModel(folder)
    with torch.no_grad():
        model.tensors()["model.norm.weight"].fill_(float("nan"))
    with pytest.raises(LearnerError, match="lower the learning rate"):
        warm_start(model, make_pairs(), settings=SETTINGS, seed=0)
