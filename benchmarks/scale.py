"""10, 100, 1,000 shards, simulated from calls measured here: `python -m benchmarks.scale [--json FILE] [--plot FILE]`.

Measured on this machine: two shards in one process take real steps, small and large, through the real client; every
call to a shard is timed and fitted as seconds a call + seconds a row; so are the client's own work, the bytes of a
BATCH row in shard 0's control log and the memory of one that is read; and the round trip of a Ray call to a process.
Simulated: steps of N shards, each call drawn from what was measured (the fit times a residual that was seen), plus a
round trip, in the order in which the client makes them; a shard's appends as a queue with one server.
All of it `--rounds` times: a figure is the median over the rounds, beside the least and the most of them.

A call that makes a shard append (`follow` with news) and one that only asks where it stands are two kinds of call: the
first waits for the disk, the second does not.

Not covered: a network's own delays and losses (one is assumed: its bandwidth), 1,000 real nodes, disks that differ,
shards that die; residuals are those of this machine, shared disk and all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from benchmarks.shards import GROUP_SIZE, Heard, InstantPlayer, Steps
from buffers.addresses import address, split
from buffers.codec import decode, encode
from buffers.owner import StoreOwner, episode_id
from buffers.sharding import ShardedStore
from configs.schema import RunConfig
from contracts.records import Batch, Kind, Row
from contracts.shards import News, Offer, Shard
from loops.rollout import Place, RolloutSlot
from loops.tasks import task_source

Floats = NDArray[np.float64]

SIZES = (8, 96)  # groups a step: the fit's two ends
STEPS = 12
NODES = (10, 100, 1000)
EPISODES = 10**9
EPISODES_A_SECOND = 20.0  # of one node, 8.4 KB each
STEP_S = 10.0  # a learner step; its batch is what is produced meanwhile
NETWORK_BYTES_A_SECOND = 10e9 / 8  # assumed, into the learner's node
IN_FLIGHT = 64  # calls at once, where the client is imagined to make them so
LARGE_ROWS = 50_000
ROW_BYTES = 8_400  # of an episode
PARTS = ("offers", "rows", "network", "commit", "news", "split", "client")
ASKED = "follow, nothing new"  # a kind of call of its own


@dataclass
class Cost:
    """Seconds of one kind of call: `call_s + row_s * rows`, times one of the `residuals` that were seen."""

    call_s: float
    row_s: float
    residuals: Floats

    @classmethod
    def fit(cls, samples: Sequence[tuple[int, float]]) -> Cost:
        """Least absolute deviations by hand: the medians at the two ends of `rows`, and a line through them."""
        rows = np.array([row for row, _ in samples], dtype=float)
        seconds = np.array([second for _, second in samples])
        low, high = rows.min(), rows.max()
        middle = (low + high) / 2
        first = float(np.median(seconds[rows <= middle]))
        if low == high:
            return cls(first, 0.0, seconds / first)
        slope = max(0.0, (float(np.median(seconds[rows > middle])) - first) / (high - low))
        call_s = max(first - slope * low, 1e-6)
        return cls(call_s, slope, seconds / (call_s + slope * rows))

    def draw(self, rng: np.random.Generator, *, calls: int, rows: float) -> Floats:
        return (self.call_s + self.row_s * rows) * rng.choice(self.residuals, size=calls)


class TimedShard:
    """A shard whose calls are timed."""

    def __init__(self, owner: StoreOwner, samples: dict[str, list[tuple[int, float]]]) -> None:
        self._owner, self._samples = owner, samples

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._owner, name)

        def call(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            answer = method(*given, **named)
            seconds = time.perf_counter() - began
            kind = ASKED if name == "follow" and not given[0].records else name
            self._samples.setdefault(kind, []).append((count_rows(name, given, answer), seconds))
            return answer

        return call


def count_rows(name: str, given: Sequence[Any], answer: Any) -> int:
    """Episodes that a call is about."""
    if name in ("append", "read"):
        return len(given[0])
    if isinstance(answer, Offer):
        return sum(len(group.rows) for group in answer.candidates)
    if name == "commit":
        return len(given[0].rows)
    if name == "follow":
        news = cast(News, given[0])
        return sum(len(one.rows) for _, one in news.records if isinstance(one, Batch))
    return 0


@dataclass
class Measured:
    calls: dict[str, Cost]
    client_row_s: float  # of the learner's client, a row of a batch
    split_row_s: float  # to find all shards' parts of a batch, a row
    row_bytes: float  # in shard 0's control log
    row_memory: float  # of a BATCH that is read
    row_read_s: float
    call_s: float  # round trip


def measure(folder: Path, *, round_trip_s: float) -> Measured:
    samples: dict[str, list[tuple[int, float]]] = {}
    for size in SIZES:
        take_steps(folder / str(size), groups=size, samples=samples)
    batch = make_batch(LARGE_ROWS)
    payload = encode(batch)
    split_s = least([lambda: split(batch)] * 5)
    tracemalloc.start()
    kept = decode(Kind.BATCH, payload)
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept == batch
    return Measured(
        calls={name: Cost.fit(found) for name, found in samples.items() if len(found) > 4},
        client_row_s=least([lambda: make_batch(LARGE_ROWS)] * 5) / LARGE_ROWS,
        split_row_s=split_s / LARGE_ROWS,
        row_bytes=len(payload) / LARGE_ROWS,
        row_memory=memory / LARGE_ROWS,
        row_read_s=least([lambda: decode(Kind.BATCH, payload)] * 5) / LARGE_ROWS,
        call_s=round_trip_s,
    )


def least(works: Sequence[Any]) -> float:
    """Seconds of the quickest."""
    seconds = []
    for work in works:
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def make_batch(num_rows: int) -> Batch:
    """Rows as far down a log as those of 10^9 episodes of 8.4 KB on 1,000 shards."""
    lsns = [address(row % 2, 8_000_000_000 + 8_400 * row) for row in range(num_rows)]
    rows = tuple(Row(episode_lsn=lsn, reward_lsn=lsn, lease=lsn - 500) for lsn in lsns)
    return Batch(branch=0, step=1, parent_version=0, rows=rows, shard_lsns=(1 << 40, 1 << 40))


def take_steps(folder: Path, *, groups: int, samples: dict[str, list[tuple[int, float]]]) -> None:
    """Steps of two shards, by the client that a run has."""
    config = RunConfig.model_validate(
        {
            "learner": {"groups_per_step": 2 * groups, "group_size": GROUP_SIZE},
            "store": {"shards": 2, "reserve_mib": 0, "index_map_mib": 256},
        }
    )
    heard = Heard()
    with ExitStack() as resources:
        shards = []
        for shard in range(2):
            owner = StoreOwner.open(
                folder / str(shard), config=config, source=task_source(config, shard=shard), create=True
            )
            resources.callback(owner.close)
            shards.append(cast(Shard, TimedShard(owner, samples)))
        store = ShardedStore(shards)
        slot = RolloutSlot(
            store,
            player=InstantPlayer(config, heard, capacity=1),  # a group a call
            store_uuid=str(uuid4()),
            place=Place(producer="one"),
            episode_id=episode_id,
        )
        steps = Steps(store, heard, num_groups=2 * groups)
        for _ in range(STEPS):
            for _ in range(2 * groups):
                slot.turn()
            assert steps.try_one()


def time_round_trip(calls: int = 300) -> float:
    """Median seconds of a Ray call to another process of this machine."""
    from actors.cluster import joined

    with joined(RunConfig()):
        import ray

        actor: Any = ray.remote(Echo).options(num_cpus=0).remote()
        seconds = []
        for _ in range(calls):
            began = time.perf_counter()
            ray.get(actor.say.remote(0))
            seconds.append(time.perf_counter() - began)
        ray.kill(actor)
    return float(np.median(seconds[calls // 10 :]))


class Echo:
    """An actor."""

    def say(self, word: int) -> int:
        return word


# ---------------------------------------------------------------------------------------------- the simulation


def simulate(measured: Measured, *, nodes: int, rng: np.random.Generator, steps: int = 20) -> dict[str, float]:
    """Seconds of one step's coordination by part, and what does not hang on time; medians over `steps`."""
    rows = nodes * EPISODES_A_SECOND * STEP_S
    made = [simulate_step(measured, nodes=nodes, rows=rows, rng=rng) for _ in range(steps)]
    parts = {part: float(np.median([one[part] for one in made])) for part in made[0]}
    total, at_once = sum(parts.values()), overlapped(parts)
    waits = queue(measured, rng=rng)
    return {
        "nodes": nodes,
        "rows_a_step": rows,
        **{f"{part}_s": round(seconds, 4) for part, seconds in parts.items()},
        "coordination_s": round(total, 3),
        "share_of_step": round(total / STEP_S, 4),
        "coordination_overlapped_s": round(at_once, 3),
        "append_p50_ms": round(float(np.percentile(waits, 50)) * 1e3, 2),
        "append_p99_ms": round(float(np.percentile(waits, 99)) * 1e3, 2),
        "batch_frame_mib": round(rows * measured.row_bytes / 2**20, 2),
        "control_log_gib": round(EPISODES * measured.row_bytes / 2**30, 1),
        "recovery_read_s": round(EPISODES * measured.row_read_s, 0),
        "recovery_memory_gib": round(EPISODES * measured.row_memory / 2**30, 1),
        "shard_records": EPISODES / nodes,
    }


