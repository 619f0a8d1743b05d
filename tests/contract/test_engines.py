"""The engine contract, run against each engine: what contracts.protocols.Engine promises to its callers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from contracts.errors import EngineError
from contracts.protocols import Completion, Engine, InFlight, Request, Sampling
from contracts.records import Span, StopReason
from inference.transformers_engine import TransformersEngine
from tests.contract.policies import (
    VOCAB_SIZE,
    Reference,
    altered,
    guard_gap,
    log_prob_gap,
    make_policy,
    push,
    requests,
    settings,
)
from tests.contract.running import Running

TIGHT = 2e-4  # float32 on both sides: the order of sums is all that differs
LONG = 200  # tokens: many steps, so that something happens between two of them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    make_policy(folder)
    return folder


@pytest.fixture(scope="module", params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def shared_engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[Engine]:
    """One engine for all tests of this file: vLLM takes seconds to start."""
    engine: Engine
    if request.param == "vllm":
        from inference.vllm_engine import VllmEngine

        engine = VllmEngine(folder, settings())
    else:
        engine = TransformersEngine(folder, settings())
    yield engine
    engine.close()


@pytest.fixture
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest.fixture
def engine(shared_engine: Engine, reference: Reference) -> Engine:
    """The shared engine as version 0, with the folder's weights."""
    push(shared_engine, reference.weights(0))
    return shared_engine


def test_completions_come_in_the_order_of_the_requests(engine: Engine) -> None:
    asked = [
        Request(request_id=f"r{i}", prompt_ids=one.prompt_ids, sampling=Sampling(max_tokens=1 + i % 5, seed=i))
        for i, one in enumerate(requests(100))  # more than max_sequences
    ]
    answered = engine.generate(asked, timeout_s=60)
    assert [one.request_id for one in answered] == [one.request_id for one in asked]
    assert [len(one.token_ids) for one in answered] == [1 + i % 5 for i in range(100)]
    for one in answered:
        assert one.token_ids.dtype == np.int32
        assert one.log_probs.dtype == np.float32
        assert one.log_probs.shape == one.token_ids.shape
        assert one.spans == (Span(start=0, version=0),)
        assert one.stop_reason is StopReason.LENGTH


def test_no_requests_no_completions(engine: Engine) -> None:
    assert engine.generate([], timeout_s=1) == []


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7, 0.0])
def test_log_probs_are_those_of_the_distribution_sampled_from(
    engine: Engine, reference: Reference, temperature: float
) -> None:
    asked = requests(16, temperature=temperature)
    assert log_prob_gap(reference, asked, engine.generate(asked, timeout_s=60)) < TIGHT


def test_log_probs_under_top_p_are_of_the_nucleus(engine: Engine, reference: Reference) -> None:
    """One token each: its log-prob is the full distribution's, divided by the mass of the nucleus it came from."""
    asked = requests(32, top_p=0.5, max_tokens=1)
    for one, answer in zip(asked, engine.generate(asked, timeout_s=60), strict=True):
        full = reference.next_log_probs(one.prompt_ids)
        ordered = np.sort(np.exp(full))[::-1]
        nucleus = ordered[: int(np.searchsorted(np.cumsum(ordered), 0.5)) + 1]
        token = int(answer.token_ids[0])
        assert np.exp(full[token]) >= nucleus[-1] - 1e-6, "a token outside the nucleus was drawn"
        assert answer.log_probs[0] == pytest.approx(full[token] - np.log(nucleus.sum()), abs=1e-3)


def test_greedy_is_the_likeliest_token_each_time(engine: Engine, reference: Reference) -> None:
    """Each engine equals the plain forward pass, so the engines equal each other."""
    asked = requests(6, temperature=0.0, max_tokens=12)
    answered = engine.generate(asked, timeout_s=60)
    assert [one.token_ids.tolist() for one in answered] == [reference.greedy(one.prompt_ids, 12) for one in asked]


def test_a_seed_fixes_the_draw_whoever_shares_the_batch(engine: Engine) -> None:
    asked = requests(12, max_tokens=6)
    together = engine.generate(asked, timeout_s=60)
    alone = engine.generate(asked[5:6], timeout_s=60)
    assert alone[0].token_ids.tolist() == together[5].token_ids.tolist()


