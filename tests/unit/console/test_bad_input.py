"""Bad input: one message that says what was asked, what there is, what to do; exit code 2; nothing written."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from console.main import app
from tests.unit.house.guard import ROOT

QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


@dataclass(frozen=True, kw_only=True)
class Answer:
    returncode: int
    stdout: str
    stderr: str


def ratchet(*words: str, cwd: Path) -> Answer:
    """What the command says, in this process: where nothing may be loaded or started, a process of its own shows no
    more. Raises what the command lets through."""
    with chdir(cwd):
        result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(returncode=result.exit_code, stdout=result.stdout, stderr=result.stderr)


def ratchet_process(*words: str, cwd: Path, limits: Callable[[], None] | None = None) -> Answer:
    """What it says as a user starts it."""
    done = subprocess.run(
        [sys.executable, "-m", "console.main", *words],
        cwd=cwd,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        preexec_fn=limits,
        timeout=50,
    )
    return Answer(returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)


def assert_refused(answer: Answer, *pieces: str) -> None:
    assert answer.returncode == 2, answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.stdout == ""
    heads = [line.partition(":")[0] for line in answer.stderr.splitlines() if not line.startswith(" ")]
    assert heads == ["error", "found", "to do"], answer.stderr
    for piece in pieces:
        assert piece in answer.stderr, answer.stderr


@pytest.mark.parametrize(
    ("settings", "pieces"),
    [
        (["learner.learnig_rate=1"], ["learner.learnig_rate", "learner.learning_rate"]),
        (["learner.learning_rate=fast"], ["learner.learning_rate", "'fast'"]),
        (["model.path=no/such/model"], ["model.path: no/such/model", "there is no folder"]),
        (["environment.name=dataset", "environment.dataset=no.jsonl"], ["data set no.jsonl", "There is no file"]),
        (["environment.name=nowhere:items"], ["environment nowhere:items", "No module named 'nowhere'", "nowhere.py"]),
        (["environment.verifier=no:where"], ["verifier no:where", "No module named 'no'"]),
        (["environment.max_turns=2"], ["environment.max_turns is 2", "engine.max_context_tokens"]),
        (["engine.max_tokens=60"], ["76 tokens in a sequence", "model.init.max_positions is 64"]),
        (["engine.max_context_tokens=20"], ["engine.max_context_tokens 20 has no room"]),
        (["root=/proc/ratchet"], ["/proc/ratchet", "cannot be written"]),
        ([f"root={QUICKSTART}/runs"], ["is a file"]),
        (["store.reserve_mib=1000000000"], ["MiB left", "free some space"]),
        (["cluster.address=127.0.0.1:1"], ["cluster.address: 127.0.0.1:1", "nothing answers", "ray start --head"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_run_refuses(tmp_path: Path, settings: list[str], pieces: list[str]) -> None:
    options = [word for setting in settings for word in ("--set", setting)]
    assert_refused(ratchet("run", QUICKSTART, *options, cwd=tmp_path), *pieces)
    assert list(tmp_path.iterdir()) == []


def test_run_refuses_a_shell_that_limits_file_sizes(tmp_path: Path) -> None:
    def limits() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    assert_refused(
        ratchet_process("run", QUICKSTART, cwd=tmp_path, limits=limits), "limits files to 1 MiB", "ulimit -f"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "piece"),
    [
        (b"", "It is empty."),
        (b"# nothing\n", "comments only"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "is no text"),
        (b"steps: [1,\n", "not valid YAML"),
        (b"- steps\n", "not a mapping"),
    ],
    ids=["empty", "comments", "binary", "broken", "list"],
)
def test_run_refuses_a_file_that_is_no_configuration(tmp_path: Path, content: bytes, piece: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    assert_refused(ratchet("run", str(file), cwd=tmp_path), str(file), piece)
    assert list(tmp_path.iterdir()) == [file]


def test_run_refuses_a_model_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    answer = ratchet("run", QUICKSTART, "--set", "model.path=model", cwd=tmp_path)
    assert_refused(answer, "lacks config.json, tokenizer_config.json, *.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


@pytest.mark.parametrize(
    "words",
    [
        ["status", "latest"],
        ["resume", "quickstrat-1"],
        ["stop", "latest"],
        ["replay", "latest"],
        ["evaluate", "latest"],
        ["trace", "latest"],
        ["model", "export", "latest", "--version", "1", "--out", "out"],
        ["snapshot", "list", "latest"],
        ["snapshot", "create", "latest", "--name", "one"],
    ],
    ids=" ".join,
)
def test_commands_refuse_a_run_that_is_not_there(tmp_path: Path, words: list[str]) -> None:
    assert_refused(ratchet(*words, cwd=tmp_path), "no folder of that name", "ratchet run configs/quickstart.yaml")
    assert list(tmp_path.iterdir()) == []


def test_a_process_of_its_own_says_the_same(tmp_path: Path) -> None:
    words = ["status", "latest"]
    assert ratchet_process(*words, cwd=tmp_path) == ratchet(*words, cwd=tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert_refused(ratchet("status", "photos", cwd=tmp_path), "no readable manifest.json")


def test_submit_refuses_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    answer = ratchet_process("submit", QUICKSTART, "--address", "127.0.0.1:1", cwd=tmp_path)
    assert_refused(answer, "the Ray cluster at http://127.0.0.1:1", "nothing answers there")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_command_is_refused(tmp_path: Path) -> None:
    answer = ratchet_process("rnu", cwd=tmp_path)
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    assert "No such command 'rnu'" in answer.stderr


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["run", "missing.yaml"], ["doctor"]], ids=" ".join)
def test_answers_do_not_pay_for_torch_or_ray(tmp_path: Path, words: list[str]) -> None:
    program = (
        "import atexit, sys\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'reasoning_gym', 'pyarrow'}\n"
        "atexit.register(lambda: print('HEAVY', sorted(heavy & set(sys.modules))))\n"
        "from console.main import main\n"
        "main()\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert answer.stdout.splitlines()[-1] == "HEAVY []", answer
