"""Items from the user's own folder: a function that yields them, or a Gymnasium environment whose text is the item.

    def items(split, seed):                                    # in my_task.py: environment.name: my_task:items
        yield {"question": "2+2=", "answer": "4"}              # any other fields, for templates and verifiers

    class Maze(gymnasium.Env):                                 # environment.name: my_task:Maze
        def reset(self, *, seed=None, options=None): ...       # what it shows as text, and info
        def step(self, action): ...                            # the answer's text; what it shows next, reward, ends

Both get environment.parameters as keyword arguments. A function may go on for ever: it is asked until there are enough
distinct questions. An environment is reset with another seed for each item (and options["split"]), and reset with the
same seed whenever the item is tried: it must then be the same. The info of reset may have `answer`, shown by a warm
start, and `item`, a text that tells items apart which look alike because the environment hides something (a word to
guess); the info of step may have `exact`, whether the answer is right (else: whether the rewards sum up to exactly 1).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from configs.objects import code_hash, load_object
from configs.schema import Environment
from contracts.errors import UserError
from environments.text.sources import SEEDS_PER_RUN, Entry, Judgement, Source, Verifier, first_seed


class TextGame(Protocol):
    """What is used of gymnasium.Env[str, str]."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]: ...

    def step(self, action: str) -> tuple[str, Any, bool, bool, dict[str, Any]]: ...


def open_own(environment: Environment, *, seed: int, folder: Path | None) -> Source:
    """The source that environment.name (`module:object`) names. Raises UserError."""
    asked = f"The environment {environment.name} was asked for (environment.name)."
    found = load_object(environment.name, asked=asked, folder=folder)
    if hasattr(found, "reset") and hasattr(found, "step"):
        return GymSource(found, environment, seed=seed, asked=asked)
    return FunctionSource(found, environment, seed=seed, asked=asked)


class FunctionSource:
    """Items that a function of (split, seed, **parameters) yields."""

    judge = None
    score_answer: Verifier | None = None

    def __init__(self, function: Callable[..., Any], environment: Environment, *, seed: int, asked: str) -> None:
        self._function, self._environment, self._seed, self._asked = function, environment, seed, asked
        self.version = f"{environment.name} {code_hash(function)[:16]}"

    def entries(self, split: str) -> Iterator[Entry]:
        place = f"{self._environment.name}({split!r}, {self._seed})"
        rows = called(lambda: iter(self._function(split, self._seed, **self._environment.parameters)), self._asked)
        number = 0
        while True:
            row = called(lambda: next(rows, None), self._asked)
            if row is None:
                return
            yield checked_entry(row, place=f"item {number} of {place}", asked=self._asked)
            number += 1


class GymSource:
    """Items that an environment shows when it is reset, and the judge that it is itself."""

    score_answer: Verifier | None = None

    def __init__(
        self, make: Callable[..., TextGame], environment: Environment, *, seed: int, asked: str, code: str = ""
    ) -> None:
        """`code`: its hash; without one, that of `make`. Raises UserError where the environment cannot be made."""
        self._seed, self._asked = seed, asked
        code = code or code_hash(make)
        self.version = f"{environment.label} {code[:16]}"
        self._game = called(lambda: make(**environment.parameters), asked)
        self.judge = GameJudge(self._game, code=code)

    def entries(self, split: str) -> Iterator[Entry]:
        start = first_seed(self._seed, split)
        for seed in range(start, start + SEEDS_PER_RUN):
            shown = called(partial(self._game.reset, seed=seed, options={"split": split}), self._asked)
            if not (isinstance(shown, tuple) and len(shown) == 2 and isinstance(shown[1], Mapping)):
                raise UserError(self._asked, f"reset() gave {shown!r:.200}.", "It must give (text, info).")
            row = {**shown[1], "question": shown[0], "answer": shown[1].get("answer")}
            entry = checked_entry(row, place=f"reset(seed={seed})", asked=self._asked)
            hidden = {"_item": shown[1]["item"]} if "item" in shown[1] else {}
            yield {**entry, **hidden, "_reset": (seed, split)}


class GameJudge:
    """environments.text.sources.Judge by the environment itself: the reward is the sum of its rewards."""

    def __init__(self, game: TextGame, *, code: str) -> None:
        self._game, self.code = game, code
        self._total: Any = 0.0

    def start(self, entry: Entry) -> None:
        """Raises ValueError where the item is another than it was when the splits were made."""
        seed, split = entry["_reset"]
        shown, _ = self._game.reset(seed=seed, options={"split": split})
        if shown != entry["question"]:
            raise ValueError(
                f"reset with seed {seed} shows {shown!r:.100}, and showed {entry['question']!r:.100} before"
            )
        self._total = 0.0

    def judge(self, answer: str) -> Judgement:
        shown, reward, terminated, truncated, info = self._game.step(answer)
        self._total = self._total + reward
        right = bool(info.get("exact", self._total == 1.0))
        return Judgement(reward=self._total, exact=right, remark=None if terminated or truncated else shown)


def checked_entry(row: Any, *, place: str, asked: str) -> dict[str, Any]:
    """The row with `question` and `answer` as text. Raises UserError, naming the place, the field and what is there."""
    if not isinstance(row, Mapping):
        raise UserError(asked, f"{place} is {row!r:.100}, not a mapping.", 'Yield {"question": …, "answer": …}.')
    there = ", ".join(map(str, row)) or "no field at all"
    if "question" not in row:
        raise UserError(asked, f"{place} has no field question. It has: {there}.", "Every item needs a question.")
    entry = dict(row)
    for name in ("question", "answer"):
        entry[name] = as_text(row.get(name), name=name, place=place, asked=asked)
    return entry


def as_text(value: Any, *, name: str, place: str, asked: str) -> str | None:
    """Text, or a number as text; None is allowed for what is not a question. Raises UserError."""
    if value is None and name != "question":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(asked, f"{place}: {name} is {value!r:.100}, which is no text.", "Write text, or a number.")
    return str(value)


def called(action: Callable[[], Any], asked: str) -> Any:
    """What the user's own code gives. Raises UserError, naming the line, where it raises anything else."""
    try:
        return action()
    except UserError:
        raise
    except Exception as error:  # a named border: the user's own code
        last = traceback.extract_tb(error.__traceback__)[-1]
        found = f"Its code raised {type(error).__name__}: {error}."
        raise UserError(asked, found, f"Correct it: {last.filename}, line {last.lineno}.") from error