def simulate_step(measured: Measured, *, nodes: int, rows: float, rng: np.random.Generator) -> dict[str, float]:
    """The client's calls in their order: news, offers, rows, BATCH, news of it, of VERSION, of SERVED."""
    calls, own = measured.calls, rows / nodes

    def all_shards(name: str, *, part: float) -> float:
        return float(calls[name].draw(rng, calls=nodes, rows=part).sum()) + nodes * measured.call_s

    return {
        "offers": all_shards("offer", part=own),
        "rows": all_shards("read", part=own),
        "network": rows * ROW_BYTES / NETWORK_BYTES_A_SECOND,
        "commit": float(calls["commit"].draw(rng, calls=1, rows=rows).sum()) + measured.call_s,
        "news": all_shards("follow", part=own) + 2 * all_shards("follow", part=0),
        "split": rows * (measured.row_read_s + measured.split_row_s),  # BATCH as shard 0 has it, and its parts
        "client": rows * measured.client_row_s,
    }


def overlapped(parts: dict[str, float]) -> float:
    """The same with IN_FLIGHT calls at once."""
    asked = (parts["offers"] + parts["rows"] + parts["news"]) / IN_FLIGHT
    return asked + parts["network"] + parts["commit"] + parts["split"] + parts["client"]


def queue(measured: Measured, *, rng: np.random.Generator, calls: int = 20_000) -> Floats:
    """Waits of a shard's appends of one group each: Poisson arrivals, one server."""
    arrivals = np.cumsum(rng.exponential(GROUP_SIZE / EPISODES_A_SECOND, size=calls))
    service = measured.calls["append"].draw(rng, calls=calls, rows=GROUP_SIZE)
    ends = np.empty(calls)
    free = 0.0
    for place, (arrival, seconds) in enumerate(zip(arrivals, service, strict=True)):
        free = max(free, arrival) + seconds
        ends[place] = free
    return ends - arrivals + measured.call_s


