"""Status comes from files alone, and tells a run that goes on from one whose driver is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs.loader import compare
from configs.schema import RunConfig
from console.main import app
from console.run import announce
from console.status import open_store, read_status, render, summarise
from telemetry.process import start_ticks
from tests.unit.console.played import STEPS, copy, write_status


def test_json_holds_what_is_promised(finished_run: Path) -> None:
    answer = CliRunner().invoke(app, ["status", str(finished_run), "--json"])
    assert answer.exit_code == 0, answer.output
    summary = json.loads(answer.stdout)
    assert summary["state"] == "finished"
    assert summary["step"] == summary["policy_version"] == STEPS
    assert {"episodes", "completions_per_s", "staleness"} <= summary.keys()
    ledger = summary["ledger"]
    assert ledger["balanced"]
    assert ledger["handed"] == sum(ledger["ended"].values()) + ledger["in_flight"]
    assert ledger["ended"].get("trained", 0) + ledger["ended"].get("zero_spread", 0) == 2 * STEPS
    held_out = summary["held_out"]
    assert held_out["metric"] == "mass"
    assert held_out["items"] == 1
    assert held_out["best"] >= max(held_out["first"], held_out["last"])


def test_text_says_the_same(finished_run: Path) -> None:
    text = render(summarise(finished_run, open_store(finished_run)))
    assert f"finished, step {STEPS} of {STEPS}" in text
    assert "ledger: balanced" in text
    assert "ratchet resume" not in text


def test_the_idle_shares_are_shown_as_the_driver_wrote_them(finished_run: Path, tmp_path: Path) -> None:
    folder = copy(finished_run, tmp_path)
    idle = {"update-0": {"minute": 0.5, "run": 0.25}, "engine-0": {"minute": 0.125, "run": 0.07}}
    write_status(folder, {"state": "running", "idle": idle})
    summary = summarise(folder, open_store(folder))
    assert summary["idle"] == idle
    assert "idle in the last minute (since its first work): engine-0 12% (7%), update-0 50% (25%)" in render(summary)


def test_a_live_driver_is_running(finished_run: Path, tmp_path: Path) -> None:
    folder = copy(finished_run, tmp_path)
    write_status(folder, {"state": "running"})
    assert read_status(folder)["state"] == "running"


def test_a_driver_that_is_gone_has_crashed(finished_run: Path, tmp_path: Path) -> None:
    folder = copy(finished_run, tmp_path)
    driver = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write_status(folder, {"state": "running", "pid": driver.pid, "start_time": start_ticks(driver.pid)})
    assert read_status(folder)["state"] == "running"
    driver.kill()
    driver.communicate()
    assert read_status(folder)["state"] == "crashed"
    assert "ratchet resume" in render(summarise(folder, open_store(folder)))


def test_another_process_with_the_drivers_number_is_not_the_driver(finished_run: Path, tmp_path: Path) -> None:
    folder = copy(finished_run, tmp_path)
    write_status(folder, {"state": "running", "start_time": 1})
    assert read_status(folder)["state"] == "crashed"


def test_a_driver_on_another_machine_is_believed(finished_run: Path, tmp_path: Path) -> None:
    folder = copy(finished_run, tmp_path)
    write_status(folder, {"state": "running", "host": "elsewhere", "start_time": 1})
    assert read_status(folder)["state"] == "running"


def test_a_run_that_never_started_has_a_status(finished_run: Path, tmp_path: Path) -> None:
    folder = copy(finished_run, tmp_path)
    (folder / "status.json").unlink()
    (folder / "store" / "store.json").unlink()
    summary = summarise(folder, open_store(folder))
    assert summary["state"] == "created"
    assert summary["ledger"] is summary["held_out"] is None
    assert "created, step 0" in render(summary)


DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
print("ready", flush=True)
signal.pause()
"""


def test_stop_interrupts_the_driver_and_waits_for_its_end(finished_run: Path, tmp_path: Path) -> None:
    folder = copy(finished_run, tmp_path)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "ready\n"
    write_status(folder, {"state": "running", "pid": driver.pid, "start_time": start_ticks(driver.pid)})
    answer = CliRunner().invoke(app, ["stop", str(folder)])
    assert answer.exit_code == 0, answer.output
    assert driver.wait(timeout=10) == 0
    driver.stdout.close()
    assert "go on with: ratchet resume" in answer.stdout


def test_stop_does_not_touch_another_process_with_that_number(finished_run: Path, tmp_path: Path) -> None:
    folder = copy(finished_run, tmp_path)
    write_status(folder, {"state": "running", "start_time": 1})  # our own number: a signal would end this test
    answer = CliRunner().invoke(app, ["stop", str(folder)])
    assert answer.exit_code == 0
    assert "is not running: it is crashed" in answer.stdout


@pytest.mark.parametrize("state", ["running", "warm_start", "draining"])
def test_resume_refuses_a_run_that_goes_on(finished_run: Path, tmp_path: Path, state: str) -> None:
    folder = copy(finished_run, tmp_path)
    write_status(folder, {"state": state})
    answer = CliRunner().invoke(app, ["resume", str(folder)])
    assert answer.exit_code == 2
    assert f"it is {state} (process " in answer.stderr
    assert "ratchet stop" in answer.stderr


def test_resume_warns_of_other_bits(capsys: pytest.CaptureFixture[str]) -> None:
    old = RunConfig()
    new = old.model_copy(update={"steps": 7, "learner": old.learner.model_copy(update={"threads": 3})})
    announce(compare(old, new))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["steps: 100 before, 7 now", "learner.threads: 1 before, 3 now"]
    assert "new version numbers" in lines[2]


def test_resume_says_which_keys_may_change(finished_run: Path) -> None:
    before = (finished_run / "config.yaml").read_text()
    answer = CliRunner().invoke(app, ["resume", str(finished_run), "--set", "learner.group_size=4"])
    assert answer.exit_code == 2
    assert "learner.group_size from 2 to 4" in answer.stderr
    assert "steps" in answer.stderr.partition("These keys may change:")[2]
    assert (finished_run / "config.yaml").read_text() == before
