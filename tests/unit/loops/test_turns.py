"""Episodes of several turns: what the engine is asked, what is an action, which version acted, and how they end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from configs.schema import Engine
from contracts.protocols import Completion, Prompt, Request, Verdict
from contracts.records import Episode, IntArray, Lease, Span, StopReason, Task
from learners.rows import sample_of
from loops.evaluate import evaluate
from loops.text import Opening, Policy, Talk, TextPlayer, converse
from tests.crash.plain import plain_config

END = 9
ENGINE = Engine(backend="transformers", max_prompt_tokens=4, max_tokens=4, max_context_tokens=16)


class ScriptedEngine:
    """Answers turn t of an episode with the t-th of its answers; the version rises with every round."""

    def __init__(self, answers: dict[str, list[list[int]]], *, lost: Sequence[str] = ()) -> None:
        self.answers, self.lost = answers, lost
        self.rounds: list[list[Request]] = []

    def generate(self, requests: Sequence[Request], *, timeout_s: float, guard: bool = False) -> list[Completion]:
        self.rounds.append(list(requests))
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Completion:
        name, _, turn = request.request_id.partition(":")
        ids = (
            [] if request.request_id in self.lost else self.answers[name][int(turn or 0)][: request.sampling.max_tokens]
        )
        whole = bool(ids) and ids[-1] == END
        reason = StopReason.TERMINATED if whole else StopReason.LENGTH if ids else StopReason.ENGINE_ERROR
        return Completion(
            request_id=request.request_id,
            token_ids=np.array(ids, dtype=np.int32),
            log_probs=-np.arange(1, len(ids) + 1, dtype=np.float32),
            spans=(Span(start=0, version=len(self.rounds)),),
            stop_reason=reason,
        )


class DigitCodec:
    """A token a digit; a remark begins with token 8."""

    stop_token_ids = (END,)

    def encode_prompt(self, text: str) -> IntArray:
        return np.array([int(letter) for letter in text], dtype=np.int32)

    def encode_remark(self, text: str) -> IntArray:
        return np.array([8, *(int(letter) for letter in text)], dtype=np.int32)

    def decode(self, token_ids: IntArray) -> str:
        return "".join(str(token) for token in token_ids if token != END)


class AddOne:
    """Item n wants n + 1; the remark is the answer's distance. Breaks at an answer of 7. loops.text.TextEnvironment."""

    name, version, reward_code = "add", "1", "add-1"

    def __init__(self, *, max_turns: int = 3) -> None:
        self.max_turns = max_turns
        self.heard: list[tuple[str, int, Sequence[str]]] = []

    def prompts(self, split: str, indices: Sequence[int]) -> list[Prompt]:
        return [Prompt(task_id=f"add/{split}/{index}", index=index, text=str(index)) for index in indices]

    def score(self, items: Sequence[tuple[str, int, Sequence[str]]]) -> list[Verdict]:
        self.heard += items
        return [self._verdict(index, answers) for _, index, answers in items]

    def _verdict(self, index: int, answers: Sequence[str]) -> Verdict:
        if answers[-1] == "7":
            return Verdict(reward=None, parts={}, stop_reason=StopReason.ENV_ERROR, retries=1)
        reward = float(answers[-1] == str(index + 1))
        over = bool(reward) or len(answers) == self.max_turns
        remark = None if over else str(abs(int(answers[-1]) - index - 1))
        return Verdict(reward=reward, parts={"exact": reward}, stop_reason=StopReason.TERMINATED, remark=remark)


def play(answers: dict[str, list[list[int]]], *, lost: Sequence[str] = (), engine: Engine = ENGINE) -> dict[str, Talk]:
    """The episodes of item 4 that the scripts tell."""
    scripted, game = ScriptedEngine(answers, lost=lost), AddOne()
    openings = [
        Opening(split="train", index=4, prompt_ids=np.array([4], dtype=np.int32), request_id=name, temperature=1.0)
        for name in answers
    ]
    policy = Policy(engine=scripted, codec=DigitCodec())
    return dict(zip(answers, converse(policy, openings, environment=game, engine=engine), strict=True))


