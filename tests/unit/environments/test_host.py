"""An environment that hangs, raises, dies or answers nonsense costs its own episode and nothing else."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from configs.schema import Environment
from contracts.errors import RatchetError, UserError
from contracts.protocols import Verdict
from contracts.records import StopReason
from environments.host import ROOT, EnvironmentHost

SMALL = Environment(dataset="chain_sum", train_items=20, held_out_items=10)

MOODS = """
import ctypes, os, subprocess, sys, time

TRIES = {}

def score(completion, entry):
    print("a verifier may print")
    sys.stdin.read()  # and finds nothing there
    if completion == "hang":
        time.sleep(3600)
    if completion == "hang for good":  # holds the interpreter's lock: no Python signal handler would run
        ctypes.PyDLL(None).sleep(3600)
    if completion == "start another":
        other = subprocess.Popen(["sleep", "3600"])
        open(os.environ["RATCHET_TEST_FILE"], "w").write(str(other.pid))
        time.sleep(3600)
    if completion == "raise":
        raise ValueError("no such mood")
    if completion == "die":
        os._exit(3)
    if completion == "leave":
        sys.exit("goodbye")
    if completion == "once":
        TRIES[completion] = TRIES.get(completion, 0) + 1
        if TRIES[completion] == 1:
            raise RuntimeError("the first time")
    nonsense = {"nan": float("nan"), "inf": float("inf"), "none": None, "text": "1.0", "list": [1.0], "complex": 1j}
    return nonsense.get(completion, True)
"""


@pytest.fixture
def moods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """An environment whose verifier does what the completion says."""
    (tmp_path / "moods_of_a_verifier.py").write_text(MOODS)
    monkeypatch.syspath_prepend(tmp_path)
    return SMALL.model_copy(update={"verifier": "moods_of_a_verifier:score", "timeout_s": 2.0, "retries": 1})


@pytest.fixture(scope="module")
def host() -> Iterator[EnvironmentHost]:
    with EnvironmentHost(SMALL, seed=0) as one:
        yield one


def ended(pid: int, *, timeout_s: float = 30.0) -> bool:
    """Whether the process ends in time, whosever child it is."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    answer = bool(poll.poll(timeout_s * 1_000))
    os.close(descriptor)
    return answer


def reasons(verdicts: list[Verdict]) -> list[StopReason]:
    return [verdict.stop_reason for verdict in verdicts]


def test_prompts_targets_and_scores(host: EnvironmentHost) -> None:
    prompts, targets = host.prompts("held_out", [2, 7]), host.targets("held_out", [2, 7])
    assert [(prompt.index, prompt.task_id) for prompt in prompts] == [
        (2, "reasoning_gym/chain_sum/held_out/2"),
        (7, "reasoning_gym/chain_sum/held_out/7"),
    ]
    verdicts = host.score(
        [("held_out", 2, [f" {targets[0]}\n"]), ("held_out", 7, ["none"]), ("held_out", 7, [targets[1]])]
    )
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, 1.0]
    assert [verdict.parts["exact"] for verdict in verdicts] == [1.0, 0.0, 1.0]
    assert set(reasons(verdicts)) == {StopReason.TERMINATED}
    assert host.counts == {}


def test_what_it_says_of_itself(host: EnvironmentHost) -> None:
    assert host.name == "reasoning_gym/chain_sum"
    assert host.version.startswith("reasoning-gym ")
    assert len(host.reward_code) == 64
    assert (host.disjoint.train, host.disjoint.held_out) == (20, 10)


def test_nothing_to_score(host: EnvironmentHost) -> None:
    assert host.score([]) == []


def test_a_batch_larger_than_the_pipe(host: EnvironmentHost) -> None:
    verdicts = host.score([("train", i % 20, ["x" * 5_000]) for i in range(500)])
    assert [verdict.reward for verdict in verdicts] == [0.0] * 500


def test_any_text_travels(host: EnvironmentHost) -> None:
    [verdict] = host.score([("train", 0, ["\ud800 \u2028 \x00 \n 🦜"])])
    assert verdict.stop_reason is StopReason.TERMINATED


@pytest.mark.parametrize(
    ("mood", "reason", "detail"),
    [
        ("hang", StopReason.ENV_TIMEOUT, "no answer in 2 s"),
        ("hang for good", StopReason.ENV_TIMEOUT, "no answer in 2 s"),
        ("raise", StopReason.ENV_ERROR, "ValueError: no such mood"),
        ("die", StopReason.ENV_ERROR, "ended with code 3"),
        ("leave", StopReason.ENV_ERROR, "ended with code 1"),
    ],
)
def test_a_failure_costs_its_own_episode_alone(moods: Environment, mood: str, reason: StopReason, detail: str) -> None:
    with EnvironmentHost(moods, seed=0) as host:
        verdicts = host.score([("train", 0, ["fine"]), ("train", 1, [mood]), ("train", 2, ["fine"])])
        assert reasons(verdicts) == [StopReason.TERMINATED, reason, StopReason.TERMINATED]
        assert [verdict.reward for verdict in verdicts] == [1.0, None, 1.0]
        assert [verdict.retries for verdict in verdicts] == [0, 1, 0]
        assert detail in verdicts[1].detail
        assert host.counts[reason.value] == 2
        assert host.counts["retries"] == 1
        assert host.score([("train", 0, ["fine"])])[0].reward == 1.0  # and it goes on


