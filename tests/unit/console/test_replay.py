"""`ratchet replay --set`: what may change, what a changed loss brings with it, and where the branch goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.formulas import FORMULAS
from configs.loader import dump, load
from configs.schema import RunConfig
from console.replay import change, place_branch, render
from contracts.errors import ConfigError, RunFolderError
from tests.unit.console.test_bad_input import assert_refused, ratchet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As much of a run as its configuration is read from."""
    run = tmp_path / "runs" / "quickstart-1"
    run.mkdir(parents=True)
    config = RunConfig.model_validate({"learner": {"aggregation": "token", "clip_high": 0.28, "dual_clip": 3.0}})
    (run / "config.yaml").write_text(dump(config))
    (run / "manifest.json").write_text('{"format": 1}')
    return run


def test_another_loss_brings_its_own_keys(folder: Path) -> None:
    learner = change(folder, ["learner.loss=rloo"]).learner
    assert learner.formula() == FORMULAS["rloo"]
    assert learner.dual_clip == 3.0
    learner = change(folder, ["learner.loss=rloo", "learner.aggregation=constant"]).learner
    assert (learner.aggregation, learner.clip_high) == ("constant", None)


def test_the_same_loss_keeps_what_was_set(folder: Path) -> None:
    assert change(folder, []) == load(folder / "config.yaml")
    learner = change(folder, ["learner.loss=grpo", "learner.learning_rate=1e-3"]).learner
    assert (learner.aggregation, learner.clip_high, learner.learning_rate) == ("token", 0.28, 1e-3)


@pytest.mark.parametrize(
    "setting",
    [
        "engine.temperature=0.5",
        "learner.group_size=4",
        "learner.groups_per_step=8",
        "environment.dataset=chain_sum",
        "seed=1",
    ],
)
def test_what_the_batches_fix_is_refused(folder: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match="recorded batches were made with the old one") as caught:
        change(folder, [setting, "learner.loss=rloo"])
    assert setting.partition("=")[0] in caught.value.asked


@pytest.mark.parametrize(
    "setting", ["engine.backend=transformers", "evaluate.samples=2", "learner.importance_cap=null"]
)
def test_what_may_change(folder: Path, setting: str) -> None:
    assert change(folder, [setting]) != load(folder / "config.yaml")


def test_a_branch_lies_beside_its_run_never_inside(folder: Path) -> None:
    snapshot = folder / "snapshots" / "evening"
    snapshot.mkdir(parents=True)
    (snapshot / "manifest.json").write_text('{"format": 1}')
    for source in (folder, snapshot):
        place = place_branch(source, None)
        assert place.parent == folder.parent
        assert place.name.startswith(f"{source.name}-replay-")
    with pytest.raises(RunFolderError, match="inside the run quickstart-1"):
        place_branch(folder, folder / "branch")
    with pytest.raises(RunFolderError, match="something already"):
        place_branch(folder, folder.parent)
    assert place_branch(folder, folder.parent / "branch") == folder.parent / "branch"


def test_what_a_killed_branch_left_is_begun_anew(folder: Path) -> None:
    out = folder.parent / "branch"
    (out / "seed-0").mkdir(parents=True)
    (out / "config.yaml").touch()
    assert place_branch(folder, out) == out
    assert not out.exists()
    for name in ("report.json", "notes.txt"):
        (out / "seed-0").mkdir(parents=True, exist_ok=True)
        (out / name).touch()
        with pytest.raises(RunFolderError, match="something already"):
            place_branch(folder, out)
        (out / name).unlink()


def test_a_wrong_setting_is_one_message(folder: Path) -> None:
    answer = ratchet("replay", str(folder), "--set", "learner.loss=pppo", cwd=folder.parent)
    assert_refused(answer, "learner.loss was set to 'pppo'", "There is grpo, dr_grpo")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_table(folder: Path) -> None:
    scores = {
        "sampled_accuracy": 0.5,
        "sampled_accuracy_low": 0.45,
        "sampled_accuracy_high": 0.55,
        "greedy_accuracy": 0.6,
    }
    end = {"loss": -0.1, "reward_mean": 0.75, "importance_ess": 0.9, "kl": 0.01, "grad_norm": 1.5}
    report = {
        "metric": "sampled_accuracy",
        "out": "somewhere",
        "recorded": {"seed": -1, "summary": {"end": end}, "scores": {}},
        "branches": [
            {"seed": 0, "summary": {"end": {"loss": 0.0}}, "scores": scores},
            {"seed": 1, "summary": {"end": end}, "scores": {**scores, "sampled_accuracy": 0.6}},
        ],
    }
    head, recorded, first, second, mean, written = render(report)
    assert head.split() == ["loss", "reward_mean", "importance_ess", "kl", "grad_norm", "sampled", "greedy"]
    assert recorded.split() == ["as", "recorded", "-0.1000", "0.7500", "0.9000", "0.0100", "1.5000", "not", "evaluated"]
    assert first.split() == ["seed", "0", "0.0000", "0.5000", "[0.450,", "0.550]", "0.6000"]
    assert len({len(line) for line in (head, first, second)}) == 1
    assert mean == "sampled_accuracy: mean 0.5500, 0.5000 to 0.6000"
    assert written == "written to somewhere"
