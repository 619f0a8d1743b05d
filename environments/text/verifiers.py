"""Reward functions of text tasks: two that come with Ratchet, and any `module:object` of the user's own folder.

A verifier takes the completion (stripped of white space at both ends) and the item as the data set made it, and gives a
finite number. Anything else that it does (raise, hang, return nonsense) ends the episode without a reward.

    def short(completion: str, entry: Mapping[str, Any]) -> float:      # in my_rewards.py: verifier: my_rewards:short
        return 1.0 if len(completion) < 10 else 0.0
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any

from contracts.errors import UserError
from environments.text.catalogue import Entry

Verifier = Callable[[str, Entry], float]

PARTIAL_CAP = 0.8  # the most that a wrong answer earns: a right one must always be worth the last step


def positions(score_answer: Verifier) -> Verifier:
    """1 if the data set's own verifier says exactly 1, else min(0.8, share of right positions of the answer)."""

    def score(completion: str, entry: Entry) -> float:
        if score_answer(completion, entry) == 1.0:
            return 1.0
        answer: str = entry["answer"]
        right = sum(given == wanted for given, wanted in zip(completion, answer, strict=False))
        return min(PARTIAL_CAP, right / max(1, len(answer)))

    return score


def find_verifier(name: str, score_answer: Verifier) -> tuple[Verifier, str]:
    """The verifier and the hash of its code. Raises UserError where the name leads nowhere."""
    if name == "dataset":
        return score_answer, code_hash(score_answer)
    if name == "positions":
        return positions(score_answer), code_hash(positions, score_answer)
    verifier = _imported(name)
    return verifier, code_hash(verifier)


def code_hash(*functions: Callable[..., Any]) -> str:
    """SHA-256 (hex) of names and whole source files: a helper that changed beside a function counts too."""
    digest = hashlib.sha256()
    for function in functions:
        named = function if hasattr(function, "__qualname__") else type(function)  # an object with __call__
        owner = type(getattr(function, "__self__", None))  # a data set may inherit its verifier
        for part in (named, owner) if owner is not NoneType else (named,):
            digest.update(part.__qualname__.encode() + b"\0" + _source(part) + b"\0")
    return digest.hexdigest()


def _source(part: Callable[..., Any]) -> bytes:
    """The whole file that defines it; what is compiled has its module's name alone."""
    try:
        return Path(inspect.getfile(part)).read_bytes()
    except TypeError:
        return part.__module__.encode()


def _imported(name: str) -> Verifier:
    asked = f"The verifier {name} was asked for (environment.verifier)."
    module_name, colon, object_name = name.partition(":")
    if not (module_name and colon and object_name):
        todo = "Set it to dataset, positions, or module:object from your own folder."
        raise UserError(asked, "There is none of that name.", todo)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a named border: the user's own module may fail in any way
        found = f"Importing {module_name} failed: {type(error).__name__}: {error}."
        raise UserError(asked, found, "Run from the folder that holds the module, and see that it imports.") from error
    verifier = getattr(module, object_name, None)
    if not callable(verifier):
        found = f"{module_name} has no function {object_name}."
        callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(asked, found, f"It has: {', '.join(callables) or 'none'}.")
    found_verifier: Verifier = verifier
    return found_verifier
