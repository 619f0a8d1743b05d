"""Golden files: logs of each format version, committed as they were written, are read for ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from buffers.log import LogReader, LogWriter, read_identity, verify_chain
from buffers.log.frames import FORMAT_VERSION

GOLDEN = Path(__file__).parents[3] / "golden" / "log"
VERSIONS = sorted(path.name for path in GOLDEN.glob("v*"))


def test_the_present_version_has_golden_files() -> None:
    assert f"v{FORMAT_VERSION}" in VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("log", ["data", "control", "crashed/data"])
def test_golden_logs_are_read_and_go_on(tmp_path: Path, version: str, log: str) -> None:
    golden = GOLDEN / version
    uuid = read_identity(golden)
    expected = json.loads((golden / "expected.json").read_text())[log]
    reader = LogReader(golden / log, store_uuid=uuid)
    found = [[frame.lsn, frame.next_lsn, frame.kind, frame.epoch, frame.payload.hex()] for frame in reader.scan()]
    assert found == expected
    if reader.chained:
        assert verify_chain(reader) > len(expected)
    shutil.copytree(golden / log, tmp_path / log)
    writer = LogWriter.open(tmp_path / log, store_uuid=uuid, epoch=3, chained=reader.chained)
    assert (writer.recovery.num_frames, writer.recovery.rot, writer.recovery.torn_bytes) == (len(expected), (), 0)
    (lsn,) = writer.append([(2, b"new")])
    writer.close()
    again = LogReader(tmp_path / log)
    assert again.read(lsn).payload == b"new"
    assert len(list(again.scan())) == len(expected) + 1
