"""Process identity: a number alone does not name a process."""

from __future__ import annotations

import os
import subprocess
import sys

from telemetry.process import is_alive, start_ticks


def test_a_process_is_known_until_it_ends() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ticks = start_ticks(child.pid)
    assert ticks is not None
    assert is_alive(child.pid, started=ticks)
    assert not is_alive(child.pid, started=ticks - 1), "another process that had this number"
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_ticks(child.pid) is None, "a zombie does nothing any more"
    child.communicate()
    assert not is_alive(child.pid, started=ticks)
