"""The doctor names what is missing and how to get it, and says by its exit code whether the main job can run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from console.doctor import examine
from console.main import app
from tests.unit.house.guard import ROOT


def test_this_machine_is_described() -> None:
    findings = {finding.name: finding for finding in examine(ROOT / "configs" / "quickstart.yaml")}
    assert findings["python"].found.startswith("3.11.")
    assert findings["torch"].ok
    assert findings["ray"].ok
    assert findings["disk"].found.endswith(str(Path().absolute())) or "runs" in findings["disk"].found
    assert findings[str(ROOT / "configs" / "quickstart.yaml")].ok
    assert all(finding.ok != bool(finding.todo) or not finding.needed for finding in findings.values())


def test_a_configuration_that_cannot_run_is_an_illness(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model: {path: no/such/model}\n")
    answer = CliRunner().invoke(app, ["doctor", str(file), "--json"])
    assert answer.exit_code == 1
    diagnosis = json.loads(answer.stdout)
    assert not diagnosis["ok"]
    (illness,) = [one for one in diagnosis["findings"] if one["needed"] and not one["ok"]]
    assert "there is no folder" in illness["found"]
    assert illness["todo"]


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = [one for one in examine() if one.name == "prometheus"]
    assert not finding.ok
    assert "apt-get install prometheus" in finding.todo


def test_the_token_is_looked_for_where_ray_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert "none at" in next(one for one in examine() if one.name == "ray token").found
    (tmp_path / "token").write_text("secret")
    finding = next(one for one in examine() if one.name == "ray token")
    assert finding.ok
    assert "secret" not in finding.found
