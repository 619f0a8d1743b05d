"""Stops a piece of work at its n-th step on the disk, as a kill would: nothing that comes after happens either.

    for cut in failpoints(work): the work was stopped before one step; look at what is left, then let it be done again

A step is a call that changes what the disk holds or promises: fsync, a new name, a removed one, a truncation. Not
covered: writes that a power loss undoes (tests/unit/buffers/log enumerates those for the log).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

STEPS: tuple[tuple[Any, str], ...] = (
    (os, "fsync"),
    (os, "fdatasync"),
    (os, "ftruncate"),
    (os, "link"),
    (os, "rename"),
    (os, "replace"),
    (os, "unlink"),
    (os, "rmdir"),
)


class Cut(BaseException):
    """Where the work was stopped. No `except Exception` of ours may take it for a failure that it can go on from."""


@contextmanager
def cut_before(step: int) -> Iterator[list[str]]:
    """Everything from the `step`-th step on fails; gives the names of those that were done."""
    done: list[str] = []

    def guard(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **options: Any) -> Any:
            if len(done) >= step:
                raise Cut(f"before step {step}, {name}")
            done.append(name)
            return call(*arguments, **options)

        return guarded

    with pytest.MonkeyPatch.context() as patch:
        for module, name in STEPS:
            patch.setattr(module, name, guard(name, getattr(module, name)))
        yield done


def failpoints(work: Callable[[], object], *, prepare: Callable[[], object], most: int = 200) -> Iterator[int]:
    """Stop `work` before each of its steps in turn, `prepare` before each; ends when it was not stopped any more."""
    for step in range(most):
        prepare()
        with cut_before(step):
            try:
                work()
            except Cut:
                cut = True
            else:
                cut = False
        yield step
        if not cut:
            return
    raise AssertionError(f"{work} takes more than {most} steps")
