"""Episodes into the store, in process, by Ray calls and over gRPC, in the same sitting: `python -m benchmarks.serving`.

One owner process answers Ray and gRPC alike; each producer is a process of its own, the same for both, which appends
batches of 8 KB episodes and waits for each acknowledgement (durable). In process: threads beside the owner.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.cluster import joined
from actors.process import on_this_node, start
from actors.store import SERVING_FILE, StoreActor
from actors.transport import StoreClient
from buffers.owner import StoreOwner, episode_id
from configs.schema import RunConfig
from contracts.protocols import Store
from contracts.records import Episode, Lease, Purpose, Served, Session, Span, Step, StopReason, Version
from loops.tasks import task_source
from serving.client import connect

TOKENS = 1_000  # of an answer; with its log-probabilities and a short prompt 8.3 KB
GROUP_SIZE = 64
GOAL = 0.5  # of Ray's rate with 8 producers


def configure(*, num_groups: int) -> RunConfig:
    """A store that hands out `num_groups` groups at once."""
    return RunConfig.model_validate(
        {
            "steps": 1_000_000,
            "max_staleness": 1,
            "learner": {"groups_per_step": num_groups, "group_size": GROUP_SIZE},
            "rollout": {"lease_timeout_s": 3600.0},
            "store": {"reserve_mib": 0},
            "serving": {"enabled": True},
        }
    )


@dataclass(frozen=True)
class Measured:
    """One producer's appends: episodes, seconds from the first to the last, and each acknowledgement's wait."""

    episodes: int
    seconds: float
    waits_s: tuple[float, ...]


def prepare(store: Store) -> None:
    """Version 0 is served, so that tasks are handed out."""
    session = store.open_session(Session(role="learner", epoch=0))
    store.decide(Version(version=0, parent=-1, branch=0, step=0, root_hash="none"), session)
    store.decide(Served(version=0, gap=0.0), session)


def produce(store: Store, *, uuid: str, name: str, num_groups: int, batch: int, seconds: float) -> Measured:
    """Lease, make everything, append one to warm up, then batch after batch until the time is over."""
    epoch = store.attach(name)
    leases = store.lease(name, epoch, max_tasks=num_groups)
    step = Step(
        observation=np.arange(70, dtype=np.int32),
        action=np.arange(TOKENS, dtype=np.int32),
        log_probs=np.full(TOKENS, -0.5, dtype=np.float32),
    )

    def make(lease: Lease, member: int, seq: int) -> Episode:
        return Episode(
            episode_id=episode_id(uuid, lease.lsn, member),
            lease=lease.lsn,
            member=member,
            task_id=lease.task.task_id,
            environment=configure(num_groups=1).environment_label,
            environment_version="1",
            purpose=Purpose.TRAIN,
            steps=(step,),
            spans=(Span(start=0, version=0),),
            stop_reason=StopReason.TERMINATED,
            reward=1.0,
            producer=name,
            producer_epoch=epoch,
            seq=seq,
        )

    places = [(lease, member) for lease in leases for member in lease.missing]
    episodes = [make(lease, member, seq) for seq, (lease, member) in enumerate(places)]
    store.append([episodes.pop()])  # what is made or imported at the first call is no part of the figures
    waits: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds and (len(waits) + 1) * batch <= len(episodes):
        asked = time.perf_counter()
        store.append(episodes[len(waits) * batch : (len(waits) + 1) * batch])
        waits.append(time.perf_counter() - asked)
    return Measured(len(waits) * batch, time.perf_counter() - began, tuple(waits))


class Producer:
    """An actor that appends by Ray calls or over gRPC."""

    def ready(self) -> bool:
        return True

    def run(self, actor: Any, address: str | None, **words: Any) -> Measured:
        with ExitStack() as resources:
            client = StoreClient(actor) if address is None else resources.enter_context(connect(address))
            return produce(client, **words)


def measure_in_process(folder: Path, config: RunConfig, *, producers: int, **words: Any) -> list[Measured]:
    owner = StoreOwner.open(folder / "store", config=config, source=task_source(config), create=True)
    try:
        prepare(owner)
        with ThreadPoolExecutor(producers) as threads:
            names = [f"producer-{rank}" for rank in range(producers)]
            return list(threads.map(lambda name: produce(owner, uuid=str(owner.uuid), name=name, **words), names))
    finally:
        owner.close()


def measure_actor(folder: Path, config: RunConfig, *, producers: int, grpc: bool, **words: Any) -> list[Measured]:
    import ray  # after actors/, which sets what it reads at import

    owner = StoreOwner.open(folder / "store", config=config, source=task_source(config), create=True)
    owner.close()
    where = on_this_node()
    actor = start(StoreActor, config, str(folder), str(owner.uuid), num_cpus=0, scheduling_strategy=where)
    hands: list[Any] = [ray.remote(Producer).options(num_cpus=0).remote() for _ in range(producers)]
    try:
        prepare(StoreClient(actor))
        ray.get([hand.ready.remote() for hand in hands])
        address = json.loads((folder / SERVING_FILE).read_text())["address"] if grpc else None
        calls = [
            hand.run.remote(actor, address, uuid=str(owner.uuid), name=f"producer-{rank}", **words)
            for rank, hand in enumerate(hands)
        ]
        found: list[Measured] = ray.get(calls)
        ray.get(actor.stop.remote())
        return found
    finally:
        for handle in (actor, *hands):
            ray.kill(handle)


def summarise(measured: Sequence[Measured]) -> dict[str, float]:
    waits_ms = np.array([wait for one in measured for wait in one.waits_s]) * 1e3
    rate = sum(one.episodes for one in measured) / max(one.seconds for one in measured)
    return {
        "episodes_per_s": rate,
        "ack_p50_ms": float(np.percentile(waits_ms, 50)),
        "ack_p99_ms": float(np.percentile(waits_ms, 99)),
    }


WAYS: dict[str, Callable[..., list[Measured]]] = {
    "in process": measure_in_process,
    "Ray calls": lambda *given, **words: measure_actor(*given, grpc=False, **words),
    "gRPC": lambda *given, **words: measure_actor(*given, grpc=True, **words),
}


def measure_all(root: Path, *, rounds: int, seconds: float, most: int) -> list[dict[str, Any]]:
    """Rows; `most`: episodes that one producer has at hand. Rounds go through all ways in turn."""
    found: dict[tuple[int, int, str], list[dict[str, float]]] = {}
    for number in range(rounds):
        for producers in (1, 8):
            for batch in (1, 16):
                for way, run in WAYS.items():
                    num_groups = most // GROUP_SIZE
                    folder = root / f"{number}-{producers}-{batch}-{way.replace(' ', '-')}"
                    folder.mkdir()
                    config = configure(num_groups=num_groups * producers)
                    words = {"num_groups": num_groups, "batch": batch, "seconds": seconds}
                    measured = run(folder, config, producers=producers, **words)
                    found.setdefault((producers, batch, way), []).append(summarise(measured))
                    shutil.rmtree(folder)
    return [
        {
            "producers": producers,
            "batch": batch,
            "way": way,
            **{key: round(statistics.median(one[key] for one in runs), 3) for key in runs[0]},
        }
        for (producers, batch, way), runs in found.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round instead of five")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rounds, seconds, most = (1, 0.5, 1_280) if options.quick else (5, 3.0, 12_800)
    with tempfile.TemporaryDirectory(prefix="ratchet-serving-") as scratch, joined(configure(num_groups=1)):
        rows = measure_all(Path(scratch), rounds=rounds, seconds=seconds, most=most)
    for row in rows:
        print(
            f"{row['producers']} producer(s), {row['batch']:2d} an append, {row['way']:10}: "
            f"{row['episodes_per_s']:8,.0f} episodes/s, ack p50 {row['ack_p50_ms']:.2f}, p99 {row['ack_p99_ms']:.2f} ms"
        )
    rates = {(row["producers"], row["batch"], row["way"]): row["episodes_per_s"] for row in rows}
    goals = []
    for batch in (1, 16):
        ratio = rates[8, batch, "gRPC"] / rates[8, batch, "Ray calls"]
        name = f"gRPC / Ray calls, 8 producers, {batch} an append"
        goals.append({"name": name, "goal": GOAL, "measured": round(ratio, 2), "met": ratio >= GOAL})
        print(f"{name}: {ratio:.2f}, goal at least {GOAL}: {'met' if ratio >= GOAL else 'missed'}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "goals": goals}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
