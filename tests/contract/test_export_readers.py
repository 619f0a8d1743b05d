"""An export opens in DuckDB, pandas and Hugging Face `datasets`; the canned questions answer from the same tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from buffers.questions import QUESTIONS, ask
from buffers.tables import COLUMNS, Experience
from console.main import app
from contracts.errors import UserError
from tests.unit.buffers.bench import opened
from tests.unit.buffers.test_export import export, fill
from tests.unit.console import played


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `store` and its export `out`."""
    folder = tmp_path_factory.mktemp("exported")
    with opened(folder / "store") as bench:
        fill(bench)
    export(folder / "store", folder / "out")
    return folder


def test_duckdb_opens_every_table(exported: Path) -> None:
    import duckdb

    with duckdb.connect(":memory:") as database:
        for table, (_, columns) in COLUMNS.items():
            found = database.execute(f"SELECT * FROM '{exported / 'out' / table}/*.parquet'")
            assert [column[0] for column in found.description] == [name for name, _, _ in columns]
        joined = database.execute(
            f"SELECT e.reward, s.log_probs FROM '{exported}/out/episodes/*.parquet' e "
            f"JOIN '{exported}/out/steps/*.parquet' s USING (lsn) WHERE e.reward = -3"
        ).fetchall()
    assert joined == [(-3.0, [-0.5, -0.5, -0.5])]


def test_pandas_opens_every_table(exported: Path) -> None:
    import pandas as pd

    for table, (_, columns) in COLUMNS.items():
        frame = pd.read_parquet(exported / "out" / table)
        assert list(frame.columns) == [name for name, _, _ in columns]
    episodes = pd.read_parquet(exported / "out" / "episodes")
    assert episodes["reward"].min() == -3.0
    assert str(episodes["wall_time"].dtype).startswith("datetime64")


def test_datasets_finds_the_tables_by_the_card(exported: Path, tmp_path: Path) -> None:
    import datasets

    assert datasets.get_dataset_config_names(str(exported / "out")) == list(COLUMNS)
    for table in COLUMNS:
        loaded = datasets.load_dataset(str(exported / "out"), table, split="train", cache_dir=str(tmp_path))
        assert loaded.column_names == [name for name, _, _ in COLUMNS[table][1]]
    episodes = datasets.load_dataset(str(exported / "out"), split="train", cache_dir=str(tmp_path))
    assert min(episodes["reward"]) == -3.0


def test_the_questions_answer_what_the_log_says(exported: Path) -> None:
    experience = Experience(exported / "store")
    answers = {name: ask(experience, name) for name in QUESTIONS}
    rewards = answers["reward-by-version"]
    assert rewards.columns[:3] == ("version", "episodes", "reward_mean")
    assert [row[:3] for row in rewards.rows] == [(0, 7, pytest.approx((-3 + 1 + 1 + 1) / 7)), (1, 2, 0.5)]
    assert answers["staleness"].rows == ((0, 6, 0.75), (1, 2, 0.25))
    ((fault, episodes, producers, num_bytes, newest, detail),) = answers["quarantine"].rows
    assert (fault, episodes, producers, detail) == ("reward", 1, 1, "its reward is nan")
    assert num_bytes > 0
    assert newest.year == 1970
    assert [row[1:] for row in answers["most-replayed"].rows] == [(1, 1, 2)] * 4
    days = {str(row[0]): row[1:] for row in answers["tokens-a-day"].rows}
    assert days["2025-06-15"] == (4, 16, 12)
    with pytest.raises(UserError, match="no such question"):
        ask(experience, "why")


def test_the_command_answers_in_text_and_json(finished_run: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    for name in QUESTIONS:
        text = runner.invoke(app, ["store", "ask", str(finished_run), name])
        assert text.exit_code == 0, text.output
        answer = runner.invoke(app, ["store", "ask", str(finished_run), name, "--json"])
        rows = json.loads(answer.stdout)["rows"]
        assert len(text.stdout.splitlines()) == len(rows) + 1
    stale = json.loads(runner.invoke(app, ["store", "ask", str(finished_run), "staleness", "--json"]).stdout)["rows"]
    assert stale == [{"staleness": 0, "episodes": 4 * played.STEPS, "share": 1.0}]
    assert runner.invoke(app, ["store", "ask", str(finished_run), "why"]).exit_code == 2


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return played.play(tmp_path_factory.mktemp("runs"))
