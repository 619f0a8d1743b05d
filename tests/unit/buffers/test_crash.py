"""A store whose disk is full refuses and reads on. Kill rounds: tests/crash/test_store_kills.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


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
