"""Environments of OpenEnv and of the package `verifiers`, each in a virtual environment of its own: their requirements
contradict our locks (verifiers 0.4.0 wants mcp 2.0.0 and openai below 3; openenv-core 0.3.0 wants gradio).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from configs.schema import Environment
from contracts.errors import UserError
from contracts.records import StopReason
from environments.host import EnvironmentHost

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]

TASKSET = """
import verifiers.v1 as vf


class DoubleItData(vf.TaskData):
    answer: str


class DoubleItTask(vf.Task[DoubleItData]):
    @vf.reward(weight=0.9)
    async def right(self, trace: vf.Trace) -> float:
        return float(trace.last_reply == self.data.answer)

    @vf.reward(weight=0.1)
    async def short(self, trace: vf.Trace) -> float:
        return float(trace.num_turns == 1 and len(trace.messages[-1].content) < 5)


class DoubleItConfig(vf.TasksetConfig):
    num_tasks: int = 5


class DoubleItTaskset(vf.Taskset[DoubleItTask, DoubleItConfig]):
    def load(self) -> list[DoubleItTask]:
        numbers = range(self.config.num_tasks)
        rows = [DoubleItData(prompt=f"2*{i}=", system_prompt="Double it.", answer=str(2 * i)) for i in numbers]
        return [DoubleItTask(row, self.config.task) for row in rows]
"""


def make_python(folder: Path, *packages: str) -> Path:
    """A virtual environment with what the child process needs and `packages`."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    needed = ("numpy", "pydantic", "pyyaml", "gymnasium")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *needed, *packages], check=True, capture_output=True)
    return python


def test_openenvs_own_echo_environment(tmp_path: Path) -> None:
    """The one that `openenv init` writes: it echoes, and pays 0.1 a letter."""
    python = make_python(tmp_path / "venv", "openenv-core==0.3.0")
    subprocess.run([python.with_name("openenv"), "init", "echo_game"], cwd=tmp_path, check=True, capture_output=True)
    settings = Environment(
        name="openenv",
        dataset="echo_game.server.echo_game_environment:EchoGameEnvironment",
        parameters={"action": "echo_game.models:EchoGameAction", "field": "message", "show": "{echoed_message}"},
        python=str(python),
        train_items=20,
        held_out_items=5,
        max_turns=3,
    )
    with EnvironmentHost(settings, seed=0, folder=tmp_path) as host:
        assert (host.disjoint.train, host.disjoint.held_out, host.disjoint.shared) == (20, 5, 0)
        assert "ready" in host.prompts("train", [0])[0].text
        verdicts = host.score([("train", 0, ["hello"]), ("train", 1, ["hello", "you"]), ("train", 2, ["a", "b", "c"])])
    assert [verdict.reward for verdict in verdicts] == pytest.approx([0.5, 0.8, 0.3])
    assert [verdict.remark for verdict in verdicts] == ["hello", "you", None]
    assert verdicts[2].stop_reason is StopReason.TRUNCATED
    with (
        EnvironmentHost(settings.model_copy(update={"parameters": {}}), seed=0, folder=tmp_path) as host,
        pytest.raises(UserError, match="no text action in"),
    ):
        host.prompts("train", [0])


def test_a_taskset_of_the_package_verifiers(tmp_path: Path) -> None:
    """One that `vf-init` lays out, with tasks and rewards filled in."""
    python = make_python(tmp_path / "venv", "verifiers==0.4.0")
    program = str(python.with_name("vf-init"))
    subprocess.run([program, "double-it-v1", "--path", str(tmp_path)], check=True, capture_output=True)
    (tmp_path / "double_it_v1" / "double_it_v1" / "taskset.py").write_text(TASKSET)
    settings = Environment(
        name="verifiers",
        dataset="double-it-v1",
        parameters={"num_tasks": 25},
        prompt="{system} {question}",
        python=str(python),
        train_items=20,
        held_out_items=5,
    )
    folder = tmp_path / "double_it_v1"
    with EnvironmentHost(settings, seed=0, folder=folder) as host:
        assert host.version.startswith("verifiers 0.4.0 double-it-v1 ")
        assert host.prompts("train", [0])[0].text.startswith("Double it. 2*")
        [answer] = host.targets("train", [3])
        verdicts = host.score([("train", 3, [answer]), ("train", 3, ["none"]), ("train", 3, ["very long"])])
    assert [verdict.reward for verdict in verdicts] == pytest.approx([1.0, 0.1, 0.0])
    assert [verdict.parts["exact"] for verdict in verdicts] == [1.0, 0.0, 0.0]
    for update, words in (
        ({"dataset": "nowhere-v1"}, "taskset 'nowhere-v1' not found"),
        ({"python": None}, "imported"),
    ):
        other = settings.model_copy(update=update)
        with EnvironmentHost(other, seed=0, folder=folder) as host, pytest.raises(UserError, match=str(words)):
            host.prompts("train", [0])
