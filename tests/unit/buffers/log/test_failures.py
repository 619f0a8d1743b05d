"""What the writer does when the disk fails or fills, when it is fenced, and when it is killed at any moment."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from buffers.log import LogReader, LogWriter, claim, create_store, read_identity
from buffers.log.files import write_pieces
from contracts.errors import FencedError, StoreFullError, StoreStoppedError
from tests.unit.buffers.log.logs import STORE, open_log, read_records, start_child, write_log


def fail_with(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_a_failed_sync_stops_the_writer_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_log(tmp_path / "data", create=True)
    kept = writer.append([(2, b"kept")])

    def fail(fd: int) -> None:
        raise fail_with(errno.EIO)

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(StoreStoppedError, match="Input/output error"):
        writer.append([(2, b"unknown")])
    monkeypatch.undo()  # the disk is well again; what it holds is still unknown
    for durable in (True, False):
        with pytest.raises(StoreStoppedError, match="stopped for good"):
            writer.append([(2, b"late")], durable=durable)
    with pytest.raises(StoreStoppedError):
        writer.sync()
    reader = LogReader(tmp_path / "data")
    assert [frame.lsn for frame in reader.scan()] == kept
    writer.close()
    again = open_log(tmp_path / "data", epoch=2)
    assert again.recovery.num_frames in (1, 2)  # never acknowledged: may be there, need not
    again.close()


def test_everyone_who_waits_hears_of_the_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_log(tmp_path / "data", create=True)
    entered, all_wait = threading.Event(), threading.Event()

    def fail(fd: int, pieces: Sequence[bytes], offset: int) -> int:
        entered.set()
        all_wait.wait()
        raise fail_with(errno.EIO)

    monkeypatch.setattr(os, "pwritev", fail)
    futures = [writer.submit([(2, b"first")])]
    entered.wait()
    futures += [writer.submit([(2, bytes([number]))], durable=number % 2 == 0) for number in range(20)]
    all_wait.set()
    for future in futures:
        with pytest.raises(StoreStoppedError, match="stopped for good"):
            future.result()
    writer.close()


def test_pieces_are_written_whole_however_few_the_kernel_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite

    def write_some(fd: int, pieces: Sequence[bytes], offset: int) -> int:
        return pwrite(fd, b"".join(pieces)[:5], offset)

    pieces = [bytes([number % 256]) * (number % 4) for number in range(3_000)]
    with (tmp_path / "file").open("w+b") as file:
        for act in (os.pwritev, write_some):
            monkeypatch.setattr(os, "pwritev", act)
            file.truncate(0)
            write_pieces(file.fileno(), pieces, offset=3)
            assert os.pread(file.fileno(), 10_000, 0) == bytes(3) + b"".join(pieces)


def test_a_refused_write_leaves_nothing_and_serving_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_log(tmp_path / "control", create=True, chained=True)
    kept = writer.append([(64, b"one")])
    pwrite = os.pwrite

    def write_half(fd: int, pieces: Sequence[bytes], offset: int) -> int:
        data = b"".join(pieces)
        return pwrite(fd, data[: len(data) // 2], offset)

    def write_no_more(fd: int, data: bytes, offset: int) -> int:
        if b"three" in bytes(data):
            raise fail_with(errno.ENOSPC)
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwritev", write_half)
    monkeypatch.setattr(os, "pwrite", write_no_more)
    with pytest.raises(StoreFullError, match="No space left"):
        writer.append([(64, b"two" * 100), (64, b"three" * 100)])
    monkeypatch.undo()
    kept += writer.append([(64, b"four")])
    writer.close()
    assert [record[0] for record in read_records(tmp_path / "control")] == kept
    again = open_log(tmp_path / "control", epoch=2, chained=True)
    assert (again.recovery.num_frames, again.recovery.rot, again.recovery.torn_bytes) == (2, (), 0)
    again.close()


def test_the_reserve_is_kept_free_and_a_full_log_still_opens_and_reads(tmp_path: Path) -> None:
    lsns = write_log(tmp_path / "data", [[(2, b"kept")]])
    everything = 1 << 60
    with pytest.raises(StoreFullError, match="in reserve"):
        LogWriter.open(tmp_path / "new", store_uuid=STORE, epoch=1, create=True, reserve_bytes=everything)
    writer = LogWriter.open(tmp_path / "data", store_uuid=STORE, epoch=2, reserve_bytes=everything)
    with pytest.raises(StoreFullError, match="in reserve"):
        writer.append([(2, b"refused")])
    assert [record[0] for record in read_records(tmp_path / "data")] == lsns[0]
    writer.close()
    assert not list((tmp_path / "data").glob(".*.tmp"))


def test_a_file_size_limit_refuses_whole_appends_until_it_is_lifted(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    child = start_child("full", str(tmp_path / "store"))
    output, _ = child.communicate()
    assert child.returncode == 0
    said = [line.split() for line in output.splitlines()]
    fate = {int(number): word for word, number in said}
    assert sorted(fate) == list(range(24))
    assert fate[0] == "kept"
    assert fate[15] == "full"
    assert {fate[number] for number in range(16, 24)} == {"kept"}
    found = [int(payload.split()[0]) for _, _, payload in _read(tmp_path / "store")]
    assert found == [number for number in range(24) if fate[number] == "kept"]


def test_kill_at_any_moment_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    store, rng = tmp_path / "store", random.Random()
    create_store(store)
    said: set[str] = set()
    for life in range(5):
        child = start_child("write", str(store), str(life))
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        for _ in range(rng.randrange(1, 400)):
            said.add(child.stdout.readline().strip())
        child.kill()
        said.update(line.strip() for line in child.stdout if line.endswith("\n"))
        child.communicate()
    found = [payload.decode().split(" ") for _, _, payload in _read(store)]
    parts = [(" ".join(words[:3]), words[3]) for words in found]
    assert len(parts) == len(set(parts))  # doubled 0
    names = {name for name, _ in parts}
    assert said - names == set()  # lost 0
    assert set(parts) == {(name, part) for name in names for part in "012"}  # whole or absent
    held = claim(store, uuid=read_identity(store))
    writer = LogWriter.open(store / "data", store_uuid=held.uuid, epoch=held.epoch)
    assert writer.recovery.rot == ()
    assert writer.recovery.uncertain_from is None
    writer.close()
    held.release()


def test_a_stale_epoch_is_fenced(tmp_path: Path) -> None:
    store = tmp_path / "store"
    uuid = create_store(store)
    old = claim(store, uuid=uuid)
    writer = LogWriter.open(store / "data", store_uuid=uuid, epoch=old.epoch, create=True, still_owner=old.still_owner)
    kept = writer.append([(2, b"ours")])
    (store / "lock").unlink()  # what an impatient operator does
    new = claim(store, uuid=uuid)
    assert (new.epoch, old.still_owner(), new.still_owner()) == (old.epoch + 1, False, True)
    for durable in (True, False):
        with pytest.raises(FencedError, match="epoch 1 is over"):
            writer.append([(2, b"zombie")], durable=durable)
    successor = LogWriter.open(store / "data", store_uuid=uuid, epoch=new.epoch, still_owner=new.still_owner)
    successor.append([(2, b"new")])
    writer.close()
    assert [record[0] for record in _read(store)][:1] == kept
    successor.close()
    new.release()
    old.release()


def _read(store: Path) -> list[tuple[int, int, bytes]]:
    return [(frame.lsn, frame.kind, frame.payload) for frame in LogReader(store / "data").scan()]
