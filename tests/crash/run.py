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
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from buffers.view import StoreView
from contracts.records import Batch, Version
from telemetry.logs import read_lines
from telemetry.process import start_ticks

ROOT = Path(__file__).resolve().parents[2]
VICTIMS = ("driver", "engine-0", "update-0", "rollout-0", "store")
END_S = 30.0  # by when the driver must have ended after a process died
DRAIN_S = 120.0  # by when a run that was interrupted must have ended
START_S = 240.0  # by when a resumed run must have made a step
SETTLE_S = 0.5  # in which what a process sent before it was stopped comes into the log: nothing says that it did
MARK = "RATCHET_CRASH_RUN"  # in the environment of every process of one `Run`, whoever its parent is by now
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
    "store.segment_mib": "4",
    "store.control_segment_mib": "1",
    "store.reserve_mib": "0",
}


SMALL_CONTROL = {
    "steps": "100000",
    "control.lanes": "8",
    "control.horizon": "32",
    "control.evaluation_episodes": "2",
    "learner.groups_per_step": "16",
    "ppo.epochs": "2",
    "mode": "async",
    "max_staleness": "1",
    "checkpoint.every_steps": "10",
    "store.segment_mib": "4",
    "store.control_segment_mib": "1",
    "store.reserve_mib": "0",
}
STARTS = {  # by engine: the run file, and what makes it small
    "transformers": ("configs/quickstart.yaml", SMALL),
    "vllm": ("configs/quickstart.yaml", SMALL),
    "torch": ("configs/control_cartpole.yaml", SMALL_CONTROL),
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

    def __init__(self, path: Path, *, heard: Iterable[tuple[str, int]] = ()) -> None:
        os.mkfifo(path)
        self._heard = list(heard)
        self._lock = threading.Lock()
        # Open for both directions: the pipe stays open while no rollout worker lives.
        self._pipe = os.open(path, os.O_RDWR)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        rest = b""
        while True:
            *lines, rest = (rest + os.read(self._pipe, 1 << 16)).split(b"\n")
            with self._lock:
                for line in lines:
                    if not line:  # `close` wrote it: acknowledgements are never empty
                        return
                    episode_id, lsn = line.decode().split()
                    self._heard.append((episode_id, int(lsn)))

    def heard(self) -> list[tuple[str, int]]:
        with self._lock:
            return list(self._heard)

    def close(self) -> None:
        os.write(self._pipe, b"\n")
        self._thread.join()
        os.close(self._pipe)


class Run:
    """One run folder that is started, killed, and resumed; `base`: a copy of another one's, to be gone on with."""

    def __init__(self, scratch: Path, *, engine: str = "transformers", seed: int = 0, base: Run | None = None) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.scratch, self.engine = scratch, engine
        self.settings = {"root": str(scratch / "runs"), "rollout.ack_log": str(scratch / "acks")}
        self.process: subprocess.Popen[str] | None = None
        self._file, small = STARTS[engine]
        self._start = {**small, "seed": str(seed), "engine.backend": engine}
        self._mark = secrets.token_hex(16)
        self._session = -1  # of the learner of the launch before
        if base is not None:
            shutil.copytree(base.scratch / "runs", scratch / "runs", symlinks=True)
        heard = [] if base is None else base.oracle.heard()
        self.oracle: Oracle = Oracle(scratch / "acks", heard=heard)

    @property
    def folder(self) -> Path:
        return (self.scratch / "runs" / "latest").resolve()

    def launch(self, **settings: object) -> None:
        """`ratchet run`, or `ratchet resume` where there is a folder; `settings` with __ for the dot."""
        changes = {key.replace("__", "."): str(value) for key, value in settings.items()}
        if (self.scratch / "runs" / "latest").exists():
            self._session = self.view().fold.sessions["learner"]
            self.process = self._open("resume", str(self.folder), *_options({**self.settings, **changes}))
        else:
            every = {**self._start, **self.settings, **changes}
            self.process = self._open("run", self._file, *_options(every))

    def _open(self, *words: str) -> subprocess.Popen[str]:
        with (self.scratch / "output").open("w") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "console.main", *words],
                cwd=ROOT,
                env={**os.environ, MARK: self._mark},
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def ratchet(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Another command, while the run lives or after. A traceback is a fault whatever the exit code."""
        command = [sys.executable, "-m", "console.main", *words]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START_S, check=False)
        assert "Traceback" not in answer.stderr, answer.stderr
        return answer

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it: to the driver and every process of its group."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self, role: str) -> None:
        pid = self.pid(role)
        assert start_ticks(pid) is not None, f"{role} (pid {pid}) is not there"
        os.kill(pid, signal.SIGKILL)

    def kill_all(self) -> None:
        """End every process of this run, whatever became of its parents: as if the machine had lost its power."""
        while alive := [process for process in psutil.process_iter() if self._is_ours(process)]:
            for process in alive:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(alive, timeout=END_S)
        if self.process is not None:
            self.process.wait(timeout=END_S)

    def close(self) -> None:
        self.kill_all()
        self.oracle.close()

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return bool(process.environ().get(MARK) == self._mark)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    def wait_until(self, happened: Callable[[], bool], *, what: str, every_s: float = 0.05) -> float:
        """Seconds until `happened`, while the driver lives. Raises AssertionError with what the driver said."""
        assert self.process is not None
        start = time.monotonic()
        while not happened():
            if self.process.poll() is not None or time.monotonic() - start > START_S:
                raise AssertionError(f"{what}: not within {START_S:g} s, or the run ended:\n{self.read_output()}")
            time.sleep(every_s)
        return time.monotonic() - start

    def wait_for_view(self, shows: Callable[[StoreView], bool], *, what: str, every_s: float = 0.05) -> StoreView:
        """The store as it was when it first showed this."""
        view = self.view()

        def look() -> bool:
            view.refresh()
            return shows(view)

        self.wait_until(look, what=what, every_s=every_s)
        return view

    def freeze(self, role: str, *, when: Callable[[StoreView], bool], what: str) -> StoreView:
        """Stop a process (SIGSTOP) in a moment at which the store shows `when`, and the store as it is then."""
        while True:
            view = self.wait_for_view(when, what=what, every_s=0.005)
            process = psutil.Process(self.pid(role))
            process.suspend()
            time.sleep(SETTLE_S)
            view.refresh()
            if when(view):
                return view
            process.resume()

    def thaw(self, role: str) -> None:
        psutil.Process(self.pid(role)).resume()

    def step(self) -> int:
        """The newest learner step that was finished, by the run's own metrics."""
        steps = [line["step"] for line in read_lines(self.folder / "metrics.jsonl") if line["phase"] == "step"]
        return max(steps, default=0)

    def wait_for_step(self, step: int) -> float:
        """Seconds until a step beyond `step` is finished."""
        return self.wait_until(lambda: self.step() > step, what=f"a step after {step}")

    def wait_to_go_on(self) -> float:
        """Seconds until a resumed run's own learner made a step that was not there before.

        By the log, which takes nothing of an older learner: for a moment its processes outlive a killed driver.
        """

        def shows(view: StoreView) -> bool:
            session = view.fold.sessions["learner"]
            return session > self._session and any(lsn > session for lsn in view.fold.version_lsns.values())

        start = time.monotonic()
        self.wait_for_view(shows, what="a new step of a resumed run")
        return time.monotonic() - start

    def pid(self, role: str) -> int:
        if role == "driver":
            assert self.process is not None
            return self.process.pid
        started = [line["pid"] for line in read_lines(self.folder / "logs" / f"{role}.jsonl") if "pid" in line]
        return int(started[-1])

    def read_output(self) -> str:
        """What the last launch printed."""
        return (self.scratch / "output").read_text()

    def wait_end(self, *, timeout_s: float = END_S) -> tuple[float, int]:
        """(seconds until the driver ended by itself, its exit code)."""
        assert self.process is not None
        start = time.monotonic()
        try:
            code = self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the driver did not end within {timeout_s:g} s:\n{self.read_output()}") from None
        return time.monotonic() - start, code

    def view(self) -> StoreView:
        return StoreView.open(self.folder / "store")

    def check_store(self) -> tuple[int, int, int, bool, bool]:
        """(acknowledged, lost, doubled, ledger balanced, every step has one hash)."""
        heard = self.oracle.heard()
        view = self.view()
        lsns = [lsn for group in view.fold.groups.values() for lsn in group.lsns.values()]
        kept = {lsn: episode.episode_id for lsn, episode in zip(lsns, view.episodes(lsns), strict=True)}
        lost = sum(kept.get(lsn) != episode_id for episode_id, lsn in heard)
        decisions = [record for _, record in view.decisions()]
        rows = Counter(row.episode_lsn for record in decisions if isinstance(record, Batch) for row in record.rows)
        copies = Counter(kept.values())
        doubled = view.fold.num_doubled + sum(count - 1 for count in (*copies.values(), *rows.values()))
        made = Counter(record.step for record in decisions if isinstance(record, Version))
        return len(heard), lost, doubled, view.ledger().balanced, max(made.values(), default=1) == 1


def play(run: Run, *, number: int, victim: str, moment_s: float) -> Round:
    """One round: the run is up and has made a step; kill, look, resume, wait for a new step."""
    time.sleep(moment_s)
    run.kill(victim)
    ended_s, code = run.wait_end()
    at = run.step()
    text = run.read_output()
    assert "Traceback" not in text, text
    named = victim == "driver" or (code not in (0, None) and victim in text and "ratchet resume" in text)
    acknowledged, lost, doubled, balanced, equal = run.check_store()
    run.launch()
    resumed_s = run.wait_to_go_on()
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


def rounds_with(engine: str, *, rounds: int, seed: int, scratch: Path, victims: Sequence[str] = VICTIMS) -> list[Round]:
    """`rounds` kills of one run; victims in turn, each turn shuffled; then a full replay of what is left."""
    if rounds == 0:
        return []
    chance = random.Random(f"{seed}/{engine}")
    turns = [name for _ in range(-(-rounds // len(victims))) for name in chance.sample(victims, len(victims))]
    results: list[Round] = []
    with closing(Run(scratch, engine=engine, seed=seed)) as run:
        run.launch()
        run.wait_for_step(0)
        for number, victim in enumerate(turns[:rounds], start=1):
            results.append(play(run, number=number, victim=victim, moment_s=chance.uniform(0.0, 6.0)))
            print(json.dumps(asdict(results[-1]) | {"passed": results[-1].passed}), flush=True)
        run.interrupt()
        run.wait_end(timeout_s=DRAIN_S)
        replay = run.ratchet("replay", str(run.folder))
    print(replay.stdout.strip().splitlines()[-1] if replay.stdout.strip() else replay.stderr, flush=True)
    assert replay.returncode == 0, replay.stdout + replay.stderr
    return results


def _options(settings: dict[str, str]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--vllm", type=int, help="how many of the rounds use vLLM (default: two fifths)")
    parser.add_argument("--control", type=int, default=0, help="rounds of a control run, beside the others")
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
    results += rounds_with("torch", rounds=options.control, seed=options.seed, scratch=scratch / "torch")
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