def test_other_seeds_draw_other_tokens(engine: Engine) -> None:
    prompt = requests(1)[0].prompt_ids
    asked = [
        Request(request_id=str(seed), prompt_ids=prompt, sampling=Sampling(max_tokens=6, seed=seed))
        for seed in range(8)
    ]
    answered = engine.generate(asked, timeout_s=60)
    assert len({tuple(one.token_ids.tolist()) for one in answered}) > 1


def test_a_stop_token_ends_the_completion_and_is_part_of_it(engine: Engine, reference: Reference) -> None:
    plain = requests(1, temperature=0.0, max_tokens=12)[0]
    expected = reference.greedy(plain.prompt_ids, 12)
    stop = expected[4]
    sampling = Sampling(max_tokens=12, temperature=0.0, stop_token_ids=(stop, 257))
    answered = engine.generate([Request(request_id="s", prompt_ids=plain.prompt_ids, sampling=sampling)], timeout_s=60)
    assert answered[0].token_ids.tolist() == expected[: expected.index(stop) + 1]
    assert answered[0].stop_reason is StopReason.TERMINATED


def test_rows_that_stop_early_leave_the_others_alone(engine: Engine, reference: Reference) -> None:
    asked = [
        Request(request_id=str(i), prompt_ids=one.prompt_ids, sampling=Sampling(max_tokens=2 + 3 * i, temperature=0.0))
        for i, one in enumerate(requests(8))
    ]
    answered = engine.generate(asked, timeout_s=60)
    assert [len(one.token_ids) for one in answered] == [2 + 3 * i for i in range(8)]
    assert log_prob_gap(reference, asked, answered) < TIGHT


@pytest.mark.parametrize(
    ("prompt", "max_tokens"), [([], 4), ([1, 2, VOCAB_SIZE], 4), ([-1], 4), ([1] * 250, 50), ([1], 0)]
)
def test_a_request_that_cannot_be_served_fails_alone(engine: Engine, prompt: list[int], max_tokens: int) -> None:
    bad = Request(
        request_id="bad", prompt_ids=np.array(prompt, dtype=np.int32), sampling=Sampling(max_tokens=max_tokens)
    )
    first, second = requests(2)
    answered = engine.generate([first, bad, second], timeout_s=60)
    assert [one.stop_reason for one in answered] == [StopReason.LENGTH, StopReason.ENGINE_ERROR, StopReason.LENGTH]
    assert len(answered[1].token_ids) == 0
    assert answered[1].spans == (Span(start=0, version=0),)


def test_no_answer_in_time_is_an_error_and_the_engine_goes_on(engine: Engine, reference: Reference) -> None:
    with pytest.raises(EngineError, match="within"):
        engine.generate(requests(32, lengths=[9], max_tokens=LONG), timeout_s=0.01)
    asked = requests(4)
    assert log_prob_gap(reference, asked, engine.generate(asked, timeout_s=60)) < TIGHT


def test_many_callers_at_once_each_get_their_own(engine: Engine, reference: Reference) -> None:
    asked = [requests(6, seed=caller, max_tokens=5 + caller) for caller in range(6)]
    with ThreadPoolExecutor(len(asked)) as pool:
        answered = list(pool.map(lambda mine: engine.generate(mine, timeout_s=60), asked))
    for mine, got in zip(asked, answered, strict=True):
        assert [one.request_id for one in got] == [one.request_id for one in mine]
        assert log_prob_gap(reference, mine, got) < TIGHT


def test_control_answers_while_tokens_are_made(engine: Engine) -> None:
    running = Running(engine, requests(8, lengths=[9], max_tokens=LONG))
    assert engine.version == 0
    assert engine.stats()["requests"] >= 0
    assert not running.done, "the answers came only after the last token"
    assert len(running.result()) == 8


def test_a_push_replaces_the_weights(engine: Engine, reference: Reference) -> None:
    reference.train(seed=1, size=0.5)
    old = engine.stats()["pushes"]
    push(engine, reference.weights(7))
    asked = requests(8)
    answered = engine.generate(asked, timeout_s=60)
    assert engine.version == 7
    assert all(one.spans == (Span(start=0, version=7),) for one in answered)
    assert log_prob_gap(reference, asked, answered) < TIGHT
    assert engine.stats()["pushes"] == old + 1


