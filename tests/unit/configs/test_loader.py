"""The loader answers every mistake in a run file with one clear ConfigError."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.loader import check_resume, compare, config_hash, dump, load
from configs.schema import RunConfig
from contracts.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_run_file_loads_and_survives_a_round_trip(file: Path, tmp_path: Path) -> None:
    config = load(file)
    assert load(written(tmp_path, dump(config))) == config


def test_run_files_exist() -> None:
    assert {"quickstart.yaml", "rft_gpu.yaml"} <= {file.name for file in CONFIGS}


def test_scientific_notation_without_a_dot_is_a_number(tmp_path: Path) -> None:
    config = load(written(tmp_path, "learner: {learning_rate: 1e-4}\nenvironment: {parameters: {x: 2E3}}\n"))
    assert config.learner.learning_rate == 1e-4
    assert config.environment.parameters == {"x": 2000.0}


def test_overrides_are_yaml_and_the_last_one_wins(tmp_path: Path) -> None:
    file = written(tmp_path, "seed: 1\n")
    sets = ["seed=2", "learner.betas=[0.8, 0.9]", "model.init.layers=2", "environment.parameters.size=3", "seed=5"]
    config = load(file, [*sets, "model.path="])
    assert config.seed == 5
    assert config.learner.betas == (0.8, 0.9)
    assert config.model.init.layers == 2
    assert config.environment.parameters == {"size": 3}
    assert config.model.path is None


@pytest.mark.parametrize(
    ("text", "asked", "found", "todo"),
    [
        (
            "seed: 1\nlearner:\n  learning_rat: 1\n",
            "line 3: learner.learning_rat",
            "no such key",
            "learner.learning_rate?",
        ),
        ("learning_rate: 1\n", "line 1: learning_rate", "no such key", "warm_start.learning_rate or learner.learning"),
        ("lerner: {}\n", "line 1: lerner", "no such key", "mean learner?"),
        ("model:\n  init:\n    lyers: 2\n", "line 3: model.init.lyers", "no such key", "mean model.init.layers?"),
        ("learner:\n  lr: 1\n", "line 2: learner.lr", "no such key", "mean learner.learning_rate?"),
        ("zzz: 1\n", "line 1: zzz", "no such key", "Valid here: name, root, seed"),
        ("seed: 1\nsteps: many\n", "line 2: steps was set to 'many'", "valid integer", "a whole number, at least 0"),
        (
            "learner: {learning_rate: -1}\n",
            "learner.learning_rate was set to -1",
            "greater than 0",
            "a number, above 0",
        ),
        (
            "learner: {algorithm: a3c}\n",
            "learner.algorithm was set to 'a3c'",
            "should be 'policy_gradient' or 'ppo'",
            "default 'policy_gradient'",
        ),
        ("learner: {algorithm: ppo}\n", "run.yaml was asked for", "control.id is not set", "Correct one"),
        ("learner: {group_size: 1}\n", "run.yaml was asked for", "group_size is 1 in control runs", "Correct one"),
        ("learner: {loss: pppo}\n", "learner.loss was set to 'pppo'", "There is grpo, dr_grpo, dapo", "default 'grpo'"),
        ("learner: {betas: [0.9, x]}\n", "learner.betas was set", "valid number", "a list of a number and a number"),
        ("learner: {importance_cap: -1}\n", "learner.importance_cap", "greater than 0", "a number or null, above 0"),
        ("learner:\n", "line 1: learner", "section", "Keys of this section: algorithm"),
        ("mode: sync\n", "run.yaml was asked for", "mode sync has no staleness", "Correct one"),
        ("cluster: {mode: colocated}\n", "run.yaml was asked for", "but mode is async, not sync", "Correct one"),
        (
            "engine: {transport: nccl}\nmodel: {lora: {rank: 4}}\n",
            "run.yaml was asked for",
            "whole networks, not adapters",
            "Correct one",
        ),
        ("model: {lora: {target_modules: 3}}\n", "lora.target_modules was set to 3", "valid tuple", "a list of text"),
        ("model: {init: {width: 10, heads: 3}}\n", "run.yaml was asked for", "width 10 is no multiple", "Correct"),
        ("- 1\n- 2\n", "run.yaml", "not a mapping", "key: value"),
        ("only words", "run.yaml", "not a mapping", "key: value"),
        ("", "run.yaml", "empty", "quickstart.yaml"),
        ("  \n\n", "run.yaml", "empty", "quickstart.yaml"),
        ("# a comment\n", "run.yaml", "comments only", "key: value"),
        ("a: [1\n", "run.yaml", "not valid YAML: expected ',' or ']'", "Correct it there"),
        ("seed: 1\nseed: 2\n", "The key seed", "lines 1 and 2", "Delete one"),
        ("learner:\n  threads: 1\n  threads: 2\n", "The key threads", "lines 2 and 3", "Delete one"),
        ("environment: {parameters: {d: 2020-01-01}}\n", "run.yaml", "date", "quote dates"),
        ("learner: {learning_rate: .inf}\n", "run.yaml", "Out of range float", "finite numbers"),
        ("environment: {parameters: &a {b: *a}}\n", "run.yaml", "Circular", "mappings"),
        ("name: !!python/object:os.system x\n", "run.yaml", "could not determine a constructor", "Correct it there"),
        ("1: 2\n", "line 1: 1", "strings", ""),
        ("? [1, 2]\n: 3\n", "run.yaml", "unhashable key", "Correct it there"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, asked: str, found: str, todo: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text))
    assert asked in caught.value.asked
    assert found in caught.value.found
    assert todo in caught.value.todo
    assert caught.value.todo


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", "no assignment"),
        ("=3", "no assignment"),
        ("learner..threads=1", "no assignment"),
        ("seed.x=1", "seed is a value (1), not a section"),
        ("seed=[1", "not valid YAML"),
        ("engine.eager=maybe", "--set: engine.eager was set to 'maybe'"),
        ("learner.thread=2", "Did you mean learner.threads?"),
    ],
)
def test_a_wrong_override_is_explained(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, "seed: 1\n"), [override])
    assert words in str(caught.value)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="no such file") as caught:
        load(tmp_path / "quickstat.yaml")
    assert "quickstart.yaml" in caught.value.todo


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="It is a folder"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", b"\x80abc", b"\x00\x01\x02", b"seed: 1\x00"])
def test_binary_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"not UTF-8|not valid YAML"):
        load(file)


@pytest.mark.skipif(os.geteuid() != 0 and not os.access("/proc/self/mem", os.R_OK), reason="needs /proc/self/mem")
def test_an_unreadable_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load("/proc/self/mem")  # opens, and fails at the first byte for every user, root too


def test_resume_may_change_what_is_marked_and_nothing_else() -> None:
    old = RunConfig()
    longer = old.model_copy(update={"steps": 200})
    check_resume(old, longer)
    assert [(change.key, change.old, change.new, change.resumable) for change in compare(old, longer)] == [
        ("steps", 100, 200, True)
    ]
    other = longer.model_copy(update={"learner": old.learner.model_copy(update={"learning_rate": 1.0, "threads": 2})})
    assert [change.key for change in compare(old, other)] == ["steps", "learner.learning_rate", "learner.threads"]
    with pytest.raises(ConfigError) as caught:
        check_resume(old, other)
    assert "learner.learning_rate" in caught.value.asked
    assert "learner.threads" not in caught.value.asked
    assert "from 0.0001 to 1.0" in caught.value.found
    assert "steps" in caught.value.todo


def test_hash_names_what_a_resume_must_keep() -> None:
    old = RunConfig()
    assert config_hash(old) == config_hash(old.model_copy(update={"steps": 7}))
    assert config_hash(old) != config_hash(old.model_copy(update={"seed": 7}))
    assert len(config_hash(old)) == 64


@given(
    seed=st.integers(-(2**40), 2**40),
    rate=st.floats(1e-12, 1e6),
    text=st.text(max_size=20),
    cap=st.none() | st.floats(0.1, 9),
)
def test_dump_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rate: float, text: str, cap: float | None
) -> None:
    config = RunConfig.model_validate(
        {
            "seed": seed,
            "learner": {"learning_rate": rate, "importance_cap": cap},
            "environment": {"prompt": text, "parameters": {"text": text, "list": [rate, seed, None, True]}},
        }
    )
    file = tmp_path_factory.mktemp("dump") / "config.yaml"
    file.write_text(dump(config), encoding="utf-8")
    again = load(file)
    assert again == config
    assert config_hash(again) == config_hash(config)
