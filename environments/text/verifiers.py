"""Reward functions of text tasks: two that come with Ratchet, and any `module:object` of the user's own folder.

A verifier takes the completion (stripped of white space at both ends) and the item as the data set made it, and gives a
finite number. Anything else that it does (raise, hang, return nonsense) ends the episode without a reward.

    def short(completion: str, entry: Mapping[str, Any]) -> float:      # in my_rewards.py: verifier: my_rewards:short
        return 1.0 if len(completion) < 10 else 0.0
"""

from __future__ import annotations

from collections.abc import Callable

from configs.objects import code_hash, load_object
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


def _imported(name: str) -> Verifier:
    asked = f"The verifier {name} was asked for (environment.verifier)."
    if ":" not in name:
        todo = "Set it to dataset, positions, or module:object from your own folder."
        raise UserError(asked, "There is none of that name.", todo)
    verifier: Verifier = load_object(name, asked=asked)
    return verifier
