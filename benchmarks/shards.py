"""Three shards on three Ray nodes, one killed and brought back: `python -m benchmarks.shards [--json FILE]`.

Ray's own nodes, all on this machine: real processes, real calls, real deaths (kill -9 of the owner, then of its node),
one disk and one loopback. Producers are rollout slots whose player answers at once; a learner cuts batches, reads their
rows and names versions, and computes nothing. Windows of `--seconds`: all there, and then `--rounds` times shard 1 gone
and shard 1 back. Figures are medians over the windows of a kind, beside the least and the most of them.

    append     milliseconds of an append that was acknowledged, through the client of several shards
    sample     milliseconds to cut a batch and have its 96 rows, where there were enough groups
    batches    a second; the longest pause between two
    back_s     from the start of the returned shard's owner to its groups being in a batch again
    lost       acknowledged episodes that the store does not give back at the end: 0, or it is broken

The peer of a window without the shard is the window before it. Not covered: a cut link, a slow disk, a network.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np

from actors.cluster import joined
from actors.placement import name_resource
from actors.shards import restart_shard, start_shards
from actors.transport import open_shards
from buffers.addresses import shard_of
from buffers.owner import StoreOwner, episode_id
from configs.schema import RunConfig
from contracts.protocols import BatchRequest, Store
from contracts.records import Ack, Episode, Lease, Purpose, Served, Session, Span, Step, StopReason, Version
from loops.rollout import Place, RolloutSlot
from loops.tasks import task_source

NUM_SHARDS, VICTIM = 3, 1
GROUP_SIZE, GROUPS_PER_STEP, CHUNK = 4, 24, 2
TOKENS = 700  # of prompt and answer each: a record of 8.4 KB
DEADLINE_S = 120.0
LOOK_S = 0.02  # between two looks for a full queue
Windows = list[tuple[str, float, float]]  # kind, begin, end


def make_config(root: Path, *, address: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "shards",
            "root": str(root),
            "mode": "async",
            "steps": 10**9,
            "max_staleness": 2,
            "learner": {"groups_per_step": GROUPS_PER_STEP, "group_size": GROUP_SIZE},
            "store": {"shards": NUM_SHARDS, "reserve_mib": 0, "index_map_mib": 256},
            "cluster": {"address": address, "insecure": True},
            "metrics": {"enabled": False},
        }
    )


@contextmanager
def ray_nodes() -> Iterator[tuple[Any, dict[int, Any]]]:
    """A head, where shard 0 and this process are, and a node for each further shard."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    small = {"num_cpus": 2, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        yield cluster, {shard: add_node(cluster, shard) for shard in range(1, NUM_SHARDS)}
    finally:
        cluster.shutdown()


def add_node(cluster: Any, shard: int) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=80 << 20, resources={name_resource(shard): 1})


@dataclass
class Heard:
    """What the run was told, from all its threads."""

    acks: dict[str, int] = field(default_factory=dict)  # episode id → address
    appends: list[tuple[float, float]] = field(default_factory=list)  # (when, seconds), acknowledged ones
    refused: list[tuple[float, float]] = field(default_factory=list)  # those of a lost shard
    samples: list[tuple[float, float]] = field(default_factory=list)
    batches: list[tuple[float, frozenset[int]]] = field(default_factory=list)  # (when, the shards of its rows)
    num_rows: int = 0
    version: int = 0
    failures: list[BaseException] = field(default_factory=list)


class TimedStore:
    """The store with a clock at `append`."""

    def __init__(self, store: Store, heard: Heard) -> None:
        self._store, self._heard = store, heard

    def append(self, episodes: Sequence[Episode]) -> list[Ack]:
        began = time.monotonic()
        try:
            acks = self._store.append(episodes)
        except BaseException:
            self._heard.refused.append((began, time.monotonic() - began))
            raise
        self._heard.appends.append((began, time.monotonic() - began))
        return acks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class InstantPlayer:
    """loops.rollout.Player that needs no engine: what it answers is as large as tokens are, and as quickly there."""

    def __init__(self, config: RunConfig, heard: Heard, *, capacity: int) -> None:
        self.capacity = capacity
        self._environment, self._heard = config.environment_label, heard
        ids = np.arange(TOKENS, dtype=np.int32)
        self._step = Step(observation=ids, action=ids, log_probs=np.full(TOKENS, -0.5, dtype=np.float32))

    def play(self, leases: Sequence[Lease]) -> list[Episode]:
        return [self._make(lease, member) for lease in leases for member in lease.missing]

    def _make(self, lease: Lease, member: int) -> Episode:
        return Episode(
            episode_id="",
            lease=lease.lsn,
            member=member,
            task_id=lease.task.task_id,
            environment=self._environment,
            environment_version="1",
            purpose=Purpose.TRAIN,
            steps=(self._step,),
            spans=(Span(start=0, version=self._heard.version),),
            stop_reason=StopReason.TERMINATED,
            reward=float(member),
        )


