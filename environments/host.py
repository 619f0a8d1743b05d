"""Run an environment in a child process, so that one which hangs or crashes costs its own episode and nothing else.

    with EnvironmentHost(config.environment, seed=config.seed, folder=folder) as host:
        host.prompts("train", [7])                                      # [Prompt(text="pact=", ...)]
        host.score([("train", 7, ["tcxp", "tcap"]), ("train", 8, ["x"])])   # [Verdict(reward=1.0, ...), ...]

The child answers item by item. Where the next answer does not come in time, or the child ends, the first item without
an answer is to blame: the child is killed and started again, the item is tried `retries` times more after the others,
and then gets a stop reason instead of a reward. The items before and behind it lose nothing.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from configs.schema import Environment
from contracts.errors import RatchetError, UserError
from contracts.protocols import Prompt, Verdict
from contracts.records import StopReason
from environments.text.dataset import Disjoint

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 600.0  # some data sets need minutes to make 20,000 items
_END_GRACE_S = 5.0  # between the end of a child's output and its exit code
_CHILD_GRACE_S = 20.0  # the child's own alarm is for the case that nobody is left to kill it

ScoreItem = tuple[str, int, Sequence[str]]  # (split, index, the episode's answers so far: at least one)


class EnvironmentHost:
    """Prompts and verdicts of one environment, as loops/text.py wants them. Thread-safe: calls take turns."""

    def __init__(self, environment: Environment, *, seed: int, folder: Path | None = None) -> None:
        """Starts the child and returns at once; the first call waits until it is ready and raises its UserError.

        `folder` holds the user's own code and files; None: the working directory.
        """
        self.name = environment.label
        self._environment, self._seed, self._folder = environment, seed, folder
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._child = _Child(environment, seed, folder)

    @property
    def version(self) -> str:
        return str(self._ready()["version"])

    @property
    def reward_code(self) -> str:
        """Hash of the verifier's code."""
        return str(self._ready()["reward_code"])

    @property
    def disjoint(self) -> Disjoint:
        """How many items each split has; the child has compared them."""
        return Disjoint(**self._ready()["disjoint"])

    @property
    def counts(self) -> Mapping[str, int]:
        """So far: `retries`, `restarts`, and failed tries by kind: `env_timeout`, `env_error`, `env_invalid`."""
        return dict(self._counts)

    def prompts(self, split: str, indices: Sequence[int]) -> list[Prompt]:
        return [Prompt(**prompt) for prompt in self._read({"prompts": [split, list(indices)]})]

    def targets(self, split: str, indices: Sequence[int]) -> list[str]:
        """What supervised fine-tuning shows as completions. Raises UserError where the data set has none."""
        return [str(target) for target in self._read({"targets": [split, list(indices)]})]

    def score(self, items: Sequence[ScoreItem]) -> list[Verdict]:
        """A verdict for each (split, index, answers so far), in order. One that fails has a stop reason and no reward.

        Raises UserError or RatchetError only where the child cannot be started again.
        """
        with self._lock:
            verdicts: dict[int, Verdict] = {}
            tries: Counter[int] = Counter()
            waiting = deque(range(len(items)))
            while waiting:
                for answer in self._exchange([items[i] for i in waiting]):
                    i = waiting.popleft()
                    verdict = _verdict(answer, retries=tries[i])
                    if verdict.reward is None:
                        self._counts[verdict.stop_reason.value] += 1
                        if tries[i] < self._environment.retries:
                            tries[i] += 1
                            self._counts["retries"] += 1
                            waiting.append(i)
                            continue
                    verdicts[i] = verdict
            return [verdicts[i] for i in range(len(items))]

    def close(self) -> None:
        self._child.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exchange(self, items: Sequence[ScoreItem]) -> list[dict[str, Any]]:
        """The child's answers to a first part of the items, one at least; the last may be that it hung or ended."""
        answer_s = self._environment.timeout_s
        child = self._living_child()
        answers: list[dict[str, Any]] = []
        timeout_s = answer_s
        try:
            child.send({"score": items, "answer_s": answer_s + _CHILD_GRACE_S}, timeout_s=answer_s)
            while len(answers) < len(items):
                timeout_s = answer_s * len(items[len(answers)][2])
                answers.append(child.receive(timeout_s=timeout_s))
        except TimeoutError:
            answers.append({"hung": f"no answer in {timeout_s:g} s"})
            child.stop()
        except EOFError:
            answers.append({"raised": f"the environment's process ended with code {child.stop(grace_s=_END_GRACE_S)}"})
        return answers

    def _read(self, request: dict[str, Any]) -> list[Any]:
        """Items hang no one: a child that fails here died of something else, and another one is asked."""
        with self._lock:
            for _ in range(self._environment.retries + 1):
                child = self._living_child()
                try:
                    child.send(request, timeout_s=self._environment.timeout_s)
                    return list(_accepted(child.receive(timeout_s=self._environment.timeout_s), "answer"))
                except (EOFError, TimeoutError):
                    child.stop()
            raise RatchetError(f"the process of environment {self.name} failed {self._environment.retries + 1} times")

    def _ready(self) -> dict[str, Any]:
        with self._lock:
            return self._child.ready()

    def _living_child(self) -> _Child:
        if not self._child.alive:
            self._counts["restarts"] += 1
            self._child.stop()
            self._child = _Child(self._environment, self._seed, self._folder)
        self._child.ready()
        return self._child


