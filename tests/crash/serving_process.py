"""Processes at the two ends of a served store: `python -m tests.crash.serving_process ROLE WORDS`.

server RUN            serves a store in RUN/store, prints its address, and ends when its input does
producer ADDRESS FILE appends each episode of FILE (one Arrow message) by itself, from several threads, and prints
                      `place lsn` as soon as it is acknowledged
tailer ADDRESS        follows the data log and prints each LSN
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serving.client import connect
from serving.columns import read_batch
from tests.contract.stores import SERVING, TOKEN, Driver, Opened, served, small_config

NUM_THREADS = 32


def serve(run: str) -> None:
    config = small_config(steps=10_000, max_staleness=200, segment_mib=8)
    with served(Path(run), config, settings=SERVING.model_copy(update={"credit_mib": 8})) as (server, owner):
        Driver(Opened(owner, str(owner.uuid)), producer="warden").serve(0)
        print(server.address, flush=True)
        sys.stdin.read()


def produce(address: str, file: str) -> None:
    episodes = read_batch(Path(file).read_bytes())
    with connect(address, token=TOKEN) as store, ThreadPoolExecutor(NUM_THREADS) as threads:

        def append(place: int) -> None:
            (ack,) = store.append([episodes[place]])
            sys.stdout.write(f"{place} {ack.lsn}\n")
            sys.stdout.flush()

        list(threads.map(append, range(len(episodes))))


def follow(address: str) -> None:
    with connect(address, token=TOKEN) as store:
        for lsn, _ in store.tail():
            print(lsn, flush=True)


if __name__ == "__main__":
    ROLES: dict[str, Callable[..., None]] = {"server": serve, "producer": produce, "tailer": follow}
    ROLES[sys.argv[1]](*sys.argv[2:])
