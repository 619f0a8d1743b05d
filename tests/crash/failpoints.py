"""Ends a process at each step of an action: a kill before every single file operation, one after the other.

`kill_at_each_step` forks: the child arms a `FailPoint` and acts, and dies by SIGKILL at its nth step; the parent checks
what is left. Steps are what `tests/crash/disk.py` sees, and files opened, folders removed, and files copied by Python
itself (audit events), so an action that is built on other calls has its points too. No list of points is kept by hand.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.crash.disk import Operation, watched

_EVENTS = ("open", "os.rmdir", "os.remove", "os.rename", "os.link", "shutil.copyfile", "shutil.rmtree", "os.truncate")
_DONE = 17  # exit code of an action that came to its end
MOST_STEPS = 2000


class FailPoint:
    """Kills this process at the `nth` step (from 0) below `folder`, once it is `armed`."""

    def __init__(self, folder: Path, *, nth: int) -> None:
        self._folder, self._nth = str(folder.absolute()), nth
        self.count, self.armed = 0, False
        sys.addaudithook(self._hear)  # for the life of this process: only ever in a forked one

    def __call__(self, _: Operation) -> None:
        self._step()

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.armed and event in _EVENTS and str(arguments[0]).startswith(self._folder):
            self._step()

    def _step(self) -> None:
        if self.armed:
            if self.count == self._nth:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1


def kill_at_each_step(
    prepare: Callable[[Path], Callable[[], object]],
    check: Callable[[Path, bool], None],
    folder: Path,
    *,
    stride: int = 1,
) -> int:
    """How many steps were tried. `prepare(folder)` runs in the child and returns the action; `check(folder, done)` runs
    in the parent, where nothing of the child is left, with a folder of its own each time."""
    for number in range(0, MOST_STEPS, stride):
        place = folder / str(number)
        place.mkdir(parents=True)
        done = _run(prepare, place, nth=number)
        check(place, done)
        if done:
            return number // stride
    raise AssertionError(f"the action has more than {MOST_STEPS} steps")


def _run(prepare: Callable[[Path], Callable[[], object]], place: Path, *, nth: int) -> bool:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action = prepare(place)
            point = FailPoint(place, nth=nth)
            with watched(place, before=point):
                point.armed = True
                action()
                point.armed = False
            code = _DONE
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == _DONE, f"the action failed by itself: exit code {os.WEXITSTATUS(status)}"
        return True
    assert os.WTERMSIG(status) == signal.SIGKILL
    return False
