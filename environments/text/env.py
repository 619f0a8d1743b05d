"""A text task as a Gymnasium environment: the observation is the prompt, the action the policy's whole answer.

    environment = TextEnv(TextTasks(config.environment, seed=0), verifier="dataset")
    prompt, info = environment.reset(options={"split": "train", "index": 7})
    _, reward, terminated, truncated, info = environment.step("tcap")

One turn ends the episode; a data set with more turns would give its next message as the observation.
"""

from __future__ import annotations

import string
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from environments.text.dataset import Item, TextTasks
from environments.text.verifiers import find_verifier

MAX_ACTION_CHARACTERS = 4_096  # of a sampled action; step() takes any text


class TextEnv(gymnasium.Env[str, str]):
    """`info` of reset: task_id, index, split, question; of step: parts, whose `exact` is 1.0 for a right answer."""

    def __init__(self, tasks: TextTasks, *, verifier: str = "dataset") -> None:
        """Raises UserError where there is no such verifier."""
        self.tasks = tasks
        self._verify, self.reward_code = find_verifier(verifier, tasks.score_answer)
        self._item: Item | None = None
        prompts = [item.prompt for item in (*tasks.train, *tasks.held_out)]
        characters = frozenset(string.printable).union(*prompts)
        self.observation_space = Text(max(map(len, prompts)), min_length=0, charset=characters)
        self.action_space = Text(MAX_ACTION_CHARACTERS, min_length=0, charset=characters)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start on item `options["index"]` of `options["split"]` (default "train"); without an index, on any."""
        super().reset(seed=seed)
        wanted = options or {}
        split = str(wanted.get("split", "train"))
        items = self.tasks.split(split)
        index = int(wanted["index"]) if "index" in wanted else int(self.np_random.integers(len(items)))
        self._item = items[index]
        task_id = self.tasks.prompts(split, [index])[0].task_id
        return self._item.prompt, {"task_id": task_id, "index": index, "split": split, "question": self._item.question}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Score the answer. The reward is what the verifier gave, unchecked: the host refuses nonsense."""
        assert self._item is not None, "reset() first"
        item, self._item = self._item, None
        completion = action.strip()
        reward = self._verify(completion, item.entry)
        exact = self.tasks.is_exact(completion, item)
        return "", reward, True, False, {"parts": {"exact": float(exact)}}
