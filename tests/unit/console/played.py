"""A run folder of the console's own, with a store in it that the plain protocol has played: no torch, no Ray."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.schema import RunConfig
from console.run_folder import create
from contracts.records import Version
from telemetry.logs import JsonLines
from telemetry.process import start_ticks
from tests.crash.plain import PlainRun, plain_config

STEPS = 6


def play(root: Path) -> Path:
    """STEPS finished steps in a fresh run folder under `root`."""
    config: RunConfig = plain_config(steps=STEPS).model_copy(update={"root": str(root)})
    folder = create(config)
    play_in(folder, config)
    return folder


def play_in(folder: Path, config: RunConfig) -> None:
    """All steps of `config` in a fresh run folder."""
    run = PlainRun(folder, config=config)
    run.go()
    lines = JsonLines(folder / "metrics.jsonl")
    for _, record in run.owner.decisions():
        if isinstance(record, Version) and record.step:
            lines.append({"phase": "step", "step": record.step, "staleness": 0.0, **record.stats})
    lines.close()
    run.close()
    write_status(folder, {"state": "finished", "step": config.steps, "version": config.steps, "steps": config.steps})


def write_status(folder: Path, fields: Mapping[str, Any]) -> None:
    """status.json as the driver writes it; by default this process is the driver."""
    ours = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start_time": start_ticks(os.getpid()),
        "steps": STEPS,
        "episodes": 24,
    }
    (folder / "status.json").write_text(json.dumps({**ours, **fields}))


def copy(folder: Path, root: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(folder, root / folder.name))
