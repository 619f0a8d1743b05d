"""Make the golden files of the present format version, once: python -m tests.unit.buffers.log.make_golden

They are committed and read by tests for ever; a version that has its files is never made again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from buffers.log import LogReader, LogWriter
from buffers.log.frames import FORMAT_VERSION
from tests.unit.buffers.log.logs import STORE

GOLDEN = Path(__file__).parents[3] / "golden" / "log"
BATCHES = [[(2, b"")], [(3, b"one"), (4, bytes(range(256)))], [(0x7FFF, b"x" * 1500)], [(2, b"last")]]


def make(folder: Path) -> None:
    """data: closed, two segments. control: chained, two epochs, no watermark. crashed: as kill -9 leaves it."""
    folder.mkdir(parents=True)
    (folder / "store.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "uuid": str(STORE)}) + "\n")
    _write(folder / "data", epoch=1, create=True).close()
    _write(folder / "control", epoch=1, create=True, chained=True).close()
    _write(folder / "control", epoch=2, chained=True).close()
    (folder / "control" / "watermark").unlink()
    writer = _write(folder / "running" / "data", epoch=1, create=True)
    shutil.copytree(folder / "running", folder / "crashed")
    writer.close()
    expected = {name: _list_records(folder / name) for name in ("data", "control")}
    expected["crashed/data"] = _list_records(folder / "running" / "data")
    shutil.rmtree(folder / "running")
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


def _write(folder: Path, *, epoch: int, create: bool = False, chained: bool = False) -> LogWriter:
    writer = LogWriter.open(folder, store_uuid=STORE, epoch=epoch, create=create, chained=chained, segment_bytes=2048)
    for batch in BATCHES:
        writer.append(batch)
    return writer


def _list_records(folder: Path) -> list[list[int | str]]:
    return [
        [frame.lsn, frame.next_lsn, frame.kind, frame.epoch, frame.payload.hex()] for frame in LogReader(folder).scan()
    ]


if __name__ == "__main__":
    make(GOLDEN / f"v{FORMAT_VERSION}")
