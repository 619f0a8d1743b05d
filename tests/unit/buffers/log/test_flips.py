"""Every bit of a record, of its header, and of a segment's head flipped, one at a time: each is found, by everyone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from buffers.codec import encode
from buffers.log import LogReader
from buffers.log.frames import RawFrame
from buffers.log.recovery import examine, refuse_rot
from buffers.log.watermark import read_watermark
from contracts.errors import RotError
from contracts.records import Kind
from tests.unit.buffers.log.logs import STORE, write_log
from tests.unit.buffers.samples import SAMPLES

Record = tuple[int, int, bytes]


def flip_each(path: Path, *, begin: int, end: int) -> Iterator[int]:
    """The place of each bit while it is flipped; the file is whole again between two."""
    with path.open("r+b", buffering=0) as file:
        data = path.read_bytes()
        for place in range(begin * 8, end * 8):
            for value in (data[place // 8] ^ 1 << place % 8, data[place // 8]):
                file.seek(place // 8)
                file.write(bytes((value,)))
                if value != data[place // 8]:
                    yield place


def read_all(folder: Path) -> list[Record]:
    return [(frame.lsn, frame.kind, frame.payload) for frame in LogReader(folder).scan()]


@pytest.mark.parametrize("chained", [False, True])
def test_each_bit_of_a_record_and_its_header(tmp_path: Path, chained: bool) -> None:
    """100 % found: by a read, by a scan, and by recovery, which calls it rot and refuses it where it is strict."""
    folder = tmp_path / ("control" if chained else "data")
    sample = encode(SAMPLES[Kind.EPISODE])
    lsns = write_log(folder, [[(2, b"before")], [(3, sample)], [(4, b"after")]], chained=chained)
    every, lsn = read_all(folder), lsns[1][0]
    end = lsn + 48 + 32 * chained + len(sample)
    num_flips = 0
    for place in flip_each(folder / f"{0:016x}.seg", begin=lsn, end=end):
        num_flips += 1
        assert read_all(folder) == [every[0], every[2]], place
        if place % 16 == 0:  # these read the whole log each time
            with pytest.raises(RotError, match="damaged"):
                LogReader(folder).read(lsn)
            found = examine(folder, uuid=STORE)
            assert found.rot == [(lsn, lsns[2][0])]
            with pytest.raises(RotError):
                refuse_rot(found, folder=folder)
    assert num_flips == 8 * (end - lsn) > 2000
    assert read_all(folder) == every


def test_each_bit_of_a_segments_head(tmp_path: Path) -> None:
    """Its records stay readable, and the damage is told."""
    folder = tmp_path / "data"
    write_log(folder, [[(2, bytes(6000))] for _ in range(4)])
    every, segments = read_all(folder), LogReader(folder).segments()
    second = segments[1]
    head = next(LogReader(folder).walk(second.start_lsn))
    assert isinstance(head, RawFrame)
    for place in flip_each(second.path, begin=0, end=48 + 40 + len("data")):
        if place % 4 == 0 or place < 48 * 8:
            assert read_all(folder) == every, place
            assert examine(folder, uuid=STORE).rot == [(second.start_lsn, head.next_lsn)], place


def test_each_bit_of_the_watermark(tmp_path: Path) -> None:
    """A mark that is damaged is no mark."""
    folder = tmp_path / "data"
    write_log(folder, [[(2, b"one")]])
    path = folder / "watermark"
    assert read_watermark(folder) is not None
    for place in flip_each(path, begin=0, end=path.stat().st_size):
        assert read_watermark(folder) is None, place
