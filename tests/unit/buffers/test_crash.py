"""A store killed at random moments keeps what it acknowledged, once, and its ledger balances."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from buffers.log.reader import verify_chain
from buffers.owner import StoreOwner
from buffers.reading import Records
from buffers.view import StoreView
from contracts.records import Batch, Episode, Kind, Version
from tests.unit.buffers.bench import name_task, opened, small_config

ROUNDS = 5


def run_and_kill(folder: Path, *, seed: int) -> list[list[str]]:
    """What a worker was promised before it was killed: its lines, split."""
    command = [sys.executable, "-m", "tests.unit.buffers.crash_worker", str(folder), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            lines = [process.stdout.readline() for _ in range(random.Random(seed).randrange(20, 200))]
        finally:
            process.kill()
        lines += process.stdout.readlines()
    assert process.returncode == -9
    promised = [line.split() for line in lines]
    faults = [words for words in promised if words[0] == "fault"]
    assert not faults
    return promised


def test_kill_at_random_moments(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    heard: list[list[str]] = []
    for seed in range(ROUNDS):
        heard += run_and_kill(folder, seed=seed)
        with StoreView.open(folder) as view:
            check(view, heard)
    with opened(folder, config=small_config(max_staleness=3)) as bench:
        assert bench.owner.ledger().balanced
        assert bench.owner.epoch == ROUNDS + 1
        check(StoreView.open(folder), heard)
    verify_chain(Records(folder, uuid=StoreView.open(folder).uuid).control)
    kinds = Counter(words[0] for words in heard)
    assert min(kinds[kind] for kind in ("task", "episode", "batch", "version")) >= ROUNDS


def check(view: StoreView, heard: list[list[str]]) -> None:
    """Nothing that was promised is lost, nothing is there twice, and nothing late or dropped was trained on."""
    fold = view.fold
    assert (fold.num_doubled, fold.num_unresolved) == (0, 0)
    assert view.ledger().balanced
    promised = {int(words[1]): words[2] for words in heard if words[0] in ("episode", "late")}
    kept = view.episodes(list(promised))
    assert [episode.episode_id for episode in kept] == list(promised.values())
    assert {int(words[1]) for words in heard if words[0] == "task"} <= fold.groups.keys()
    everything = view.episodes([lsn for group in fold.groups.values() for lsn in group.lsns.values()])
    assert max(Counter(episode.episode_id for episode in everything).values()) == 1
    check_decisions(view, heard, everything)


def check_decisions(view: StoreView, heard: list[list[str]], everything: list[Episode]) -> None:
    decisions = dict(view.decisions(kinds=[Kind.BATCH, Kind.VERSION]))
    for words in heard:
        if words[0] in ("batch", "version"):
            record = decisions[int(words[1])]
            assert int(words[2]) == (record.step if isinstance(record, Batch) else getattr(record, "version", None))
    batches = [record for record in decisions.values() if isinstance(record, Batch)]
    assert len({(batch.branch, batch.step) for batch in batches}) == len(batches)
    rows = Counter(row.episode_lsn for batch in batches for row in batch.rows)
    assert max(rows.values(), default=1) == 1
    late = {int(words[1]) for words in heard if words[0] == "late"}
    assert not late & rows.keys()
    numbers = [record.version for record in decisions.values() if isinstance(record, Version)]
    assert numbers == sorted(set(numbers))
    assert view.ledger().episodes == len(everything)


def test_a_full_disk_refuses_and_reads_go_on(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the full disk: in a process of its own, since a limit is for life."""
    script = """
import resource, signal, sys
from pathlib import Path
from contracts.errors import StoreFullError
from tests.unit.buffers.bench import make_step, opened, small_config

folder = Path(sys.argv[1])
with opened(folder, config=small_config(max_staleness=99)) as bench:
    bench.serve(0)
    (first, *leases) = bench.lease()
    acks = bench.play([first])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    refused = 0
    for lease in leases:
        try:
            bench.play([lease], steps=(make_step(200_000),))
        except StoreFullError as error:
            refused += 1
    assert refused == len(leases), refused
    assert [one.lease for one in bench.owner.read([ack.lsn for ack in acks])] == [first.lsn] * 2
    assert bench.owner.ledger().episodes == 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    bench.play(leases[:1])
    assert bench.owner.ledger().ready == 2
    bench.cut(1)
with opened(folder) as bench:
    assert bench.owner.ledger().episodes == 4
print("ok")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "store")], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.returncode) == ("ok\n", 0), done.stderr


def test_a_stopped_owner_is_killed_by_the_one_that_takes_over(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    command = [sys.executable, "-m", "tests.unit.buffers.crash_worker", str(folder), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            lines = [process.stdout.readline() for _ in range(50)]
            process.send_signal(signal.SIGSTOP)
            owner = StoreOwner.open(folder, config=small_config(), source=name_task, take_over=True)
            owner.close()
        finally:
            process.kill()
        lines += process.stdout.readlines()
    assert (process.returncode, owner.epoch) == (-9, 2)
    check(StoreView.open(folder), [line.split() for line in lines])