def test_a_push_takes_read_only_arrays_and_bfloat16(engine: Engine, reference: Reference) -> None:
    """Arrays out of an object store may not be written to; numpy carries bfloat16 as uint16."""
    reference.train(seed=2, size=0.5)
    weights = reference.weights(3, dtype="bfloat16")
    for array in weights.tensors.values():
        array.flags.writeable = False
    push(engine, weights)
    asked = requests(8)
    assert log_prob_gap(reference, asked, engine.generate(asked, timeout_s=60)) < 0.05


def test_a_push_needs_a_pause(engine: Engine, reference: Reference) -> None:
    with pytest.raises(EngineError, match="pause"):
        engine.push(reference.weights(1))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model.norm.weight": None}, "model.norm.weight is missing"),
        ({"model.layers.9.norm.weight": np.zeros(4, dtype=np.float32)}, "model.layers.9.norm.weight is unknown"),
        ({"model.norm.weight": np.zeros(65, dtype=np.float32)}, r"shape \[65\], the model's is \[64\]"),
        ({"model.norm.weight": np.zeros(64, dtype=np.float64)}, "float64"),
    ],
)
def test_a_bad_push_is_refused_and_the_old_weights_serve_on(
    engine: Engine, reference: Reference, changes: dict[str, object], complaint: str
) -> None:
    asked = requests(8)
    before = engine.generate(asked, timeout_s=60)
    reference.train(seed=3, size=0.5)
    with pytest.raises(EngineError, match=complaint):
        push(engine, altered(reference.weights(9), changes))
    assert engine.version == 0
    after = engine.generate(asked, timeout_s=60)
    for first, second in zip(before, after, strict=True):
        assert first.token_ids.tolist() == second.token_ids.tolist()
        np.testing.assert_allclose(first.log_probs, second.log_probs, atol=1e-4)


def test_finish_lets_running_sequences_end_under_the_old_weights(engine: Engine, reference: Reference) -> None:
    asked = requests(4, lengths=[9], max_tokens=LONG)
    running = Running(engine, asked)
    engine.pause(InFlight.FINISH, timeout_s=60)
    answered = running.result()
    assert all(one.spans == (Span(start=0, version=0),) and len(one.token_ids) == LONG for one in answered)
    assert log_prob_gap(reference, asked, answered) < TIGHT
    engine.resume()


def test_requests_that_come_while_paused_wait_and_see_the_new_weights(engine: Engine, reference: Reference) -> None:
    engine.pause(InFlight.FINISH, timeout_s=60)
    asked = requests(4)
    waiting = Running(engine, asked, begun=False)
    reference.train(seed=4, size=0.5)
    engine.push(reference.weights(1))
    probes = requests(3, seed=9)
    assert log_prob_gap(reference, probes, engine.generate(probes, timeout_s=60, guard=True)) < TIGHT
    assert not waiting.done
    engine.resume()
    answered = waiting.result()
    assert all(one.spans == (Span(start=0, version=1),) for one in answered)
    assert log_prob_gap(reference, asked, answered) < TIGHT


def test_continue_goes_on_under_the_new_weights_and_says_where(engine: Engine, reference: Reference) -> None:
    asked = requests(4, lengths=[9], max_tokens=LONG)
    running = Running(engine, asked)
    engine.pause(InFlight.CONTINUE, timeout_s=60)
    frozen = reference.copy()
    reference.train(seed=5, size=0.5)
    engine.push(reference.weights(1))
    probes = requests(3, seed=9)
    checked = engine.generate(probes, timeout_s=60, guard=True)
    assert log_prob_gap(reference, probes, checked) < TIGHT
    assert all(one.spans == (Span(start=0, version=1),) for one in checked)
    assert not running.done, "held sequences went on while the engine was paused"
    engine.resume()
    for one, answer in zip(asked, running.result(), strict=True):
        assert len(answer.token_ids) == LONG
        assert answer.stop_reason is StopReason.LENGTH
        assert [span.version for span in answer.spans] == [0, 1]
        switch = answer.spans[1].start
        assert 0 < switch < LONG
        under_old = frozen.score(one.prompt_ids, answer.token_ids[:switch])
        np.testing.assert_allclose(answer.log_probs[:switch], under_old, atol=1e-2)
        assert np.abs(answer.log_probs[switch:] - frozen.score(one.prompt_ids, answer.token_ids)[switch:]).mean() > 0.1


