"""A served store whose neighbours die or stall: nothing acknowledged is lost or doubled, and no side's memory grows."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import psutil
import pytest

from contracts.records import Episode
from serving.client import connect
from serving.columns import write_batch
from tests.contract.stores import TOKEN, Driver, Opened, open_remote, served, small_config
from tests.unit.buffers.bench import make_step

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
LARGE_BYTES = 256 << 10
NUM_LARGE = 400  # 100 MiB


@contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[str]]:
    """One end of a served store; killed at the end if it still runs."""
    command = [sys.executable, "-m", "tests.crash.serving_process", *words]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGCONT)
                child.kill()


def hear(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line, "the child ended"
    return line.strip()


def large_episodes(driver: Driver) -> list[Episode]:
    step = replace(make_step(), observation=np.zeros(LARGE_BYTES // 4, dtype=np.int32))
    leases = driver.lease(NUM_LARGE)
    made = [driver.make(lease, member, steps=(step,)) for lease in leases for member in lease.missing]
    assert len(made) >= NUM_LARGE
    return made[:NUM_LARGE]


@pytest.mark.parametrize("heard", [1, 40, pytest.param(100, marks=pytest.mark.slow)])
def test_a_producer_killed_in_mid_stream_sends_again_and_nothing_is_doubled(tmp_path: Path, heard: int) -> None:
    with served(tmp_path, small_config(steps=10_000, max_staleness=50)) as (server, owner):
        driver = Driver(Opened(owner, str(owner.uuid)))
        driver.serve(0)
        episodes = [driver.make(lease, member) for lease in driver.lease() for member in lease.missing]
        (tmp_path / "episodes").write_bytes(write_batch(episodes))
        with process("producer", server.address, str(tmp_path / "episodes")) as child:
            assert child.stdout is not None
            lines = [hear(child) for _ in range(heard)]
            child.kill()
            lines += child.stdout.read().splitlines()
        acknowledged = {int(place): int(lsn) for place, lsn in (line.split() for line in lines if " " in line)}
        with open_remote(server) as store:
            acks = store.append(episodes)
            assert len({ack.lsn for ack in acks}) == len(episodes)
            assert {place: acks[place].lsn for place in acknowledged} == acknowledged
            assert all(acks[place].duplicate for place in acknowledged)
            kept = store.read([ack.lsn for ack in acks])
        assert [episode.episode_id for episode in kept] == [episode.episode_id for episode in episodes]
        assert owner.ledger().episodes == len(episodes)
        assert owner.status()["doubled"] == 0


def resident(child: subprocess.Popen[str]) -> float:
    """MiB."""
    return psutil.Process(child.pid).memory_info().rss / MIB


def settled(child: subprocess.Popen[str]) -> float:
    """Resident MiB once they no longer rise."""
    seen = [resident(child)]
    while len(seen) < 15 or max(seen[-15:]) - min(seen[-15:]) > 1:
        Event().wait(0.05)
        seen.append(resident(child))
    return seen[-1]


@pytest.mark.slow
def test_a_reader_that_stands_still_fills_no_memory(tmp_path: Path) -> None:
    """100 MiB are written while the tailer is stopped: server and tailer stay as large as they were."""
    with process("server", str(tmp_path)) as server:
        address = hear(server)
        with process("tailer", address) as tailer, connect(address, token=TOKEN) as store:
            driver = Driver(Opened(store, str(store.status()["uuid"])))
            episodes = large_episodes(driver)
            warm, rest = episodes[:80], episodes[80:]
            acks = store.append(warm)
            while int(hear(tailer)) < acks[-1].lsn:
                continue
            before = resident(server), resident(tailer)
            tailer.send_signal(signal.SIGSTOP)
            for start in range(0, len(rest), 20):
                acks = store.append(rest[start : start + 20])
            grown = resident(server) - before[0]
            assert grown < 48, f"{grown:.0f} MiB"
            tailer.send_signal(signal.SIGCONT)
            while int(hear(tailer)) < acks[-1].lsn:
                continue
            grown = resident(tailer) - before[1]
            assert grown < 48, f"{grown:.0f} MiB"


@pytest.mark.slow
def test_a_store_that_stands_still_fills_no_producers_memory(tmp_path: Path) -> None:
    """100 MiB wait to be sent while the server is stopped: what was made and not answered for stays in the window."""
    with process("server", str(tmp_path)) as server:
        address = hear(server)
        with connect(address, token=TOKEN) as store:
            driver = Driver(Opened(store, str(store.status()["uuid"])))
            file = tmp_path / "episodes"
            file.write_bytes(write_batch(large_episodes(driver)))
            with process("producer", address, str(file)) as producer:
                lines = [hear(producer) for _ in range(40)]
                server.send_signal(signal.SIGSTOP)
                before = resident(producer)
                grown = settled(producer) - before
                assert grown < 48, f"{grown:.0f} MiB"
                server.send_signal(signal.SIGCONT)
                lines += [hear(producer) for _ in range(NUM_LARGE - 40)]
                assert len({line.split()[1] for line in lines}) == NUM_LARGE
            assert store.ledger().episodes == NUM_LARGE