class _Child:
    """One process and the two pipes to it. Raises TimeoutError where it is silent, EOFError where it has ended."""

    def __init__(self, environment: Environment, seed: int, folder: Path | None) -> None:
        own = [] if folder is None else [str(folder)]  # what user code starts finds its modules too
        # Another Python brings its own packages: ours would hide them.
        path = [*sys.path, *own] if environment.python is None else [str(ROOT), *own]
        self._python = environment.python
        self._process = subprocess.Popen(
            [_find_python(environment), "-m", "environments.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
            process_group=0,  # Ctrl-C is for the driver; and what a verifier starts is killed with it
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        self._unread = b""
        self._answer: dict[str, Any] | None = None
        start = {
            "environment": environment.model_dump(mode="json"),
            "seed": seed,
            "folder": None if folder is None else str(folder),
            "start_s": START_TIMEOUT_S,
        }
        with suppress(EOFError):  # it has ended already: `ready` says so
            self.send(start, timeout_s=START_TIMEOUT_S)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ready(self) -> dict[str, Any]:
        """What it said when it was ready. Raises UserError (it refused) or RatchetError (it did not start)."""
        if self._answer is None:
            try:
                self._answer = self.receive(timeout_s=START_TIMEOUT_S)
            except (EOFError, TimeoutError):
                found = f"the environment's process did not start: code {self.stop(grace_s=_END_GRACE_S)}"
                if self._python is None:
                    raise RatchetError(found) from None
                todo = "the lines above say why; that Python needs numpy, pydantic, pyyaml and gymnasium"
                raise UserError(f"environment.python: {self._python}", found, todo) from None
        return dict(_accepted(self._answer, "ready"))

    def send(self, message: dict[str, Any], *, timeout_s: float) -> None:
        line = memoryview(json.dumps(message).encode() + b"\n")
        deadline = time.monotonic() + timeout_s
        while line:
            self._wait(self._requests, select.POLLOUT, deadline)
            try:
                line = line[os.write(self._requests, line) :]
            except BrokenPipeError:
                raise EOFError("it ended") from None

    def receive(self, *, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            self._wait(self._answers, select.POLLIN, deadline)
            piece = os.read(self._answers, 1 << 16)
            if not piece:
                raise EOFError("it ended")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self, *, grace_s: float = 0.0) -> int:
        """Kill it, and what a verifier started, after at most `grace_s`; its exit code. It holds nothing to lose."""
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        return code

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1_000):
            raise TimeoutError("no answer in time")


def _find_python(environment: Environment) -> str:
    """The interpreter of the child. Raises UserError where it is not there."""
    python = environment.python or sys.executable
    found = shutil.which(python)
    if found is None:
        todo = "give the absolute path of a virtual environment's bin/python, or leave it out"
        raise UserError(f"environment.python: {python}", "there is no such program", todo)
    return found


def _accepted(answer: dict[str, Any], key: str) -> Any:
    if "refused" in answer:
        raise UserError(*answer["refused"])
    return answer[key]


def _verdict(answer: dict[str, Any], *, retries: int) -> Verdict:
    if "reward" in answer:
        return Verdict(
            reward=answer["reward"],
            parts=answer["parts"],
            stop_reason=StopReason.TRUNCATED if answer["truncated"] else StopReason.TERMINATED,
            remark=answer["remark"],
            retries=retries,
        )
    kinds = {"hung": StopReason.ENV_TIMEOUT, "raised": StopReason.ENV_ERROR, "invalid": StopReason.ENV_INVALID}
    (kind, detail), *_ = answer.items()
    return Verdict(reward=None, parts={}, stop_reason=kinds[kind], retries=retries, detail=detail)