def limit(rows: Sequence[dict[str, float]]) -> str:
    """What breaks first as nodes are added."""
    over = next((row for row in rows if row["share_of_step"] > 1), None)
    if over is None:
        return "nothing that takes time a step"
    return f"{max(PARTS, key=lambda part: over[f'{part}_s'])}, at {over['nodes']:g} nodes"


def plot(rows: Sequence[dict[str, float]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    nodes = [row["nodes"] for row in rows]
    for part in PARTS:
        axes.plot(nodes, [row[f"{part}_s"] for row in rows], marker="o", label=part)
    axes.plot(nodes, [row["coordination_overlapped_s"] for row in rows], "k--", label="all, calls at once")
    axes.axhline(STEP_S, color="grey", linewidth=1)
    axes.text(nodes[0], STEP_S, " a learner step", va="bottom", color="grey")
    axes.set(xscale="log", yscale="log", xlabel="shards", ylabel="seconds a step")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def measure_round(folder: Path, *, round_trip_s: float, rng: np.random.Generator) -> dict[str, Any]:
    """What one round measured, and what the simulation makes of it."""
    measured = measure(folder, round_trip_s=round_trip_s)
    rows = [simulate(measured, nodes=nodes, rng=rng) for nodes in NODES]
    numbers = {key: float(f"{value:.4g}") for key, value in vars(measured).items() if isinstance(value, float)}
    for name, cost in measured.calls.items():
        numbers |= {f"{name}: call_ms": round(cost.call_s * 1e3, 3), f"{name}: row_us": round(cost.row_s * 1e6, 2)}
    return {"measured": numbers, "simulated": rows, "breaks_first": limit(rows)}


def summarise(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure [median, least, most] over the rounds."""

    def over(found: Sequence[dict[str, float]]) -> dict[str, list[float]]:
        columns = {key: [one[key] for one in found if key in one] for key in found[0]}
        return {key: [float(np.median(column)), min(column), max(column)] for key, column in columns.items()}

    return {
        "rounds": len(rounds),
        "measured": over([one["measured"] for one in rounds]),
        "simulated": [over([one["simulated"][place] for one in rounds]) for place in range(len(NODES))],
        "breaks_first": dict(Counter(one["breaks_first"] for one in rounds)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-trip-ms", type=float, help="of a call; measured with Ray where it is not given")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; emptied afterwards")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="a .png or .svg file; needs matplotlib")
    options = parser.parse_args(arguments)
    given = options.round_trip_ms
    round_trip_s = time_round_trip() if given is None else given / 1e3
    rng, rounds = np.random.default_rng(0), []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="ratchet-scale-", dir=options.folder) as scratch:
            rounds.append(measure_round(Path(scratch), round_trip_s=round_trip_s, rng=rng))
    report = summarise(rounds)
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report | {"each": rounds}, indent=1))
    if options.plot:
        plot([{key: found[0] for key, found in row.items()} for row in report["simulated"]], options.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
