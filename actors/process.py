"""What every process of a run sets up for itself: threads, logs, metrics, and the import of its heavy libraries.

Actor modules import torch and vLLM inside their constructors: a process pays only for what it uses, and the number of
OpenMP threads must stand in the environment before torch is loaded.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from threading import Event
from typing import Any, TypeVar, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from configs.schema import RunConfig
from contracts.errors import UserError
from telemetry import logs, spans
from telemetry.exporter import Exporter

# `control` answers while `data` is saturated; `publish` belongs to the one publisher; `main` to the long-running loop.
GROUPS = {"data": 32, "control": 4, "publish": 1, "main": 1}
# The Supervisor is the one restart mechanism and our clients the ones that retry: Ray does neither.
ACTOR_OPTIONS: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, "concurrency_groups": GROUPS}

ANY_ADDRESS = "0.0.0.0"

F = TypeVar("F", bound=Callable[..., Any])


class RefusedError(Exception):
    """A UserError that ended an actor's constructor, as JSON: of such an exception Ray passes on the text alone."""


def refusal_in(text: str) -> UserError | None:
    """The UserError that a dead actor's message tells of, if it died of one."""
    lines = [line.partition(f"{RefusedError.__name__}: ")[2] for line in text.splitlines()]
    told = next((line for line in reversed(lines) if line), None)
    return None if told is None else UserError(*json.loads(told))


def refusing(constructor: F) -> F:
    """For an actor's `__init__`: bad input that only shows there ends the run with its own message."""

    @wraps(constructor)
    def construct(*arguments: Any, **named: Any) -> None:
        try:
            constructor(*arguments, **named)
        except UserError as error:
            raise RefusedError(json.dumps([error.asked, error.found, error.todo])) from error

    return cast("F", construct)


def start(kind: type, *arguments: Any, **where: Any) -> Any:
    """The handle of a new actor of the plain class `kind`, at the place that the Ray options `where` name."""
    return ray.remote(**ACTOR_OPTIONS)(kind).options(**where).remote(*arguments)


def reachable(host: str) -> str:
    """The address under which others find what this process serves on `host`."""
    return str(ray.util.get_node_ip_address()) if host == ANY_ADDRESS else host


def group(name: str) -> Callable[[F], F]:
    """Which of GROUPS a method runs in."""
    return cast("Callable[[F], F]", ray.method(concurrency_group=name))


class Process:
    """What every actor is: a role, a log, a metrics endpoint, and a main line that ends when it is told to stop."""

    def __init__(
        self, role: str, *, config: RunConfig, folder: Path, threads: int = 1, working: spans.Working | None = None
    ) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        logs.configure(role, run=folder.name, folder=folder / "logs")
        self.role, self.stopping = role, Event()
        self._spans = spans.configure(role, folder=folder / "spans", working=working)
        self.metrics = Exporter(role=role, run=folder.name)
        self.port = self.metrics.start(config.metrics.host) if config.metrics.enabled else 0
        self.host = reachable(config.metrics.host)
        logging.getLogger(__name__).info("process started", extra={"pid": os.getpid(), "role": role})

    @group("main")
    def serve(self) -> int | None:
        """Returns when the process is told to stop; that the call fails tells the driver that the process died."""
        self.stopping.wait()
        return None

    def idle(self) -> dict[str, float] | None:
        """Share of its time in which the process had nothing to do, by window; also set as a metric."""
        idle = self._spans.idle()
        for window, share in (idle or {}).items():
            self.metrics.set("ratchet_idle_ratio", share, window=window)
        return idle

    @group("control")
    def stop(self) -> None:
        self.stopping.set()

    @group("control")
    def card(self) -> dict[str, Any]:
        """Who and where this process is."""
        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        return {
            "role": self.role,
            "pid": os.getpid(),
            "node": context.get_node_id(),
            "gpus": sorted(gpus),
            "host": self.host,
            "port": self.port,
            "time": time.time(),
        }


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Pins an actor to the caller's node: the store's files lie there."""
    return NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
