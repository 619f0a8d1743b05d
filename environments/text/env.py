"""A text task as a Gymnasium environment: the observation is text, the action the policy's whole answer.

    environment = TextEnv(config.environment, seed=config.seed)
    prompt, info = environment.reset(options={"split": "train", "index": 7})
    remark, reward, terminated, truncated, info = environment.step("tcxp")      # "tc_p", 0.75, False, False, ...

An episode ends with a right answer, with the last of `environment.max_turns` answers, or when an environment of the
user's own says so; until then the next observation is the remark.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from configs.schema import Environment
from environments.text.dataset import Item, Template, TextTasks
from environments.text.sources import fields_of
from environments.text.verifiers import check_answers, find_judge

MAX_TEXT_CHARACTERS = 4_096  # of a sampled action or a remark; step() takes any text


class TextEnv(gymnasium.Env[str, str]):
    """`info` of reset: task_id, index, split, question; of step: parts, whose `exact` is 1.0 for a right answer."""

    def __init__(self, settings: Environment, *, seed: int, folder: Path | None = None) -> None:
        """`folder` holds the user's own code and files. Raises UserError."""
        self.tasks = TextTasks(settings, seed=seed, folder=folder)
        self._judge = find_judge(settings, self.tasks.source, folder=folder)
        check_answers(settings, (item.entry for item in (*self.tasks.train, *self.tasks.held_out)))
        self._remark, self._max_turns = Template(settings.remark, "environment.remark"), settings.max_turns
        self._remark.fill({**fields_of(self.tasks.train[0].entry), "remark": ""})
        self._item: Item | None = None
        self._turn = 0
        prompts = [item.prompt for item in (*self.tasks.train, *self.tasks.held_out)]
        characters = frozenset(string.printable).union(*prompts)
        longest = max(MAX_TEXT_CHARACTERS, *map(len, prompts))
        self.observation_space = Text(longest, min_length=0, charset=characters)
        self.action_space = Text(MAX_TEXT_CHARACTERS, min_length=0, charset=characters)

    @property
    def reward_code(self) -> str:
        """Hash of what judges."""
        return self._judge.code

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start on item `options["index"]` of `options["split"]` (default "train"); without an index, on any."""
        super().reset(seed=seed)
        wanted = options or {}
        split = str(wanted.get("split", "train"))
        items = self.tasks.split(split)
        index = int(wanted["index"]) if "index" in wanted else int(self.np_random.integers(len(items)))
        self._item, self._turn = items[index], 0
        self._judge.start(self._item.entry)
        task_id = self.tasks.prompts(split, [index])[0].task_id
        return self._item.prompt, {"task_id": task_id, "index": index, "split": split, "question": self._item.question}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Judge the answer. The reward is of the episode so far, unchecked: the host refuses nonsense."""
        assert self._item is not None, "reset() first"
        item, self._turn = self._item, self._turn + 1
        judged = self._judge.judge(action.strip())
        terminated = judged.remark is None
        truncated = not terminated and self._turn == self._max_turns
        observation = ""
        if terminated or truncated:
            self._item = None
        else:
            observation = self._remark.fill({**fields_of(item.entry), "remark": judged.remark})
        return observation, judged.reward, terminated, truncated, {"parts": {"exact": float(judged.exact)}}
