"""Held-out evaluation: calls of bounded size, the same answers however they are cut, pass@k from the samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from configs.schema import RunConfig
from contracts.protocols import Completion, Request, WeightSet
from contracts.records import Evaluation
from loops import evaluate as held_out
from loops.text import Policy
from tests.crash.plain import VOCABULARY, DigitCodec, GuessingGame, NumpyEngine, plain_config

ITEMS, SAMPLES = 9, 8


class CountingEngine(NumpyEngine):
    """Knows how many requests each call had."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def generate(self, requests: Sequence[Request], *, timeout_s: float, guard: bool = False) -> list[Completion]:
        self.calls.append(len(requests))
        return super().generate(requests, timeout_s=timeout_s, guard=guard)


def config(*, max_sequences: int) -> RunConfig:
    plain = plain_config()
    changes = {
        "environment": plain.environment.model_copy(update={"held_out_items": ITEMS}),
        "evaluate": plain.evaluate.model_copy(update={"samples": SAMPLES}),
        "engine": plain.engine.model_copy(update={"max_sequences": max_sequences}),
    }
    return plain.model_copy(update=changes)


def evaluate(engine: NumpyEngine, *, max_sequences: int = 256) -> Evaluation:
    policy = Policy(engine=engine, codec=DigitCodec())
    settings = config(max_sequences=max_sequences)
    return held_out.evaluate(policy, environment=GuessingGame(), config=settings, version=3, step=2)


def test_the_cut_into_calls_changes_no_answer() -> None:
    whole, cut = CountingEngine(), CountingEngine()
    first, second = evaluate(whole), evaluate(cut, max_sequences=1)
    assert whole.calls == [ITEMS * (SAMPLES + 1)]
    assert cut.calls == [held_out.ROUNDS] * 5 + [1]
    assert first.scores == second.scores


def test_pass_at_k_of_a_policy_that_guesses() -> None:
    """Four equal tokens, one right for each item: pass@k = 1 - (3/4)^k, within the noise of 9 items."""
    evaluation = evaluate(NumpyEngine())
    assert (evaluation.items, evaluation.samples, evaluation.version, evaluation.step) == (ITEMS, SAMPLES, 3, 2)
    shown = [evaluation.scores[f"pass@{k}"] for k in (1, 2, 4, 8)]
    assert shown == sorted(shown)
    assert shown == pytest.approx([1 - (1 - 1 / VOCABULARY) ** k for k in (1, 2, 4, 8)], abs=0.2)
    assert evaluation.scores["pass@1"] == pytest.approx(evaluation.scores["sampled_accuracy"])


def test_a_policy_that_knows_one_answer_gains_nothing_from_more_samples() -> None:
    engine = NumpyEngine()
    certain = np.array([50.0, 0.0, 0.0, 0.0], dtype=np.float32)
    engine.push(WeightSet(version=1, root_hash="", tensors={"logits": certain}, dtypes={}))
    scores = evaluate(engine).scores
    assert scores["pass@1"] == scores["pass@8"] == pytest.approx(1 / 3)  # right for every third item
