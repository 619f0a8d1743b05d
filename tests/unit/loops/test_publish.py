"""The one path for weights: served, served at the second try, refused with the old weights back, or out of patience."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from contracts.errors import PushRefusedError
from contracts.protocols import Completion, InFlight, Request, Sampling, WeightSet
from contracts.records import Guard, Served
from inference.parity import text_gap
from loops.publish import Publisher
from tests.crash.plain import DigitCodec, NumpyEngine, NumpyLearner

PROBES = [
    Request(request_id=f"p{i}", prompt_ids=DigitCodec().encode_prompt("0"), sampling=Sampling(max_tokens=1))
    for i in range(8)
]
Spoil = Callable[[WeightSet], WeightSet]


class FaultyEngine(NumpyEngine):
    """Takes what `spoil` makes of the pushed weights: an engine whose load goes wrong without a word."""

    def __init__(self, spoil: Spoil) -> None:
        super().__init__()
        self.spoil, self.paused, self.pushed = spoil, False, list[int]()

    def pause(self, in_flight: InFlight) -> None:
        self.paused = True

    def push(self, weights: WeightSet) -> None:
        assert self.paused, "weights were pushed into a running engine"
        self.pushed.append(weights.version)
        super().push(self.spoil(weights))

    def resume(self) -> None:
        self.paused = False


def publisher(engine: NumpyEngine, learner: NumpyLearner, *, patience: int = 1) -> Publisher[Request, Completion]:
    return Publisher(
        engine,
        probes=PROBES,
        gap=text_gap(PROBES, score=learner.score),
        parity_gap=0.15,
        in_flight=InFlight.FINISH,
        patience=patience,
    )


def learned(logits: list[float]) -> NumpyLearner:
    learner = NumpyLearner()
    learner.logits = np.array(logits, dtype=np.float32)
    return learner


def zeroed(weights: WeightSet) -> WeightSet:
    return WeightSet(version=weights.version, root_hash=weights.root_hash, tensors={"logits": np.zeros(4)}, dtypes={})


def same(weights: WeightSet) -> WeightSet:
    return weights


def test_a_good_push_is_served() -> None:
    learner, engine = learned([3, 0, 0, -3]), FaultyEngine(same)
    outcome = publisher(engine, learner).publish(learner.weights(4))
    assert isinstance(outcome, Served)
    assert (outcome.version, engine.version, engine.paused) == (4, 4, False)
    assert outcome.gap == pytest.approx(0.0, abs=1e-6)


def test_a_push_that_goes_wrong_once_is_pushed_again() -> None:
    learner, engine = learned([3, 0, 0, -3]), FaultyEngine(same)
    engine.spoil = lambda weights: same(weights) if 1 in engine.pushed[:-1] else zeroed(weights)
    assert isinstance(publisher(engine, learner).publish(learner.weights(1)), Served)
    assert engine.pushed == [1, 1]


def test_a_refused_push_puts_the_old_weights_back() -> None:
    learner, engine = learned([3, 0, 0, -3]), FaultyEngine(same)
    path = publisher(engine, learner)
    path.publish(learner.weights(1))
    engine.spoil = lambda weights: zeroed(weights) if weights.version == 2 else weights
    outcome = path.publish(learner.weights(2))
    assert isinstance(outcome, Guard)
    assert (outcome.verdict, outcome.version) == ("refused", 2)
    assert outcome.scores["gap"] > 0.15
    assert engine.pushed == [1, 2, 2, 1]
    assert (engine.version, engine.paused) == (1, False)
    engine.spoil = same
    assert isinstance(path.publish(learner.weights(3)), Served), "one refusal does not end the run"


@pytest.mark.parametrize("patience", [0, 1, 2])
def test_patience_ends(patience: int) -> None:
    learner, engine = learned([3, 0, 0, -3]), FaultyEngine(same)
    path = publisher(engine, learner, patience=patience)
    path.publish(learner.weights(1))
    engine.spoil = lambda weights: zeroed(weights) if weights.version > 1 else weights
    for version in range(2, 2 + patience):
        assert isinstance(path.publish(learner.weights(version)), Guard)
    with pytest.raises(PushRefusedError, match=f"version {2 + patience}"):
        path.publish(learner.weights(2 + patience))
    assert not engine.paused


def test_without_an_older_version_the_first_refusal_ends_the_run() -> None:
    learner, engine = learned([3, 0, 0, -3]), FaultyEngine(zeroed)
    with pytest.raises(PushRefusedError):
        publisher(engine, learner).publish(learner.weights(1))
