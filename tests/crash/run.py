"""Kill a real run at random moments, resume it, and count: `python -m tests.crash.run --rounds 50`.

Each round kills one process of a running `ratchet run` with SIGKILL at a random moment, checks that the driver ends by
itself, non-zero, and says how to go on, opens the store with an oracle's list of every acknowledgement that was heard,
and resumes. A round fails on a lost or doubled acknowledgement, an unbalanced ledger, another weight hash than
the log's, or a driver that does not end. Not covered: power loss (tests/unit/buffers/log models it), several nodes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from buffers.view import StoreView

from contracts.records import Version
from telemetry.logs import read_lines
from telemetry.process import start_ticks

ROOT = Path(__file__).resolve().parents[2]
VICTIMS = ("driver", "engine-0", "update-0", "rollout-0", "store")
END_S = 30.0  # by when the driver must have ended after a process died
START_S = 240.0  # by when a resumed run must have made a step
SMALL = {
    "steps": "100000",
    "warm_start.steps": "10",
    "warm_start.batch_size": "32",
    "model.init.layers": "2",
    "model.init.width": "64",
    "model.init.heads": "2",
    "model.init.feed_forward": "128",
    "environment.train_items": "2000",
    "environment.held_out_items": "16",
    "learner.groups_per_step": "8",
    "learner.group_size": "4",
    "rollout.chunk": "4",
    "checkpoint.every_steps": "10",
    "evaluate.samples": "1",
    "store.reserve_mib": "0",
}


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one kill did. Times in seconds."""

    number: int
    engine: str
    victim: str
    after_s: float  # from the first step (or the start, for an early kill) to the kill
    killed_at_step: int
    driver_ended_s: float
    exit_code: int
    named: bool  # the driver named the process and the resume command (not asked of a killed driver)
    acknowledged: int
    lost: int
    doubled: int
    balanced: bool
    hash_equal: bool
    resumed_s: float  # from `ratchet resume` to the first new step

    @property
    def passed(self) -> bool:
        return not self.lost and not self.doubled and self.balanced and self.hash_equal and self.named


class Oracle:
    """Hears every acknowledgement over a named pipe, in this process, and is only asked at the end of a round."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._heard: list[tuple[str, int]] = []
        self._lock = threading.Lock()
        # Open for both directions: the pipe stays open while no rollout worker lives.
        self._pipe = os.open(path, os.O_RDWR)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        rest = b""
        while True:
            *lines, rest = (rest + os.read(self._pipe, 1 << 16)).split(b"\n")
            with self._lock:
                for line in lines:
                    episode_id, lsn = line.decode().split()
                    self._heard.append((episode_id, int(lsn)))

    def heard(self) -> list[tuple[str, int]]:
        with self._lock:
            return list(self._heard)


class Run:
    """One run folder that is started, killed, and resumed."""

    def __init__(self, scratch: Path, *, engine: str, seed: int) -> None:
        self.scratch, self.engine = scratch, engine
        self.oracle = Oracle(scratch / "acks")
        settings = {**SMALL, "seed": str(seed), "engine.backend": engine, "root": str(scratch / "runs")}
        settings["rollout.ack_log"] = str(scratch / "acks")
        self._start = ["run", "configs/quickstart.yaml", *_options(settings)]
        self.process: subprocess.Popen[str] | None = None
        self.output = ""

    @property
    def folder(self) -> Path:
        return (self.scratch / "runs" / "latest").resolve()

    def launch(self) -> None:
        begun = (self.scratch / "runs" / "latest").exists()
        words = ["resume", str(self.folder)] if begun else self._start
        self._file = (self.scratch / "output").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "console.main", *words],
            cwd=ROOT,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def step(self) -> int:
        """The newest learner step that was finished, by the run's own metrics."""
        steps = [line["step"] for line in read_lines(self.folder / "metrics.jsonl") if line["phase"] == "step"]
        return max(steps, default=0)

    def wait_for_step(self, step: int, *, timeout_s: float) -> float:
        """Seconds until a step beyond `step` is finished."""
        start = time.monotonic()
        while self.step() <= step:
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() - start > timeout_s:
                raise AssertionError(f"no step after {step} in {timeout_s:g} s:\n{self.read_output()}")
            time.sleep(0.05)
        return time.monotonic() - start

    def pid(self, role: str) -> int:
        if role == "driver":
            assert self.process is not None
            return self.process.pid
        started = [line["pid"] for line in read_lines(self.folder / "logs" / f"{role}.jsonl") if "pid" in line]
        return int(started[-1])

    def read_output(self) -> str:
        return (self.scratch / "output").read_text()

    def wait_end(self) -> tuple[float, int]:
        assert self.process is not None
        start = time.monotonic()
        try:
            code = self.process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"the driver did not end within {END_S:g} s:\n{self.read_output()}") from None
        return time.monotonic() - start, code

    def check_store(self) -> tuple[int, int, int, bool, bool]:
        """(acknowledged, lost, doubled, ledger balanced, every step has one hash)."""
        heard = self.oracle.heard()
        view = StoreView.open(self.folder / "store")
        kept = Counter(episode.episode_id for episode in view.episodes([lsn for _, lsn in heard]))
        lost = sum(1 for episode_id, _ in heard if not kept[episode_id])
        doubled = sum(count - 1 for count in Counter(episode_id for episode_id, _ in heard).values())
        made = Counter(record.step for _, record in view.decisions() if isinstance(record, Version))
        return len(heard), lost, doubled, view.ledger().balanced, max(made.values(), default=1) == 1


