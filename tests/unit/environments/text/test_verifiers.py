"""The named reward functions, those of the user's own folder, and the hash of their code."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import UserError
from environments.text.catalogue import find_dataset
from environments.text.verifiers import find_verifier, positions

ENTRY = {"question": "abcd", "answer": "dcba"}
SCORE = find_dataset("spell_backward").create({}, seed=0, size=500).score_answer


@pytest.mark.parametrize(
    ("completion", "reward"),
    [("dcba", 1.0), ("DCBA", 1.0), ("dcb", 0.75), ("dcbaa", 0.8), ("xcxx", 0.25), ("", 0.0), ("abcd", 0.0)],
)
def test_positions(completion: str, reward: float) -> None:
    assert positions(SCORE)(completion, ENTRY) == reward


@given(answer=st.text(max_size=12), completion=st.text(max_size=12))
def test_positions_rewards_only_the_right_answer_with_one(answer: str, completion: str) -> None:
    reward = positions(SCORE)(completion, {"answer": answer})
    assert 0.0 <= reward <= 1.0
    assert (reward == 1.0) == (SCORE(completion, {"answer": answer}) == 1.0)
    assert reward == 1.0 or reward <= 0.8


def test_dataset_is_the_datasets_own() -> None:
    verifier, code = find_verifier("dataset", SCORE)
    assert verifier("dcxx", ENTRY) == SCORE("dcxx", ENTRY) == 0.5
    assert len(code) == 64


def test_each_verifier_has_its_own_code_hash() -> None:
    other = find_dataset("chain_sum").create({}, seed=0, size=500).score_answer
    codes = [find_verifier(name, score)[1] for name in ("dataset", "positions") for score in (SCORE, other)]
    assert len(set(codes)) == 4
    assert codes == [find_verifier(name, score)[1] for name in ("dataset", "positions") for score in (SCORE, other)]


def test_a_function_of_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "rewards_for_this_test.py"
    module.write_text("def short(completion, entry):\n    return 1.0 / (1 + len(completion))\n")
    monkeypatch.syspath_prepend(tmp_path)
    verifier, code = find_verifier("rewards_for_this_test:short", SCORE)
    assert verifier("abc", ENTRY) == 0.25
    module.write_text(module.read_text() + "# changed\n")
    assert find_verifier("rewards_for_this_test:short", SCORE)[1] != code


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("exact", "none of that name"),
        (":short", "not of the form"),
        ("nowhere_to_be_found:short", "No module named"),
        ("string:digits", "string has digits"),
        ("string:nothing", "string has no nothing"),
    ],
)
def test_a_wrong_name_is_explained(name: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        find_verifier(name, SCORE)
    assert words in caught.value.found
    assert caught.value.todo


def test_a_function_without_source_has_a_hash() -> None:
    assert len(find_verifier("operator:eq", SCORE)[1]) == 64
