"""Cut samples into micro-batches for a causal language model, with short samples packed beside each other in a row.

A sample is a prompt and a completion. Samples that follow each other with the same prompt share one copy of it, and
the attention mask lets a completion see its prompt and itself alone:

    row      p p p a a a b b b · q q c c c         p: one prompt, a and b its completions; q, c: another; · : nothing
    position 0 1 2 3 4 5 3 4 5   0 1 2 3 4         as if each completion stood alone behind its prompt

So the numbers are those of one sample a row, up to rounding; a group of 8 with a short prompt costs half the tokens.
A completion's last token is predicted and predicts nothing: it is left out of the input. Rows are padded on the right.

Shapes: R rows of L tokens in a micro-batch; K predicted (completion) tokens of it, sample after sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from contracts.records import IntArray

# Measured on one core with 1.9 M parameters: shorter rows repeat prompts, longer ones pay for masked-out attention.
ROW_TOKENS = 96
_NOTHING = -1

Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the policy was asked and what followed. `acted` marks the tokens of `completion_ids` that the policy chose:
    all of them, unless the environment spoke in between."""

    prompt_ids: IntArray  # [P], P >= 1
    completion_ids: IntArray  # [C]
    acted: BoolArray | None = None  # [C]; None: all


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One forward pass. `samples` are the places of its samples in the sequence that was packed."""

    samples: tuple[int, ...]
    tokens_RL: Int64Array
    positions_RL: Int64Array
    visible_RLL: BoolArray  # [row, from, to]: whether token `from` may see token `to`
    sources_K: Int64Array  # where in the flattened rows the prediction of each token is made
    targets_K: Int64Array  # the token that is predicted
    owners_K: Int64Array  # the sample each token belongs to

    @property
    def num_padded_tokens(self) -> int:
        return int(self.tokens_RL.size)


def pack(samples: Sequence[Sample], *, max_tokens: int, cuts: Sequence[int] = ()) -> list[MicroBatch]:
    """Micro-batches that hold every sample once; the same samples always give the same ones.

    `cuts` are the numbers of samples in each micro-batch, in order. Without them rows are sorted by length, longest
    first, and cut where a micro-batch would exceed `max_tokens` padded tokens; a longer single row stands alone.
    Raises ValueError where the cuts do not add up, or a prompt is empty.
    """
    if any(len(sample.prompt_ids) == 0 for sample in samples):
        raise ValueError("a sample without a prompt: its first token has nothing to be predicted from")
    if cuts:
        if sum(cuts) != len(samples) or min(cuts) < 1:
            raise ValueError(f"micro-batches of {tuple(cuts)} samples do not make up {len(samples)} samples")
        starts = np.cumsum([0, *cuts])
        return [_assemble(samples, _fill_rows(samples, range(start, end))) for start, end in pairwise(starts)]
    rows = sorted(_fill_rows(samples, range(len(samples))), key=lambda row: -row.length)
    return [_assemble(samples, part) for part in _cut(rows, max_tokens=max_tokens)]


@dataclass
class _Row:
    """Prompts with their completions: (place of the first sample with this prompt, places of all of them)."""

    trees: list[list[int]] = field(default_factory=list)
    length: int = 0


def _fill_rows(samples: Sequence[Sample], places: range) -> list[_Row]:
    """Put one sample after another into a row until it is full. A long prompt makes room for its own completions."""
    rows: list[_Row] = []
    for place in places:
        sample = samples[place]
        prompt, tail = len(sample.prompt_ids), max(0, len(sample.completion_ids) - 1)
        row = rows[-1] if rows else None
        shares = row is not None and np.array_equal(samples[row.trees[-1][0]].prompt_ids, sample.prompt_ids)
        room = max(ROW_TOKENS, 2 * prompt) if shares else ROW_TOKENS
        if row is None or row.length + tail + (0 if shares else prompt) > room:
            row, shares = _Row(), False
            rows.append(row)
        if shares:
            row.trees[-1].append(place)
        else:
            row.trees.append([place])
        row.length += tail + (0 if shares else prompt)
    return rows


def _cut(rows: list[_Row], *, max_tokens: int) -> Iterator[list[_Row]]:
    part: list[_Row] = []
    for row in rows:
        if part and (len(part) + 1) * part[0].length > max_tokens:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def _assemble(samples: Sequence[Sample], rows: list[_Row]) -> MicroBatch:
    R, L = len(rows), max(row.length for row in rows)
    tokens_RL, positions_RL = np.zeros((2, R, L), dtype=np.int64)
    trees_RL, branches_RL = np.full((2, R, L), _NOTHING, dtype=np.int64)
    sources: list[Int64Array] = []
    targets: list[Int64Array] = []
    owners: list[int] = []
    for r, row in enumerate(rows):
        at = 0
        for t, places in enumerate(row.trees):
            prompt_ids = samples[places[0]].prompt_ids
            P, root = len(prompt_ids), at
            tokens_RL[r, at : at + P] = prompt_ids
            positions_RL[r, at : at + P] = np.arange(P)
            trees_RL[r, at : at + P], branches_RL[r, at : at + P] = t, 0
            at += P
            for b, place in enumerate(places, start=1):
                completion_ids = samples[place].completion_ids.astype(np.int64)
                tail = max(0, len(completion_ids) - 1)
                tokens_RL[r, at : at + tail] = completion_ids[:tail]
                positions_RL[r, at : at + tail] = np.arange(P, P + tail)
                trees_RL[r, at : at + tail], branches_RL[r, at : at + tail] = t, b
                # The first token is predicted at the prompt's end, each later one where its forerunner stands.
                source = np.concatenate([[root + P - 1], np.arange(at, at + tail)])[: len(completion_ids)] + r * L
                acted = samples[place].acted
                sources.append(source if acted is None else source[acted])
                targets.append(completion_ids if acted is None else completion_ids[acted])
                owners.append(place)
                at += tail
    same_tree = trees_RL[:, :, None] == trees_RL[:, None, :]
    same_branch = (branches_RL[:, None, :] == 0) | (branches_RL[:, :, None] == branches_RL[:, None, :])
    return MicroBatch(
        samples=tuple(owners),
        tokens_RL=tokens_RL,
        positions_RL=positions_RL,
        visible_RLL=same_tree & same_branch & np.tri(L, dtype=np.bool_),
        sources_K=np.concatenate(sources).astype(np.int64),
        targets_K=np.concatenate(targets),
        owners_K=np.repeat(np.asarray(owners, dtype=np.int64), [len(target) for target in targets]),
    )
