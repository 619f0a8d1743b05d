"""What a store's size costs, from 10^4 to 10^7 records: `python -m benchmarks.store_growth`.

One store grows; at each size its owner is killed, another opens it, and a reader samples. Records are small, 400 bytes,
so that 10^7 fit on a disk: what grows with their number shows, and what grows with their bytes does not. The peer is
the store itself at 10^5 records.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.stores import Numbers

ROOT = Path(__file__).resolve().parents[1]
RECORD_BYTES = 400
FIRST = 100_000  # goals are relative to it
MOST_SLOWER = 1.3
MOST_OWNER_BYTES, MOST_READER_BYTES = 60.0, 16.0  # a live record


def call(what: str, folder: Path, *words: str) -> Numbers:
    """One life of benchmarks/stores.py. Raises SystemExit where it failed."""
    command = [sys.executable, "-m", "benchmarks.stores", what, str(folder), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, -signal.SIGKILL) or not done.stdout:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    numbers: Numbers = json.loads(done.stdout.splitlines()[-1])
    return numbers


def grow(folder: Path, sizes: Sequence[int]) -> list[Numbers]:
    rows = []
    for size in sizes:
        filled = call("fill", folder, "--records", str(size), "--bytes", str(RECORD_BYTES))
        opened, sampled = call("open", folder), call("sample", folder)
        rows.append({**sampled, **opened, "append": filled["append"], "filler_bytes": filled["owner_bytes"]})
        print(describe(rows[-1]), flush=True)
    return rows


def describe(row: Numbers) -> str:
    return (
        f"{row['records']:>12,.0f} records  append {row['append']:>8,.0f}/s  sample 64 {row['sample']:>8,.0f}/s  "
        f"by priority {row['prioritised']:>7,.0f}/s  open {row['open_ms']:>7.1f} ms "
        f"({row['read_again']:,.0f} read again)  "
        f"owner {row['owner_bytes'] / 2**20:>6.1f} MiB  reader +{row['reader_bytes'] / 2**20:.1f} MiB"
    )


def judge(rows: Sequence[Numbers]) -> list[dict[str, object]]:
    """Goals that the sizes measured say something about."""
    goals: list[dict[str, object]] = []

    def add(name: str, goal: float, measured: float) -> None:
        goals.append({"name": name, "goal": goal, "measured": round(measured, 2), "met": measured <= goal})

    first = next((row for row in rows if row["records"] >= FIRST), rows[0])
    last = rows[-1]
    for key in ("append", "sample"):
        add(f"{key}: times slower than at {first['records']:,.0f} records", MOST_SLOWER, first[key] / last[key])
    added = max(last["records"] - rows[0]["records"], 1)
    add("bytes of the owner a live record", MOST_OWNER_BYTES, (last["owner_bytes"] - rows[0]["owner_bytes"]) / added)
    add("bytes of a reader a live record", MOST_READER_BYTES, last["reader_bytes"] / max(last["rows"], 1))
    return goals


def plot(rows: Sequence[Numbers], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots()
    for key in ("append", "sample", "prioritised", "open_ms"):
        axes.plot([row["records"] for row in rows], [row[key] for row in rows], marker="o", label=key)
    axes.set(xscale="log", yscale="log", xlabel="records")
    axes.legend()
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="up to 10^5 records")
    parser.add_argument("--largest", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; emptied afterwards")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="a .png or .svg file; needs matplotlib")
    options = parser.parse_args(arguments)
    largest = 100_000 if options.quick else options.largest
    sizes = [size for size in (10_000, 100_000, 1_000_000, 10_000_000) if size <= largest]
    with tempfile.TemporaryDirectory(prefix="ratchet-growth-", dir=options.folder) as scratch:
        rows = grow(Path(scratch) / "store", sizes)
    goals = judge(rows)
    for goal in goals:
        print(f"{goal['name']}: {goal['measured']} (goal at most {goal['goal']}), {'met' if goal['met'] else 'missed'}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "goals": goals}, indent=1))
    if options.plot:
        plot(rows, options.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
