"""configs/lora.yaml on a small base: adapters alone are on the disk, a replay is equal, and both exports come out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.end_to_end.commands import TINY, options, ratchet

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
SMALL = {**TINY, "mode": "sync", "max_staleness": 0, "warm_start.steps": 10}


def names_in(path: Path) -> set[str]:
    with safe_open(path, framework="np") as file:
        return set(file.keys())


@pytest.mark.slow
def test_a_run_with_adapters_from_its_base_to_its_exports(tmp_path: Path) -> None:
    base, changed = tmp_path / "base", tmp_path / "changed"
    for folder, seed in ((base, "0"), (changed, "1")):
        shape = ["--layers", "1", "--width", "48", "--max-positions", "64"]
        assert ratchet("model", "init", str(folder), "--seed", seed, *shape).returncode == 0
    settings = {**SMALL, "root": tmp_path / "runs", "model.path": base}
    answer = ratchet("run", "configs/lora.yaml", *options(settings), "--json")
    assert answer.returncode == 0, answer.stderr
    run = Path(json.loads(answer.stdout.splitlines()[-1])["folder"])

    whole = names_in(base / "model.safetensors")
    files = [*run.glob("versions/*/*.safetensors"), *run.glob("checkpoints/*/*.safetensors")]
    assert len(files) >= 4
    for file in files:
        kept = names_in(file) - {"step"}
        assert all(".lora_A." in name or ".lora_B." in name for name in kept), file
        assert not kept & whole

    replayed = ratchet("replay", str(run), "--json")
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["equal"] == 4

    for out, more in (("adapters", []), ("merged", ["--merge"])):
        words = ["model", "export", str(run), "--version", "2", "--out", str(tmp_path / out), *more]
        answer = ratchet(*words)
        assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "adapters" / "adapter_config.json").is_file()
    assert names_in(tmp_path / "merged" / "model.safetensors") == whole

    (run / "model").unlink()
    (run / "model").symlink_to(changed)
    for words in (["replay", str(run)], ["model", "export", str(run), "--version", "4", "--out", str(tmp_path / "x")]):
        refused = ratchet(*words)
        assert refused.returncode == 2, refused.stdout
        assert "put the old base back" in refused.stderr
