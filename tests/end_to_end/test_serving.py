"""A run's store over gRPC, whole: a producer and a reader from outside, and what the command line says of it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path
from threading import Event

import pytest

from buffers.view import StoreView
from configs.schema import SERVING_TOKEN
from contracts.errors import UserError
from contracts.records import Episode, Kind
from serving.client import connect
from tests.contract.stores import TOKEN, Driver, Opened, served, small_config
from tests.end_to_end.commands import ROOT, TINY_CONTROL, options, ratchet


def command(address: str) -> list[str]:
    """The producer's command as docs/serving.md has it, with an address that is there."""
    (line,) = re.findall(r"```console\n(.*)\n```", (ROOT / "docs" / "serving.md").read_text())
    _, *words = shlex.split(line)
    assert words[:2] == ["-m", "docs.tutorial.producer"]
    return [sys.executable, *words[:2], address, "3"]


def test_the_documents_producer_brings_episodes(tmp_path: Path) -> None:
    with served(tmp_path, small_config()) as (server, owner):
        Driver(Opened(owner, str(owner.uuid))).serve(0)
        environment = {**os.environ, SERVING_TOKEN: TOKEN}
        answer = subprocess.run(
            command(server.address), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=50, check=False
        )
        assert answer.returncode == 0, answer.stderr
        assert owner.ledger().episodes == 6
        lsns = [lsn for line in answer.stdout.splitlines() for lsn in json.loads(line.partition(" ")[2])]
        assert {episode.producer for episode in owner.read(lsns)} == {"outside-0"}


@pytest.mark.ray
def test_a_run_serves_its_store_while_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVING_TOKEN, TOKEN)
    settings = {**TINY_CONTROL, "root": tmp_path, "serving.enabled": True, "steps": 200, "name": "served"}
    words = [sys.executable, "-m", "console.main", "run", "configs/control_cartpole.yaml", *options(settings)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        try:
            folder = wait_for_folder(tmp_path, run)
            address = json.loads((folder / "serving.json").read_text())["address"]
            with connect(address, token=TOKEN, timeout_s=30) as store:
                found = list(islice(store.tail(kinds=[Kind.EPISODE]), 6))
                assert all(isinstance(record, Episode) and record.steps for _, record in found)
                summary = json.loads(ratchet("status", str(folder), "--json").stdout)
                assert summary["serving"] == address
                assert store.status()["uuid"] == str(StoreView.open(folder / "store").uuid)
            with connect(address, token="wrong") as store, pytest.raises(UserError):
                store.ledger()
        finally:
            run.send_signal(signal.SIGINT)
            output, _ = run.communicate(timeout=300)
    assert run.returncode == 130, output
    assert not (folder / "serving.json").exists()
    assert json.loads(ratchet("status", str(folder), "--json").stdout)["serving"] is None


def wait_for_folder(root: Path, run: subprocess.Popen[str]) -> Path:
    """The run's folder once its store is served."""
    while True:
        assert run.poll() is None, run.communicate()[0]
        found = list(root.glob("*/serving.json"))
        if found:
            return found[0].parent.resolve()
        Event().wait(0.1)


def test_a_run_that_would_be_open_to_everybody_is_refused(tmp_path: Path) -> None:
    settings = {**TINY_CONTROL, "root": tmp_path, "serving.enabled": True, "serving.host": "0.0.0.0"}
    answer = ratchet("run", "configs/control_cartpole.yaml", *options(settings))
    assert answer.returncode == 2
    assert "plain text" in answer.stderr
    assert not list(tmp_path.iterdir())
