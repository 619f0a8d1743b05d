"""Training and held-out items share no question, whatever the seed; too small data sets are refused."""

from __future__ import annotations

import dataclasses
import re

import pytest

from configs.schema import Environment
from contracts.errors import UserError
from environments.text.catalogue import find_dataset
from environments.text.dataset import Disjoint, TextTasks
from environments.text.verifiers import find_judge

WORDS = Environment(prompt="{word}=", train_items=300, held_out_items=40)


def test_quickstart_sizes_are_disjoint_and_unique() -> None:
    tasks = TextTasks(WORDS.model_copy(update={"train_items": 20_000, "held_out_items": 512}), seed=0)
    assert tasks.prove_disjoint() == Disjoint(train=20_000, held_out=512, shared=0)
    assert not {item.question for item in tasks.train} & {item.question for item in tasks.held_out}
    assert len({item.prompt for item in (*tasks.train, *tasks.held_out)}) == 20_512


def test_a_crowded_dataset_is_disjoint_too() -> None:
    """1,370 words of 3 letters serve 900 + 400 items: far seeds draw the same words again and again."""
    kind = find_dataset("spell_backward")
    short = {"min_word_len": 3, "max_word_len": 3}
    drawn = [kind.create(short, seed=seed, size=500) for seed in (0, 1 << 31)]
    first, second = ({dataset[i]["question"] for i in range(300)} for dataset in drawn)
    assert first & second  # the trap is there
    crowded = WORDS.model_copy(update={"parameters": short, "train_items": 900, "held_out_items": 400})
    assert TextTasks(crowded, seed=0).prove_disjoint() == Disjoint(train=900, held_out=400, shared=0)


def test_near_seeds_share_items_in_the_package_but_not_here() -> None:
    kind = find_dataset("spell_backward")
    assert kind.create({}, seed=1, size=500)[4]["answer"] == kind.create({}, seed=5, size=500)[0]["answer"]
    trains = [TextTasks(WORDS, seed=seed) for seed in (0, 1)]
    shared = {item.question for item in trains[0].train} & {item.question for item in trains[1].train}
    assert len(shared) < 30  # chance, of 151,367 words; not a shifted copy


def test_prove_disjoint_sees_a_shared_question() -> None:
    tasks = TextTasks(WORDS, seed=0)
    tasks.train = (*tasks.train, dataclasses.replace(tasks.held_out[3], prompt="another="))
    with pytest.raises(AssertionError, match="1 held-out items are trained on"):
        tasks.prove_disjoint()
    tasks.train = (*tasks.train[:-1], tasks.train[0])
    with pytest.raises(AssertionError, match="a training item occurs twice"):
        tasks.prove_disjoint()


def test_the_same_seed_gives_the_same_items_and_another_seed_others() -> None:
    first, again, other = (TextTasks(WORDS, seed=seed) for seed in (3, 3, 4))
    assert (first.train, first.held_out) == (again.train, again.held_out)
    assert first.train != other.train
    assert first.held_out != other.held_out


@pytest.mark.parametrize("seed", [-1, 511, 512, 2**40])
def test_any_seed_serves(seed: int) -> None:
    assert len(TextTasks(WORDS, seed=seed).train) == 300


def test_templates_take_metadata_and_question() -> None:
    tasks = TextTasks(WORDS.model_copy(update={"prompt": "{{{word}}} of {word_len}: ", "answer": " {answer}."}), seed=0)
    word = tasks.train[7].entry["metadata"]["word"]
    assert tasks.train[7].prompt == f"{{{word}}} of {len(word)}: "
    assert tasks.targets("train", [7]) == [f" {word[::-1]}."]
    [prompt] = tasks.prompts("train", [7])
    assert (prompt.index, prompt.task_id) == (7, "reasoning_gym/spell_backward/train/7")


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ({"prompt": "{wrod}="}, "no {wrod}"),
        ({"prompt": "{word"}, "expected '}'"),
        ({"prompt": "{}="}, "no {}"),
        ({"prompt": "{word.__class__}="}, "no {word.__class__}"),
        ({"answer": "{anser}"}, "no {anser}"),
        ({"prompt": "{word_len}="}, "gave 8 distinct questions"),
        ({"prompt": "="}, "gave 1 distinct questions"),
        ({"name": "gym"}, "none of that name"),
    ],
)
def test_wrong_settings_are_explained(update: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        TextTasks(WORDS.model_copy(update=update), seed=0)
    assert words in caught.value.found
    assert caught.value.todo


def test_too_few_questions_are_counted() -> None:
    short = WORDS.model_copy(update={"parameters": {"min_word_len": 3, "max_word_len": 3}, "train_items": 1_400})
    with pytest.raises(UserError) as caught:
        TextTasks(short, seed=0)
    told = re.search(r"gave (\d+) distinct questions", caught.value.found)
    assert told is not None
    assert 1_360 < int(told[1]) <= 1_370  # there are 1,370 words of three letters; the last few are seldom drawn
    assert f"environment.train_items to at most {int(told[1]) - 40}" in caught.value.todo


def test_a_dataset_without_answers_is_refused_for_a_warm_start() -> None:
    tasks = TextTasks(Environment(dataset="graph_color", train_items=5, held_out_items=5), seed=0)
    assert tasks.train[0].target is None
    with pytest.raises(UserError, match=r"warm_start\.steps to 0"):
        tasks.targets("train", [0])


def test_exact_is_exactly_one() -> None:
    """spell_backward gives 1.0000000000000002 for a nine-letter answer with a letter too many."""
    nine = WORDS.model_copy(update={"parameters": {"min_word_len": 9, "max_word_len": 9}})
    tasks = TextTasks(nine, seed=0)
    item = tasks.train[0]
    assert item.target is not None
    assert tasks.source.score_answer is not None
    assert tasks.source.score_answer(item.target + "x", item.entry) > 1.0
    judge = find_judge(nine, tasks.source)
    judge.start(item.entry)
    assert not judge.judge(item.target + "x").exact
    judge.start(item.entry)
    assert judge.judge(item.target).exact
