"""A trace keeps the rules of the trace event format, holds the step that was asked for, and says what there is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from console.main import app
from console.trace import find_window, lanes, newest_step, render
from contracts.errors import RunFolderError
from telemetry.spans import Session, Span, SpanLog
from tests.unit.console.played import copy

MS = 1_000_000


def one(name: str, start_ms: float, ms: float, *, track: str = "main", **facts: int | str) -> Span:
    return Span(name=name, track=track, start_ns=int(start_ms * MS), duration_ns=int(ms * MS), facts=facts)


def session(role: str, *spans: Span) -> Session:
    return Session(role=role, pid=7, host="a", spans=spans)


def step(number: int, start_ms: float) -> list[Span]:
    """A learner's step of 30 ms."""
    parts = [one("wait", start_ms, 10, step=number), one("update", start_ms + 10, 15, step=number)]
    return [*parts, one("push", start_ms + 26, 2), one("publish", start_ms + 25, 5, step=number)]


RUN = [
    session("update-0", *step(1, 1000), *step(2, 1030), *step(3, 1060)),
    session("engine-0", one("generate", 990, 45, track="generate"), one("generate", 1020, 30, track="generate")),
    session("engine-0", one("generate", 1075, 5, track="generate")),
]


def check_format(trace: dict[str, Any]) -> None:
    """What Perfetto's importer of JSON traces relies on."""
    assert set(trace) == {"traceEvents", "displayTimeUnit", "otherData"}
    named: dict[str, set[tuple[int, int]]] = {"process_name": set(), "thread_name": set()}
    open_until: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in trace["traceEvents"]:
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        place = (event["pid"], event["tid"])
        if event["ph"] == "M":
            if event["name"] in named:
                assert event["args"]["name"]
                named[event["name"]].add(place)
            continue
        assert event["ph"] == "X"
        assert event["name"]
        assert event["ts"] >= 0
        assert event["dur"] >= 0
        assert place in named["thread_name"]
        assert (place[0], 0) in named["process_name"]
        around = open_until.setdefault(place, [])
        while around and around[-1][1] <= event["ts"]:
            around.pop()
        end = event["ts"] + event["dur"]
        assert not around or (around[-1][0] <= event["ts"] and end <= around[-1][1] + 1e-6), "neither apart nor nested"
        around.append((event["ts"], end))


def names(trace: dict[str, Any], role: str) -> list[tuple[str, float]]:
    pids = {e["args"]["name"]: e["pid"] for e in trace["traceEvents"] if e["name"] == "process_name"}
    return sorted((e["name"], e["ts"]) for e in trace["traceEvents"] if e["ph"] == "X" and e["pid"] == pids[role])


def test_a_step_and_what_others_did_meanwhile() -> None:
    window = find_window(Path("run"), RUN, first=2, last=2)
    assert window == (1030 * MS, 1060 * MS)
    trace = render(RUN, window=window)
    check_format(trace)
    # time 0 is the start of the engine's first call, which overlaps the step
    assert names(trace, "engine-0") == [("generate", 0.0), ("generate", 30_000.0)]
    own = names(trace, "update-0")
    assert [item for item in own if item[0] == "update"] == [("update", 50_000.0)]
    assert ("wait", 40_000.0) in own
    tracks = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"]
    assert tracks == ["generate", "generate 2", "main"]


def test_several_steps_and_the_newest() -> None:
    assert newest_step(Path("run"), RUN) == 3
    assert find_window(Path("run"), RUN, first=1, last=3) == (1000 * MS, 1090 * MS)


def test_a_step_computed_again_after_a_crash_is_shown_as_it_was_computed_last() -> None:
    again = [*RUN, session("update-0", one("read", 5000, 1, step=3), one("update", 5001, 9, step=3))]
    assert find_window(Path("run"), again, first=3, last=3) == (5000 * MS, 5010 * MS)
    assert find_window(Path("run"), again, first=2, last=2) == (1030 * MS, 1060 * MS)


def test_a_step_without_spans_says_what_there_is() -> None:
    with pytest.raises(RunFolderError, match="spans of steps 1 to 3"):
        find_window(Path("run"), RUN, first=3, last=4)
    with pytest.raises(RunFolderError, match="no spans"):
        find_window(Path("run"), [], first=1, last=1)
    with pytest.raises(RunFolderError, match="ratchet status run"):
        newest_step(Path("run"), RUN[1:])


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12), st.sampled_from("ab")), max_size=40))
def test_lanes_hold_every_span_once_and_none_overlaps(drawn: Sequence[tuple[int, int, str]]) -> None:
    spans = [one("x", start, length, track=track) for start, length, track in drawn]
    made = lanes(spans)
    assert sorted((s.start_ns, s.duration_ns, s.track) for _, lane in made for s in lane) == sorted(
        (s.start_ns, s.duration_ns, s.track) for s in spans
    )
    if spans:
        check_format(render([session("engine-0", *spans)], window=(0, 100 * MS)))
    assert len({name for name, _ in made}) == len(made)


# ---------------------------------------------------------------------------------------------- the command


@pytest.fixture
def traced_run(finished_run: Path, tmp_path: Path) -> Path:
    """A run with spans of two steps, as its update worker wrote them."""
    folder = copy(finished_run, tmp_path)
    now = [0]
    log = SpanLog(folder / "spans" / "update-0.jsonl", role="update-0", clock=lambda: now[0])
    for number in (1, 2):
        for name, ms in (("wait", 4), ("update", 250), ("publish", 50)):
            open_span = log.begin(name, track="main", facts={"step": number})
            now[0] += ms * MS
            log.end(open_span)
    log.close()
    return folder


def test_the_command_writes_the_newest_step_into_the_runs_folder(traced_run: Path) -> None:
    answer = CliRunner().invoke(app, ["trace", str(traced_run)])
    assert answer.exit_code == 0, answer.output
    file = traced_run / "traces" / "step-000002.json"
    assert str(file) in answer.stdout
    assert "0.304 s of the learner's time: wait 0.004, update 0.250, publish 0.050" in answer.stdout
    trace = json.loads(file.read_text())
    check_format(trace)
    shown = [event["args"].get("step") for event in trace["traceEvents"] if event["name"] == "update"]
    assert shown == [2]


def test_the_command_takes_steps_and_a_file(traced_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere" / "both.json"
    answer = CliRunner().invoke(app, ["trace", str(traced_run), "--step", "1", "--steps", "2", "--out", str(file)])
    assert answer.exit_code == 0, answer.output
    trace = json.loads(file.read_text())
    assert sum(event["name"] == "update" for event in trace["traceEvents"]) == 2


def test_a_step_that_is_not_there_is_bad_input(traced_run: Path, finished_run: Path) -> None:
    answer = CliRunner().invoke(app, ["trace", str(traced_run), "--step", "9"])
    assert answer.exit_code == 2
    assert "steps 1 to 2" in answer.stderr
    nowhere = CliRunner().invoke(app, ["trace", str(traced_run), "--out", str(traced_run / "config.yaml" / "file")])
    assert nowhere.exit_code == 2
    assert "cannot be written" in nowhere.stderr
    without = CliRunner().invoke(app, ["trace", str(finished_run)])
    assert without.exit_code == 2
    assert "no spans" in without.stderr