class Steps:
    """A learner that computes nothing: SESSION, VERSION 0, and then BATCH, its rows, VERSION, SERVED, ..."""

    def __init__(self, store: Store, heard: Heard, *, num_groups: int) -> None:
        self._store, self._heard, self._num_groups = store, heard, num_groups
        self._session = store.open_session(Session(role="learner", epoch=0))
        self._step, self._batch_lsn = 0, -1
        self._publish()

    def try_one(self) -> bool:
        """Whether a batch was cut, read and learned from."""
        request = BatchRequest(
            session=self._session,
            branch=0,
            step=self._step + 1,
            parent_version=self._step,
            num_groups=self._num_groups,
            max_staleness=2,
            seed=0,
            coefficients={},
        )
        began = time.monotonic()
        cut = self._store.append_batch(request)
        if cut is None:
            return False
        self._batch_lsn, batch = cut
        rows = self._store.read([row.reward_lsn for row in batch.rows])
        assert len(rows) == self._num_groups * GROUP_SIZE
        self._heard.samples.append((began, time.monotonic() - began))
        self._heard.num_rows += len(rows)
        self._heard.batches.append((time.monotonic(), frozenset(shard_of(row.lease) for row in batch.rows)))
        self._step += 1
        self._publish()
        return True

    def _publish(self) -> None:
        step = self._step
        record = Version(
            version=step, parent=step - 1, branch=0, step=step, root_hash=str(step), batch_lsn=self._batch_lsn
        )
        self._store.decide(record, self._session)
        self._store.decide(Served(version=step, gap=0.0), self._session)
        self._heard.version = step


class Load:
    """Producers and a learner as threads of this process, each with a client of its own."""

    def __init__(self, config: RunConfig, first: Any, *, uuid: str, producers: int) -> None:
        self.heard, self._stop = Heard(), Event()
        self.learner = open_shards(first, NUM_SHARDS)
        self._threads = [Thread(target=self._run, args=(self._learn,))]
        for rank in range(producers):
            slot = RolloutSlot(
                TimedStore(open_shards(first, NUM_SHARDS), self.heard),
                player=InstantPlayer(config, self.heard, capacity=CHUNK),
                store_uuid=uuid,
                place=Place(producer=f"producer-{rank}"),
                episode_id=episode_id,
                hear=lambda episode, ack: self.heard.acks.update({episode.episode_id: ack.lsn}),
            )
            self._threads.append(Thread(target=self._run, args=(partial(slot.run, self._stop),)))

    def _learn(self) -> None:
        steps = Steps(self.learner, self.heard, num_groups=GROUPS_PER_STEP)
        while not self._stop.is_set():
            if not steps.try_one():
                self._stop.wait(LOOK_S)

    def _run(self, work: Any) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - a border: a thread's failure is the measurement's
            self.heard.failures.append(error)
            self._stop.set()

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()
        if self.heard.failures:
            raise self.heard.failures[0]

    def wait_for(self, seconds: float) -> tuple[float, float]:
        began = time.monotonic()
        self._stop.wait(seconds)
        return began, time.monotonic()


def wait_until(ask: Callable[[], Any], what: str) -> Any:
    """What `ask` gives as soon as it gives something. Raises SystemExit after DEADLINE_S."""
    deadline = time.monotonic() + DEADLINE_S
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise SystemExit(f"after {DEADLINE_S:g} s: {what}")
        time.sleep(0.1)
    return answer


