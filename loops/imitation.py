"""What supervised fine-tuning is shown of a text environment: prompts and the items' own answers, token by token.

Where an episode has several turns, every item is shown twice: as it is asked, and with a wrong answer and the
environment's remark in between. A wrong answer is the right one with some letters of another item's; the remark on it
is the environment's own.

    pact= ─► tcap            pact= tcxp, tc_p pact= ─► tcap
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from contracts.records import IntArray
from loops.text import TextCodec, TextEnvironment

SHARE_WRONG = 0.4  # of the letters of a wrong answer


class ImitationEnvironment(TextEnvironment, Protocol):
    """A text environment that knows right answers."""

    def targets(self, split: str, indices: Sequence[int]) -> list[str]:
        """Raises UserError where an item has none."""
        ...


class ImitationCodec(TextCodec, Protocol):
    def encode_completion(self, text: str) -> IntArray:
        """Token ids of an answer, end token included."""
        ...


def pairs_to_imitate(
    environment: ImitationEnvironment, codec: ImitationCodec, *, num_items: int, max_turns: int, seed: int
) -> list[tuple[IntArray, IntArray]]:
    """(prompt ids, completion ids) of all training items. Raises UserError where an item has no answer to show."""
    indices = range(num_items)
    prompts, targets = environment.prompts("train", indices), environment.targets("train", indices)
    pairs = [
        (codec.encode_prompt(prompt.text), codec.encode_completion(target))
        for prompt, target in zip(prompts, targets, strict=True)
    ]
    if max_turns == 1:
        return pairs
    random = np.random.default_rng(seed)
    wrong = [spoil(target, targets[i - 1], random) for i, target in enumerate(targets)]
    verdicts = environment.score([("train", i, [answer]) for i, answer in enumerate(wrong)])
    for i, (answer, verdict) in enumerate(zip(wrong, verdicts, strict=True)):
        if verdict.remark is not None:  # it is wrong, and may be tried again
            prompt_ids, completion_ids = pairs[i]
            said = (prompt_ids, codec.encode_completion(answer), codec.encode_remark(verdict.remark))
            pairs.append((np.concatenate(said), completion_ids))
    return pairs


def spoil(text: str, other: str, random: np.random.Generator) -> str:
    """The text with some letters, one at least, taken from `other`. May by chance be the text itself."""
    if not text or not other:
        return other
    places = random.random(len(text)) < SHARE_WRONG
    places[random.integers(len(text))] = True
    letters = random.integers(len(other), size=len(text))
    return "".join(other[letters[i]] if places[i] else letter for i, letter in enumerate(text))