def test_the_engine_reads_everything_so_far_and_only_of_open_episodes() -> None:
    answers = {"slow": [[1, END], [2, END], [5, END]], "fast": [[5, END]], "two": [[6, END], [5, END]]}
    scripted, game = ScriptedEngine(answers), AddOne()
    openings = [
        Opening(split="train", index=4, prompt_ids=np.array([4], dtype=np.int32), request_id=name, temperature=1.0)
        for name in answers
    ]
    converse(Policy(engine=scripted, codec=DigitCodec()), openings, environment=game, engine=ENGINE)
    asked = [[(one.request_id, one.prompt_ids.tolist()) for one in requests] for requests in scripted.rounds]
    assert asked == [
        [("slow", [4]), ("fast", [4]), ("two", [4])],
        [("slow:1", [4, 1, END, 8, 4]), ("two:1", [4, 6, END, 8, 1])],
        [("slow:2", [4, 1, END, 8, 4, 2, END, 8, 3])],
    ]
    assert [item for item in game.heard if item[2][0] == "1"] == [
        ("train", 4, ("1",)),
        ("train", 4, ("1", "2")),
        ("train", 4, ("1", "2", "5")),
    ]


def test_only_the_policys_own_tokens_are_actions() -> None:
    """Against a mask made by hand: prompt 4 | 1 END, remark 8 4, 2 END, remark 8 3, 5 END."""
    talk = play({"slow": [[1, END], [2, END], [5, END]]})["slow"]
    sample = sample_of(episode_of(talk))
    assert sample.prompt_ids.tolist() == [4]
    assert sample.completion_ids.tolist() == [1, END, 8, 4, 2, END, 8, 3, 5, END]
    assert sample.acted is not None
    assert sample.acted.astype(int).tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 1, 1]
    log_probs = np.concatenate([step.log_probs for step in talk.steps])
    assert log_probs.tolist() == [-1, -2, -1, -2, -1, -2], "one for each acted token, in order"


def test_version_spans_count_the_acted_tokens_of_all_turns() -> None:
    talk = play({"slow": [[1, END], [2, 2, END], [5, END]]})["slow"]
    assert talk.spans == [Span(start=0, version=1), Span(start=2, version=2), Span(start=5, version=3)]


def test_one_version_over_several_turns_is_one_span() -> None:
    class Still(ScriptedEngine):
        def _answer(self, request: Request) -> Completion:
            answer = super()._answer(request)
            return Completion(**{**answer.__dict__, "spans": (Span(start=0, version=6),)})

    policy = Policy(engine=Still({"a": [[1, END], [5, END]]}), codec=DigitCodec())
    opening = Opening(split="train", index=4, prompt_ids=np.array([4], np.int32), request_id="a", temperature=1.0)
    [talk] = converse(policy, [opening], environment=AddOne(), engine=ENGINE)
    assert talk.spans == [Span(start=0, version=6)]


def test_how_episodes_end() -> None:
    talks = play(
        {
            "right": [[1, END], [5, END]],
            "never": [[1, END], [2, END], [3, END]],
            "cut": [[1, END], [2, 2, 2, 2]],
            "broken": [[1, END], [7, END]],
            "lost": [[1, END], [5, END]],
        },
        lost=["lost:1"],
    )
    ends = {name: (talk.stop_reason, talk.verdict.reward, len(talk.steps)) for name, talk in talks.items()}
    assert ends == {
        "right": (StopReason.TERMINATED, 1.0, 2),
        "never": (StopReason.TERMINATED, 0.0, 3),
        "cut": (StopReason.LENGTH, 0.0, 2),
        "broken": (StopReason.ENV_ERROR, None, 2),
        "lost": (StopReason.ENGINE_ERROR, None, 2),
    }
    assert talks["broken"].verdict.retries == 1


def test_the_episode_has_a_token_limit_of_its_own() -> None:
    script = {"long": [[1, 1, END], [2, 2, 2, END], [5, END]]}
    room = {limit: play(script, engine=ENGINE.model_copy(update={"max_context_tokens": limit})) for limit in (6, 8, 12)}
    ends = {limit: (talks["long"].stop_reason, len(talks["long"].steps)) for limit, talks in room.items()}
    assert ends == {
        6: (StopReason.TRUNCATED, 1),  # 1 + 3 + 2 of the remark: no room for an answer
        8: (StopReason.LENGTH, 2),  # room for two of four tokens
        12: (StopReason.TRUNCATED, 2),
    }
    cut = room[8]["long"]
    assert sum(len(step.observation) + len(step.action) for step in cut.steps) == 8
    assert all(talks["long"].verdict.reward == 0.0 for talks in room.values()), "it was judged, and is data"


