"""The faults of vllm 0.32 that raise nothing: each is shown with its cure switched off, then gone with it.

Where the guard can see the fault its gap is over the limit; where it cannot, the test says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from configs.schema import Engine as EngineSettings
from configs.schema import ModelInit
from contracts.errors import EngineError
from contracts.protocols import InFlight
from contracts.records import StopReason
from tests.contract.policies import (
    Reference,
    altered,
    guard_gap,
    log_prob_gap,
    make_policy,
    requests,
    settings,
)
from tests.contract.running import Running

if TYPE_CHECKING:
    from inference.vllm_engine import VllmEngine

pytestmark = pytest.mark.vllm

LIMIT = EngineSettings().parity_gap
BF16 = {"dtype": "bfloat16"}


@contextmanager
def started(folder: Path, changes: dict[str, Any] | None = None, **cures: bool) -> Iterator[VllmEngine]:
    from inference.vllm_core import Cures
    from inference.vllm_engine import VllmEngine

    engine = VllmEngine(folder, settings(**(changes or {})), cures=Cures(**cures))
    try:
        yield engine
    finally:
        engine.close()


@pytest.mark.parametrize("cured", [False, True])
def test_a_push_with_tied_embeddings_leaves_the_packed_head_stale(tmp_path: Path, cured: bool) -> None:
    reference = make_policy(tmp_path, tied=True)
    with started(tmp_path, BF16, repack_tied_head=cured) as engine:
        asked = requests(16)
        assert log_prob_gap(reference, asked, engine.generate(asked, timeout_s=60)) < LIMIT, "a fresh load is right"
        reference.train(seed=1, size=0.5)
        gap = guard_gap(engine, reference, reference.weights(1))
    assert (gap < LIMIT) is cured, f"gap {gap:.3f}"


def test_a_push_with_untied_embeddings_needs_no_such_cure(tmp_path: Path) -> None:
    reference = make_policy(tmp_path)
    with started(tmp_path, BF16, repack_tied_head=False) as engine:
        reference.train(seed=1, size=0.5)
        assert guard_gap(engine, reference, reference.weights(1)) < LIMIT


@pytest.mark.parametrize("cured", [False, True])
def test_a_push_leaves_old_keys_and_values_in_the_prefix_cache(tmp_path: Path, cured: bool) -> None:
    reference = make_policy(tmp_path)
    with started(tmp_path, BF16, empty_prefix_cache=cured) as engine:
        reference.train(seed=1, size=0.5)
        gap = guard_gap(engine, reference, reference.weights(1))
        short = requests(16, lengths=[9])  # less than a block: never cached, so right either way
        assert log_prob_gap(reference, short, engine.generate(short, timeout_s=60)) < LIMIT
    assert (gap < LIMIT) is cured, f"gap {gap:.3f}"


@pytest.mark.parametrize("cured", [False, True])
def test_log_probs_are_of_the_unscaled_distribution_by_default(tmp_path: Path, cured: bool) -> None:
    """The guard samples at temperature 1 over the whole vocabulary, where the two are one: it cannot see this."""
    reference = make_policy(tmp_path)
    with started(tmp_path, processed_log_probs=cured) as engine:
        asked = requests(16, temperature=0.5)
        gap = log_prob_gap(reference, asked, engine.generate(asked, timeout_s=60))
        assert guard_gap(engine, reference, reference.weights(1)) < LIMIT
    assert (gap < LIMIT) is cured, f"gap {gap:.3f}"


@pytest.mark.parametrize("cured", [False, True])
def test_a_pause_aborts_what_is_in_flight_by_default(tmp_path: Path, cured: bool) -> None:
    """In-process vLLM does not even report the abort: a caller would wait for ever. Nothing wrong is generated, so
    the guard has nothing to see; the stop reason tells."""
    reference = make_policy(tmp_path)
    with started(tmp_path, keep_in_flight=cured) as engine:
        asked = requests(4, lengths=[9], max_tokens=200)
        running = Running(engine, asked)
        engine.pause(InFlight.CONTINUE, timeout_s=30)
        reference.train(seed=1, size=0.5)
        engine.push(reference.weights(1))
        engine.resume()
        answered = running.result()
        lost = [one.stop_reason is StopReason.ENGINE_ERROR for one in answered]
        assert lost == [not cured] * 4
        assert [len(one.token_ids) == 200 for one in answered] == [cured] * 4
        if cured:  # the prompt and the old tokens were read again, so what follows is the new weights' alone
            for one, answer in zip(asked, answered, strict=True):
                switch = answer.spans[1].start
                mine = reference.score(one.prompt_ids, answer.token_ids)
                np.testing.assert_allclose(answer.log_probs[switch:], mine[switch:], atol=1e-2)
        assert len(engine.generate(requests(2), timeout_s=60)) == 2


def test_in_this_process_vllm_has_no_loop_so_ours_serves_all_callers(tmp_path: Path) -> None:
    """vLLM refuses to run its asynchronous engine in-process. A process of its own could outlive a killed actor."""
    make_policy(tmp_path)
    children = psutil.Process().children()
    with started(tmp_path) as engine:
        from vllm.v1.engine.core_client import EngineCoreClient
        from vllm.v1.executor import Executor

        with pytest.raises(NotImplementedError):
            EngineCoreClient.make_client(
                multiprocess_mode=False,
                asyncio_mode=True,
                vllm_config=engine._core._config,
                executor_class=Executor,
                log_stats=False,
            )
        assert psutil.Process().children() == children
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda i: engine.generate(requests(4, seed=i), timeout_s=60), range(8)))
    assert [[one.request_id for one in answer] for answer in answers] == [
        [one.request_id for one in requests(4, seed=i)] for i in range(8)
    ]


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.norm.weight",
    ],
)
def test_the_guard_sees_a_zeroed_tensor(bf16_engine: tuple[VllmEngine, Reference], name: str) -> None:
    engine, reference = bf16_engine
    weights = reference.weights(1)
    zeroed = altered(weights, {name: np.zeros_like(weights.tensors[name])})
    assert guard_gap(engine, reference, zeroed) > LIMIT
    assert guard_gap(engine, reference, weights) < LIMIT, "one full push again puts it right"


@pytest.fixture(scope="module")
def bf16_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VllmEngine, Reference]]:
    folder = tmp_path_factory.mktemp("bf16")
    reference = make_policy(folder)
    with started(folder, BF16) as engine:
        yield engine, reference


def test_a_head_size_that_vllm_cannot_serve_is_refused_at_the_start(tmp_path: Path) -> None:
    make_policy(tmp_path, shape=ModelInit(layers=1, width=32, heads=2, feed_forward=32, max_positions=64))
    with pytest.raises(EngineError, match="head_dim"), started(tmp_path):
        pass


def test_a_closed_engine_says_so(tmp_path: Path) -> None:
    make_policy(tmp_path)
    with started(tmp_path) as engine:
        engine.pause(InFlight.FINISH, timeout_s=5)
        waiting = Running(engine, requests(1), begun=False)
    with pytest.raises(EngineError, match="closed"):
        waiting.result()
    with pytest.raises(EngineError, match="closed"):
        engine.generate(requests(1), timeout_s=5)


def test_a_push_that_vllm_fails_on_stops_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-loaded weights must not serve: everyone who asks hears of it."""
    reference = make_policy(tmp_path)
    with started(tmp_path) as engine:
        from inference import weights

        monkeypatch.setattr(weights, "as_tensor", lambda array, dtype: None)
        engine.pause(InFlight.FINISH, timeout_s=5)
        with pytest.raises(EngineError, match="vLLM failed"):
            engine.push(reference.weights(1))
        with pytest.raises(EngineError, match="vLLM failed"):
            engine.generate(requests(1), timeout_s=5, guard=True)
        assert engine.version == 0


def good_pushes(engine: VllmEngine, reference: Reference, *, num: int) -> list[float]:
    """The guard's gap of `num` good pushes in a row, each a training step away from the last."""
    gaps = []
    for step in range(num):
        reference.train(seed=step, size=0.02)
        gaps.append(guard_gap(engine, reference, reference.weights(step + 1), seed=step))
    return gaps


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("tied", [False, True])
def test_no_good_push_is_refused(tmp_path: Path, tied: bool, record_property: Callable[[str, object], None]) -> None:
    reference = make_policy(tmp_path, tied=tied)
    with started(tmp_path, BF16) as engine:
        gaps = good_pushes(engine, reference, num=500)
    refusals = sum(gap > LIMIT for gap in gaps)
    record_property("refusals", refusals)
    record_property("largest_gap", max(gaps))
    print(
        f"tied {tied}: {refusals} refusals in {len(gaps)} pushes; gap {np.mean(gaps):.4f} mean, {max(gaps):.4f} largest"
    )
    assert refusals == 0
