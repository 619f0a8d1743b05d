"""Training and held-out items of one text task, disjoint by content, whatever source they come from.

    tasks = TextTasks(config.environment, seed=config.seed)
    tasks.train[7].prompt, tasks.train[7].target        # "pact=", "tcap"
    tasks.prove_disjoint()                              # Disjoint(train=20000, held_out=512, shared=0)

A question that is held out is taken out of training, also where the source draws the splits from far seeds or names
them itself: both may hold the same words.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from configs.schema import Environment
from contracts.errors import UserError
from contracts.protocols import Prompt
from environments.text.sources import SPLITS, Entry, Source, fields_of, open_source


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question. `prompt` is what the policy sees, `target` what supervised fine-tuning shows as the answer."""

    prompt: str
    target: str | None  # None: the source has no single right answer
    entry: Entry

    @property
    def question(self) -> str:
        return str(self.entry["question"])

    @property
    def identity(self) -> tuple[str, ...]:
        """What no two items share: question and prompt each; or what the source says, where items look alike because an
        environment hides what they differ in."""
        return (str(self.entry["_item"]),) if "_item" in self.entry else (self.question, self.prompt)


@dataclass(frozen=True, kw_only=True)
class Disjoint:
    """What was counted when the two splits were compared: distinct items in each, and those in both: none."""

    train: int
    held_out: int
    shared: int


class TextTasks:
    """All items of a run, the same for the same (environment, seed). No question and no prompt occurs twice."""

    def __init__(self, environment: Environment, *, seed: int, folder: Path | None = None) -> None:
        """`folder` holds the user's own code and files. Raises UserError: a source that is not there or refuses its
        parameters, a wrong template, a bad row, or too few distinct questions."""
        self.name = environment.label
        self.source = open_source(environment, seed=seed, folder=folder)
        self.version = self.source.version
        draw = _Draw(self.source, environment)
        self.held_out = draw.items("held_out", environment.held_out_items)
        self.train = draw.items("train", environment.train_items)

    def split(self, name: str) -> Sequence[Item]:
        assert name in SPLITS, f"no split {name}"
        return self.train if name == "train" else self.held_out

    def prompts(self, split: str, indices: Sequence[int]) -> list[Prompt]:
        items = self.split(split)
        return [Prompt(task_id=f"{self.name}/{split}/{i}", index=i, text=items[i].prompt) for i in indices]

    def targets(self, split: str, indices: Sequence[int]) -> list[str]:
        """Completions to show in supervised fine-tuning. Raises UserError where the items have none."""
        items = self.split(split)
        targets = [target for i in indices if (target := items[i].target) is not None]
        if len(targets) != len(indices):
            raise UserError(
                f"A warm start on {self.name} was asked for.",
                "Its answers are scored, but some items give none to learn from.",
                "Set warm_start.steps to 0, or choose another data set.",
            )
        return targets

    def prove_disjoint(self) -> Disjoint:
        """Compare the splits by question and by prompt (see Item.identity); raises AssertionError if they share one."""
        num_shared = 0
        for part in range(len(self.train[0].identity)):
            train, held_out = ({item.identity[part] for item in items} for items in (self.train, self.held_out))
            shared = train & held_out
            num_shared += len(shared)
            assert not shared, f"{len(shared)} held-out items are trained on, {min(shared)!r} among them"
            assert len(train) == len(self.train), "a training item occurs twice"
            assert len(held_out) == len(self.held_out), "a held-out item occurs twice"
        return Disjoint(train=len(self.train), held_out=len(self.held_out), shared=num_shared)


class _Draw:
    """Draws items that share nothing with an earlier one (see Item.identity)."""

    def __init__(self, source: Source, environment: Environment) -> None:
        self._source, self._environment = source, environment
        self._prompt = Template(environment.prompt, "environment.prompt")
        self._target = Template(environment.answer, "environment.answer")
        self._seen: tuple[set[str], ...] = (set(), set())

    def items(self, split: str, num_items: int) -> tuple[Item, ...]:
        items: list[Item] = []
        fruitless = 0
        for entry in self._source.entries(split):
            item = self._item(entry)
            parts = list(zip(self._seen, item.identity, strict=False))
            if any(part in seen for seen, part in parts):
                fruitless += 1
                if fruitless > 1_000 + len(self._seen[0]):
                    self._refuse(split, len(items), f"then none in {fruitless} tries")
                continue
            fruitless = 0
            for seen, part in parts:
                seen.add(part)
            items.append(item)
            if len(items) == num_items:
                break
        else:
            self._refuse(split, len(items), "and no more")
        return tuple(items)

    def _item(self, entry: Entry) -> Item:
        fields = fields_of(entry)
        target = None if entry["answer"] is None else self._target.fill(fields)
        return Item(prompt=self._prompt.fill(fields), target=target, entry=entry)

    def _refuse(self, split: str, num_items: int, end: str) -> NoReturn:
        environment, found = self._environment, len(self._seen[0])
        todo = "Choose a source or parameters that give more"
        if num_items:
            todo += f", or set environment.{split}_items to at most {num_items}"
        raise UserError(
            f"{environment.train_items} training and {environment.held_out_items} held-out items were asked for.",
            f"{environment.label} gave {found} distinct questions (and prompts), {end}.",
            f"{todo}.",
        )


class Template:
    """Text with {fields} of the item."""

    def __init__(self, text: str, key: str) -> None:
        self._text, self._key = text, key
        try:
            self._names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
        except ValueError as error:
            raise UserError(f"{key} {text!r} was asked for.", f"{error}.", "Write {{ for a brace itself.") from None

    def fill(self, fields: Mapping[str, Any]) -> str:
        for name in self._names:
            if name not in fields:
                there = ", ".join(f"{{{field}}}" for field in fields if not field.startswith("_"))
                place = f" ({fields['place']})" if "place" in fields else ""
                raise UserError(
                    f"{self._key} {self._text!r} was asked for.",
                    f"An item{place} has no {{{name}}}.",
                    f"It has {there}.",
                )
        return self._text.format_map(fields)
