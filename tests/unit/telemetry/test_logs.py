"""Structured logs: one strict JSON object a line, whatever is logged."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from telemetry.logs import JsonLines, configure, dump_line, read_lines


@pytest.fixture
def untouched_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:], root.level = handlers, level


@pytest.mark.usefixtures("untouched_logging")
def test_a_line_holds_who_when_what_and_the_extras(tmp_path: Path) -> None:
    configure("store", run="run-1", folder=tmp_path / "logs")
    extra = {"version": 3, "seconds": float("nan"), "_added": 1}  # as Ray's record factory adds _ray_timestamp_ns
    logging.getLogger("buffers").warning("slow %s", "sync", extra=extra)
    (line,) = read_lines(tmp_path / "logs" / "store.jsonl")
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "run": "run-1",
        "role": "store",
        "logger": "buffers",
        "message": "slow sync",
        "version": 3,
        "seconds": None,
    }


@pytest.mark.usefixtures("untouched_logging")
def test_an_exception_stays_on_one_line(tmp_path: Path) -> None:
    configure("store", run="run-1", folder=tmp_path)
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logging.getLogger().exception("failed")
    (text,) = (tmp_path / "store.jsonl").read_text().splitlines()
    assert "ValueError: first\nsecond" in json.loads(text)["traceback"]


@pytest.mark.usefixtures("untouched_logging")
def test_a_second_call_replaces_the_first(tmp_path: Path) -> None:
    configure("a", run="run-1", folder=tmp_path)
    configure("b", run="run-1", folder=tmp_path)
    logging.getLogger().info("once")
    assert [path.name for path in tmp_path.iterdir()] == ["b.jsonl"]


@pytest.mark.usefixtures("untouched_logging")
def test_without_folder_and_terminal_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure("driver", run="run-1", folder=None)
    logging.getLogger().info("hello")
    assert json.loads(capsys.readouterr().err)["message"] == "hello"


def test_lines_survive_a_torn_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste')
    lines = JsonLines(path)
    lines.append({"step": 2, "loss": float("inf"), "nested": {"values": (1.5, float("nan"))}, "path": Path("x")})
    lines.close()
    assert list(read_lines(path)) == [
        {"step": 1},
        {"step": 2, "loss": None, "nested": {"values": [1.5, None]}, "path": "x"},
    ]


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path / "missing.jsonl")) == []


def test_text_is_kept_as_it_is() -> None:
    assert dump_line({"text": "naïve\n→"}) == '{"text": "naïve\\n→"}'
