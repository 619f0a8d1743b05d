"""The named reward functions, those of the user's own folder, their remarks, and the hash of their code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import Environment
from contracts.errors import UserError
from environments.text.catalogue import find_dataset
from environments.text.sources import Entry, Judge, Judgement, Source, Verifier
from environments.text.verifiers import exact, find_judge, last_number, math_verify, number, positions

ENTRY = {"question": "abcd", "answer": "dcba"}
SCORE = find_dataset("spell_backward").create({}, seed=0, size=500).score_answer


class Items:
    """A source of one item."""

    version, judge = "1", None

    def __init__(self, score_answer: Verifier | None = SCORE) -> None:
        self.score_answer = score_answer

    def entries(self, split: str) -> Iterator[Entry]:
        return iter([ENTRY])


def find(name: str, source: Source | None = None, *, folder: Path | None = None, **settings: Any) -> Judge:
    return find_judge(Environment(verifier=name, **settings), source or Items(), folder=folder)


def said(judge: Judge, *answers: str) -> list[Judgement]:
    judge.start(ENTRY)
    return [judge.judge(answer) for answer in answers]


@pytest.mark.parametrize(
    ("answer", "reward", "remark"),
    [
        ("dcba", 1.0, ""),
        ("DCBA", 1.0, ""),
        ("dcb", 0.75, "dcb_"),
        ("dcbaa", 0.8, "dcba"),
        ("xcxx", 0.25, "_c__"),
        ("", 0.0, "____"),
        ("abcd", 0.0, "____"),
    ],
)
def test_positions(answer: str, reward: float, remark: str) -> None:
    assert positions(SCORE)(answer, ENTRY) == (reward, remark)


@given(answer=st.text(max_size=12), wanted=st.text(max_size=12))
def test_positions_rewards_only_the_right_answer_with_one(answer: str, wanted: str) -> None:
    reward, remark = positions(SCORE)(answer, {"answer": wanted})
    assert 0.0 <= reward <= 1.0
    assert (reward == 1.0) == (SCORE(answer, {"answer": wanted}) == 1.0)
    assert reward == 1.0 or (reward <= 0.8 and len(remark) == len(wanted))


@pytest.mark.parametrize(
    ("verifier", "wanted", "right", "wrong"),
    [
        (exact, " 4 2", ["4 2"], ["42", "4 2.", "", "4  2"]),
        (number(1e-6), "1,234.5", ["so it is 1234.5", "3 and 1.2345e3", "1234.5000001"], ["1234", "", "1234.5 or 7"]),
        (number(0.01), "100", ["99.1", "$101"], ["98.9", "1"]),
        (number(0.01), "0", ["0.009", "-0.01"], ["0.02"]),
        (math_verify, "\\frac{1}{2}", ["0.5", "$\\frac{2}{4}$", "the answer is 1/2"], ["0.51", "half", ""]),
        (math_verify, "x^2 - 1", ["$(x-1)(x+1)$"], ["$x^2$"]),
    ],
)
def test_named_verifiers(verifier: Verifier, wanted: str, right: list[str], wrong: list[str]) -> None:
    entry = {"question": "?", "answer": wanted}
    assert [verifier(answer, entry) for answer in right] == [1.0] * len(right)
    assert [verifier(answer, entry) for answer in wrong] == [0.0] * len(wrong)


@pytest.mark.parametrize(("verifier", "wanted"), [(number(0.1), "none"), (math_verify, ""), (exact, None)])
def test_an_item_that_cannot_be_compared_is_no_reward_of_zero(verifier: Verifier, wanted: str | None) -> None:
    with pytest.raises(ValueError, match="item"):
        verifier("1", {"question": "?", "answer": wanted})


@pytest.mark.parametrize(("text", "value"), [("no", None), ("1e999", None), ("-.5", -0.5), ("2,000", 2000), ("7.", 7)])
def test_the_last_number(text: str, value: float | None) -> None:
    assert last_number(text) == value


def test_own_is_the_sources_own() -> None:
    judge = find("own")
    assert said(judge, "dcxx") == [Judgement(reward=0.5, exact=False, remark=None)]
    assert said(judge, "dcba") == [Judgement(reward=1.0, exact=True, remark=None)]
    assert len(judge.code) == 64


def test_an_episode_ends_with_a_right_answer_or_the_last_turn() -> None:
    judge = find("positions", max_turns=3)
    assert [one.remark for one in said(judge, "x", "dx", "dcx")] == ["____", "d___", None]
    assert [one.remark for one in said(judge, "x", "dcba")] == ["____", None]
    assert [one.remark for one in said(find("own", max_turns=2), "x")] == ["That is not right."]


def test_each_verifier_has_its_own_code_hash() -> None:
    other = Items(find_dataset("chain_sum").create({}, seed=0, size=500).score_answer)
    names = ("own", "positions", "exact", "number", "math_verify")
    codes = [find(name, source).code for name in names for source in (Items(), other)]
    assert len(set(codes)) == 4 + 3
    assert find("number", tolerance=0.1).code != find("number", tolerance=0.2).code
    assert codes == [find(name, source).code for name in names for source in (Items(), other)]


def test_a_function_of_the_users_folder(tmp_path: Path) -> None:
    module = tmp_path / "rewards_for_this_test.py"
    module.write_text("def short(answer, item):\n    return 1.0 / (1 + len(answer)), 'Too long.'\n")
    judge = find("rewards_for_this_test:short", Items(None), folder=tmp_path, max_turns=2)
    assert said(judge, "abc", "") == [
        Judgement(reward=0.25, exact=False, remark="Too long."),
        Judgement(reward=1.0, exact=True, remark=None),
    ]
    module.write_text(module.read_text() + "# changed\n")
    assert find("rewards_for_this_test:short", folder=tmp_path).code != judge.code


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("exakt", "none of that name"),
        (":short", "not of the form"),
        ("nowhere_to_be_found:short", "No module named"),
        ("string:digits", "string has digits"),
        ("string:nothing", "string has no nothing"),
    ],
)
def test_a_wrong_name_is_explained(name: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        find(name)
    assert words in caught.value.found
    assert caught.value.todo


@pytest.mark.parametrize("name", ["own", "positions"])
def test_a_source_without_a_verifier_wants_one(name: str) -> None:
    with pytest.raises(UserError) as caught:
        find(name, Items(None))
    assert "no verifier of its own" in caught.value.found
    assert "exact, number, math_verify" in caught.value.todo


def test_a_function_without_source_has_a_hash() -> None:
    assert len(find("operator:eq").code) == 64
