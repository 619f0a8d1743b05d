"""One store under 64 Ray actors and 936 producers in its own process: `python -m benchmarks.store_load`.

Beside them producers and tailers over gRPC: one producer is killed (SIGKILL) and comes back, one is stopped for a
while, one goes on after another took its name and must be told so; one tailer keeps up, one is slow, one is killed. A
learner cuts batches all the time. All append single records of 8 KB and wait until they are durable: each kind by
itself as fast as answers come, then all together, then all together at half of that rate. An oracle hears every
acknowledgement over a pipe and, when everything is closed, reads both logs from scratch (tests/crash/store.py): each is
there exactly once, the ledger balances, and each tailer heard what lies there and nothing else.

What holds the store back is named from what its threads used. Everything runs on one machine: the processors that
producers take are missing to the store.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from actors.cluster import joined
from benchmarks.observed import Frames
from benchmarks.producers import fence
from benchmarks.stage import IN_PROCESS, OVER_GRPC, OVER_RAY, Size, Stage, Tailers, configure
from tests.crash.store import find_faults, make_run_folder

MOST_TAILER_MIB, MOST_OWNER_MIB = 48.0, 64.0  # grown under load: a window and what is made of it
QUICK = Size(in_process=28, ray=4, grpc=3, grpc_threads=2, alone_s=2.0, together_s=8.0, half_s=3.0, groups=64)


def measure(folder: Path, size: Size) -> dict[str, Any]:
    """Every stretch; then what the oracle says."""
    with ExitStack() as resources:
        stage = Stage(folder, size, resources)
        rows = []
        for kind in (IN_PROCESS, OVER_RAY, OVER_GRPC):
            rows.append(stage.run(f"{kind} alone", [kind], seconds=size.alone_s))
            print(describe(rows[-1]), flush=True)
        tailers = Tailers(stage, folder, start=stage.look().data_lsn)
        resources.callback(tailers.end)
        told: dict[str, str] = {}

        def disturb(until: float) -> None:
            """A quarter of the time each: as it is, one fenced, one killed, one stopped."""
            quarter_s = (until - time.time()) / 4
            time.sleep(quarter_s)
            stage.memory.mark()
            told.update(fence(stage.address, stage.scene))
            tailers.kill()
            time.sleep(quarter_s)
            stage.restart_producer(0, until=until, every_s=0.0)
            stage.stall_producer(1, seconds=max(0.0, (until - time.time()) / 2))

        everybody = (IN_PROCESS, OVER_RAY, OVER_GRPC)
        stage.watch_children()
        rows.append(stage.run("all, and tailers", everybody, seconds=size.together_s, meanwhile=disturb))
        print(describe(rows[-1]), flush=True)
        rate = sum(one["records_per_s"] for one in rows[-1]["kinds"].values())
        producers = size.in_process + size.ray + size.grpc * size.grpc_threads
        stage.watch_children()
        rows.append(stage.run("all at half of it", everybody, seconds=size.half_s, every_s=2 * producers / rate))
        print(describe(rows[-1]), flush=True)
        tailers.catch_up()
        memory = stage.memory.summarise()
        end_lsn = stage.close()
        tailers.end()
        heard = tailers.heard()
    frames = Frames(folder / "store" / "data")
    for row in rows:
        row["records_of_a_commit"] = frames.commit_sizes(*row.pop("lsns"))
    oracle = stage.ears.finish()
    faults = find_faults(folder, oracle)
    faults += [f"{name}: heard something else than the log" for name, lsns in heard.items()
               if not frames.is_heard(lsns, start=tailers.start)]  # fmt: skip
    if not len(heard["tailer"]) or heard["tailer"][-1] != frames.lsns[-1]:
        faults.append("the tailer that keeps up has not heard the end")
    return {
        "rows": rows,
        "memory": memory,
        "told": told,
        "faults": faults,
        "promises": oracle.num_promises,
        "episodes": len(oracle.episodes),
        "late": len(oracle.late),
        "versions": stage.learner.step,
        "data_bytes": end_lsn,
        "heard": {name: len(lsns) for name, lsns in heard.items()},
    }


def describe(row: Mapping[str, Any]) -> str:
    head = (
        f"{row['name']}: {row['records_per_s']:,.0f} records/s in {row['commits_per_s']:,.0f} commits/s, p50 "
        f"{row['commit_p50_ms']}, p99 {row['commit_p99_ms']} ms; fdatasync {row['log_syncing']:.0%} of the time"
    )
    lines = [
        f"  {kind:>10}: {one['records_per_s']:>8,.0f} episodes/s, ack p50 {one['ack_ms']['p50']:.1f}, "
        f"p99 {one['ack_ms']['p99']:.1f}, longest {one['ack_ms']['most']:.1f} ms; "
        f"lease p99 {one['lease_ms']['p99']:.1f} ms"
        for kind, one in row["kinds"].items()
    ]
    shares = ", ".join(f"{name} {used:.2f}" for name, used in row["cores_of_owner"].items())
    others = ", ".join(f"{name} {used:.2f}" for name, used in row["cores"].items())
    lines += [f"  cores of the owner's threads: {shares}", f"  cores of all processes: {others}"]
    return "\n".join([head, *lines, f"  held back by {row['bottleneck']}"])


def judge(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    grown = {row["role"]: row["grown_mib"] for row in found["memory"]}
    tailer_mib = max((mib for role, mib in grown.items() if "tailer" in role), default=0.0)
    fenced = sum("epoch" in told for told in found["told"].values())
    at_most = [
        ("faults that the oracle found: lost, doubled, out of balance", 0, len(found["faults"])),
        ("MiB that the store's own memory grew under load", MOST_OWNER_MIB, grown["the store"]),
        ("MiB that a tailer's memory grew, however slow", MOST_TAILER_MIB, tailer_mib),
    ]
    goals = [{"name": name, "goal": goal, "measured": value, "met": value <= goal} for name, goal, value in at_most]
    name = "calls with an old epoch that were fenced, of 2"
    return [*goals, {"name": name, "goal": 2, "measured": fenced, "met": fenced == 2}]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 Ray actors and 28 producers in process, for seconds")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; emptied afterwards")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else Size()
    with tempfile.TemporaryDirectory(prefix="ratchet-load-", dir=options.folder) as scratch, joined(configure(size)):
        found = measure(make_run_folder(Path(scratch), number=0), size)
    goals = judge(found)
    for row in found["memory"]:
        print(f"{row['number']} × {row['role']}: at most {row['mib']:.0f} MiB, grown by {row['grown_mib']:.0f}")
    print(f"{found['promises']:,} promises, {found['versions']} batches, {found['data_bytes'] / 1e9:.2f} GB of log")
    for told in found["told"].values():
        print(f"told: {told}")
    for fault in found["faults"][:20]:
        print(fault)
    for goal in goals:
        print(f"{goal['name']}: {goal['measured']} (goal {goal['goal']}), {'met' if goal['met'] else 'missed'}")
    if options.json:
        options.json.write_text(json.dumps({**found, "goals": goals}, indent=1))
    return int(bool(found["faults"]))


if __name__ == "__main__":
    raise SystemExit(main())
