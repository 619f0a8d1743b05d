"""Tear or rot: what power loss and bad disks do to a log, and what recovery makes of it."""

from __future__ import annotations

import os
import random
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import google_crc32c
import pytest

from buffers.log import LogReader, Recovery, verify_chain
from buffers.log.frames import MORE, MUST_UNDERSTAND, RawFrame
from contracts.errors import FormatError, RotError
from tests.unit.buffers.log.logs import (
    SMALL_SEGMENT,
    STORE,
    boot_again,
    find_path,
    flip_bit,
    open_log,
    patch_frame,
    read_records,
    write_log,
)

PAGE_BYTES = 4096
Files = dict[str, bytes]


class Moment(NamedTuple):
    """A log during a commit: its files as they were synced and as they were written, and the LSNs acknowledged."""

    synced: Files
    written: Files
    acknowledged: set[int]


def read_files(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


def restore_files(folder: Path, files: Files) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def recover(folder: Path, *, chained: bool = False) -> Recovery:
    writer = open_log(folder, epoch=9, chained=chained)
    writer.close()
    return writer.recovery


def lose_power(moment: Moment, rng: random.Random) -> Files:
    """Each page that was written but not synced survives with p = 0.5; the watermark file is old, or gone.

    Not covered: pages torn inside (the checksum does not care), and disks that lie about a flush.
    """
    survived = {}
    for name, data in moment.written.items():
        before = moment.synced[name].ljust(len(data), b"\0")
        pages = range(0, len(data), PAGE_BYTES)
        survived[name] = b"".join(rng.choice((data, before))[page : page + PAGE_BYTES] for page in pages)
    watermark = survived.pop("watermark")
    return survived | ({"watermark": boot_again(watermark)} if rng.random() < 0.5 else {})


def record_moments(folder: Path, monkeypatch: pytest.MonkeyPatch, *, chained: bool) -> list[Moment]:
    """The log's files at each fdatasync of a busy life."""
    moments: list[Moment] = []
    synced: Files = {}
    futures: list[Future[list[int]]] = []
    fdatasync, fsync = os.fdatasync, os.fsync

    def watch_fdatasync(fd: int) -> None:
        nonlocal synced
        if synced:
            acknowledged = {lsn for future in futures if future.done() for lsn in future.result()}
            moments.append(Moment(synced, read_files(folder), acknowledged))
        fdatasync(fd)
        synced = read_files(folder)

    def watch_fsync(fd: int) -> None:
        nonlocal synced
        fsync(fd)
        synced = read_files(folder)

    rng = random.Random(7)
    writer = open_log(folder, create=True, chained=chained)
    monkeypatch.setattr(os, "fdatasync", watch_fdatasync)
    monkeypatch.setattr(os, "fsync", watch_fsync)
    for _ in range(12):
        batches = [[(2, rng.randbytes(rng.randrange(1500))) for _ in range(rng.randrange(1, 4))] for _ in range(6)]
        futures += [writer.submit(batch) for batch in batches]
        futures[-1].result()
    monkeypatch.undo()
    writer.close()
    return moments


def find_ends_of_appends(folder: Path) -> set[int]:
    """LSNs at which no append is cut in its middle."""
    frames = [item for item in LogReader(folder).walk() if isinstance(item, RawFrame)]
    return {frame.next_lsn for frame in frames if not frame.header.flags & MORE}


@pytest.mark.parametrize("chained", [False, True])
def test_power_loss_keeps_what_was_acknowledged_and_leaves_a_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chained: bool
) -> None:
    moments = record_moments(tmp_path / "data", monkeypatch, chained=chained)
    every, ends = read_records(tmp_path / "data"), find_ends_of_appends(tmp_path / "data")
    folder, num_torn = tmp_path / "lost" / "data", 0
    for seed in range(40):
        rng = random.Random(seed)
        moment = rng.choice(moments)
        restore_files(folder, lose_power(moment, rng))
        recovery, found = recover(folder, chained=chained), read_records(folder)
        assert found == every[: len(found)]
        assert len(found) == recovery.num_frames
        assert moment.acknowledged <= {lsn for lsn, _, _ in found}
        assert recovery.end_lsn in ends
        assert recovery.rot == ()
        assert recovery.uncertain_from in (None, recovery.durable_lsn)
        if chained:
            assert verify_chain(LogReader(folder)) > len(found)
        if recovery.torn_file is not None:
            num_torn += 1
            assert recovery.uncertain_from == recovery.durable_lsn
            assert (folder / recovery.torn_file).stat().st_size == recovery.torn_bytes > 0
    assert num_torn > 12  # the model does tear


