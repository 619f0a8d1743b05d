"""A sweep's plan is the same for the same arguments, refuses what contradicts itself, and runs nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from configs.loader import dump, load
from configs.schema import RunConfig
from console.main import app
from console.run_folder import create
from console.sweep import Member, default_folder, make_variants, plan, split_values
from contracts.errors import ConfigError, RunFolderError
from tests.crash.plain import plain_config
from tests.unit.console.played import play_in

RATES = "learner.learning_rate=1e-4,1e-3"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run file of the plain protocol."""
    file = tmp_path / "plain.yaml"
    file.write_text(dump(plain_config(steps=2)))
    return file


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("a.b=1", ["a.b=1"]),
        ("a.b=1,2", ["a.b=1", "a.b=2"]),
        ("a.b=1, 2", ["a.b=1", "a.b=2"]),
        ("a.b=[0.9,0.99]", ["a.b=[0.9,0.99]"]),
        ("a.b=[0.9,0.99],[0.9,0.95]", ["a.b=[0.9,0.99]", "a.b=[0.9,0.95]"]),
        ("a.b={x: 1, y: 2},null", ["a.b={x: 1, y: 2}", "a.b=null"]),
        ("a.b='one, two',three", ["a.b='one, two'", "a.b=three"]),
        ('a.b="[",x', ['a.b="["', "a.b=x"]),
        ("nothing", ["nothing"]),
    ],
)
def test_values_part_at_commas_outside_brackets(setting: str, values: list[str]) -> None:
    assert split_values(setting) == values


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4).map(str), min_size=1, max_size=5))
def test_any_lists_are_told_apart(lists: list[str]) -> None:
    assert split_values("k=" + ",".join(lists)) == [f"k={one}" for one in lists]


def test_variants_are_the_product_and_have_names() -> None:
    variants = make_variants([RATES, "steps=5", "learner.betas=[0.9,0.99],[0.9,0.95]"])
    assert [variant.settings for variant in variants] == [
        ("learner.learning_rate=1e-4", "learner.betas=[0.9,0.99]"),
        ("learner.learning_rate=1e-4", "learner.betas=[0.9,0.95]"),
        ("learner.learning_rate=1e-3", "learner.betas=[0.9,0.99]"),
        ("learner.learning_rate=1e-3", "learner.betas=[0.9,0.95]"),
    ]
    names = [variant.name for variant in variants]
    assert names[0].startswith("learning_rate-1e-4_betas-_0.9_0.99_")
    assert len(set(names)) == 4
    assert all("/" not in name and " " not in name for name in names)
    both = make_variants(["learner.threads=1,2", "engine.threads=1,2"])
    assert both[1].name == "learner.threads-1_engine.threads-2"
    assert [variant.name for variant in make_variants(["steps=5"])] == [""]


@pytest.mark.parametrize(
    ("settings", "piece"),
    [(["seed=1,2"], "--seeds"), (["steps=5,5"], "twice"), (["steps=5,6", "steps=7,8"], "twice")],
)
def test_contradicting_variants_are_refused(settings: list[str], piece: str) -> None:
    with pytest.raises(ConfigError, match=piece):
        make_variants(settings)


def test_the_plan_takes_every_variant_with_every_seed(config: Path, tmp_path: Path) -> None:
    members = plan(config, seeds=2, settings=[RATES, "seed=7"], folder=tmp_path / "out")
    assert [(m.variant.name, m.config.seed) for m in members] == [
        ("learning_rate-1e-4", 7),
        ("learning_rate-1e-3", 7),
        ("learning_rate-1e-4", 8),
        ("learning_rate-1e-3", 8),
    ]
    assert [m.config.learner.learning_rate for m in members] == [1e-4, 1e-3] * 2
    assert [m.folder.name for m in members][1] == "learning_rate-1e-3-seed-7"
    assert all(Path(m.config.root) == tmp_path / "out" for m in members)
    assert not (tmp_path / "out").exists(), "a plan writes nothing"


def test_the_same_arguments_find_the_same_folder(config: Path) -> None:
    folder = default_folder(config, [RATES, "steps=5"])
    assert folder == default_folder(config, ["steps=5", "learner.learning_rate=1,2,3"]), "what varies may grow"
    assert folder != default_folder(config, [RATES, "steps=6"])
    config.write_text(config.read_text() + "\n# another file\n")
    assert folder != default_folder(config, [RATES, "steps=5"])


def test_a_wrong_value_of_any_variant_is_refused_before_anything_runs(config: Path, tmp_path: Path) -> None:
    words = ["--seeds", "2", "--set", "learner.learning_rate=1e-4,fast", "--out", str(tmp_path / "out")]
    answer = CliRunner().invoke(app, ["sweep", str(config), *words])
    assert answer.exit_code == 2
    assert "'fast'" in answer.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_with_runs_of_another_configuration_is_refused(config: Path, tmp_path: Path) -> None:
    first = plan(config, seeds=1, settings=[], folder=tmp_path / "out")[0]
    create(first.config, name=first.folder.name)
    plan(config, seeds=2, settings=[], folder=tmp_path / "out")  # the same ones, and more
    with pytest.raises(RunFolderError, match=r"learner\.learning_rate"):
        plan(config, seeds=1, settings=["learner.learning_rate=0.5"], folder=tmp_path / "out")


# ---------------------------------------------------------------------------------------------- the command

Finish = Callable[[Member], None]


def finish(member: Member) -> None:
    """What `run_member` leaves behind, by the plain protocol."""
    config: RunConfig = load(member.folder / "config.yaml")
    play_in(member.folder, config)


def test_finished_runs_are_compared_and_not_run_again(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for member in plan(config, seeds=2, settings=["steps=1,3"], folder=out):
        create(member.config, name=member.folder.name)
        finish(member)
    words = ["sweep", str(config), "--seeds", "2", "--set", "steps=1,3", "--out", str(out)]
    answer = CliRunner().invoke(app, [*words, "--json"])
    assert answer.exit_code == 0, answer.output
    assert answer.stderr.count("is finished") == 4
    report = json.loads(answer.stdout)
    assert report == json.loads((out / "report.json").read_text())
    assert [variant["name"] for variant in report["variants"]] == ["steps-1", "steps-3"]
    for variant in report["variants"]:
        assert variant["metric"] == "mass"
        assert [run["seed"] for run in variant["runs"]] == [0, 1]
        lasts = [run["last"] for run in variant["runs"]]
        assert variant["last"]["mean"] == pytest.approx(sum(lasts) / 2)
        assert min(lasts) <= variant["last"]["low"] <= variant["last"]["high"] <= max(lasts)
    (difference,) = report["differences"]
    assert (difference["from"], difference["to"], difference["seeds"]) == ("steps-1", "steps-3", [0, 1])
    text = CliRunner().invoke(app, words)
    assert text.exit_code == 0, text.output
    assert "steps-3 against steps-1" in text.stdout
    assert (out / "report.md").read_text().startswith("| variant | seed 0 | seed 1 | mass | gain |")
