"""Spans: what is written is what is read, on one time line; the idle share is exact; a run never fails for them."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry import spans
from telemetry.logs import read_lines
from telemetry.spans import SpanLog, WorkClock, begin, configure, read, span

MS = 1_000_000


class Clock:
    """A clock that a test moves, in milliseconds."""

    def __init__(self) -> None:
        self.now_ms = 1000

    def __call__(self) -> int:
        return self.now_ms * MS


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[SpanLog]:
    log = configure("rollout-0", folder=tmp_path)
    yield log
    spans._log = None
    log.close()


@pytest.fixture(autouse=True)
def every_span_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "SHORTEST_NS", 0)


def test_what_is_written_is_read_in_order_of_its_end(configured: SpanLog, tmp_path: Path) -> None:
    with span("play", groups=3), span("generate"):
        pass
    (session,) = read(tmp_path)
    assert session.role == "rollout-0"
    assert [(one.name, dict(one.facts)) for one in session.spans] == [("generate", {}), ("play", {"groups": 3})]
    inner, outer = session.spans
    assert outer.start_ns <= inner.start_ns <= inner.end_ns <= outer.end_ns


def test_spans_inside_a_named_track_are_on_it(configured: SpanLog, tmp_path: Path) -> None:
    with span("evaluate", track="evaluate"), span("generate"):
        pass
    with span("lease"):
        pass

    def append() -> None:
        with span("append"):
            pass

    thread = threading.Thread(target=append, name="slot 1")
    thread.start()
    thread.join()
    (session,) = read(tmp_path)
    tracks = {one.name: one.track for one in session.spans}
    assert tracks == {"generate": "evaluate", "evaluate": "evaluate", "lease": "main", "append": "slot 1"}


def test_a_span_ends_when_its_block_fails(configured: SpanLog, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), span("update", track="elsewhere"):
        raise ZeroDivisionError
    with span("decide"):
        pass
    (session,) = read(tmp_path)
    assert [(one.name, one.track) for one in session.spans] == [("update", "elsewhere"), ("decide", "main")]


def test_without_a_log_spans_do_nothing(tmp_path: Path) -> None:
    assert spans._log is None
    with span("update"):
        begin("wait")()
    assert read(tmp_path) == []


def test_a_span_nobody_would_see_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "SHORTEST_NS", 2 * MS)
    clock = Clock()
    log = SpanLog(tmp_path / "engine-0.jsonl", role="engine-0", clock=clock)
    for milliseconds in (1, 2, 3):
        one = log.begin("generate", track="main", facts={})
        clock.now_ms += milliseconds
        log.end(one)
    log.close()
    (session,) = read(tmp_path)
    assert [one.duration_ns for one in session.spans] == [2 * MS, 3 * MS]


def write_session(path: Path, *, role: str, boot: str, clock_ns: int, wall_ns: int, starts_ns: list[int]) -> None:
    lines = [{"role": role, "pid": 1, "host": "a", "boot": boot, "clock_ns": clock_ns, "wall_ns": wall_ns}]
    body = [{"name": "update", "track": "main", "start_ns": start, "duration_ns": 5} for start in starts_ns]
    path.write_text("".join(json.dumps(line) + "\n" for line in (*lines, *body)))


def test_processes_of_one_boot_line_up_whatever_the_wall_clock_does(tmp_path: Path) -> None:
    """The second process began 50 ns later, just after the wall clock was set back by 900."""
    write_session(tmp_path / "engine-0.jsonl", role="engine-0", boot="x", clock_ns=100, wall_ns=10_100, starts_ns=[200])
    write_session(tmp_path / "update-0.jsonl", role="update-0", boot="x", clock_ns=150, wall_ns=9_250, starts_ns=[200])
    write_session(tmp_path / "update-1.jsonl", role="update-1", boot="y", clock_ns=7, wall_ns=10_150, starts_ns=[57])
    starts = {session.role: session.spans[0].start_ns for session in read(tmp_path)}
    assert starts == {"engine-0": 10_200, "update-0": 10_200, "update-1": 10_200}


def test_a_file_rolls_over_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "FILE_BYTES", 1000)
    log = SpanLog(tmp_path / "store.jsonl", role="store")
    for number in range(200):
        log.end(log.begin("append", track="main", facts={"step": number}))
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store.1.jsonl", "store.jsonl"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 * 1000 + 200
    (session,) = read(tmp_path)
    kept = [int(one.facts["step"]) for one in session.spans]
    assert kept == list(range(kept[0], 200))
    assert len(kept) > 5


def test_a_torn_line_and_a_second_session(tmp_path: Path) -> None:
    first = SpanLog(tmp_path / "store.jsonl", role="store")
    first.end(first.begin("append", track="main", facts={}))
    first.close()
    text = (tmp_path / "store.jsonl").read_text().replace('"pid": ', '"pid": 1')
    (tmp_path / "store.jsonl").write_text(text + '{"name": "app')
    second = SpanLog(tmp_path / "store.jsonl", role="store")
    second.end(second.begin("lease", track="main", facts={}))
    second.close()
    assert [[one.name for one in session.spans] for session in read(tmp_path)] == [["append"], ["lease"]]


def test_a_full_disk_ends_the_spans_and_nothing_else(tmp_path: Path) -> None:
    log = SpanLog(tmp_path / "store.jsonl", role="store", working=lambda open_spans: bool(open_spans.total()))
    log.end(log.begin("append", track="main", facts={}))
    assert log._lines is not None
    log._lines.close()  # every write fails from here on
    log.end(log.begin("append", track="main", facts={}))
    log.end(log.begin("append", track="main", facts={}))
    assert log.idle() is not None
    assert len(list(read_lines(tmp_path / "store.jsonl"))) == 2


def test_many_threads_write_whole_lines(configured: SpanLog, tmp_path: Path) -> None:
    def work() -> None:
        for _ in range(50):
            with span("append"):
                pass

    threads = [threading.Thread(target=work, name=f"slot {number}") for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (session,) = read(tmp_path)
    assert Counter(one.track for one in session.spans) == {f"slot {number}": 50 for number in range(8)}


# ---------------------------------------------------------------------------------------------- idle


def test_idle_by_hand(tmp_path: Path) -> None:
    clock = Clock()
    log = SpanLog(
        tmp_path / "engine-0.jsonl",
        role="engine-0",
        working=lambda open_spans: bool(open_spans["generate"] and not open_spans["paused"]),
        clock=clock,
    )

    def passes(milliseconds: int) -> None:
        clock.now_ms += milliseconds

    def open_(name: str) -> Callable[[], None]:
        one = log.begin(name, track="main", facts={})
        return lambda: log.end(one)

    assert log.idle() is None
    passes(5000)  # before the first span: counts for nothing
    end_first = open_("generate")
    passes(1500)
    end_second = open_("generate")
    passes(500)
    end_first()
    end_pause = open_("paused")
    passes(1000)  # idle: it holds a request, but may not work
    end_pause()
    passes(500)
    end_second()
    passes(1500)  # idle
    half = log.idle()
    assert half is not None
    assert list(half.values()) == pytest.approx([0.5, 0.5])
    passes(60_000)
    idle = log.idle()
    assert idle is not None
    assert idle["minute"] == 1.0
    assert idle["run"] == pytest.approx(1 - 2.5 / 65)
    log.close()


@given(st.lists(st.tuples(st.booleans(), st.floats(0.001, 40)), min_size=1, max_size=60), st.floats(0, 1e6))
def test_the_minute_is_the_last_minute(turns: list[tuple[bool, float]], begun: float) -> None:
    clock, now = WorkClock(begun), begun
    worked: list[tuple[float, float]] = []
    for at_work, lasts in turns:
        clock.turn(at_work, now)
        if at_work:
            worked.append((now, now + lasts))
        now += lasts
    idle = clock.idle(now)
    first = max(begun, int(now) - 60)

    def share(since: float) -> float:
        return 1 - sum(max(0.0, end - max(start, since)) for start, end in worked) / (now - since)

    assert idle["run"] == pytest.approx(share(begun), abs=1e-6)
    assert idle["minute"] == pytest.approx(share(first), abs=1e-6)