def play(run: Run, *, number: int, victim: str, moment_s: float) -> Round:
    """One round: the run is up and has made a step; kill, look, resume, wait for a new step."""
    time.sleep(moment_s)
    pid = run.pid(victim)
    assert start_ticks(pid) is not None, f"{victim} (pid {pid}) is not there"
    os.kill(pid, signal.SIGKILL)
    ended_s, code = run.wait_end()
    at = run.step()
    text = run.read_output()
    named = victim == "driver" or (code not in (0, None) and victim in text and "ratchet resume" in text)
    acknowledged, lost, doubled, balanced, equal = run.check_store()
    run.launch()
    resumed_s = run.wait_for_step(at, timeout_s=START_S)
    *_, equal_after = run.check_store()
    return Round(
        number=number,
        engine=run.engine,
        victim=victim,
        after_s=round(moment_s, 3),
        killed_at_step=at,
        driver_ended_s=round(ended_s, 2),
        exit_code=code,
        named=named,
        acknowledged=acknowledged,
        lost=lost,
        doubled=doubled,
        balanced=balanced,
        hash_equal=equal and equal_after,
        resumed_s=round(resumed_s, 2),
    )


def rounds_with(engine: str, *, rounds: int, seed: int, scratch: Path) -> list[Round]:
    """`rounds` kills of one run; victims in turn, each turn shuffled; then a full replay of what is left."""
    if rounds == 0:
        return []
    chance = random.Random(f"{seed}/{engine}")
    victims = [name for _ in range(-(-rounds // len(VICTIMS))) for name in chance.sample(VICTIMS, len(VICTIMS))]
    scratch.mkdir(parents=True)
    run = Run(scratch, engine=engine, seed=seed)
    results: list[Round] = []
    run.launch()
    try:
        run.wait_for_step(0, timeout_s=START_S)
        for number, victim in enumerate(victims[:rounds], start=1):
            results.append(play(run, number=number, victim=victim, moment_s=chance.uniform(0.0, 6.0)))
            print(json.dumps(asdict(results[-1]) | {"passed": results[-1].passed}), flush=True)
    finally:
        assert run.process is not None
        if run.process.poll() is None:
            run.process.send_signal(signal.SIGINT)
            run.process.wait(timeout=120)
    replay = subprocess.run(
        [sys.executable, "-m", "console.main", "replay", str(run.folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(replay.stdout.strip().splitlines()[-1] if replay.stdout.strip() else replay.stderr, flush=True)
    assert replay.returncode == 0, replay.stdout + replay.stderr
    return results


def _options(settings: dict[str, str]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--vllm", type=int, help="how many of the rounds use vLLM (default: two fifths)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, required=False)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    import tempfile

    scratch = options.scratch or Path(tempfile.mkdtemp(prefix="ratchet-crash-"))
    vllm = options.rounds * 2 // 5 if options.vllm is None else options.vllm
    results = rounds_with(
        "transformers", rounds=options.rounds - vllm, seed=options.seed, scratch=scratch / "transformers"
    )
    results += rounds_with("vllm", rounds=vllm, seed=options.seed, scratch=scratch / "vllm")
    passed = sum(result.passed for result in results)
    times = sorted(result.resumed_s for result in results)
    print(
        f"{passed}/{len(results)} rounds passed; acknowledged {sum(r.acknowledged for r in results[-1:])}, "
        f"lost {sum(r.lost for r in results)}, doubled {sum(r.doubled for r in results)}, "
        f"balanced {sum(r.balanced for r in results)}/{len(results)}, "
        f"hash equal {sum(r.hash_equal for r in results)}/{len(results)}, "
        f"resume to first new step: median {times[len(times) // 2]:.1f} s, most {times[-1]:.1f} s; "
        f"kills {dict(Counter(result.victim for result in results))}"
    )
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    return 0 if passed == len(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
