"""What the store's benchmarks count, and what they make of it."""

from __future__ import annotations

from pathlib import Path

from benchmarks import store, store_growth
from benchmarks.processes import anonymous_bytes
from benchmarks.stores import BATCH, GROUP_SIZE, Life, open_store, sample, time_open
from contracts.records import Ledger


def test_a_life_appends_trains_and_can_be_taken_up_again(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    live(folder, steps=2, create=True)
    ledger = live(folder, steps=3, create=False)
    assert (ledger.episodes, ledger.handed, ledger.balanced) == (5 * BATCH, 5 * BATCH // GROUP_SIZE, True)
    assert ledger.quarantined == {}
    assert time_open(folder)["records"] == 5 * BATCH
    numbers = sample(folder)
    assert numbers["rows"] == 5 * BATCH
    assert min(numbers["sample"], numbers["prioritised"]) > 0


def live(folder: Path, *, steps: int, create: bool) -> Ledger:
    owner = open_store(folder, create=create)
    life = Life(owner, record_bytes=400)
    for _ in range(steps):
        assert life.play() > 0
    ledger = owner.ledger()
    owner.close()
    return ledger


def test_every_writer_keeps_what_it_was_given(tmp_path: Path) -> None:
    for name, writer in store.WRITERS.items():
        folder = tmp_path / name
        folder.mkdir()
        with writer(folder) as append:
            append([bytes([1]) * 500, bytes([2]) * 500])
        kept = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
        assert bytes([1]) * 400 in kept, name
        assert bytes([2]) * 400 in kept, name


def test_goals_say_what_was_missed() -> None:
    sizes = [
        {"records": 1e4, "append": 100.0, "sample": 50.0, "owner_bytes": 1e6, "reader_bytes": 1e5, "rows": 1e4},
        {"records": 1e5, "append": 100.0, "sample": 50.0, "owner_bytes": 1e6, "reader_bytes": 1e6, "rows": 1e5},
        {"records": 1e6, "append": 70.0, "sample": 50.0, "owner_bytes": 51e6, "reader_bytes": 9e6, "rows": 1e6},
    ]
    met = {str(goal["name"]): goal["met"] for goal in store_growth.judge(sizes)}
    assert met == {
        "append: times slower than at 100,000 records": False,
        "sample: times slower than at 100,000 records": True,
        "bytes of the owner a live record": True,
        "bytes of a reader a live record": True,
    }


def test_peers_are_goals_only_where_they_ran() -> None:
    row = {
        "raw, batch 128": 60e3, "log, batch 128": 57e3, "store, batch 128": 30e3, "store, 4 producers": 40e3,
        "log, 32 producers": 25e3, "store, 32 producers": 12e3, "memory, sample": 13e3, "store, sample": 9e3,
        "store, by priority": 6e3, "disk / payload": 1.01, "open, ms": 30.0, "records in the unsealed segment": 1e4,
        "snapshot, ms": 10.0, "append p99, ms": 2.0, "append p99 during snapshots, ms": 5.0,
    }  # fmt: skip
    alone = store.judge("tokens", row)
    assert [goal["met"] for goal in alone] == [
        True, False, False, True, False, True, True, False, True, True,
    ]  # fmt: skip
    peers = {"cpprb, sample": 16e3, "cpprb, prioritised": 11e3, "reverb, prioritised": 0.1e3}
    beside = store.judge("tokens", row | peers)
    assert [goal["met"] for goal in beside if "cpprb" in str(goal["name"]) or "Reverb" in str(goal["name"])] == [
        False, True, True,
    ]  # fmt: skip


def test_own_memory_is_counted() -> None:
    before = anonymous_bytes()
    kept = bytearray(64 << 20)
    kept[::4096] = bytes(len(range(0, len(kept), 4096)))
    assert anonymous_bytes() - before > 32 << 20
