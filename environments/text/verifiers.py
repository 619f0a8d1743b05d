"""Reward functions of text tasks: the source's own, those that come with Ratchet, and any `module:object` of your own.

| environment.verifier | reward of an answer |
|---|---|
| own | what the source itself says: a reasoning-gym data set, a Gymnasium environment |
| positions | 1 if it is right, else min(0.8, share of right letters at their places) |
| exact | 1 if it is the item's answer, letter by letter, white space at both ends aside; else 0 |
| number | 1 if the last number in it is the item's within environment.tolerance; else 0 |
| math_verify | 1 if it means the same as the item's answer in mathematics (the package math-verify); else 0 |
| module:object | what a function of your own folder gives |

A verifier takes the answer (stripped of white space at both ends) and the item, and gives a finite number; 1 means
right. Where an episode has several turns it may give a remark besides, which the policy reads before it tries again.
Anything else that a verifier does (raise, hang, return nonsense) ends the episode without a reward.

    def short(answer, item):                          # in my_rewards.py: environment.verifier: my_rewards:short
        return 1.0 if len(answer) < 10 else (0.0, "Too long.")
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from configs.objects import code_hash, load_object
from configs.schema import Environment
from contracts.errors import UserError
from environments.text.sources import Entry, Judge, Judgement, Source, Verifier

PARTIAL_CAP = 0.8  # the most that a wrong answer earns: a right one must always be worth the last step
WRONG = "That is not right."  # the remark of a verifier that makes none
MARK = "_"  # in the remark of `positions`: this letter is wrong or missing
COMPARING = ("positions", "exact", "number", "math_verify")  # with the item's answer
NAMES = ("own", *COMPARING)
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


class VerifierJudge:
    """environments.text.sources.Judge by a function. The episode ends with a right answer, or with the last turn."""

    def __init__(self, verify: Verifier, *, code: str, max_turns: int, own: Verifier | None = None) -> None:
        """`own` says what is right where the source does; else the reward 1 does."""
        self.code = code
        self._verify, self._own, self._max_turns = verify, own, max_turns
        self._entry: Entry = {}
        self._turn = 0

    def start(self, entry: Entry) -> None:
        self._entry, self._turn = entry, 0

    def judge(self, answer: str) -> Judgement:
        self._turn += 1
        given = self._verify(answer, self._entry)
        reward, remark = given if isinstance(given, tuple) and len(given) == 2 else (given, WRONG)
        # Exactly 1: some of reasoning-gym's give more than 1 for a wrong answer, by rounding.
        exact = bool((reward if self._own is None else self._own(answer, self._entry)) == 1.0)
        over = exact or self._turn == self._max_turns
        return Judgement(reward=reward, exact=exact, remark=None if over else str(remark))


def find_judge(environment: Environment, source: Source, *, folder: Path | None = None) -> Judge:
    """Who judges the answers to the source's items. Raises UserError where the name leads nowhere."""
    name, own = environment.verifier, source.score_answer
    asked = f"The verifier {name} was asked for (environment.verifier)."
    if source.judge is not None:
        if name != "own":
            raise UserError(asked, f"{environment.name} judges its answers itself.", "Set it to own.")
        return source.judge
    if name in ("own", "positions") and own is None:
        todo = "Set it to exact, number, math_verify, or module:object from your own folder."
        raise UserError(asked, f"{environment.name} has no verifier of its own.", todo)
    verify, code = _find(environment, own, asked=asked, folder=folder)
    return VerifierJudge(verify, code=code, max_turns=environment.max_turns, own=own)


def check_answers(environment: Environment, entries: Iterable[Entry]) -> None:
    """Raises UserError where the verifier compares with answers and an item has none."""
    if environment.verifier not in COMPARING:
        return
    for entry in entries:
        if entry["answer"] is None:
            raise UserError(
                f"The verifier {environment.verifier} was asked for (environment.verifier).",
                f"An item of {environment.label} has no answer: {entry['question']!r:.100}.",
                "Choose a verifier that needs none, or say where answers are (environment.fields.answer).",
            )


def _find(environment: Environment, own: Verifier | None, *, asked: str, folder: Path | None) -> tuple[Verifier, str]:
    """The verifier and the hash of its code."""
    name = environment.verifier
    if own is not None and name == "own":
        return own, code_hash(own)
    if own is not None and name == "positions":
        return positions(own), code_hash(positions, own)
    if name == "exact":
        return exact, code_hash(exact)
    if name == "number":
        code = f"{code_hash(number)} {environment.tolerance!r}"
        return number(environment.tolerance), hashlib.sha256(code.encode()).hexdigest()
    if name == "math_verify":
        return math_verify, code_hash(math_verify)
    if ":" not in name:
        todo = f"Set it to {', '.join(NAMES)}, or module:object from your own folder."
        raise UserError(asked, "There is none of that name.", todo)
    verifier: Verifier = load_object(name, asked=asked, folder=folder)
    return verifier, code_hash(verifier)


def positions(score_answer: Verifier) -> Verifier:
    """1 if the source's own verifier says exactly 1, else min(0.8, share of right letters at their places).

    The remark shows the right letters, and a mark for each other: tc_p for tcxp where tcap was asked for.
    """

    def score(answer: str, entry: Entry) -> tuple[float, str]:
        if score_answer(answer, entry) == 1.0:
            return 1.0, ""
        wanted = _answer(entry)
        marks = "".join(
            MARK if given != letter else letter
            for given, letter in zip(answer.ljust(len(wanted)), wanted, strict=False)
        )
        right = sum(given == letter for given, letter in zip(answer, wanted, strict=False))
        return min(PARTIAL_CAP, right / max(1, len(wanted))), marks

    return score


def exact(answer: str, entry: Entry) -> float:
    return float(answer == _answer(entry).strip())


def number(tolerance: float) -> Verifier:
    """The last number in the answer against the last one in the item's: |a - b| <= tolerance · max(1, |a|, |b|).

    Numbers may have thousands commas and an exponent; fractions, roots and units are for math_verify.
    """

    def score(answer: str, entry: Entry) -> float:
        given, wanted = last_number(answer), last_number(_answer(entry))
        if wanted is None:
            raise ValueError(f"the item's answer {_answer(entry)!r} has no number")
        if given is None:
            return 0.0
        return float(abs(given - wanted) <= tolerance * max(1.0, abs(given), abs(wanted)))

    return score


def last_number(text: str) -> float | None:
    """The last number in the text; None where there is no finite one."""
    found = _NUMBER.findall(text)
    value = float(found[-1].replace(",", "")) if found else math.nan
    return value if math.isfinite(value) else None


def math_verify(answer: str, entry: Entry) -> float:
    """math-verify parses both, sympy compares them. Its own time limits are off: the environment's host has one."""
    import math_verify as package

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at each call that its limits are off
    text = _answer(entry)
    wanted = package.parse(text if "$" in text else f"${text}$", parsing_timeout=None)  # the whole of it is mathematics
    if not wanted:
        raise ValueError(f"the item's answer {_answer(entry)!r} is no mathematics that math-verify can read")
    return float(package.verify(wanted, package.parse(answer, parsing_timeout=None), timeout_seconds=None))


def _answer(entry: Entry) -> str:
    answer: Any = entry["answer"]
    if answer is None:
        raise ValueError("the item has no answer to compare with")
    return str(answer)
