"""Runs a store in a process that is going to be killed: `python -m tests.unit.buffers.crash_worker FOLDER SEED`.

Tells standard output, one line a time, what it was promised: `task LEASE`, `episode LSN ID`, `late LSN ID`,
`batch LSN STEP`, `version LSN N`. Each line is one write of less than a page: it comes whole or not at all.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from pathlib import Path

from buffers.owner import StoreOwner
from contracts.errors import StoreStoppedError
from contracts.records import Ack, Episode, Lease, Served, StopReason
from tests.unit.buffers.bench import GROUPS_PER_STEP, Bench, name_task, small_config

NUM_WORKERS = 3
STEPS = 1_000_000  # it is killed long before


def tell(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def work(bench: Bench, chance: random.Random) -> None:
    """Leases, episodes in small appends, some sent twice, some leases held for too long or never brought back."""
    held: list[Lease] = []
    while True:
        leases = bench.lease(max_tasks=3)
        for lease in leases:
            tell("task", lease.lsn)
        held += leases
        if not held:
            threading.Event().wait(0.001)
            continue
        lease = held.pop(chance.randrange(len(held)))
        version = int(str(bench.owner.status()["served"]))
        failed = chance.random() < 0.1
        for member in lease.missing:
            changes = {"stop_reason": StopReason.ENV_ERROR, "reward": None} if failed else {}
            episode = bench.make(lease, member, version=version, **changes)
            hear(episode, bench.owner.append([episode])[0])
            if chance.random() < 0.2:
                hear(episode, bench.owner.append([episode])[0])
        if chance.random() < 0.05:
            bench.epoch = bench.owner.attach(bench.producer)
            held = []


def hear(episode: Episode, ack: Ack) -> None:
    tell("late" if ack.late else "episode", ack.lsn, episode.episode_id)


def learn(bench: Bench) -> None:
    """Where the log stands, and on from there."""
    owner = bench.owner
    status = owner.status()
    version, step = status["head"], int(str(status["step"]))
    if version is None:
        version = 0
        bench.decide_version(version)
    number = int(str(version))
    owner.decide(Served(version=number, gap=0.0), bench.session)
    step += status["batched"] == 0
    while True:
        cut = owner.append_batch(bench.request(step, parent_version=number))
        if cut is None:
            threading.Event().wait(0.001)
            continue
        lsn, batch = cut
        tell("batch", lsn, batch.step)
        number += 1
        tell("version", bench.decide_version(number, step=step, batch_lsn=lsn), number)
        owner.decide(Served(version=number, gap=0.0), bench.session)
        step += 1


def main(folder: Path, seed: int) -> None:
    config = small_config(steps=STEPS, max_staleness=3)
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"lease_timeout_s": 0.05})})
    owner = StoreOwner.open(folder, config=config, source=name_task, create=not (folder / "store.json").exists())
    learner = Bench(owner, producer="learner")
    assert GROUPS_PER_STEP * (config.max_staleness + 1) > NUM_WORKERS
    for number in range(NUM_WORKERS):
        worker = Bench(owner, producer=f"rollout-{number}", session=learner.session)
        threading.Thread(target=run, args=(worker, random.Random(seed + number)), daemon=True).start()
    tell("ready")
    learn(learner)


def run(worker: Bench, chance: random.Random) -> None:
    try:
        work(worker, chance)
    except StoreStoppedError:
        return
    except BaseException as error:
        tell("fault", repr(error))
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
