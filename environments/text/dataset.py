"""Training and held-out items of one text data set, disjoint by content.

    tasks = TextTasks(config.environment, seed=config.seed)
    tasks.train[7].prompt, tasks.train[7].target        # "pact=", "tcap"
    tasks.prove_disjoint()                              # Disjoint(train=20000, held_out=512, shared=0)

reasoning-gym makes item i of seed s from s + i, so two nearby seeds share most items. Seeds lie as follows; a
question that is held out is taken out of training all the same, because far seeds still draw the same words:

    0 .. 2^31 - 1       training: run seed r draws from (r mod 512) · 2^22 on
    2^31 .. 2^32 - 1    held out: the same, 2^31 further on
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from configs.schema import Environment
from contracts.errors import UserError
from contracts.protocols import Prompt
from environments.text.catalogue import DatasetKind, Entry, find_dataset, package_version

SPLITS = ("train", "held_out")
_SEEDS_PER_RUN = 1 << 22
_HELD_OUT_FROM = 1 << 31
_FEWEST, _MOST = 500, 20_000  # items of one data set object: acre cannot make few, word_ladder refuses more


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question. `prompt` is what the policy sees, `target` what supervised fine-tuning shows as the answer."""

    prompt: str
    target: str | None  # None: the data set has no single right answer
    entry: Entry

    @property
    def question(self) -> str:
        return str(self.entry["question"])


@dataclass(frozen=True, kw_only=True)
class Disjoint:
    """What was counted when the two splits were compared: distinct questions in each, and those in both: none."""

    train: int
    held_out: int
    shared: int


class TextTasks:
    """All items of a run, the same for the same (environment, seed). No question and no prompt occurs twice."""

    def __init__(self, environment: Environment, *, seed: int) -> None:
        """Raises UserError: no such data set or parameter, a wrong template, or too few distinct questions."""
        if environment.name != "reasoning_gym":
            raise UserError(
                f"The environment {environment.name} was asked for (environment.name).",
                "There is one kind of environment.",
                "Set it to reasoning_gym.",
            )
        self.name = f"{environment.name}/{environment.dataset}"
        self.version = f"reasoning-gym {package_version()}"
        kind = find_dataset(environment.dataset)
        self.score_answer = kind.create(environment.parameters, seed=0, size=_FEWEST).score_answer  # its own verifier
        draw = _Draw(kind, environment)
        first_seed = seed % (_HELD_OUT_FROM // _SEEDS_PER_RUN) * _SEEDS_PER_RUN
        self.held_out = draw.items(environment.held_out_items, first_seed + _HELD_OUT_FROM)
        self.train = draw.items(environment.train_items, first_seed)

    def split(self, name: str) -> Sequence[Item]:
        assert name in SPLITS, f"no split {name}"
        return self.train if name == "train" else self.held_out

    def prompts(self, split: str, indices: Sequence[int]) -> list[Prompt]:
        items = self.split(split)
        return [Prompt(task_id=f"{self.name}/{split}/{i}", index=i, text=items[i].prompt) for i in indices]

    def targets(self, split: str, indices: Sequence[int]) -> list[str]:
        """Completions to show in supervised fine-tuning. Raises UserError where the data set has none."""
        items = self.split(split)
        targets = [target for i in indices if (target := items[i].target) is not None]
        if len(targets) != len(indices):
            raise UserError(
                f"A warm start on {self.name} was asked for.",
                "This data set scores answers but gives none to learn from.",
                "Set warm_start.steps to 0, or choose another data set.",
            )
        return targets

    def is_exact(self, completion: str, item: Item) -> bool:
        """Whether the data set's own verifier says exactly 1: some give more than 1 for a wrong answer, by rounding."""
        return self.score_answer(completion, item.entry) == 1.0

    def prove_disjoint(self) -> Disjoint:
        """Compare the splits by question and by prompt; raises AssertionError if they share one."""
        num_shared = 0
        for part in ("question", "prompt"):
            train, held_out = ({getattr(item, part) for item in items} for items in (self.train, self.held_out))
            shared = train & held_out
            num_shared += len(shared)
            assert not shared, f"{len(shared)} held-out {part}s are trained on, {min(shared)!r} among them"
            assert len(train) == len(self.train), f"a training {part} occurs twice"
            assert len(held_out) == len(self.held_out), f"a held-out {part} occurs twice"
        return Disjoint(train=len(self.train), held_out=len(self.held_out), shared=num_shared)


class _Draw:
    """Draws items whose question and prompt no earlier item had."""

    def __init__(self, kind: DatasetKind, environment: Environment) -> None:
        self._kind, self._environment = kind, environment
        self._prompt = _Template(environment.prompt, "environment.prompt")
        self._target = _Template(environment.answer, "environment.answer")
        self._questions: set[str] = set()
        self._prompts: set[str] = set()

    def items(self, num_items: int, first_seed: int) -> tuple[Item, ...]:
        items: list[Item] = []
        fruitless = 0
        for entry in self._entries(num_items, first_seed):
            item = self._item(entry)
            if item.question in self._questions or item.prompt in self._prompts:
                fruitless += 1
                if fruitless > 1_000 + len(self._questions):
                    self._refuse(fruitless)
                continue
            fruitless = 0
            self._questions.add(item.question)
            self._prompts.add(item.prompt)
            items.append(item)
            if len(items) == num_items:
                break
        return tuple(items)

    def _entries(self, num_items: int, first_seed: int) -> Iterator[dict[str, Any]]:
        size = min(max(num_items, _FEWEST), _MOST)
        for seed in range(first_seed, first_seed + _SEEDS_PER_RUN, size):
            dataset = self._kind.create(self._environment.parameters, seed=seed, size=size)
            for index in range(size):
                yield dataset[index]
        self._refuse(_SEEDS_PER_RUN)

    def _item(self, entry: dict[str, Any]) -> Item:
        fields = {**entry["metadata"], "question": entry["question"], "answer": entry["answer"]}
        target = None if entry["answer"] is None else self._target.fill(fields)
        return Item(prompt=self._prompt.fill(fields), target=target, entry=entry)

    def _refuse(self, fruitless: int) -> NoReturn:
        environment, found = self._environment, len(self._questions)
        todo = "Choose parameters that give more"
        if found > environment.held_out_items:
            todo += f", or set environment.train_items to at most {found - environment.held_out_items}"
        raise UserError(
            f"{environment.train_items} training and {environment.held_out_items} held-out items were asked for.",
            f"{environment.dataset} gave {found} distinct questions (and prompts), then none in {fruitless} tries.",
            f"{todo}.",
        )


class _Template:
    """Text with {fields}: question, answer, and what the data set says of the item (its metadata)."""

    def __init__(self, text: str, key: str) -> None:
        self._text, self._key = text, key
        try:
            self._names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
        except ValueError as error:
            raise UserError(f"{key} {text!r} was asked for.", f"{error}.", "Write {{ for a brace itself.") from None

    def fill(self, fields: Mapping[str, Any]) -> str:
        for name in self._names:
            if name not in fields:
                there = ", ".join(f"{{{field}}}" for field in fields)
                raise UserError(
                    f"{self._key} {self._text!r} was asked for.", f"An item has no {{{name}}}.", f"It has {there}."
                )
        return self._text.format_map(fields)
