"""The driver's eyes: asks every process each second, writes status.json and the metric targets, notices a death.

A death ends the run: Ray fails the process's `serve` call, and the error names the process and the way to go on. A
further shard of the store is started again instead, as soon as the node with its disk is there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from actors.crew import SHARD, Crew
from actors.process import reachable, refusal_in
from buffers.addresses import name_shard
from configs.schema import RunConfig
from contracts.errors import ActorDiedError, RatchetError, is_disk_full
from telemetry.exporter import Exporter, write_targets
from telemetry.process import start_ticks

log = logging.getLogger(__name__)
RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception): ")  # the last lines of a traceback, unindented
ASK_S = 1.0  # between two rounds of questions
ANSWER_S = 5.0  # how long an answer may take before the last one is shown again


class StatusFile:
    """status.json: rewritten whole, so that a reader sees the old or the new one."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self._path = folder / "status.json"
        self._fields: dict[str, Any] = {
            "state": "starting",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "start_time": start_ticks(os.getpid()),
            "steps": config.steps,
            "started": time.time(),
        }

    def write(self, **fields: Any) -> None:
        self._fields.update(fields, updated=time.time())
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            draft.write_text(json.dumps(self._fields, default=str) + "\n")
            draft.replace(self._path)
        except OSError as error:
            if not is_disk_full(error):
                raise
            log.warning("status.json could not be written: the disk is full")  # the store says so too, and ends the run


