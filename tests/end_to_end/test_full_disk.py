"""A disk that fills up under a live run (a small tmpfs): one message, exit 2, nothing lost; with space it goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from telemetry.logs import read_lines
from tests.end_to_end.commands import ROOT, TINY, options, ratchet

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
ENOUGH_STEPS = 3


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 MiB. Mounting needs root, as the test machines give it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up(disk: Path) -> None:
    small = {**TINY, "steps": 100_000, "root": disk, "store.segment_mib": 1, "store.control_segment_mib": 1}
    words = [sys.executable, "-m", "console.main", "run", "configs/quickstart.yaml", *options(small)]
    driver = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while (
            len([one for one in read_lines(disk / "latest" / "metrics.jsonl") if one["phase"] == "step"]) < ENOUGH_STEPS
        ):
            assert driver.poll() is None, driver.communicate()[0]
            time.sleep(0.1)
        fill(disk / "filler")
        said, _ = driver.communicate(timeout=120)
    finally:
        driver.kill()
    assert driver.returncode == 2, said
    assert "Traceback" not in said
    assert "space" in said
    assert "ratchet resume" in said
    (disk / "filler").unlink()

    run = (disk / "latest").resolve()
    before = json.loads(ratchet("status", str(run), "--json").stdout)
    assert before["ledger"]["balanced"]
    resumed = ratchet("resume", str(run), "--set", f"steps={before['step'] + 2}", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout.splitlines()[-1])["step"] == before["step"] + 2


def fill(path: Path) -> None:
    """Write until nothing more fits."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for block in (1 << 20, 1 << 12):
            while True:
                try:
                    os.write(file, bytes(block))
                except OSError:
                    break
    finally:
        os.close(file)
