"""Every command in the documents runs: `ratchet` lines in order on one small run, `make` targets as dry runs."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.commands import ROOT, TINY, TINY_CONTROL, options, ratchet

DOCUMENTS = ("README.md", "CONTRIBUTING.md")


def commands(document: str) -> list[list[str]]:
    """The lines of a document's ```console blocks, as words."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document: str) -> None:
    targets = re.findall(r"`make ([a-z-]+)`", (ROOT / document).read_text())
    targets += [words[1] for words in commands(document) if words[0] == "make"]
    assert targets
    for target in sorted(set(targets)):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_readmes_commands_run_in_order(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    lines = [words[1:] for words in commands("README.md") if words[0] == "ratchet"]
    assert [words[0] for words in lines][:2] == ["run", "status"]
    for words in lines:
        tiny = TINY_CONTROL if "control" in words[1] else TINY
        small = options(tiny) if words[0] in ("run", "sweep") else []
        answer = ratchet(*words, *small, cwd=tmp_path)
        assert answer.returncode == 0, f"ratchet {shlex.join(words)}\n{answer.stdout}{answer.stderr}"
    assert (tmp_path / "exported" / "config.json").is_file()