class Watch:
    """Single-threaded: `look` once a second from the driver's loop."""

    def __init__(self, crew: Crew, *, config: RunConfig, folder: Path, file: StatusFile) -> None:
        self._crew, self._config, self._folder, self._file = crew, config, folder, file
        self._lost: set[str] = set()  # shards that died and are not back
        self._main = {role: actor.serve.remote() for role, actor in crew.roles().items()}
        self._answers: dict[str, Mapping[str, Any]] = {}
        self._rate = Rate()
        self._targets_written, self._port = False, 0  # of the driver's own metrics
        self._asked: dict[Any, str] = {}

    def look(self) -> int | None:
        """The step at which the run ended, or None while it goes on. Raises ActorDiedError, or what a loop raised."""
        self._bring_back()
        refs = {ref: role for role, ref in self._main.items()}
        done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=ASK_S)
        for ref in done:
            if refs[ref].startswith(SHARD):
                self._lose(refs[ref])
        ended = [refs[ref] for ref in done if refs[ref] in self._main]
        for role in sorted(ended, key=lambda role: role != "update-0"):
            step = self._result(role)
            if role == "update-0":
                self._ask()
                self.write()
                return step
        self._ask()
        self.write()
        return None

    def _lose(self, role: str) -> None:
        """A shard died: its groups wait, the run goes on. Raises UserError where it refused to start."""
        error = self._error(self._main.pop(role))
        if refusal := refusal_in(str(error)):
            raise refusal
        self._lost.add(role)
        log.error("a shard of the store is lost: its groups wait", extra={"of": role, "detail": str(error)})

    def _bring_back(self) -> None:
        uuid = self._answers.get("store", {}).get("uuid")
        for role in sorted(self._lost if uuid else ()):
            if self._crew.rehire(role, config=self._config, folder=self._folder, uuid=str(uuid)):
                self._lost.discard(role)
                self._main[role] = self._crew.roles()[role].serve.remote()
                self._targets_written = False  # it has another port
                log.info("a shard of the store is started again", extra={"of": role})

    def write(self, **fields: Any) -> None:
        update = self._answers.get("update-0", {})
        stores = [answer for role, answer in self._answers.items() if role.startswith(name_shard(0))]
        rollout = self._answers.get("rollout-0", {})
        engines = [answer for role, answer in self._answers.items() if role.startswith("engine")]
        completions = sum(answer["requests"] for answer in engines)
        tokens = sum(answer["completion_tokens"] for answer in engines)
        rates = self._rate(completions, tokens)
        step, step_s = update.get("step", 0), update.get("step_s")
        phase = update.get("phase", "starting")
        self._file.write(
            **{
                "state": {"starting": "starting", "warm_start": "warm_start"}.get(phase, "running"),
                "phase": phase,
                "step": step,
                "version": update.get("version", -1),
                "reward": update.get("reward"),
                "staleness": update.get("staleness", 0.0),
                "episodes": sum(store.get("episodes", 0) for store in stores),
                "completions": completions,
                "completions_per_s": rates[0],
                "tokens_per_s": rates[1],
                "lag": sum(store.get("ready", 0) for store in stores),
                "lost_shards": sorted(self._lost),
                "items": rollout.get("items"),
                "idle": {role: answer["idle"] for role, answer in self._answers.items() if answer.get("idle")},
                "eta_s": None if step_s is None else step_s * (self._config.steps - step),
                **fields,
            }
        )

    def _result(self, role: str) -> int:
        try:
            result: int = ray.get(self._main[role])
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ray.exceptions.RayActorError):  # a neighbour of this process died: name that one
                raise self._death(self._dead_role() or role, cause) from None
            if isinstance(cause, RatchetError | OSError):
                raise cause from None
            raise
        except ray.exceptions.RayActorError as error:
            raise self._death(role, error) from None
        if role != "update-0":
            raise ActorDiedError(f"{role} ended by itself. {self._way_on()}")
        return result

    def _dead_role(self) -> str | None:
        """The process whose own `serve` says that it died (Ray may tell a neighbour first)."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            done, _ = ray.wait(list(self._main.values()), num_returns=len(self._main), timeout=0.5)
            for role, ref in self._main.items():
                if ref in done:
                    error = self._error(ref)
                    if isinstance(error, ray.exceptions.RayActorError):
                        return role
        return None

    @staticmethod
    def _error(ref: Any) -> Exception | None:
        try:
            ray.get(ref)
        except Exception as error:  # noqa: BLE001 - a border: any error of another process, to be looked at
            return error
        return None

    def _death(self, role: str, error: Exception) -> RatchetError:
        if refusal := refusal_in(str(error)):
            return refusal
        card = self._crew.cards.get(role, {})
        reason = death_reason(str(error))
        self._crew.note_death(role, reason.strip())
        return ActorDiedError(f"{role} (pid {card.get('pid', '?')}) died: {reason.strip()} {self._way_on()}")

    def _way_on(self) -> str:
        return f"Nothing acknowledged is lost; go on with: ratchet resume {self._folder.name}"

    def _ask(self) -> None:
        """Collect what was answered since the last round, and ask those again who have answered."""
        done, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0) if self._asked else ([], [])
        for ref in done:
            role = self._asked.pop(ref)
            try:
                self._answers[role] = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                log.warning("no status", extra={"of": role, "detail": str(error.cause)})
            except ray.exceptions.RayError:
                continue  # its death is noticed by its `serve` call
        waiting = set(self._asked.values())
        for role, actor in self._crew.roles().items():
            if role not in waiting:
                self._asked[actor.status.remote()] = role
        if not self._targets_written and self._crew.meet(timeout_s=0):
            self._write_targets()

    def _write_targets(self) -> None:
        """Where Prometheus finds every process of the run, this one included."""
        metrics = self._config.metrics
        if metrics.enabled:
            cards = self._crew.cards
            targets = {role: (card["host"], card["port"]) for role, card in cards.items()}
            self._port = self._port or Exporter("driver", self._folder.name).start(metrics.host)
            write_targets(
                self._folder / "metrics" / "targets.json",
                {**targets, "driver": (reachable(metrics.host), self._port)},
                run=self._folder.name,
            )
        self._targets_written = True


def death_reason(text: str) -> str:
    """The part of Ray's message that says why: the exception that ended a constructor, else how the process ended."""
    lines = text.strip().splitlines()
    raised = [number for number, line in enumerate(lines) if RAISED.match(line)]
    if raised:
        return " ".join(line.strip() for line in lines[raised[-1] :])
    return next((line for line in lines if "exit" in line.lower()), lines[0])


class Rate:
    """Completions and tokens a second over the last ten seconds."""

    def __init__(self, *, window_s: float = 10.0) -> None:
        self._window_s = window_s
        self._points: list[tuple[float, float, float]] = []

    def __call__(self, completions: float, tokens: float) -> tuple[float, float]:
        now = time.monotonic()
        self._points = [point for point in self._points if now - point[0] <= self._window_s]
        self._points.append((now, completions, tokens))
        start, first_completions, first_tokens = self._points[0]
        elapsed = max(now - start, 1e-9)
        if len(self._points) < 2:
            return 0.0, 0.0
        return (completions - first_completions) / elapsed, (tokens - first_tokens) / elapsed