def test_nonsense_is_never_a_reward(moods: Environment) -> None:
    kinds = ["nan", "inf", "none", "text", "list", "complex"]
    with EnvironmentHost(moods, seed=0) as host:
        verdicts = host.score([("train", 0, [kind]) for kind in kinds])
        assert reasons(verdicts) == [StopReason.ENV_INVALID] * len(kinds)
        assert {verdict.reward for verdict in verdicts} == {None}
        assert all(verdict.detail and not verdict.parts for verdict in verdicts)
        assert host.counts == {"env_invalid": 2 * len(kinds), "retries": len(kinds)}


def test_a_retry_that_succeeds_counts_as_one(moods: Environment) -> None:
    with EnvironmentHost(moods, seed=0) as host:
        [verdict] = host.score([("train", 0, ["once"])])
    assert (verdict.reward, verdict.retries, verdict.stop_reason) == (1.0, 1, StopReason.TERMINATED)


def test_without_retries_the_first_failure_is_final(moods: Environment) -> None:
    with EnvironmentHost(moods.model_copy(update={"retries": 0}), seed=0) as host:
        [verdict] = host.score([("train", 0, ["once"])])
    assert (verdict.reward, verdict.retries, verdict.stop_reason) == (None, 0, StopReason.ENV_ERROR)


def test_an_item_that_is_not_there_is_an_error_of_its_own(host: EnvironmentHost) -> None:
    assert reasons(host.score([("train", 99, ["x"]), ("train", 0, ["x"])])) == [
        StopReason.ENV_ERROR,
        StopReason.TERMINATED,
    ]


def test_what_a_hanging_verifier_started_is_killed_with_it(
    moods: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pid"
    monkeypatch.setenv("RATCHET_TEST_FILE", str(file))
    with EnvironmentHost(moods.model_copy(update={"retries": 0, "timeout_s": 3.0}), seed=0) as host:
        assert reasons(host.score([("train", 0, ["start another"])])) == [StopReason.ENV_TIMEOUT]
        assert ended(int(file.read_text()))


def test_a_child_killed_while_idle_is_nobodys_fault() -> None:
    others = set(psutil.Process().children())
    with EnvironmentHost(SMALL.model_copy(update={"retries": 0}), seed=0) as host:
        before = host.prompts("train", [3])
        [child] = set(psutil.Process().children()) - others
        child.kill()
        assert ended(child.pid)
        assert host.prompts("train", [3]) == before  # the same items again
        [verdict] = host.score([("train", 3, ["x"])])
        assert (verdict.reward, verdict.retries) == (0.0, 0)
        assert host.counts == {"restarts": 1}


PARENT = """
import os, psutil, sys
from configs.schema import Environment
from environments import host
host._CHILD_GRACE_S = 0.5
small = dict(dataset="chain_sum", train_items=20, held_out_items=10)
environment = Environment(**small, timeout_s={timeout_s}, verifier={verifier!r})
with host.EnvironmentHost(environment, seed=0) as one:
    one.prompts("train", [0])
    print(psutil.Process().children()[0].pid, flush=True)
    one.score([("train", 0, [{completion!r}])])
    sys.stdin.read()
"""


@pytest.mark.parametrize("completion", ["fine", "hang for good"])
def test_it_dies_with_its_parent(moods: Environment, completion: str) -> None:
    """Idle, its input ends; at work, and hung in C code, the kernel's alarm ends it."""
    code = PARENT.format(timeout_s=2.0, verifier=moods.verifier, completion=completion)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        assert ended(child)


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ({"dataset": "chain_sums"}, "chain_sum?"),
        ({"verifier": "nowhere_to_be_found:x"}, "No module named"),
        ({"prompt": "{q}"}, "no {q}"),
    ],
)
def test_what_it_refuses_comes_back_as_it_was_said(update: dict[str, str], words: str) -> None:
    with EnvironmentHost(SMALL.model_copy(update=update), seed=0) as host:
        for call in (
            lambda: host.version,
            lambda: host.prompts("train", [0]),
            lambda: host.score([("train", 0, ["x"])]),
        ):
            with pytest.raises(UserError) as caught:
                call()
            assert words in str(caught.value)


def test_another_python_runs_it_without_our_packages(tmp_path: Path) -> None:
    """A wrapper stands for it: what it is given of our search path is the project alone."""
    python = tmp_path / "python"
    packages = Path(pytest.__file__).parent.parent
    python.write_text(
        f'#!/bin/sh\nexport SEEN="$PYTHONPATH"\nPYTHONPATH="$PYTHONPATH:{packages}" exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    (tmp_path / "sees.py").write_text(
        "import os\ndef path(answer, item):\n    return float(os.environ['SEEN'] == answer)\n"
    )
    update = {"verifier": "sees:path", "python": str(python)}
    with EnvironmentHost(SMALL.model_copy(update=update), seed=0, folder=tmp_path) as host:
        [verdict] = host.score([("train", 0, [f"{ROOT}:{tmp_path}"])])
    assert verdict.reward == 1.0, verdict.detail


def test_a_python_that_is_not_there_or_lacks_packages(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    with pytest.raises(UserError, match="there is no such program"):
        EnvironmentHost(SMALL.model_copy(update={"python": str(tmp_path / "none")}), seed=0)
    with (
        EnvironmentHost(SMALL.model_copy(update={"python": str(bare)}), seed=0) as host,
        pytest.raises(UserError, match="numpy, pydantic, pyyaml and gymnasium"),
    ):
        host.prompts("train", [0])


def test_a_child_that_cannot_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dies_at_import.py").write_text("import os; os._exit(7)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with EnvironmentHost(SMALL.model_copy(update={"verifier": "dies_at_import:x"}), seed=0) as host:
        with pytest.raises(RatchetError, match="did not start: code 7"):
            host.prompts("train", [0])
        with pytest.raises(RatchetError, match="did not start: code 7"):
            host.score([("train", 0, ["x"])])
