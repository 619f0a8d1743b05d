"""What a store under load uses: its threads by what they are for, its group commits, and everybody's memory."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.processes import ThreadUse, Used, anonymous_bytes, role_of, seconds_between, thread_seconds
from buffers.log.frames import RawFrame
from buffers.log.reader import LogReader

SAMPLE_S = 0.5
MIB = 1 << 20
NATIVE = "Ray and gRPC, native"
GROUPS = (  # of the owner's threads, by how Python calls them
    ("log-data", "data log"),
    ("log-control", "control log"),
    ("indexer", "indexer"),
    ("serving", "gRPC calls"),
    ("producer stream", "gRPC calls"),
    ("tail stream", "gRPC calls"),
    ("Ray", "Ray calls"),
    ("in-process", "producers in process"),
)


def group_of(name: str | None) -> str:
    """What a thread is for; None: it is none of Python's."""
    if name is None:
        return NATIVE
    if "_serve" in name:
        return "gRPC calls"
    return next((group for start, group in GROUPS if name.startswith(start)), "other")


@dataclass(frozen=True, kw_only=True)
class Look:
    """At one moment, what was used since the beginning."""

    time_s: float
    threads: Mapping[int, ThreadUse]
    names: Mapping[int, str]
    processes: Used
    log: Mapping[str, float]  # LogWriter.stats of the data log
    data_lsn: int


def look(owner_pid: int, *, names: Mapping[int, str], status: Mapping[str, Any]) -> Look:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    used = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            key = process.pid, process.create_time()
            used[key] = (_role(process), times.user + times.system)
    return Look(
        time_s=time.perf_counter(),
        threads=thread_seconds(owner_pid),
        names=names,
        processes=used,
        log=status["data"],
        data_lsn=status["data_lsn"],
    )


def _role(process: psutil.Process) -> str:
    return "this process" if process.pid == os.getpid() else role_of(process.cmdline())


def compare(first: Look, last: Look) -> dict[str, Any]:
    """Cores that the owner's threads and all processes used meanwhile, and what was committed."""
    seconds = last.time_s - first.time_s
    cores: dict[str, float] = {}
    queued: dict[str, float] = {}
    for thread, use in last.threads.items():
        before = first.threads.get(thread, ThreadUse("", 0.0, 0.0))
        group = group_of(last.names.get(thread))
        cores[group] = cores.get(group, 0.0) + (use.cpu_s - before.cpu_s) / seconds
        queued[group] = queued.get(group, 0.0) + (use.queued_s - before.queued_s) / seconds
    logged = {
        name: last.log[name] - first.log[name] for name in ("commits", "frames", "commit_s_total", "sync_s_total")
    }
    return {
        "cores_of_owner": _rounded(cores),
        "python_cores_of_owner": round(sum(used for group, used in cores.items() if group != NATIVE), 3),
        "threads_waiting_for_a_core": _rounded(queued),
        "cores": _rounded({role: s / seconds for role, s in seconds_between(first.processes, last.processes).items()}),
        "records_per_s": round(logged["frames"] / seconds, 1),
        "commits_per_s": round(logged["commits"] / seconds, 1),
        "log_busy": round(logged["commit_s_total"] / seconds, 3),
        "log_syncing": round(logged["sync_s_total"] / seconds, 3),
        "commit_p50_ms": round(last.log["commit_p50_s"] * 1e3, 2),
        "commit_p99_ms": round(last.log["commit_p99_s"] * 1e3, 2),
    }


def _rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    return {
        name: round(value, 3) for name, value in sorted(numbers.items(), key=lambda item: -item[1]) if value > 0.001
    }