def test_a_tear_is_cut_though_whole_frames_follow_and_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    writer = open_log(folder, create=True)
    (kept,) = writer.append([(2, b"kept")])
    torn = [writer.append([(2, bytes([number]) * 100)], durable=False)[0] for number in range(3)]
    files = read_files(folder)  # as kill -9 leaves them, but for
    writer.close()
    restore_files(folder, files)
    flip_bit(folder, torn[0] + 60)  # a page of the last commit that did not make it
    cut = find_path(folder, torn[0])[0].read_bytes()[torn[0] :].rstrip(b"\0")
    recovery = recover(folder)
    assert [record[0] for record in read_records(folder)] == [kept]
    assert (recovery.end_lsn, recovery.rot, recovery.num_frames) == (torn[0], (), 1)
    assert recovery.torn_file is not None
    assert (folder / recovery.torn_file).read_bytes() == cut
    assert recovery.uncertain_from is None  # same boot: the watermark is exact
    assert recover(folder).torn_bytes == 0  # once is enough


def test_an_append_that_was_half_written_is_absent(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    writer = open_log(folder, create=True)
    (kept,) = writer.append([(2, b"kept")])
    lsns = writer.append([(2, b"part" * 50) for _ in range(3)], durable=False)
    files = read_files(folder)
    writer.close()
    files[f"{0:016x}.seg"] = files[f"{0:016x}.seg"][: lsns[2]].ljust(SMALL_SEGMENT, b"\0")
    restore_files(folder, files)
    recovery = recover(folder)
    assert recovery.end_lsn == lsns[0]
    assert [record[0] for record in read_records(folder)] == [kept]


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_costs_its_frame_alone_and_is_reported(tmp_path: Path, seed: int) -> None:
    rng, folder = random.Random(seed), tmp_path / "data"
    batches = [[(2, rng.randbytes(rng.randrange(1, 3000)))] for _ in range(20)]
    lsns = [lsns[0] for lsns in write_log(folder, batches)]
    every = read_records(folder)
    hit = rng.choice(every)
    flip_bit(folder, hit[0] + rng.randrange(48 + len(hit[2])), bit=rng.randrange(8))
    with pytest.raises(RotError, match="damaged"):
        LogReader(folder).read(hit[0])
    before = read_files(folder)
    with pytest.raises(RotError, match="1 damaged ranges"):
        open_log(folder, epoch=2, strict=True)
    assert read_files(folder) == before
    for _ in range(2):  # it stays known
        recovery = recover(folder)
        assert len(recovery.rot) == 1
        assert recovery.rot[0][0] == hit[0]
        assert recovery.rot[0][1] in {*lsns, *(segment.end_lsn for segment in LogReader(folder).segments())}
        assert (recovery.torn_bytes, recovery.num_frames) == (0, 19)
        assert read_records(folder) == [record for record in every if record != hit]
        assert LogReader(folder).rot() == list(recovery.rot)


def test_without_the_watermark_file_the_frames_tell_rot_from_tear(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (first,), (second,), (third,) = write_log(folder, [[(2, b"one")], [(2, b"two")], [(2, b"three")]])
    (folder / "watermark").unlink()
    flip_bit(folder, first + 50)  # the third frame says that the second one was synced, and so the first
    recovery = recover(folder)
    assert (recovery.rot, recovery.torn_bytes, recovery.num_frames) == (((first, second),), 0, 2)
    assert recovery.uncertain_from == recovery.durable_lsn == third
    assert [record[0] for record in read_records(folder)] == [second, third]


def test_rot_in_the_head_of_a_segment_leaves_its_records_readable(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_log(folder, [[(2, bytes(6000))] for _ in range(9)])
    every = read_records(folder)
    second = LogReader(folder).segments()[1].start_lsn
    flip_bit(folder, second + 50)
    assert recover(folder).rot[0][0] == second
    assert read_records(folder) == every


def test_a_crash_between_two_segments_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_log(folder, [[(2, bytes(6000))] for _ in range(9)])
    every, sealed = read_records(folder), read_files(folder)
    first = LogReader(folder).segments()[0]
    os.truncate(first.path, SMALL_SEGMENT)  # the next one was made, this one not yet cut to what it holds
    (folder / ".0000000000012345.seg.77.tmp").write_bytes(b"half made")
    recovery = recover(folder)
    assert (recovery.num_frames, recovery.rot, recovery.torn_bytes) == (9, (), 0)
    assert read_records(folder) == every
    assert first.path.read_bytes() == sealed[first.path.name]
    assert not list(folder.glob(".*"))


def test_a_segment_that_is_gone_is_rot(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_log(folder, [[(2, bytes(6000))] for _ in range(9)])
    every, second = read_records(folder), LogReader(folder).segments()[1]
    second.path.unlink()
    recovery = recover(folder)
    assert recovery.rot == ((second.start_lsn, second.end_lsn),)
    assert read_records(folder) == [r for r in every if not second.start_lsn <= r[0] < second.end_lsn]


def test_a_durable_tail_that_is_gone_is_rot_and_its_lsns_are_not_used_again(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (first,), (last,) = write_log(folder, [[(2, b"first")], [(2, b"last" * 9)]])
    end_lsn = LogReader(folder).watermark()
    os.truncate(find_path(folder, last)[0], last)
    recovery = recover(folder)
    assert (recovery.rot, recovery.end_lsn) == (((last, end_lsn),), end_lsn)
    assert [record[0] for record in read_records(folder)] == [first]


def test_bytes_of_another_store_and_its_watermark_do_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (lsn,) = write_log(folder, [[(2, b"ours")]])[0]
    foreign = bytearray((folder / "watermark").read_bytes()[:-4])
    foreign[8:24], foreign[48:56] = uuid4().bytes, (1 << 40).to_bytes(8, "little")
    (folder / "watermark").write_bytes(bytes(foreign) + google_crc32c.value(bytes(foreign)).to_bytes(4, "little"))
    path, start = find_path(folder, lsn)
    stray = bytearray(path.read_bytes()[start:])  # a whole frame, but with the salt of another life
    with path.open("ab") as file:
        file.write(stray)
    at = path.stat().st_size - len(stray)
    patch_frame(folder, at, offset=8, data=at.to_bytes(8, "little"))
    patch_frame(folder, at, offset=28, data=b"salt")
    recovery = recover(folder)
    assert (recovery.num_frames, recovery.rot, recovery.torn_bytes) == (1, (), len(stray.rstrip(b"\0")))


def test_a_log_that_was_not_opened_since_the_crash_reads_as_recovery_would_leave_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    writer = open_log(folder, create=True)
    writer.append([(2, b"one")])
    writer.append([(2, b"two")])
    files = read_files(folder)
    writer.close()
    del files["watermark"]
    restore_files(folder, files)
    assert [payload for _, _, payload in read_records(folder)] == [b"one", b"two"]
    assert read_files(folder) == files


@pytest.mark.parametrize(
    ("at", "offset", "data", "message"),
    [
        ("schema", 48 + 8, b"\2\0", "format version 2"),
        ("record", 32, (MUST_UNDERSTAND | 9).to_bytes(2, "little"), "type 0x8009"),
        ("record", 34, b"\7", "codec 7"),
        ("record", 35, b"\x40", "flags 0x40"),
        ("record", 36, b"\1", "cipher 1"),
    ],
)
def test_what_this_code_does_not_know_is_refused_and_left_alone(
    tmp_path: Path, at: str, offset: int, data: bytes, message: str
) -> None:
    folder = tmp_path / "data"
    ((lsn,),) = write_log(folder, [[(2, b"payload")]])
    patch_frame(folder, lsn if at == "record" else 0, offset=offset, data=data)
    before = read_files(folder)
    with pytest.raises(FormatError, match=message):
        recover(folder)
    with pytest.raises(FormatError, match=message):
        LogReader(folder, store_uuid=STORE).read(lsn)
    assert read_files(folder) == before


def test_the_chain_shows_a_frame_that_was_altered_with_a_right_checksum(tmp_path: Path) -> None:
    folder = tmp_path / "control"
    lsns = [
        lsns[0] for lsns in write_log(folder, [[(64, b"decision %d" % number)] for number in range(5)], chained=True)
    ]
    assert verify_chain(LogReader(folder)) == 6
    patch_frame(folder, lsns[2], offset=80, data=b"DECISION")
    with pytest.raises(RotError, match=f"before LSN {lsns[3]}"):
        verify_chain(LogReader(folder))
    with pytest.raises(RotError):
        open_log(folder, epoch=2, chained=True, strict=True)
    assert recover(folder, chained=True).rot == ((lsns[2], lsns[3]),)


def test_the_chain_goes_on_over_openings_and_segments(tmp_path: Path) -> None:
    folder = tmp_path / "control"
    write_log(folder, [[(64, bytes(6000))] for _ in range(4)], chained=True)
    for epoch in (2, 3):
        writer = open_log(folder, epoch=epoch, chained=True)
        writer.append([(64, b"more")])
        writer.close()
    assert len(LogReader(folder).segments()) > 3
    assert verify_chain(LogReader(folder)) == 6 + len(LogReader(folder).segments())
    with pytest.raises(FormatError, match="chained=True"):
        open_log(folder, epoch=4)
    write_log(tmp_path / "data", [])
    with pytest.raises(FormatError, match="without a chain"):
        verify_chain(LogReader(tmp_path / "data"))
