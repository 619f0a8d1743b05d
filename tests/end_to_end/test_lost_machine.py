"""A machine is lost with its disk: what it archived goes on elsewhere, to the weights of a run that lost nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from buffers.view import StoreView
from contracts.records import Kind, Version
from tests.contract import s3
from tests.end_to_end.commands import TINY, ratchet, run_to_end

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]
SETTINGS = {**TINY, "mode": "sync", "max_staleness": 0}
LOST_AT, STEPS = 3, 6  # after a step without a checkpoint of its own: it is computed again


def hashes(folder: Path) -> dict[int, str]:
    """Step → hash of all weights, of the newest version of each."""
    records = StoreView.open(folder / "store").decisions(kinds=[Kind.VERSION])
    return {record.step: record.root_hash for _, record in records if isinstance(record, Version)}


def test_a_wiped_run_goes_on_from_an_s3_server_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    whole = Path(run_to_end({**SETTINGS, "steps": STEPS}, root=tmp_path / "whole")["folder"])
    first = tmp_path / "first-machine"
    with s3.served() as uri:
        run = Path(run_to_end({**SETTINGS, "steps": LOST_AT}, root=first / "runs")["folder"])
        sent = ratchet("store", "archive", str(run), "--to", uri, "--json")
        assert json.loads(sent.stdout)["num_sent"] > 0, sent.stderr
        shutil.rmtree(first)

        home, other = tmp_path / "another-home", tmp_path / "second-machine" / "runs" / "back"
        home.mkdir()
        monkeypatch.setenv("HOME", str(home))
        restored = ratchet("store", "restore", uri, "--as", str(other), "--json")
        assert restored.returncode == 0, restored.stderr
        assert hashes(other) == {step: one for step, one in hashes(whole).items() if step <= LOST_AT}
    ended = ratchet("resume", str(other), "--set", f"steps={STEPS}", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["step"] == STEPS
    assert hashes(other) == hashes(whole)
    assert len(set(hashes(whole).values())) > STEPS // 2, "nothing was learned: the comparison says nothing"
    assert "whole" in ratchet("store", "verify", str(other)).stdout
