"""Sort the digits of a number: where the questions come from, and what an answer is worth."""

import random
from collections.abc import Iterator, Mapping


def items(split: str, seed: int) -> Iterator[dict[str, str]]:
    """Questions without end. Ratchet takes as many distinct ones as it needs, and trains on none that is held out."""
    draw = random.Random(f"{split} {seed}")
    while True:
        digits = "".join(draw.choices("0123456789", k=draw.randint(3, 6)))
        yield {"question": f"{digits}>", "answer": "".join(sorted(digits))}


def verify(answer: str, item: Mapping[str, str]) -> float:
    """1 means right. A wrong answer earns up to a half: what the policy learns from are differences in a group."""
    wanted = item["answer"]
    if answer == wanted:
        return 1.0
    return 0.5 * sum(a == b for a, b in zip(answer, wanted, strict=False)) / len(wanted)
