"""One peer of benchmarks/store.py: PEER_PYTHON benchmarks/store_child.py PEER --bytes B --records N --folder FOLDER.

    cpprb             arrays in memory, C++ copies and segment trees
    torchrl           LazyMemmapStorage: mapped files in FOLDER, nothing synced
    torchrl-flushed   the same, with fdatasync of its files after each append
    reverb            its own server in this process, which its client then reaches without gRPC

Runs in the peer's own environment, so it imports nothing of Ratchet. A record is one column of B bytes. Prints one line
of JSON: records a second by batch size, then draws a second of 64 whole records, uniform ones and by priority with new
priorities for what was drawn. What a peer cannot do is null, with its own words under `why`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIZES, DRAWN = (1, 16, 128), 64
Act = Callable[[int], object]


def rate(act: Act, *, seconds: float) -> float:
    """Calls a second, after a tenth of the time to warm up."""
    number, measured, start = 0, 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds * 1.1:
        act(number)
        number += 1
        measured += passed > seconds * 0.1
    return measured / seconds


class Cpprb:
    def __init__(self, *, num_bytes: int, num_records: int, by_priority: bool, folder: Path) -> None:
        import cpprb

        kind = cpprb.PrioritizedReplayBuffer if by_priority else cpprb.ReplayBuffer
        self._buffer = kind(num_records, {"data": {"shape": num_bytes, "dtype": np.uint8}})

    def append(self, records: np.ndarray[Any, Any]) -> None:
        self._buffer.add(data=records)

    def sample(self) -> object:
        return self._buffer.sample(DRAWN)

    def sample_and_update(self, priorities: np.ndarray[Any, Any]) -> None:
        drawn = self._buffer.sample(DRAWN, beta=0.5)
        self._buffer.update_priorities(drawn["indexes"], priorities)

    def close(self) -> None:
        pass


class Torchrl:
    def __init__(self, *, num_bytes: int, num_records: int, by_priority: bool, folder: Path) -> None:
        from torchrl.data import LazyMemmapStorage, ReplayBuffer, TensorDictReplayBuffer
        from torchrl.data.replay_buffers.samplers import PrioritizedSampler, RandomSampler

        self._files: list[int] = []
        self._folder = folder
        sampler = PrioritizedSampler(num_records, alpha=1.0, beta=0.5) if by_priority else RandomSampler()
        kind = ReplayBuffer if by_priority else TensorDictReplayBuffer
        storage = LazyMemmapStorage(num_records, scratch_dir=str(folder))
        self._buffer = kind(storage=storage, sampler=sampler, batch_size=DRAWN)

    def append(self, records: np.ndarray[Any, Any]) -> None:
        import torch
        from tensordict import TensorDict

        self._buffer.extend(TensorDict({"data": torch.from_numpy(records)}, [len(records)]))

    def sample(self) -> object:
        return self._buffer.sample()

    def sample_and_update(self, priorities: np.ndarray[Any, Any]) -> None:
        import torch

        _, info = self._buffer.sample(return_info=True)
        self._buffer.update_priority(info["index"], torch.from_numpy(priorities))

    def close(self) -> None:
        for fd in self._files:
            os.close(fd)


class FlushedTorchrl(Torchrl):
    def append(self, records: np.ndarray[Any, Any]) -> None:
        super().append(records)
        if not self._files:
            self._files = [os.open(path, os.O_RDWR) for path in self._folder.rglob("*.memmap")]
        for fd in self._files:
            os.fdatasync(fd)  # takes what was written through the mapping, too


class Reverb:
    def __init__(self, *, num_bytes: int, num_records: int, by_priority: bool, folder: Path) -> None:
        import reverb

        selectors = reverb.selectors
        table = reverb.Table(
            "table",
            sampler=selectors.Prioritized(1.0) if by_priority else selectors.Uniform(),
            remover=selectors.Fifo(),
            max_size=num_records,
            rate_limiter=reverb.rate_limiters.MinSize(1),
        )
        self._server = reverb.Server(tables=[table], port=None)
        self._client = reverb.Client(f"localhost:{self._server.port}")

    def append(self, records: np.ndarray[Any, Any]) -> None:
        with self._client.trajectory_writer(num_keep_alive_refs=1) as writer:
            for record in records:
                writer.append({"data": record})
                writer.create_item("table", 1.0, {"data": writer.history["data"][-1:]})
            writer.flush()

    def sample(self) -> object:
        return list(self._client.sample("table", DRAWN, emit_timesteps=False))

    def sample_and_update(self, priorities: np.ndarray[Any, Any]) -> None:
        drawn = list(self._client.sample("table", DRAWN, emit_timesteps=False))
        keys = [item.info.key for item in drawn]
        self._client.mutate_priorities("table", dict(zip(keys, priorities.tolist(), strict=True)))

    def close(self) -> None:
        self._server.stop()


PEERS: dict[str, Any] = {"cpprb": Cpprb, "torchrl": Torchrl, "torchrl-flushed": FlushedTorchrl, "reverb": Reverb}


def measure(peer: Any, *, num_bytes: int, num_records: int, folder: Path, seconds: float) -> dict[str, object]:
    records = np.random.default_rng(0).integers(0, 256, (max(SIZES), num_bytes), dtype=np.uint8)
    rng = np.random.default_rng(1)

    def opened(name: str, *, by_priority: bool) -> Any:
        (folder / name).mkdir()
        return peer(num_bytes=num_bytes, num_records=num_records, by_priority=by_priority, folder=folder / name)

    buffer = opened("uniform", by_priority=False)
    found: dict[str, object] = {
        f"batch {size}": size * rate(appender(buffer, records[:size]), seconds=seconds) for size in SIZES
    }
    for _ in range(num_records // len(records)):
        buffer.append(records)
    found["sample"] = rate(lambda _: buffer.sample(), seconds=seconds)
    buffer.close()
    try:
        buffer = opened("priority", by_priority=True)
        for _ in range(num_records // len(records)):
            buffer.append(records)
        found["prioritised"] = rate(
            lambda _: buffer.sample_and_update(rng.integers(1, 1 << 20, size=DRAWN).astype(np.float32)), seconds=seconds
        )
        buffer.close()
    except (ImportError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        found |= {"prioritised": None, "why": f"{type(error).__name__}: {error}"}
    return found


def appender(buffer: Any, records: np.ndarray[Any, Any]) -> Act:
    return lambda _: buffer.append(records)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=list(PEERS))
    parser.add_argument("--bytes", type=int, required=True, help="of a record")
    parser.add_argument("--records", type=int, required=True, help="that the peer holds")
    parser.add_argument("--folder", type=Path, required=True, help="empty, on the disk to measure")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement")
    options = parser.parse_args(arguments)
    found = measure(
        PEERS[options.peer],
        num_bytes=options.bytes,
        num_records=options.records,
        folder=options.folder,
        seconds=options.seconds,
    )
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
