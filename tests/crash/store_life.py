"""One life of a store that is going to be killed: producers, a learner and a taker of snapshots, all at once.

`python -m tests.crash.store_life RUN_FOLDER SEED`, or `live` in a forked process.

Whatever the store promises is told to a pipe, one line of less than a page at a time (it comes whole or not at all):

    open EPOCH                         task LEASE                  batch LSN STEP
    episode|late LSN ID                feedback LSN EPISODE-LSN    version|skip LSN NUMBER
    hold|review REASON                 priority LSN LEASE
    taking NAME, then snapshot NAME    fault WHAT                  what must never happen
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from buffers import snapshots
from buffers.owner import StoreOwner
from contracts.records import (
    Ack,
    Batch,
    Episode,
    Feedback,
    Hold,
    Lease,
    Priority,
    Review,
    Served,
    Skip,
    StopReason,
)
from tests.unit.buffers.bench import Bench, make_step, name_task, small_config

NUM_WORKERS = 3
LEASE_TIMEOUT_S = 0.02  # so short that some leases are lost, and their episodes late
STEPS = 1_000_000  # it is killed long before
LONG_TOKENS = 6_000  # of a few episodes: segments of 1 MiB fill and rotate
PAUSE_S = 0.001

Tell = Callable[..., None]


def live(run_folder: Path, *, seed: int, pipe: int) -> None:
    """Open or make the store of `run_folder` and use it until the kill. Never returns: leaves by `os._exit`."""

    def tell(*words: object) -> None:
        os.write(pipe, (" ".join(map(str, words)) + "\n").encode())

    try:
        _live(run_folder, seed=seed, tell=tell)
    except BaseException as error:  # noqa: BLE001  the end of this process, whatever it was
        _tell_fault(tell, error)
    finally:
        os._exit(1)


def _live(run_folder: Path, *, seed: int, tell: Tell) -> None:
    chance = random.Random(seed)
    sampler = chance.choice(("fifo", "uniform", "prioritised"))
    config = small_config(steps=STEPS, max_staleness=3, sampler=sampler)
    config = config.model_copy(
        update={"rollout": config.rollout.model_copy(update={"lease_timeout_s": LEASE_TIMEOUT_S})}
    )
    folder = run_folder / "store"
    owner = StoreOwner.open(
        folder,
        config=config,
        source=name_task,
        create=not (folder / "store.json").exists(),
        clock=time.monotonic,
    )
    tell("open", owner.epoch)
    learner = Bench(owner, producer="learner")
    for number in range(NUM_WORKERS):
        worker = Bench(owner, producer=f"rollout-{number}", session=learner.session)
        _start(_work, worker, random.Random(chance.random()), tell)
    _start(_take_snapshots, run_folder, random.Random(chance.random()), tell, owner.epoch)
    _learn(learner, random.Random(chance.random()), tell)


def _start(role: Callable[..., None], *arguments: Any) -> None:
    def run() -> None:
        try:
            role(*arguments)
        except BaseException as error:  # noqa: BLE001  the border of the thread: the oracle must hear of it
            _tell_fault(arguments[2], error)

    threading.Thread(target=run, daemon=True).start()


def _tell_fault(tell: Tell, error: BaseException) -> None:
    if not isinstance(error, BrokenPipeError):  # the oracle is gone: so are we
        tell("fault", repr(error).replace("\n", " ")[:500])
    os._exit(1)


def _work(bench: Bench, chance: random.Random, tell: Tell) -> None:
    """Leases, episodes in small appends, some sent twice, some leases held for too long or never brought back."""
    held: list[Lease] = []
    while True:
        leases = bench.lease(max_tasks=3)
        for lease in leases:
            tell("task", lease.lsn)
        held += leases
        if not held:
            time.sleep(PAUSE_S)
            continue
        _play(bench, held.pop(chance.randrange(len(held))), chance, tell)
        if chance.random() < 0.05:
            bench.epoch = bench.owner.attach(bench.producer)
            held = []


def _play(bench: Bench, lease: Lease, chance: random.Random, tell: Tell) -> None:
    is_held = chance.random() < 0.2
    if is_held:
        hold = Hold(lease=lease.lsn, reason=f"{chance.random()}")
        bench.owner.hold(hold)
        tell("hold", hold.reason)
    _try_all(bench, lease, chance, tell)
    if is_held and chance.random() < 0.9:
        review = Review(lease=lease.lsn, accepted=chance.random() < 0.7, reason=f"{chance.random()}")
        bench.owner.review(review)
        tell("review", review.reason)


def _try_all(bench: Bench, lease: Lease, chance: random.Random, tell: Tell) -> None:
    version, fate = int(str(bench.owner.status()["served"])), chance.random()
    for member in lease.missing:
        changes: dict[str, Any] = {"steps": (make_step(LONG_TOKENS if chance.random() < 0.05 else 3),)}
        if fate < 0.1:
            changes |= {"stop_reason": StopReason.ENV_ERROR, "reward": None}
        elif fate < 0.3:
            changes |= {"reward": None, "reward_deadline": time.time() + (60.0 if fate < 0.25 else 0.0)}
        episode = bench.make(lease, member, version=version, **changes)
        (ack,) = bench.owner.append([episode])
        _hear(episode, ack, tell)
        if chance.random() < 0.2:
            _hear(episode, bench.owner.append([episode])[0], tell)
        if 0.1 <= fate < 0.3:
            reward = Feedback(episode_id=episode.episode_id, episode_lsn=ack.lsn, reward=float(member))
            tell("feedback", bench.owner.append_feedback(reward), ack.lsn)


def _hear(episode: Episode, ack: Ack, tell: Tell) -> None:
    tell("late" if ack.late else "episode", ack.lsn, episode.episode_id)


def _learn(bench: Bench, chance: random.Random, tell: Tell) -> None:
    """Where the log stands, and on from there: an open batch is decided first."""
    owner = bench.owner
    status = owner.status()
    head, step = status["head"], int(str(status["step"]))
    version = 0 if head is None else int(str(head))
    if head is None:
        bench.decide_version(version)
    owner.decide(Served(version=version, gap=0.0), bench.session)
    step += status["batched"] == 0
    while True:
        cut = owner.append_batch(bench.request(step, parent_version=version))
        if cut is None:
            time.sleep(PAUSE_S)
            continue
        version = _decide(bench, cut, version, chance, tell)
        step += 1


def _decide(bench: Bench, cut: tuple[int, Batch], version: int, chance: random.Random, tell: Tell) -> int:
    lsn, batch = cut
    tell("batch", lsn, batch.step)
    lease = batch.rows[0].lease
    priority = Priority(leases=(lease,), priorities=(chance.randrange(9),))
    tell("priority", bench.owner.decide(priority, bench.session), lease)
    if chance.random() < 0.1:
        skip = Skip(batch_lsn=lsn, step=batch.step, branch=0, reason="failed 2 times")
        tell("skip", bench.owner.decide(skip, bench.session), lsn)
    version += 1
    tell("version", bench.decide_version(version, step=batch.step, batch_lsn=lsn), version)
    bench.owner.decide(Served(version=version, gap=0.0), bench.session)
    return version


def _take_snapshots(run_folder: Path, chance: random.Random, tell: Tell, epoch: int) -> None:
    for number in range(STEPS):
        time.sleep(chance.uniform(0.0, 0.1))
        name = f"at-{epoch}-{number}"
        tell("taking", name)
        snapshots.create(run_folder, name)
        tell("snapshot", name)


if __name__ == "__main__":
    live(Path(sys.argv[1]), seed=int(sys.argv[2]), pipe=1)
