"""Functions that yield items and Gymnasium environments of text, from the user's own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.schema import Environment
from contracts.errors import UserError
from contracts.records import StopReason
from environments.host import EnvironmentHost
from environments.text.dataset import TextTasks
from environments.text.env import TextEnv

CODE = '''
import itertools, random

def items(split, seed, limit=None):
    draw = random.Random(f"{split} {seed}")
    for number in itertools.count() if limit is None else range(limit):
        n = draw.randrange(500)
        yield {"question": f"{n}+1=", "answer": n + 1, "parity": n % 2}

def verify(answer, item):
    if answer == item["answer"]:
        return 1.0
    return 0.0, "even" if item["parity"] else "odd"

class Guess:
    """A hidden number: every item looks the same."""
    def __init__(self, top=1000):
        self.top = top

    def reset(self, *, seed=None, options=None):
        self.number, self.tries = random.Random(seed).randrange(self.top), 0
        return "Guess!", {"item": f"number {self.number}", "answer": str(self.number), "of": options["split"]}

    def step(self, action):
        self.tries += 1
        if not action.isdigit():
            raise ValueError("no number")
        right = int(action) == self.number
        hint = "more" if int(action) < self.number else "less"
        return hint, float(right), right, self.tries == 5, {}

class Fickle(Guess):
    def reset(self, *, seed=None, options=None):
        return f"Guess {random.random()}!", {}

class Broken(Guess):
    def __init__(self):
        raise RuntimeError("no luck")

class Bare(Guess):
    def reset(self, *, seed=None, options=None):
        return "only text"

def raising(split, seed):
    yield {"question": "1"}
    raise KeyError("gone")

def lists(split, seed):
    yield ["1+1=", "2"]

def unnamed(split, seed):
    yield {"text": "1+1="}

def numbers(split, seed):
    yield {"question": {"a": 1}}

def few(split, seed):
    return [{"question": str(i)} for i in range(20)]
'''


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A user's folder; its module has a name of this test's own, since Python imports a name once."""
    (tmp_path / f"own_{abs(hash(request.node.nodeid))}.py").write_text(CODE)
    return tmp_path


def settings(folder: Path, name: str, **update: Any) -> Environment:
    [module] = folder.glob("own_*.py")
    verifier = f"{module.stem}:verify" if name in ("items", "few") else "own"
    base = Environment(name=f"{module.stem}:{name}", verifier=verifier, train_items=60, held_out_items=20)
    return base.model_copy(update=update)


def test_a_function_yields_the_items(folder: Path) -> None:
    wanted = settings(folder, "items", prompt="{question} ({parity}) ")
    tasks = TextTasks(wanted, seed=4, folder=folder)
    assert tasks.prove_disjoint().shared == 0
    assert tasks.train == TextTasks(wanted, seed=4, folder=folder).train
    assert tasks.train != TextTasks(wanted, seed=5, folder=folder).train
    item = tasks.train[0]
    number = int(item.question.partition("+")[0])
    assert item.prompt == f"{number}+1= ({number % 2}) "
    assert item.target == str(number + 1)


def test_its_verifier_sees_the_item(folder: Path) -> None:
    environment = TextEnv(settings(folder, "items", max_turns=2), seed=0, folder=folder)
    environment.reset(options={"index": 0})
    entry = environment.tasks.train[0].entry
    remark, reward, *ends, _ = environment.step("none")
    assert (remark, reward, ends) == ("even" if entry["parity"] else "odd", 0.0, [False, False])
    assert environment.step(entry["answer"])[1:] == (1.0, True, False, {"parts": {"exact": 1.0}})
    assert len(environment.reward_code) == 64


def test_parameters_reach_the_function(folder: Path) -> None:
    with pytest.raises(UserError, match=", and no more"):
        TextTasks(settings(folder, "items", parameters={"limit": 30}), seed=0, folder=folder)


def test_an_environment_is_its_own_judge(folder: Path) -> None:
    environment = TextEnv(settings(folder, "Guess", max_turns=3, remark="{remark} ({of}): "), seed=0, folder=folder)
    assert environment.tasks.prove_disjoint().shared == 0
    assert {item.prompt for item in environment.tasks.train} == {"Guess!"}
    number = int(str(environment.tasks.held_out[2].target))
    environment.reset(options={"split": "held_out", "index": 2})
    assert environment.step(str(number + 1))[0] == "less (held_out): "
    assert environment.step(str(number)) == ("", 1.0, True, False, {"parts": {"exact": 1.0}})
    environment.reset(options={"split": "held_out", "index": 2})
    ends = [environment.step(str(number + 1))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)], "it would have gone on: it was truncated"


def test_the_host_plays_several_turns_from_any_child(folder: Path) -> None:
    with EnvironmentHost(settings(folder, "Guess", max_turns=3), seed=0, folder=folder) as host:
        number = int(host.targets("train", [0])[0])
        wrong, right = str(number + 1), str(number)
        verdicts = host.score(
            [("train", 0, [wrong]), ("train", 0, [wrong, right]), ("train", 0, [wrong] * 3), ("train", 0, ["x"])]
        )
        assert [verdict.remark for verdict in verdicts] == ["less", None, None, None]
        assert [verdict.reward for verdict in verdicts] == [0.0, 1.0, 0.0, None]
        assert [verdict.stop_reason for verdict in verdicts][1:] == [
            StopReason.TERMINATED,
            StopReason.TRUNCATED,
            StopReason.ENV_ERROR,
        ]
        host._child.stop()  # its next one knows nothing of the episode, and need not
        [again] = host.score([("train", 0, [wrong, right])])
        assert (again.reward, again.stop_reason) == (1.0, StopReason.TERMINATED)


def test_an_environment_that_changes_its_items_gives_no_reward(folder: Path) -> None:
    with EnvironmentHost(settings(folder, "Fickle", retries=0), seed=0, folder=folder) as host:
        [verdict] = host.score([("train", 0, ["1"])])
    assert verdict.stop_reason is StopReason.ENV_ERROR
    assert "before" in verdict.detail


@pytest.mark.parametrize(
    ("name", "found", "todo"),
    [
        ("Broken", "Its code raised RuntimeError: no luck", "line 38"),
        ("Bare", "reset() gave 'only text'", "(text, info)"),
        ("raising", "Its code raised KeyError: 'gone'", "line"),
        ("lists", "item 0 of own_", "Yield"),
        ("unnamed", "has no field question. It has: text.", "needs a question"),
        ("numbers", "question is {'a': 1}, which is no text", "Write text"),
        ("few", "gave 20 distinct questions", "Choose a source"),
        ("nothing", "has no nothing", "It has: items, verify"),
    ],
)
def test_faults_are_explained(folder: Path, name: str, found: str, todo: str) -> None:
    with pytest.raises(UserError) as caught:
        TextTasks(settings(folder, name), seed=0, folder=folder)
    assert "asked for" in caught.value.asked
    assert found in caught.value.found
    assert todo in caught.value.todo


def test_an_environment_takes_no_other_verifier(folder: Path) -> None:
    with pytest.raises(UserError, match="judges its answers itself"):
        TextEnv(settings(folder, "Guess", verifier="exact"), seed=0, folder=folder)
