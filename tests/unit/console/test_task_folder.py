"""The user's own folder goes with a run: whole, once, and never with a module that would hide behind one of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.schema import Environment, Learner, RunConfig
from console import task_folder
from console.run_folder import create, discard, resolve
from contracts.errors import UserError

OWN = RunConfig(environment=Environment(name="task:items", verifier="task:verify"))
FILE = RunConfig(environment=Environment(name="dataset", dataset="data/rows.jsonl", verifier="exact"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    for name in ("task.py", "words.txt", "part/__init__.py", "part/inner.py", "data/rows.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for name in (".git/config", "runs/old/big", "__pycache__/task.pyc", "venv/pyvenv.cfg", "venv/lib.py", "out/x/y"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("never")
    return folder


def test_what_a_configuration_needs_and_nothing_else(source: Path) -> None:
    def names(config: RunConfig) -> list[str]:
        config = config.model_copy(update={"root": str(source / "out")})
        return [file.relative_to(source).as_posix() for file in task_folder.needed(config, source)]

    whole = ["data/rows.jsonl", "part/__init__.py", "part/inner.py", "task.py", "words.txt"]
    assert names(OWN) == whole
    assert names(RunConfig(learner=Learner(loss="task:loss"))) == whole
    assert names(FILE) == ["data/rows.jsonl"]
    assert names(RunConfig()) == []
    away = FILE.environment.model_copy(update={"dataset": str(source / "data" / "rows.jsonl")})
    assert names(RunConfig(environment=away)) == [], "an absolute path stays where it is"


def test_a_run_keeps_a_copy_of_its_own(source: Path, tmp_path: Path) -> None:
    config = OWN.model_copy(update={"root": str(tmp_path / "runs")})
    folder = create(config, source=source)
    (source / "task.py").write_text("edited later")
    assert (folder / "task" / "task.py").read_text() == "task.py"
    assert (folder / "task" / "part" / "inner.py").is_file()
    assert not (create(RunConfig(root=str(tmp_path / "runs")), source=source) / "task").exists()
    discard(folder)


def test_the_digest_is_of_names_and_contents(source: Path) -> None:
    before = task_folder.digest(OWN, source)
    assert before == task_folder.digest(OWN, source)
    (source / "words.txt").write_text("more")
    changed = task_folder.digest(OWN, source)
    (source / "words.txt").rename(source / "letters.txt")
    assert len({before, changed, task_folder.digest(OWN, source)}) == 3


@pytest.mark.parametrize("name", ["models.py", "configs/__init__.py", "buffers/helper.py"])
def test_a_name_of_ours_is_refused(source: Path, tmp_path: Path, name: str) -> None:
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_text("")
    root = tmp_path / "runs"
    with pytest.raises(UserError) as caught:
        create(OWN.model_copy(update={"root": str(root)}), source=source)
    assert "has the name of a package of Ratchet's" in caught.value.found
    assert "Give it another name" in caught.value.todo
    assert list(root.iterdir()) == [], "nothing is left of the run"


def test_a_folder_of_yaml_with_a_name_of_ours_is_no_clash(source: Path) -> None:
    (source / "configs").mkdir()
    (source / "configs" / "run.yaml").write_text("steps: 1\n")
    assert source / "configs" / "run.yaml" in task_folder.needed(OWN, source)


def test_a_folder_that_cannot_be_meant_is_refused(source: Path) -> None:
    with (source / "weights.bin").open("wb") as file:
        file.truncate((task_folder.MOST_MIB + 1) << 20)
    with pytest.raises(UserError) as caught:
        task_folder.needed(OWN, source)
    assert "65 MiB" in caught.value.found
    assert "a folder of their own" in caught.value.todo


def test_our_own_configs_folder_is_no_clash_with_itself(tmp_path: Path) -> None:
    config = RunConfig(root=str(tmp_path), learner=Learner(loss="my_losses:one"))
    assert resolve(str(create(config, source=task_folder.ROOT / "configs"))).name.startswith("run-")
