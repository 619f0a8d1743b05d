"""Rows of JSONL and Parquet files as items; every fault names its line, its field, and what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from configs.schema import Environment, Fields
from contracts.errors import UserError
from environments.text.dataset import TextTasks
from environments.text.env import TextEnv

ROWS = [{"problem": f"{i} + {i} =", "solution": 2 * i, "part": "test" if i % 5 == 0 else "train"} for i in range(50)]
FIELDS = Fields(question="problem", answer="solution", split="part")
SETTINGS = Environment(
    name="dataset", dataset="sums.jsonl", fields=FIELDS, verifier="number", train_items=40, held_out_items=10
)


def write_lines(folder: Path, rows: list[Any], name: str = "sums.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return file


def refused(folder: Path, **update: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        TextTasks(SETTINGS.model_copy(update=update), seed=0, folder=folder)
    return caught.value


def test_rows_are_items_in_their_split(tmp_path: Path) -> None:
    write_lines(tmp_path, ROWS)
    tasks = TextTasks(SETTINGS, seed=0, folder=tmp_path)
    assert [item.prompt for item in tasks.held_out] == [f"{i} + {i} =" for i in range(0, 50, 5)]
    assert tasks.train[0].target == "2"
    assert (tasks.prove_disjoint().train, tasks.prove_disjoint().held_out) == (40, 10)
    assert tasks.prompts("train", [0])[0].task_id == "dataset/sums.jsonl/train/0"
    environment = TextEnv(SETTINGS, seed=0, folder=tmp_path)
    environment.reset(options={"split": "train", "index": 3})
    assert environment.step("that makes 8.0")[1:] == (1.0, True, False, {"parts": {"exact": 1.0}})


def test_parquet_says_the_same(tmp_path: Path) -> None:
    write_lines(tmp_path, ROWS)
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "sums.parquet")
    lines = TextTasks(SETTINGS, seed=0, folder=tmp_path)
    table = TextTasks(SETTINGS.model_copy(update={"dataset": "sums.parquet"}), seed=0, folder=tmp_path)
    for split in ("train", "held_out"):
        pairs = zip(lines.split(split), table.split(split), strict=True)
        assert all((a.prompt, a.target) == (b.prompt, b.target) for a, b in pairs)


def test_the_version_is_of_the_content(tmp_path: Path) -> None:
    file = write_lines(tmp_path, ROWS)
    before = TextTasks(SETTINGS, seed=0, folder=tmp_path).version
    assert before == TextTasks(SETTINGS, seed=1, folder=tmp_path).version
    file.write_text(file.read_text().replace("1 + 1", "1 +  1"))
    assert TextTasks(SETTINGS, seed=0, folder=tmp_path).version != before
    assert before.startswith("sums.jsonl sha256:")


def test_without_a_split_field_the_questions_alone_decide(tmp_path: Path) -> None:
    update = {"fields": Fields(question="problem", answer="solution")}
    settings = SETTINGS.model_copy(update=update)
    write_lines(tmp_path, ROWS)
    first = TextTasks(settings, seed=0, folder=tmp_path)
    write_lines(tmp_path, [*ROWS[::-1], ROWS[7]])
    other = TextTasks(settings, seed=5, folder=tmp_path)
    assert {item.question for item in first.held_out} == {item.question for item in other.held_out}
    assert first.prove_disjoint() == other.prove_disjoint()


def test_what_is_held_out_is_taken_out_of_training(tmp_path: Path) -> None:
    write_lines(tmp_path, [*ROWS, {**ROWS[0], "part": "train"}, {**ROWS[1]}])
    tasks = TextTasks(SETTINGS, seed=0, folder=tmp_path)
    assert tasks.prove_disjoint().shared == 0
    error = refused(tmp_path, train_items=41)
    assert "gave 50 distinct questions (and prompts), and no more" in error.found
    assert "environment.train_items to at most 40" in error.todo


def test_an_absolute_path_and_blank_lines(tmp_path: Path) -> None:
    file = write_lines(tmp_path, [*ROWS[:25], "\n  \n", *ROWS[25:]])
    settings = SETTINGS.model_copy(update={"dataset": str(file)})
    assert len(TextTasks(settings, seed=0, folder=tmp_path / "elsewhere").train) == 40


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"problem": "x"\n', "Line 51 is no JSON"),
        ("[1, 2]\n", "Line 51 is [1, 2], not an object"),
        ({"solution": 1, "part": "train"}, "Line 51 has no field problem. Its fields: solution, part."),
        ({"problem": "x", "part": "train"}, "Line 51 has no field solution. Its fields: problem, part."),
        ({"problem": "x", "solution": 1}, "Line 51 has no field part. Its fields: problem, solution."),
        ({"problem": ["x"], "solution": 1, "part": "train"}, "Line 51: problem is ['x'], which is no text"),
        ({"problem": None, "solution": 1, "part": "train"}, "Line 51: problem is null"),
        ({"problem": "x", "solution": True, "part": "train"}, "Line 51: solution is True, which is no text"),
        ({"problem": "x", "solution": 1, "part": "trian"}, "Line 51: part is 'trian'."),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: Any, words: str) -> None:
    write_lines(tmp_path, [*ROWS, line])
    error = refused(tmp_path)
    assert words in error.found
    assert error.todo


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = write_lines(tmp_path, ROWS)
    file.write_bytes(file.read_bytes() + b'{"problem": "\xff"}\n')
    assert "Line 51 is no JSON: 'utf-8' codec can't decode byte 0xff" in refused(tmp_path).found


@pytest.mark.parametrize(
    ("name", "found", "todo"),
    [
        ("sums.csv", "Its name ends in .csv", ".jsonl and .parquet"),
        ("none.jsonl", "There is no file", "There is: sums.jsonl, text.parquet"),
        ("text.parquet", "pyarrow cannot read it", "Name a Parquet file"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, name: str, found: str, todo: str) -> None:
    write_lines(tmp_path, ROWS)
    (tmp_path / "text.parquet").write_text("no table")
    error = refused(tmp_path, dataset=name)
    assert found in error.found
    assert todo in error.todo


def test_a_template_names_what_a_row_lacks(tmp_path: Path) -> None:
    write_lines(tmp_path, [{**row, "unit": "m"} if i != 1 else row for i, row in enumerate(ROWS)])
    error = refused(tmp_path, prompt="{problem} ({unit})")
    assert "An item (line 2) has no {unit}" in error.found


def test_verifiers_that_compare_want_answers(tmp_path: Path) -> None:
    write_lines(tmp_path, ROWS)
    settings = SETTINGS.model_copy(update={"fields": Fields(question="problem", answer=None, split="part")})
    assert TextTasks(settings, seed=0, folder=tmp_path).train[0].target is None
    with pytest.raises(UserError, match="has no answer"):
        TextEnv(settings, seed=0, folder=tmp_path)
