"""Whose store it is: one identity, one owner at a time, and a take-over that hits nobody else."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from uuid import uuid4

import pytest

from buffers.log import LogReader, LogWriter, claim, create_store, read_identity
from buffers.log.identity import read_start_time
from contracts.errors import FormatError, StoreBusyError, StoreIdentityError
from tests.unit.buffers.log.logs import start_child


def test_a_store_is_made_once_and_known_by_its_uuid(tmp_path: Path) -> None:
    uuid = create_store(tmp_path / "store")
    assert read_identity(tmp_path / "store") == uuid
    with pytest.raises(StoreIdentityError, match=f"is a store already: {uuid}"):
        create_store(tmp_path / "store")
    assert read_identity(tmp_path / "store") == uuid
    with pytest.raises(StoreIdentityError, match="holds no store"):
        claim(tmp_path, uuid=uuid)
    with pytest.raises(StoreIdentityError, match=f"holds store {uuid}"):
        claim(tmp_path / "store", uuid=uuid4())


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format_version": 1, "uuid": "x"}', '{"format_version": 1, "uuid": 3}']
)
def test_an_identity_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(StoreIdentityError):
        read_identity(tmp_path)


def test_an_unknown_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text(json.dumps({"format_version": 2, "uuid": str(uuid4())}))
    with pytest.raises(FormatError, match="format version 2"):
        read_identity(tmp_path)


def test_two_claims_at_once_are_one_too_many(tmp_path: Path) -> None:
    uuid = create_store(tmp_path)
    first = claim(tmp_path, uuid=uuid)
    for take_over in (False, True):  # nobody kills himself
        with pytest.raises(StoreBusyError, match=f"process {os.getpid()} on"):
            claim(tmp_path, uuid=uuid, take_over=take_over)
    assert first.still_owner()
    first.release()
    assert not first.still_owner()
    second = claim(tmp_path, uuid=uuid)
    assert second.epoch == first.epoch + 1
    second.release()


def test_a_lost_epoch_file_does_not_bring_old_epochs_back(tmp_path: Path) -> None:
    uuid = create_store(tmp_path)
    claim(tmp_path, uuid=uuid).release()
    (tmp_path / "epoch").write_text("rubbish")
    with pytest.raises(StoreIdentityError, match="not hold a number"):
        claim(tmp_path, uuid=uuid)


def test_take_over_of_a_stopped_owner(tmp_path: Path) -> None:
    uuid = create_store(tmp_path)
    child = start_child("hold", str(tmp_path))
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGSTOP)
    with pytest.raises(StoreBusyError, match=f"process {child.pid} on"):
        claim(tmp_path, uuid=uuid)
    held = claim(tmp_path, uuid=uuid, take_over=True)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert held.epoch == 2
    writer = LogWriter.open(tmp_path / "data", store_uuid=uuid, epoch=held.epoch, still_owner=held.still_owner)
    assert writer.recovery.num_frames == 1
    writer.append([(2, b"goes on")])
    writer.close()
    assert [frame.payload for frame in LogReader(tmp_path / "data").scan()] == [b"held", b"goes on"]
    held.release()


@pytest.mark.parametrize("change", ["start_time", "boot_id", "pid", "empty"])
def test_take_over_kills_nobody_who_is_not_the_recorded_process(tmp_path: Path, change: str) -> None:
    uuid = create_store(tmp_path)
    child, bystander = start_child("hold", str(tmp_path)), start_child("hold", "nowhere")
    bystander.communicate()  # its number now names nobody
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    holder = json.loads((tmp_path / "lock").read_text())
    assert holder["start_time"] == read_start_time(child.pid)
    wrong = {"start_time": holder["start_time"] - 1, "boot_id": str(uuid4()), "pid": bystander.pid}
    text = json.dumps(holder | {change: wrong[change]}) if change in wrong else ""
    (tmp_path / "lock").write_text(text)
    with pytest.raises(StoreBusyError, match="nothing was killed"):
        claim(tmp_path, uuid=uuid, take_over=True)
    assert child.poll() is None
    child.communicate("")
    assert child.returncode == 0