def name_bottleneck(row: Mapping[str, Any]) -> str:
    """What had the least time left: the disk, the interpreter that all Python threads of the owner share, or this
    machine's processors."""
    num_cores = os.cpu_count() or 1
    python, all_cores = row["python_cores_of_owner"], sum(row["cores"].values())
    used = {
        "the disk (fdatasync)": row["log_syncing"],
        "the owner's interpreter": python,
        "this machine's processors": all_cores / num_cores,
    }
    name, share = max(used.items(), key=lambda item: item[1])
    rest = ", ".join(f"{other} {its:.0%}" for other, its in used.items() if other != name)
    most = ", ".join(f"{group} {cores:.2f}" for group, cores in list(row["cores_of_owner"].items())[:3])
    return f"{name}, in use {share:.0%} of the time ({rest}); of the owner's threads most take {most} cores"


class Memory(threading.Thread):
    """Bytes of each watched process, again and again: the owner's own, and what others have resident."""

    def __init__(self, owner_pid: int) -> None:
        super().__init__(name="memory", daemon=True)
        self._stopped = threading.Event()
        self._watched: dict[str, tuple[str, Callable[[], int]]] = {}
        self.first_bytes: dict[str, int] = {}
        self.most_bytes: dict[str, int] = {}
        self.watch("owner", "the store", lambda: anonymous_bytes(owner_pid))

    def watch(self, name: str, role: str, measure: Callable[[], int] | int) -> None:
        """`measure`: bytes, or the id of a process."""
        if isinstance(measure, int):
            process = psutil.Process(measure)
            self._watched[name] = role, lambda: int(process.memory_info().rss)
        else:
            self._watched[name] = role, measure

    def mark(self) -> None:
        """Growth counts from here."""
        self.most_bytes.clear()
        self._sample()
        self.first_bytes = dict(self.most_bytes)

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        while not self._stopped.wait(SAMPLE_S):
            self._sample()

    def summarise(self) -> list[dict[str, Any]]:
        """By role: how many, the largest, and the most that one has grown."""
        rows = []
        for role in dict.fromkeys(role for role, _ in self._watched.values()):
            names = [name for name, (its, _) in self._watched.items() if its == role and name in self.most_bytes]
            grown = [self.most_bytes[name] - self.first_bytes.get(name, self.most_bytes[name]) for name in names]
            if names:
                largest = max(self.most_bytes[name] for name in names) / MIB
                rows.append(
                    {
                        "role": role,
                        "number": len(names),
                        "mib": round(largest, 1),
                        "grown_mib": round(max(grown) / MIB, 1),
                    }
                )
        return rows

    def _sample(self) -> None:
        for name, (_role, measure) in list(self._watched.items()):
            with contextlib.suppress(psutil.Error, OSError):
                self.most_bytes[name] = max(self.most_bytes.get(name, 0), measure())


# ---------------------------------------------------------------------------------------------- afterwards


class Frames:
    """LSNs of all records of a data log, read from scratch, and the watermark that each was written at."""

    def __init__(self, folder: Path) -> None:
        frames = [
            (frame.header.lsn, frame.header.durable_lsn)
            for frame in LogReader(folder).walk()
            if isinstance(frame, RawFrame) and not frame.is_schema
        ]
        self.lsns, self._marks = np.array(frames, dtype=np.int64).reshape(-1, 2).T

    def commit_sizes(self, start: int, end: int) -> dict[str, float]:
        """Records of one group commit: they were written at the same watermark."""
        sizes = np.unique(self._marks[(self.lsns >= start) & (self.lsns < end)], return_counts=True)[1]
        if not len(sizes):
            return {}
        p50, p99 = np.percentile(sizes, [50, 99])
        return {"mean": round(float(sizes.mean()), 1), "p50": float(p50), "p99": float(p99), "most": float(sizes.max())}

    def is_heard(self, heard: Iterable[int], *, start: int) -> bool:
        """Whether a tailer from LSN `start` on heard what lies there, in its order and without a hole."""
        told = np.fromiter(heard, dtype=np.int64)
        first = int(np.searchsorted(self.lsns, start))
        return bool(np.array_equal(told, self.lsns[first : first + len(told)]))
