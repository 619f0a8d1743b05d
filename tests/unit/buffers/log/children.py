"""Processes that the tests kill, stop, and starve: python -m tests.unit.buffers.log.children ROLE STORE [ARGUMENT]"""

from __future__ import annotations

import itertools
import os
import resource
import sys
import threading
from pathlib import Path

from buffers.log import LogReader, LogWriter, claim, read_identity
from contracts.errors import StoreFullError


def say(line: str) -> None:
    """One whole line, at once: what was said before a kill was said."""
    os.write(1, f"{line}\n".encode())


def open_owned(store: Path, *, segment_bytes: int) -> LogWriter:
    held = claim(store, uuid=read_identity(store))
    folder = store / "data"
    return LogWriter.open(
        folder,
        store_uuid=held.uuid,
        epoch=held.epoch,
        create=not folder.exists(),
        segment_bytes=segment_bytes,
        still_owner=held.still_owner,
    )


def write_for_ever(store: Path, label: str) -> None:
    """Four threads append batches of three records; each acknowledged batch is said: `label thread number`."""
    writer = open_owned(store, segment_bytes=64 << 10)
    say("ready")

    def run(thread: int) -> None:
        for number in itertools.count():
            name = f"{label} {thread} {number}"
            writer.append([(2, f"{name} {part} ".encode().ljust(300 * part + 40, b".")) for part in range(3)])
            say(name)

    for thread in range(4):
        threading.Thread(target=run, args=(thread,)).start()


def hold(store: Path, _label: str) -> None:
    """Own the store until the input ends."""
    writer = open_owned(store, segment_bytes=64 << 10)
    writer.append([(2, b"held")])
    say("ready")
    sys.stdin.read()


def run_out_of_space(store: Path, _label: str) -> None:
    """Append until no file may grow, go on trying, get the space back, go on; say every record's fate."""
    writer = open_owned(store, segment_bytes=256 << 10)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (70_001, hard))
    for number in range(24):
        if number == 16:
            assert len(list(LogReader(store / "data").scan())) > 0  # reads go on
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        try:
            writer.append([(2, f"{number} ".encode().ljust(9000, b"."))])
        except StoreFullError:
            say(f"full {number}")
        else:
            say(f"kept {number}")
    writer.close()


if __name__ == "__main__":
    roles = {"write": write_for_ever, "hold": hold, "full": run_out_of_space}
    roles[sys.argv[1]](Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