def measure(folder: Path, *, seconds: float, producers: int, rounds: int = 1) -> dict[str, Any]:
    import ray

    with ExitStack() as resources:
        cluster, nodes = resources.enter_context(ray_nodes())
        config = make_config(folder.parent, address=cluster.address)
        resources.enter_context(joined(config))
        owner = StoreOwner.open(folder / "store", config=config, source=task_source(config), create=True)
        owner.close()
        uuid = str(owner.uuid)
        where: dict[str, Any] = {"config": config, "folder": folder, "uuid": uuid}
        shards = start_shards(**where)
        load = Load(config, shards[0], uuid=uuid, producers=producers)
        windows: Windows = []
        backs_s: list[float] = []
        with load.running():
            wait_until(lambda: load.heard.batches, "there is no first batch")
            windows.append(("before", *load.wait_for(seconds)))
            for _ in range(rounds):
                pid = ray.get(shards[VICTIM].card.remote(), timeout=DEADLINE_S)["pid"]
                died = time.monotonic()
                os.kill(pid, signal.SIGKILL)
                cluster.remove_node(nodes[VICTIM], allow_graceful=False)
                _, ended = load.wait_for(died + seconds - time.monotonic())
                windows.append(("during", died, ended))
                nodes[VICTIM] = add_node(cluster, VICTIM)
                shards[VICTIM] = wait_until(partial(restart_shard, VICTIM, shards[0], **where), "the node is not back")
                returned = time.monotonic()
                wait_until(partial(is_back, load, returned), "no batch has rows of the shard that came back")
                backs_s.append(round(time.monotonic() - returned, 1))
                windows.append(("after", *load.wait_for(seconds)))
        report = {**check(load, shards), "back_s": spread(backs_s), **summarise(load.heard, windows)}
        ray.get([shard.stop.remote() for shard in shards], timeout=DEADLINE_S)
        return report


def is_back(load: Load, returned: float) -> bool:
    """Whether a batch cut since has rows of the shard that was lost."""
    return any(when > returned and VICTIM in shards for when, shards in load.heard.batches[-20:])


def check(load: Load, shards: Sequence[Any]) -> dict[str, Any]:
    """What was acknowledged against what the store gives back."""
    import ray

    heard = load.heard
    lost = 0
    wanted = list(heard.acks.items())
    for start in range(0, len(wanted), 256):
        part = wanted[start : start + 256]
        found = load.learner.read([lsn for _, lsn in part])
        lost += sum(episode.episode_id != known for episode, (known, _) in zip(found, part, strict=True))
    ledger = load.learner.ledger()
    statuses = ray.get([shard.status.remote() for shard in shards], timeout=DEADLINE_S)
    return {
        "acknowledged": len(wanted),
        "lost": lost,
        "by_shard": [sum(shard_of(lsn) == shard for _, lsn in wanted) for shard in range(NUM_SHARDS)],
        "balanced": ledger.balanced,
        "doubled": sum(status["doubled"] for status in statuses),
        "rows": heard.num_rows,
        "rows_trained": ledger.episodes_trained,
    }


def summarise(heard: Heard, windows: Windows) -> dict[str, Any]:
    """By kind of window: each figure as [median, least, most]."""
    found: dict[str, list[dict[str, float]]] = {}
    for kind, began, ended in windows:
        found.setdefault(kind, []).append(describe(heard, began, ended))
    return {
        kind: {"windows": len(rows), **{key: spread([row[key] for row in rows]) for key in rows[0]}}
        for kind, rows in found.items()
    }


def spread(figures: Sequence[float]) -> list[float]:
    """[median, least, most]"""
    return [round(float(one), 2) for one in (np.median(figures), min(figures), max(figures))]


def describe(heard: Heard, began: float, ended: float) -> dict[str, float]:
    seconds = ended - began
    cut = [when for when, _ in heard.batches if began <= when < ended]
    appends = [took * 1e3 for when, took in heard.appends if began <= when < ended]
    samples = [took * 1e3 for when, took in heard.samples if began <= when < ended]
    return {
        "seconds": seconds,
        "appends_per_s": len(appends) / seconds,
        **quantiles("append", appends),
        "refused": sum(began <= when < ended for when, _ in heard.refused),
        "batches_per_s": len(cut) / seconds,
        **quantiles("sample", samples),
        "longest_pause_s": float(np.diff([began, *cut, ended]).max()),
    }


def quantiles(name: str, found_ms: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(found_ms, [50, 99]) if found_ms else (np.nan, np.nan)
    return {f"{name}_p50_ms": float(p50), f"{name}_p99_ms": float(p99)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3, help="deaths and returns")
    parser.add_argument("--producers", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; emptied afterwards")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    os.environ.update(RAY_worker_niceness="0")  # Ray's 15 would measure whoever else uses the machine
    with tempfile.TemporaryDirectory(prefix="ratchet-shards-", dir=options.folder) as scratch:
        report = measure(
            Path(scratch) / "run", seconds=options.seconds, producers=options.producers, rounds=options.rounds
        )
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    return 0 if report["lost"] == 0 and report["balanced"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
