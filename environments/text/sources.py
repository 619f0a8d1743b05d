"""Where items come from: one interface for reasoning-gym's data sets, files, and what lies in the user's own folder.

    source = open_source(config.environment, seed=config.seed, folder=folder)
    next(source.entries("train"))        # {"question": "Spell this word backward: pact", "answer": "tcap", ...}

| environment.name | source |
|---|---|
| reasoning_gym | `ReasoningGym`: any of its data sets |
| dataset | files.py `FileSource`: rows of a JSONL or Parquet file |
| module:object | own.py `FunctionSource`: a function that yields items; `GymSource`: a Gymnasium environment of text |
| openenv | openenv.py: an environment of OpenEnv, played in this process |
| verifiers | prime_verifiers.py: a taskset of the public package `verifiers` |
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from configs.schema import Environment
from contracts.errors import UserError
from environments.text.catalogue import find_dataset, package_version

SPLITS = ("train", "held_out")
SEEDS_PER_RUN = 1 << 22
HELD_OUT_FROM = 1 << 31
_FEWEST, _MOST = 500, 20_000  # items of one data set object: acre cannot make few, word_ladder refuses more

Entry = Mapping[str, Any]  # `question`, `answer` (None: there is no single right one), and whatever else an item has
Verifier = Callable[[str, Entry], Any]  # a finite number, or that and a remark; anything else ends the episode


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What was said of one answer."""

    reward: Any  # of the episode so far; unchecked: environments/child.py refuses nonsense
    exact: bool  # whether it is right, whatever training rewards
    remark: str | None  # what the policy reads next; None: the episode is over


class Judge(Protocol):
    """Judges the answers of one episode after another. Must say the same again for the same item and answers."""

    @property
    def code(self) -> str:
        """Hash of its code."""
        ...

    def start(self, entry: Entry) -> None: ...

    def judge(self, answer: str) -> Judgement: ...


class Source(Protocol):
    """All items of both splits."""

    @property
    def version(self) -> str:
        """Of what the items are made from; for a file, the hash of its content."""
        ...

    @property
    def score_answer(self) -> Verifier | None:
        """The source's own verifier, if it has one."""
        ...

    @property
    def judge(self) -> Judge | None:
        """Where the source is an environment with answers of its own: then there is no choice of verifier."""
        ...

    def entries(self, split: str) -> Iterator[Entry]:
        """Items of the split in order, the same each time; may end, may repeat. Raises UserError."""
        ...


def open_source(environment: Environment, *, seed: int, folder: Path | None) -> Source:
    """The source that `environment.name` names; `folder` holds the user's own code and files (None: where we are).

    Raises UserError.
    """
    from environments.text.files import FileSource
    from environments.text.openenv import open_openenv
    from environments.text.own import open_own
    from environments.text.prime_verifiers import VerifiersSource

    if environment.name == "reasoning_gym":
        return ReasoningGym(environment, seed=seed)
    if environment.name == "dataset":
        return FileSource(environment, folder=folder)
    if ":" in environment.name:
        return open_own(environment, seed=seed, folder=folder)
    if environment.name == "openenv":
        return open_openenv(environment, seed=seed, folder=folder)
    if environment.name == "verifiers":
        return VerifiersSource(environment)
    raise UserError(
        f"The environment {environment.name} was asked for (environment.name).",
        "There is none of that name.",
        "Set it to reasoning_gym, dataset (a file), module:object from your own folder, openenv, or verifiers.",
    )


def first_seed(seed: int, split: str) -> int:
    """Where the seeds of a run's items begin: SEEDS_PER_RUN of them for each split, far from those of other runs."""
    start = seed % (HELD_OUT_FROM // SEEDS_PER_RUN) * SEEDS_PER_RUN
    return start if split == "train" else start + HELD_OUT_FROM


def by_hash(entries: Iterable[Entry]) -> list[Entry]:
    """In an order that hangs on the questions alone, so that the first ones can be held out."""
    return sorted(entries, key=lambda entry: hashlib.sha256(entry["question"].encode()).digest())


def fields_of(entry: Entry) -> dict[str, Any]:
    """What templates may name: the item's fields, and those of its metadata."""
    return {**entry.get("metadata", {}), **{name: value for name, value in entry.items() if name != "metadata"}}


class ReasoningGym:
    """A reasoning-gym data set. It makes item i of seed s from s + i, so two nearby seeds share most items."""

    judge = None

    def __init__(self, environment: Environment, *, seed: int) -> None:
        """Raises UserError: no such data set or parameter."""
        self._environment, self._seed = environment, seed
        self._kind = find_dataset(environment.dataset)
        self.version = f"reasoning-gym {package_version()}"
        own = self._kind.create(environment.parameters, seed=0, size=_FEWEST)
        self.score_answer: Verifier | None = own.score_answer

    def entries(self, split: str) -> Iterator[Entry]:
        environment = self._environment
        wanted = environment.train_items if split == "train" else environment.held_out_items
        size = min(max(wanted, _FEWEST), _MOST)
        start = first_seed(self._seed, split)
        for seed in range(start, start + SEEDS_PER_RUN, size):
            dataset = self._kind.create(environment.parameters, seed=seed, size=size)
            for index in range(size):
                yield dataset[index]
