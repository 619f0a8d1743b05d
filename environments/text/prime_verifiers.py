"""Tasksets of the public package `verifiers` (0.4, `verifiers.v1`), scored in the environment's own process.

    environment:
      name: verifiers
      dataset: my-task-v1                       # the taskset's id: a package that is installed in that Python
      parameters: {num_tasks: 500}              # of the taskset's own configuration
      prompt: "{system}{question}"
      python: /path/to/venv/bin/python          # where it and verifiers are installed

What fits: tasks that are asked in one prompt and answered in one text, whose rewards read nothing but the trace. What
does not, and is refused: tasks that need a container, tools, or a runtime to be scored, and tasksets with an
environment of their own (several agents, a user that answers). The whole of such a run is the package's own.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from configs.objects import code_hash
from configs.schema import Environment
from contracts.errors import UserError
from environments.text.own import called, checked_entry
from environments.text.sources import Entry, Judgement, Verifier, by_hash


class VerifiersSource:
    """environments.text.sources.Source by one taskset."""

    score_answer: Verifier | None = None

    def __init__(self, environment: Environment) -> None:
        """Raises UserError: the package or the taskset is not there, or does not fit."""
        self._asked = f"The taskset {environment.dataset} was asked for (environment.dataset)."
        loaders = self._module("verifiers.v1.utils.loaders")
        settings = {**environment.parameters, "id": environment.dataset}
        make = called(lambda: loaders.taskset_config_type(environment.dataset), self._asked)
        self._taskset = called(lambda: loaders.load_taskset(make.model_validate(settings)), self._asked)
        kind = type(self._taskset).task_type()
        self._check(loaders, environment.dataset, kind)
        package = importlib.import_module("verifiers").__version__
        code = code_hash(type(self._taskset), kind)
        self.version = f"verifiers {package} {environment.dataset} {code[:16]}"
        self.judge = TaskJudge(code=code)

    def entries(self, split: str) -> Iterator[Entry]:
        """The taskset knows no splits: they are drawn by hash, or, where it has no end, in its own order."""
        return self._entries() if self._taskset.INFINITE else iter(by_hash(self._entries()))

    def _entries(self) -> Iterator[Entry]:
        for task in self._taskset:
            data = task.data
            row = {**data.model_dump(), "question": data.prompt_text or None, "system": data.system_prompt or ""}
            entry = checked_entry(row, place=f"task {data.idx}", asked=self._asked)
            for hook in task.hooks("reward"):
                needed = inspect.signature(hook).parameters.get("runtime")
                if needed is not None and needed.default is inspect.Parameter.empty:
                    self._refuse(f"its reward {hook.__name__} needs a runtime")
            yield {**entry, "_task": task}

    def _check(self, loaders: Any, taskset: str, kind: Any) -> None:
        if loaders.environment_class(taskset) is not loaders.SingleAgentEnv:
            self._refuse("it brings an environment of its own")
        if kind.NEEDS_CONTAINER:
            self._refuse("its tasks need a container")
        if kind.toolsets(self._taskset.config.task) or type(self._taskset).toolsets(self._taskset.config):
            self._refuse("its tasks need tools")

    def _refuse(self, reason: str) -> None:
        raise UserError(
            self._asked, f"It does not fit: {reason}.", "Choose tasks that one text answers and a trace suffices for."
        )

    def _module(self, name: str) -> Any:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            todo = "Install verifiers 0.4 in a Python of its own, and name that: environment.python."
            raise UserError(self._asked, f"{name} cannot be imported here: {error}.", todo) from None


class TaskJudge:
    """environments.text.sources.Judge by the task's own rewards; right is what earns exactly 1."""

    def __init__(self, *, code: str) -> None:
        self.code = code
        self._task: Any = None

    def start(self, entry: Entry) -> None:
        self._task = entry["_task"]

    def judge(self, answer: str) -> Judgement:
        trace = make_trace(self._task, answer)
        asyncio.run(self._task.score(trace))
        return Judgement(reward=trace.reward, exact=trace.reward == 1.0, remark=None)


def make_trace(task: Any, answer: str) -> Any:
    """The verifiers.v1 Trace of a run in which the task's prompt got this one answer."""
    traces, graph, types = (importlib.import_module(f"verifiers.v1.{name}") for name in ("trace", "graph", "types"))
    agents = importlib.import_module("verifiers.v1.configs.agent")
    asked = types.UserMessage(content=task.data.prompt_text)
    answered = types.AssistantMessage(content=answer)
    return traces.Trace(
        task=traces.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
        agent=traces.AgentInfo(config=agents.AgentConfig()),
        nodes=[
            graph.MessageNode(message=asked),
            graph.MessageNode(parent=0, message=answered, sampled=True),
        ],
        is_completed=True,
        ok=True,
    )