def test_continue_without_a_push_changes_nothing(engine: Engine, reference: Reference) -> None:
    asked = requests(4, lengths=[9], max_tokens=LONG)
    running = Running(engine, asked)
    engine.pause(InFlight.CONTINUE, timeout_s=60)
    engine.resume()
    answered = running.result()
    assert all(one.spans == (Span(start=0, version=0),) and len(one.token_ids) == LONG for one in answered)
    assert log_prob_gap(reference, asked, answered) < TIGHT


def test_a_pause_that_takes_too_long_is_an_error_and_is_undone(engine: Engine) -> None:
    running = Running(engine, requests(8, lengths=[9], max_tokens=LONG))
    with pytest.raises(EngineError, match="did not finish"):
        engine.pause(InFlight.FINISH, timeout_s=0.001)
    assert len(engine.generate(requests(2), timeout_s=60)) == 2
    running.result()


def test_a_sleeping_engine_has_nothing_in_it_and_goes_on_when_it_wakes(engine: Engine, reference: Reference) -> None:
    running = Running(engine, requests(2, lengths=[9], max_tokens=LONG))
    engine.sleep(timeout_s=60)
    assert [len(one.token_ids) for one in running.result()] == [LONG, LONG], "what was running came to its end"
    asked = requests(4)
    waiting = Running(engine, asked, begun=False)
    busy_s = engine.stats()["busy_s"]
    engine.sleep(timeout_s=60)
    assert not waiting.done
    assert engine.stats()["busy_s"] == busy_s
    engine.wake()
    assert log_prob_gap(reference, asked, waiting.result()) < TIGHT
    engine.wake()
    push(engine, reference.weights(1))
    assert engine.version == 1


def test_the_guard_passes_a_good_push_and_sees_a_zeroed_tensor(engine: Engine, reference: Reference) -> None:
    reference.train(seed=6, size=0.5)
    weights = reference.weights(1)
    assert guard_gap(engine, reference, weights) < TIGHT
    name = "model.layers.1.self_attn.o_proj.weight"
    zeroed = altered(weights, {name: np.zeros_like(weights.tensors[name])})
    assert guard_gap(engine, reference, zeroed) > 0.15


def test_stats_count(engine: Engine) -> None:
    before = engine.stats()
    engine.generate(requests(4, lengths=[9], max_tokens=5), timeout_s=60)
    after = engine.stats()
    assert set(after) == {"requests", "prompt_tokens", "completion_tokens", "busy_s", "pushes"}
    assert after["requests"] - before["requests"] == 4
    assert after["prompt_tokens"] - before["prompt_tokens"] == 36
    assert after["completion_tokens"] - before["completion_tokens"] == 20
    assert after["busy_s"] > before["busy_s"]


def _closed(make: Callable[[], Engine]) -> None:
    engine = make()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.generate(requests(1), timeout_s=5)


def test_a_closed_transformers_engine_says_so(folder: Path) -> None:
    _closed(lambda: TransformersEngine(folder, settings()))


def test_closing_ends_waiting_calls(folder: Path) -> None:
    engine = TransformersEngine(folder, settings())
    engine.pause(InFlight.FINISH, timeout_s=5)
    waiting = Running(engine, requests(1), begun=False)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        waiting.result()


def test_the_same_calls_give_the_same_bits(folder: Path) -> None:
    """What `sync` mode's reproducible runs rest on."""
    asked = requests(24, top_p=0.9)
    first, second = (TransformersEngine(folder, settings()).generate(asked, timeout_s=60) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.token_ids.tobytes() == other.token_ids.tobytes()
        assert one.log_probs.tobytes() == other.log_probs.tobytes()


def test_bits_do_not_depend_on_what_other_threads_ask_for(folder: Path) -> None:
    engine = TransformersEngine(folder, settings())
    asked = [requests(8, seed=caller) for caller in range(4)]
    alone = [engine.generate(mine, timeout_s=60) for mine in asked]
    barrier = threading.Barrier(len(asked))

    def ask(mine: list[Request]) -> list[Completion]:
        barrier.wait()
        return engine.generate(mine, timeout_s=60)

    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(ask, asked))
    for first, second in zip(alone, together, strict=True):
        assert [one.log_probs.tobytes() for one in first] == [one.log_probs.tobytes() for one in second]


def test_a_missing_model_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no model could be loaded"):
        TransformersEngine(tmp_path / "nowhere", settings())
