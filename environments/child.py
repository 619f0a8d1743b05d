"""The process in which environments run: `python -m environments.child`, started by environments/host.py alone.

It reads JSON lines on its standard input and answers in JSON lines; what a verifier prints goes to standard error. It
ends when its input ends, so that it cannot outlive its parent while idle; while it works, an alarm that the kernel
delivers ends it where verifier code hangs, even in C code that never lets Python run. Not covered: a verifier that sets
an alarm of its own and then hangs while the parent is already dead.

    {"environment": {...}, "seed": 0, "folder": "/…/task", "start_s": 600}
                                                                →  {"ready": {...}} or {"refused": [asked, found, todo]}
    {"score": [["train", 7, ["tcxp", "tcap"]], ...], "answer_s": 30}
                                                                →  a line for each, as soon as it is known:
                                                                   {"reward": 1.0, "parts": {...}, "remark": null,
                                                                   "truncated": false}, {"raised": "..."},
                                                                   or {"invalid": "..."}
    {"prompts": ["train", [7, 8]]}, {"targets": ["train", [7]]} →  {"answer": [...]} or {"refused": [...]}

An item is scored with all answers that the episode has so far: the child keeps no episode, so that another child can
take its place at any moment. `remark` is what the policy reads next, null at the episode's end.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TextIO

from configs.schema import Environment
from contracts.errors import UserError
from environments.text.dataset import TextTasks
from environments.text.env import TextEnv


def main() -> None:
    requests, answers = _take_channels()
    start = json.loads(requests.readline() or "null")
    if start is None:
        return
    signal.setitimer(signal.ITIMER_REAL, start["start_s"])
    try:
        environment = _open(start)
    except UserError as error:
        _write(answers, {"refused": [error.asked, error.found, error.todo]})
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    tasks = environment.tasks
    ready = {"version": tasks.version, "reward_code": environment.reward_code}
    _write(answers, {"ready": {**ready, "disjoint": dataclasses.asdict(tasks.prove_disjoint())}})
    for line in requests:
        request = json.loads(line)
        if "score" in request:
            for split, index, given in request["score"]:
                signal.setitimer(signal.ITIMER_REAL, request["answer_s"] * len(given))
                _write(answers, _score(environment, split, index, given))
            signal.setitimer(signal.ITIMER_REAL, 0)
        else:
            _write(answers, _read(tasks, request))


def _open(start: dict[str, Any]) -> TextEnv:
    folder = None if start["folder"] is None else Path(start["folder"])
    return TextEnv(Environment.model_validate(start["environment"]), seed=start["seed"], folder=folder)


def _score(environment: TextEnv, split: str, index: int, answers: Sequence[str]) -> dict[str, Any]:
    """One episode up to its last answer, of which anything may be expected."""
    try:
        environment.reset(options={"split": split, "index": index})
        for answer in answers[:-1]:
            environment.step(answer)
        observation, reward, terminated, truncated, info = environment.step(answers[-1])
        if not _is_finite(reward):
            return {"invalid": f"the reward is {reward!r:.200}, not a finite number"}
        remark = None if terminated or truncated else observation
        return {"reward": float(reward), "parts": info["parts"], "remark": remark, "truncated": truncated}
    except Exception as error:  # noqa: BLE001 - a named border: what an environment raises is data
        return {"raised": f"{type(error).__name__}: {error}"}


def _is_finite(reward: Any) -> bool:
    return isinstance(reward, Real) and math.isfinite(reward)


def _read(tasks: TextTasks, request: dict[str, Any]) -> dict[str, Any]:
    try:
        if "prompts" in request:
            return {"answer": [dataclasses.asdict(prompt) for prompt in tasks.prompts(*request["prompts"])]}
        return {"answer": tasks.targets(*request["targets"])}
    except UserError as error:
        return {"refused": [error.asked, error.found, error.todo]}


def _take_channels() -> tuple[TextIO, TextIO]:
    """Standard input and output for the parent alone: verifiers get an empty input, and standard error to print on."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return requests, answers


def _write(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()  # each line at once: the parent blames the first item without an answer


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the parent is gone: there is nobody to tell, and nothing to keep
        os._exit(0)
