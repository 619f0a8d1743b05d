"""Bad input that only a process of the run finds: the same three sentences and exit code 2 as from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.commands import TINY, options, ratchet


@pytest.mark.ray
@pytest.mark.slow
def test_a_constructor_that_refuses_ends_the_run_with_its_own_message(tmp_path: Path) -> None:
    """Only the rollout worker reads the tokenizer here, while it is made."""
    base = tmp_path / "base"
    assert (
        ratchet("model", "init", str(base), "--layers", "1", "--width", "48", "--max-positions", "64").returncode == 0
    )
    (base / "tokenizer.json").write_text("{}")
    settings = {**TINY, "warm_start.steps": 0, "model.path": base, "root": tmp_path / "runs"}
    answer = ratchet("run", "configs/quickstart.yaml", *options(settings))
    assert answer.returncode == 2, answer.stderr
    told = answer.stderr[answer.stderr.index("error: ") :]
    heads = [line.partition(":")[0] for line in told.splitlines() if not line.startswith(" ")]
    assert heads == ["error", "found", "to do"], answer.stderr
    assert f"the tokenizer in {tmp_path / 'runs'}" in told
    assert "transformers cannot read it" in told
    assert not [path for path in (tmp_path / "runs").iterdir() if path.is_dir()], (
        "a run that never began leaves nothing"
    )
