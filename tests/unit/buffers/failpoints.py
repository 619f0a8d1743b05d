"""Stops a piece of work at its n-th step on the disk, as a kill would: nothing that comes after happens either.

    for cut in failpoints(work): the work was stopped before one step; look at what is left, then let it be done again

A step is a call that changes what the disk holds or promises: fsync, a new name, a removed one, a truncation. Not
covered: writes that a power loss undoes (tests/unit/buffers/log enumerates those for the log).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any

import pytest

from contracts.errors import StoreError

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


_MOST = 1000  # steps of one piece of work


class Cut(BaseException):
    """Where the work was stopped. No `except Exception` of ours may take it for a failure that it can go on from.

    A log's own thread gets an input or output error in its place, which stops the log for good: nobody waits for it.
    """


@contextmanager
def cut_before(step: int) -> Iterator[list[str]]:
    """Everything from the `step`-th step on fails; gives the names of those that were done."""
    done: list[str] = []

    def guard(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **options: Any) -> Any:
            if len(done) >= step:
                if current_thread() is not main_thread():
                    raise OSError(errno.EIO, "stopped")
                raise Cut(f"before step {step}, {name}")
            done.append(name)
            return call(*arguments, **options)

        return guarded

    with pytest.MonkeyPatch.context() as patch:
        for module, name in STEPS:
            patch.setattr(module, name, guard(name, getattr(module, name)))
        yield done


def failpoints(work: Callable[[], object], *, prepare: Callable[[], object], every: int = 1) -> Iterator[int]:
    """Stop `work` before every `every`-th of its steps, after `prepare`; ends when it was not stopped any more."""
    for step in range(0, _MOST, every):
        prepare()
        with cut_before(step):
            try:
                work()
            except (Cut, StoreError):
                cut = True
            else:
                cut = False
        yield step
        if not cut:
            return
    raise AssertionError(f"{work} takes more than {_MOST} steps")
