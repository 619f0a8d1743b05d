"""One slot's turn: what becomes of good answers, of an engine that fails, of an environment that fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contracts.errors import PromptTooLongError
from contracts.protocols import Completion, Request, Sampling, Verdict
from contracts.records import Disposition, Episode, IntArray, Purpose, StopReason
from loops.rollout import Place, RolloutSlot
from loops.tasks import PermutedSource, derive_seed
from loops.text import Policy, TextPlayer
from tests.crash.plain import DigitCodec, GuessingGame, NumpyEngine, PlainRun, plain_config


class FailingEngine(NumpyEngine):
    """Gives no answer to the requests that `fails` names."""

    def __init__(self, fails: Callable[[Request], bool]) -> None:
        super().__init__()
        self.version, self._fails = 0, fails

    def generate(self, requests: Sequence[Request], *, timeout_s: float, guard: bool = False) -> list[Completion]:
        answers = super().generate(requests, timeout_s=timeout_s, guard=guard)
        nothing = {"token_ids": np.empty(0, np.int32), "log_probs": np.empty(0, np.float32), "spans": ()}
        lost = {"stop_reason": StopReason.ENGINE_ERROR, **nothing}
        return [
            replace(answer, **lost) if self._fails(request) else answer  # type: ignore[arg-type]
            for request, answer in zip(requests, answers, strict=True)
        ]


class HangingGame(GuessingGame):
    """An environment whose second item never answers, as its host reports it."""

    def score(self, items: Sequence[tuple[str, int, Sequence[str]]]) -> list[Verdict]:
        verdicts = super().score(items)
        verdicts[1] = Verdict(reward=None, parts={}, stop_reason=StopReason.ENV_TIMEOUT, retries=2)
        return verdicts


@pytest.fixture
def run(tmp_path: Path) -> PlainRun:
    run = PlainRun(tmp_path, config=plain_config())
    run.loop.recover()  # version 0 is served: tasks are handed out
    return run


def slot(run: PlainRun, *, engine: NumpyEngine | None = None, game: GuessingGame | None = None) -> RolloutSlot:
    policy = Policy(engine=engine or run.engine, codec=DigitCodec())
    return RolloutSlot(
        run.owner,
        player=TextPlayer(policy, game or GuessingGame(), config=run.config),
        store_uuid=str(run.uuid),
        place=Place(producer="rollout-0.0"),
        episode_id=lambda uuid, lease, member: f"{uuid}-{lease}-{member}",
    )


def episodes(run: PlainRun) -> list[Episode]:
    return run.owner.read(sorted(lsn for group in run.owner._state.fold.groups.values() for lsn in group.lsns.values()))


def test_a_turn_appends_whole_groups(run: PlainRun) -> None:
    assert slot(run).turn() == 4
    kept = episodes(run)
    assert [episode.member for episode in kept] == [0, 1, 0, 1]
    assert all(episode.purpose is Purpose.TRAIN and episode.valid for episode in kept)
    assert {episode.oldest_version for episode in kept} == {0}
    assert [episode.seq for episode in kept] == [1, 2, 3, 4]
    assert slot(run).turn() == 0, "the step has its groups: admission is closed"
    run.close()


def test_an_engine_that_fails_gives_no_reward_of_zero(run: PlainRun) -> None:
    slot(run, engine=FailingEngine(lambda request: request.request_id.split(":")[1] == "1")).turn()
    lost = [episode for episode in episodes(run) if episode.member == 1]
    assert [episode.reward for episode in lost] == [None, None]
    assert {episode.stop_reason for episode in lost} == {StopReason.ENGINE_ERROR}
    run.loop._ports.store.append_batch(run.loop._batch_request())
    assert run.owner.ledger().ended[Disposition.QUARANTINED.value] == 2
    assert run.owner.ledger().balanced
    run.close()


def test_an_environment_that_hangs_gives_no_reward_of_zero(run: PlainRun) -> None:
    slot(run, game=HangingGame()).turn()
    hung = episodes(run)[1]
    assert (hung.reward, hung.stop_reason, hung.retries) == (None, StopReason.ENV_TIMEOUT, 2)
    assert all(
        episode.reward is not None for episode in episodes(run) if episode is not hung and episode.lease != hung.lease
    )
    run.close()


class ShortCodec(DigitCodec):
    """Refuses the prompts that name an odd item."""

    def encode_prompt(self, text: str) -> IntArray:
        if int(text) % 2:
            raise PromptTooLongError("a prompt of 9 tokens; at most 1 is allowed")
        return super().encode_prompt(text)


def test_a_prompt_that_is_too_long_is_data(run: PlainRun) -> None:
    policy = Policy(engine=run.engine, codec=ShortCodec())
    assert len(policy.encode("3")) == 0
    requests = [
        Request(request_id=text, prompt_ids=policy.encode(text), sampling=Sampling(max_tokens=1)) for text in "3243"
    ]
    completions = policy.complete(requests, timeout_s=1.0)
    assert [one.request_id for one in completions] == ["3", "2", "4", "3"]
    items = [("train", int(text), ["1"]) for text in "3243"]
    verdicts = policy.judge(completions, environment=GuessingGame(), items=items)
    assert [verdict.reward is None for verdict in verdicts] == [True, False, False, True]
    assert verdicts[0].stop_reason is StopReason.PROMPT_TOO_LONG
    run.close()


def test_the_order_of_tasks_is_a_seeded_permutation() -> None:
    source = PermutedSource("letters", num_items=7, seed=3)
    rounds = [[source(position)[1] for position in range(start, start + 7)] for start in (0, 7)]
    assert [sorted(indices) for indices in rounds] == [list(range(7))] * 2
    assert rounds[0] != rounds[1]
    assert source(3) == PermutedSource("letters", num_items=7, seed=3)(3)
    assert [source(p) for p in range(7)] != [PermutedSource("letters", num_items=7, seed=4)(p) for p in range(7)]
    assert source(3)[0] == f"letters/train/{source(3)[1]}"


def test_seeds_depend_on_every_part() -> None:
    seeds = {derive_seed(run, position, member) for run in range(5) for position in range(20) for member in range(8)}
    assert len(seeds) == 5 * 20 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 23) != derive_seed(12, 3)