def test_a_refused_prompt_ends_at_once() -> None:
    opening = Opening(split="train", index=4, prompt_ids=np.empty(0, np.int32), request_id="a", temperature=1.0)
    scripted = ScriptedEngine({})
    [talk] = converse(Policy(engine=scripted, codec=DigitCodec()), [opening], environment=AddOne(), engine=ENGINE)
    assert (talk.stop_reason, talk.verdict.reward) == (StopReason.PROMPT_TOO_LONG, None)
    assert scripted.rounds == [[]]


def test_each_turn_has_a_seed_of_its_own() -> None:
    config = plain_config()
    environment = config.environment.model_copy(update={"max_turns": 3})
    config = config.model_copy(update={"engine": ENGINE, "environment": environment})

    class Same(ScriptedEngine):
        def _answer(self, request: Request) -> Completion:
            answer = super()._answer(
                Request(request_id="any", prompt_ids=request.prompt_ids, sampling=request.sampling)
            )
            return Completion(**{**answer.__dict__, "request_id": request.request_id})

    scripted = Same({"any": [[1, END]]})
    player = TextPlayer(Policy(engine=scripted, codec=DigitCodec()), AddOne(), config=config)
    task = Task(task_id="add/train/4", position=0, index=4, group_size=2, producer="p", branch=0)
    episodes = player.play([Lease(lsn=1, task=task, missing=(0, 1))])
    seeds = [one.sampling.seed for requests in scripted.rounds for one in requests]
    assert len(set(seeds)) == 6
    assert None not in seeds
    assert [len(episode.steps) for episode in episodes] == [3, 3]
    again = TextPlayer(Policy(engine=scripted, codec=DigitCodec()), AddOne(), config=config)
    again.play([Lease(lsn=7, task=task, missing=(0, 1))])
    assert [one.sampling.seed for requests in scripted.rounds[3:] for one in requests] == seeds


@pytest.mark.parametrize("max_turns", [1, 3])
def test_held_out_items_have_as_many_turns(max_turns: int) -> None:
    """Item 0 is right at once, item 1 at the second try, item 2 never."""
    scripts = {0: [[1, END]], 1: [[1, END], [2, END]], 2: [[1, END], [1, END], [1, END]]}

    class ByItem(ScriptedEngine):
        def _answer(self, request: Request) -> Completion:
            turn = sum(1 for token in request.prompt_ids if token == END)
            self.answers = {"any": scripts[int(request.prompt_ids[0])]}
            asked = Request(request_id=f"any:{turn}", prompt_ids=request.prompt_ids, sampling=request.sampling)
            return super()._answer(asked)

    config = plain_config()
    environment = config.environment.model_copy(update={"max_turns": max_turns, "held_out_items": 3})
    samples = config.evaluate.model_copy(update={"samples": 3})
    config = config.model_copy(update={"engine": ENGINE, "environment": environment, "evaluate": samples})
    policy = Policy(engine=ByItem({}), codec=DigitCodec())
    scores = evaluate(policy, environment=AddOne(max_turns=max_turns), config=config, version=1, step=1).scores
    if max_turns == 1:
        assert scores["sampled_accuracy"] == scores["greedy_accuracy"] == pytest.approx(1 / 3)
        assert "first_try_accuracy" not in scores
        return
    assert scores["sampled_accuracy"] == scores["greedy_accuracy"] == pytest.approx(2 / 3)
    assert scores["first_try_accuracy"] == scores["first_try_greedy_accuracy"] == pytest.approx(1 / 3)
    assert scores["first_try_pass@3"] == pytest.approx(1 / 3)
    assert scores["turns_mean"] == pytest.approx((1 + 2 + 3) / 3)


def episode_of(talk: Talk) -> Episode:
    config = plain_config().model_copy(update={"engine": ENGINE})
    player = TextPlayer(Policy(engine=ScriptedEngine({}), codec=DigitCodec()), AddOne(), config=config)
    task = Task(task_id="add/train/4", position=0, index=4, group_size=1, producer="p", branch=0)
    return player._episode(Lease(lsn=1, task=task, missing=(0,)), 0, talk)
