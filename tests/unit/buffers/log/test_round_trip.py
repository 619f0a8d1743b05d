"""What is appended is read back: in order, once, at its LSN, across segments, openings, threads, and readers."""

from __future__ import annotations

import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buffers.log import MAX_FRAME_BYTES, LogReader, LogWriter
from buffers.log.segments import SegmentFile
from contracts.errors import FencedError, StoreError, StoreIdentityError, StoreStoppedError, UserError
from tests.unit.buffers.log.logs import SMALL_SEGMENT, STORE, Record, open_log, read_records, write_log

records = st.tuples(st.integers(2, 0x7FFF), st.binary(max_size=9000))
batches = st.lists(st.lists(records, max_size=5), max_size=8)


@settings(max_examples=25)
@given(lives=st.lists(batches, min_size=1, max_size=3), chained=st.booleans())
def test_what_is_appended_is_read_back_over_several_openings(lives: list[list[list[Record]]], chained: bool) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        expected: list[tuple[int, int, bytes]] = []
        for life, appended in enumerate(lives):
            writer = open_log(folder, epoch=life + 1, create=life == 0, chained=chained)
            assert writer.recovery.num_frames == len(expected)
            assert writer.recovery.torn_bytes == 0
            assert writer.recovery.rot == ()
            for batch in appended:
                lsns = writer.append(batch)
                expected += [(lsn, kind, payload) for lsn, (kind, payload) in zip(lsns, batch, strict=True)]
            assert read_records(folder) == expected  # while it is open
            writer.close()
        assert read_records(folder) == expected
        reader = LogReader(folder)
        for lsn, kind, payload in expected:
            frame = reader.read(lsn)
            assert (frame.lsn, frame.kind, frame.payload) == (lsn, kind, payload)
            assert frame.next_lsn % 8 == 0
        middle = expected[len(expected) // 2][0] if expected else 0
        assert [frame.lsn for frame in reader.scan(middle)] == [lsn for lsn, _, _ in expected if lsn >= middle]
        assert [frame.lsn for frame in reader.scan(0, middle)] == [lsn for lsn, _, _ in expected if lsn < middle]


def test_many_threads_share_commits_and_keep_their_own_order(tmp_path: Path) -> None:
    writer = open_log(tmp_path / "data", create=True)
    kept: dict[int, list[int]] = {}

    def run(thread: int) -> None:
        futures = [writer.submit([(2, f"{thread} {number}".encode())]) for number in range(50)]
        kept[thread] = [future.result()[0] for future in futures]

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {payload.decode(): lsn for lsn, _, payload in read_records(tmp_path / "data")}
    assert found == {f"{thread} {number}": lsn for thread in kept for number, lsn in enumerate(kept[thread])}
    assert all(lsns == sorted(lsns) for lsns in kept.values())
    stats = writer.stats()
    assert stats["frames"] == 400
    assert stats["commits"] < 400  # they were grouped
    writer.close()


def test_a_batch_lies_in_one_segment_even_if_it_is_larger_than_one(tmp_path: Path) -> None:
    writer = open_log(tmp_path / "data", create=True)
    writer.append([(2, b"first")])
    lsns = writer.append([(2, bytes(SMALL_SEGMENT)), (2, bytes(SMALL_SEGMENT))])
    writer.close()
    homes = [
        segment.start_lsn
        for segment in LogReader(tmp_path / "data").segments()
        for lsn in lsns
        if segment.start_lsn <= lsn < segment.end_lsn
    ]
    assert len(homes) == 2
    assert homes[0] == homes[1] > 0


def test_an_os_ack_is_in_the_log_and_becomes_visible_by_itself(tmp_path: Path) -> None:
    writer = open_log(tmp_path / "data", create=True)
    reader = LogReader(tmp_path / "data")
    (lsn,) = writer.append([(2, b"soon")], durable=False)
    while reader.watermark() <= lsn:  # no sync is asked for
        threading.Event().wait(0.001)
    assert reader.read(lsn).payload == b"soon"
    (later,) = writer.append([(2, b"now")], durable=False)
    assert writer.sync() == writer.end_lsn == writer.durable_lsn == reader.watermark()
    assert reader.read(later).payload == b"now"
    writer.close()


def test_os_acks_become_visible_though_the_queue_is_never_empty(tmp_path: Path) -> None:
    writer = LogWriter.open(tmp_path / "data", store_uuid=STORE, epoch=1, create=True)
    reader, visible, stop = LogReader(tmp_path / "data"), threading.Event(), threading.Event()
    first = writer.end_lsn

    def append_again(_: Future[list[int]]) -> None:
        """In the writer's own thread, before it looks at its queue."""
        if reader.watermark() > first:
            visible.set()
        elif not stop.is_set():
            writer.submit([(2, b"")], durable=False).add_done_callback(append_again)

    writer.submit([(2, b"")], durable=False).add_done_callback(append_again)
    seen = visible.wait(10)
    stop.set()
    writer.close()
    assert seen


def test_rotate_seals_all_frames_so_far(tmp_path: Path) -> None:
    writer = open_log(tmp_path / "data", create=True)
    writer.append([(2, b"one")])
    assert [segment.sealed for segment in LogReader(tmp_path / "data").segments()] == [False]
    writer.rotate()
    writer.rotate()
    (segment,) = LogReader(tmp_path / "data").segments()
    assert segment.sealed
    assert segment.path.stat().st_size == segment.end_lsn - segment.start_lsn
    writer.append([(2, b"two")])
    assert [segment.sealed for segment in LogReader(tmp_path / "data").segments()] == [True, False]
    writer.close()


def test_a_reader_follows_segments_and_trims_that_come_later(tmp_path: Path) -> None:
    writer = open_log(tmp_path / "data", create=True)
    (first,) = writer.append([(2, b"first")])
    reader = LogReader(tmp_path / "data")
    lsns = [writer.append([(2, bytes([number]) * 6000)])[0] for number in range(9)]
    assert [reader.read(lsn).payload[:1] for lsn in lsns] == [bytes([number]) for number in range(9)]
    for segment in reader.segments()[:2]:
        segment.path.unlink()
    with pytest.raises(StoreError, match="trimmed"):
        reader.read(first)
    left = [frame.lsn for frame in reader.scan()]
    assert left == lsns[-len(left) :]
    assert left
    writer.close()
    writer = open_log(tmp_path / "data", epoch=2)
    assert writer.recovery.num_frames == len(left)
    assert writer.recovery.rot == ()
    writer.close()


def test_there_is_no_frame_where_none_starts(tmp_path: Path) -> None:
    ((lsn,),) = write_log(tmp_path / "data", [[(2, b"x" * 100)]])
    reader = LogReader(tmp_path / "data")
    for wrong in (lsn + 8, lsn + 3, reader.watermark(), 1 << 40):
        with pytest.raises(StoreError, match="no frame"):
            reader.read(wrong)


def test_what_cannot_be_a_record_is_refused_at_once(tmp_path: Path) -> None:
    writer = open_log(tmp_path / "data", create=True)
    with pytest.raises(UserError, match="at most"):
        writer.append([(2, bytes(MAX_FRAME_BYTES + 1))])
    for kind in (0, 1, 0x8000):
        with pytest.raises(ValueError, match="kind"):
            writer.append([(kind, b"")])
    assert writer.append([]) == []
    writer.close()
    assert read_records(tmp_path / "data") == []


def test_a_closed_log_takes_nothing_more(tmp_path: Path) -> None:
    writer = open_log(tmp_path / "data", create=True)
    writer.close()
    writer.close()
    with pytest.raises(StoreStoppedError, match="closed"):
        writer.append([(2, b"late")])


def test_only_the_right_log_is_opened(tmp_path: Path) -> None:
    with pytest.raises(StoreIdentityError, match="no log"):
        open_log(tmp_path / "data")
    with pytest.raises(StoreIdentityError, match="no log"):
        LogReader(tmp_path / "data")
    write_log(tmp_path / "data", [[(2, b"x")]])
    other = STORE.__class__(int=1)
    with pytest.raises(StoreIdentityError, match="belongs to store"):
        LogWriter.open(tmp_path / "data", store_uuid=other, epoch=2)
    with pytest.raises(StoreIdentityError, match="belongs to store"):
        LogReader(tmp_path / "data", store_uuid=other)
    with pytest.raises(StoreIdentityError, match="already holds a log"):
        open_log(tmp_path / "data", create=True)
    (tmp_path / "data").rename(tmp_path / "control")
    with pytest.raises(StoreIdentityError, match="log 'data' lies in log 'control'"):
        open_log(tmp_path / "control")


def test_a_smaller_epoch_than_the_log_has_seen_is_fenced(tmp_path: Path) -> None:
    open_log(tmp_path / "data", epoch=5, create=True).close()
    with pytest.raises(FencedError, match="epoch 4 is over"):
        open_log(tmp_path / "data", epoch=4)


def test_a_segment_never_takes_a_name_in_use(tmp_path: Path) -> None:
    write_log(tmp_path / "data", [[(2, b"x")]])
    before = (tmp_path / "data" / f"{0:016x}.seg").read_bytes()
    with pytest.raises(FencedError, match="another owner"):
        SegmentFile.create(tmp_path / "data", start_lsn=0, size=4096, schema=b"zombie")
    assert (tmp_path / "data" / f"{0:016x}.seg").read_bytes() == before
    assert not list((tmp_path / "data").glob(".*.tmp"))
