"""From `ratchet run` to the first finished GRPO step, and where the time goes: `python -m benchmarks.startup`.

The peer is the bare start of what the run is made of, in the same sitting: `ray.init` alone and vLLM's import alone,
each in a process of its own. Not counted: the warm start itself (stated beside it).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.runs import QUICKSTART, ROOT, ratchet, set_words
from telemetry.logs import read_lines

GOAL_S = 60.0
EVENTS = (  # role, message in its log, what the row says
    ("driver", "cluster joined", "Ray cluster up"),
    ("driver", "crew hired", "placement groups ready, actors asked for"),
    ("store", "process started", "store process up"),
    ("engine-0", "process started", "engine process up"),
    ("engine-0", "engine ready", "engine loaded"),
    ("rollout-0", "environment ready", "environment and tokenizer ready"),
    ("update-0", "learner ready", "learner loaded"),
    ("update-0", "warm start done", "warm start done"),
    ("update-0", "version served", "genesis weights pushed, parity checked"),
)
PEERS = {
    "ray.init alone": "import os; os.environ['RAY_AUTH_MODE']='token'; import ray; ray.init(address='local', "
    "include_dashboard=False, log_to_driver=False, logging_level='error')",
    "vLLM import alone": "import os; os.environ['VLLM_ENABLE_V1_MULTIPROCESSING']='0'; import vllm; vllm.LLMEngine",
}


def timeline(runs: Path, *, settings: Sequence[str]) -> dict[str, float]:
    """Seconds from the command to each event of one run of one step, and the warm start's own seconds."""
    launched = time.time()
    ratchet("run", str(QUICKSTART), *set_words([*settings, f"root={runs}", "steps=1"]))
    folder = (runs / "latest").resolve()
    times: dict[str, float] = {}
    for role, message, row in EVENTS:
        seen = (line for line in read_lines(folder / "logs" / f"{role}.jsonl") if line["message"] == message)
        first = next(seen, None)
        if first is not None:
            times[row] = datetime.fromisoformat(first["time"]).timestamp() - launched
    for line in read_lines(folder / "metrics.jsonl"):
        if line["phase"] == "genesis":
            times["warm start, its own seconds"] = float(line.get("seconds", 0.0))
        elif line["phase"] == "evaluate" and line["step"] == 0:
            times["held-out evaluation of genesis done"] = line["time"] - launched
        elif line["phase"] == "step":
            times["first GRPO step finished"] = line["time"] - launched
    times["first GRPO step, without the warm start"] = (
        times["first GRPO step finished"] - times["warm start, its own seconds"]
    )
    return times


def peer_seconds(code: str) -> float:
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
    return time.monotonic() - start


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one run instead of three")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    rounds = 1 if options.quick else 3
    with tempfile.TemporaryDirectory(prefix="ratchet-startup-") as scratch:
        runs = [timeline(Path(scratch) / str(number), settings=options.settings) for number in range(rounds)]
    rows: list[dict[str, Any]] = [
        {"event": event, "median_s": round(statistics.median(run[event] for run in runs if event in run), 2)}
        for event in runs[0]
    ]
    rows += [{"event": f"peer: {name}", "median_s": round(peer_seconds(code), 2)} for name, code in PEERS.items()]
    measured = statistics.median(run["first GRPO step, without the warm start"] for run in runs)
    goals = [
        {
            "name": "first GRPO step beyond the warm start, s",
            "goal": GOAL_S,
            "measured": round(measured, 1),
            "met": measured <= GOAL_S,
        }
    ]
    for row in rows:
        print(f"{row['median_s']:8.2f} s  {row['event']}")
    print(
        f"goal at most {GOAL_S:g} s beyond the warm start: {measured:.1f} s, {'met' if goals[0]['met'] else 'missed'}"
    )
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "goals": goals}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
