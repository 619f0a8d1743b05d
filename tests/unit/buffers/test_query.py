"""Queries find what a look at every record finds, whatever the footers are like: there, missing, or damaged."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buffers import erasure
from buffers.codec import encode
from buffers.footers import FOLDER, Footers, read_segments
from buffers.log.reader import LogReader
from buffers.query import FOUND, Query, Summary, find
from buffers.reading import Records
from buffers.repair import repair
from buffers.verification import verify
from contracts.errors import StoreError, StoreIdentityError, UserError
from contracts.records import Episode, Feedback, Span, StopReason
from tests.crash.disk import unsynced
from tests.unit.buffers.bench import Bench, make_step, opened, small_config

VERSIONS = 6
WIDE = small_config(max_staleness=200)  # so that many groups may wait
NUM_GROUPS = 40
LONG_TOKENS = 6_000  # 48 KB: the store has several segments of 1 MiB


def fill(bench: Bench, *, seed: int = 3) -> None:
    """Groups of two by several producers and versions, some without a reward, some rewarded later, one corrected."""
    chance = random.Random(seed)
    for version in range(VERSIONS):
        bench.serve(version)
    late: list[Feedback] = []
    for number in range(NUM_GROUPS):
        worker = bench if number % 3 else Bench(bench.owner, producer="rollout-1", session=bench.session)
        (lease,) = worker.lease(1)
        for member in lease.missing:
            fate = chance.random()
            changes: dict[str, Any] = {"reward": round(chance.uniform(-1, 1), 2)}
            if fate < 0.1:
                changes = {"reward": None, "stop_reason": StopReason.ENV_ERROR}
            elif fate < 0.4:
                changes = {"reward": None, "reward_deadline": 1e12}
            acted = sorted(chance.sample(range(VERSIONS), chance.randint(1, 3)))
            episode = worker.make(
                lease, member, steps=(make_step(LONG_TOKENS),), wall_time=float(chance.randint(0, 100)), **changes
            )
            spans = tuple(Span(start=place, version=version) for place, version in enumerate(acted))
            (ack,) = bench.owner.append([replace(episode, spans=spans)])
            if 0.2 < fate < 0.6:
                late.append(Feedback(episode_id=episode.episode_id, episode_lsn=ack.lsn, reward=fate))
        if late and chance.random() < 0.5:
            bench.owner.append_feedback(late[chance.randrange(len(late))])


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The same store live, closed, without footers, with damaged ones, and with another segment's."""
    folder = tmp_path_factory.mktemp("query")
    with unsynced():
        with opened(folder / "closed", config=WIDE) as bench:
            fill(bench)
        for name in ("live", "without", "damaged", "foreign"):
            shutil.copytree(folder / "closed", folder / name)
        shutil.rmtree(folder / "without" / FOLDER)
        for place, path in enumerate(sorted((folder / "damaged" / FOLDER).iterdir())):
            data = bytearray(path.read_bytes())
            data[len(data) * (place % 4) // 4] ^= 1
            path.write_bytes(data)
        paths = sorted((folder / "foreign" / FOLDER).iterdir())
        paths[0].write_bytes(paths[1].read_bytes())
        with opened(folder / "live", config=WIDE) as bench:
            fill(bench, seed=4)
            yield {path.name: path for path in folder.iterdir()}


def search(store: Path, query: Query) -> list[dict[str, Any]]:
    """What is found, in log order."""
    tables = list(find(store, query))
    assert all(table.schema.equals(FOUND) and table.num_rows for table in tables)
    return [row for table in reversed(tables) for row in table.to_pylist()]


def look_at_everything(store: Path, query: Query) -> list[dict[str, Any]]:
    """The same, record by record."""
    records = Records(store, uuid=LogReader(store / "data").uuid)
    data = list(records.scan_data(0, records.data.watermark()))
    rewards = {record.episode_lsn: (record.reward, lsn) for lsn, record in data if isinstance(record, Feedback)}
    found = []
    for lsn, record in data:
        if isinstance(record, Episode):
            reward, reward_lsn = rewards.get(lsn, (record.reward, lsn))
            if fits(replace(record, reward=reward), query):
                row = {name: getattr(record, name, None) for name in FOUND.names}
                changed = {
                    "lsn": lsn,
                    "reward": reward,
                    "reward_lsn": reward_lsn,
                    "stop_reason": record.stop_reason.value,
                    "versions": sorted({span.version for span in record.spans}),
                }
                found.append({**row, **changed})
    return found


def fits(episode: Episode, query: Query) -> bool:
    first, last = query.versions or (0, VERSIONS)
    return (
        any(first <= span.version <= last for span in episode.spans)
        and query.task in (None, episode.task_id)
        and query.environment in (None, episode.environment)
        and query.producer in (None, episode.producer)
        and (query.since is None or episode.wall_time >= query.since)
        and (query.until is None or episode.wall_time < query.until)
        and (
            query.success is None
            or (episode.reward is not None and (episode.reward > query.min_reward) is query.success)
        )
    )


@st.composite
def queries(draw: st.DrawFn) -> Query:
    def maybe(values: st.SearchStrategy[Any]) -> Any:
        return draw(st.none() | values)

    versions, times = st.integers(0, VERSIONS), st.floats(0, 101)
    since, until = maybe(times), maybe(times)
    if since is not None and until is not None and since >= until:
        since = None
    return Query(
        versions=maybe(st.tuples(versions, versions).map(lambda pair: (min(pair), max(pair)))),
        task=maybe(st.integers(0, NUM_GROUPS + 1).map("task/{}".format)),
        environment=maybe(st.sampled_from(("reasoning_gym/spell_backward", "another"))),
        producer=maybe(st.sampled_from(("rollout-0", "rollout-1", "nobody"))),
        success=maybe(st.booleans()),
        min_reward=draw(st.sampled_from((0.1, 0.0, 0.5))),
        since=since,
        until=until,
    )


@given(query=queries())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_query_finds_what_a_look_at_everything_finds(stores: dict[str, Path], query: Query) -> None:
    expected = look_at_everything(stores["closed"], query)
    for name in ("closed", "without", "damaged", "foreign"):
        assert search(stores[name], query) == expected, name
    assert search(stores["live"], query) == look_at_everything(stores["live"], query)


def test_everything_is_found_without_a_condition(stores: dict[str, Path]) -> None:
    found = search(stores["closed"], Query())
    assert len(found) == 2 * NUM_GROUPS
    assert {len(row["versions"]) for row in found} == {1, 2, 3}
    assert any(row["reward"] is None for row in found)
    assert any(row["reward_lsn"] != row["lsn"] for row in found)


def test_sealed_segments_are_read_from_their_footers(stores: dict[str, Path]) -> None:
    """Even where what they hold cannot be read any more."""

    def by_footer(name: str) -> list[bool]:
        store = stores[name]
        return [footed for _, _, footed in read_segments(store, LogReader(store / "data"))]

    assert len(by_footer("closed")) > 3
    assert all(by_footer("closed"))
    assert not any(by_footer("without"))
    assert not any(by_footer("damaged"))
    assert by_footer("foreign").count(False) == 1
    assert by_footer("live")[0] is False


def test_a_footer_says_what_its_segment_says(stores: dict[str, Path]) -> None:
    log = LogReader(stores["closed"] / "data")
    footers = Footers(stores["closed"], log)
    for segment in log.segments():
        found = footers.read(segment)
        assert found is not None
        assert found.replace_schema_metadata().equals(footers.scan(segment))


def test_the_next_owner_makes_what_a_crash_left_out(stores: dict[str, Path], tmp_path: Path) -> None:
    for name in ("without", "foreign"):
        shutil.copytree(stores[name], tmp_path / name)
    folder = tmp_path / "without"
    log = LogReader(folder / "data")
    path = Footers(folder, log).locate(log.segments()[-1])
    with unsynced(), opened(folder) as bench:
        indexer = bench.owner._state.index
        assert indexer._footers is not None
        indexer._footers._looked_s = -1e9
        bench.serve(VERSIONS)
        bench.lease(1)
        while not path.exists():  # the newest first
            indexer._footers._looked_s = -1e9
            indexer.wake()
            indexer._stopped.wait(0.01)
    assert search(folder, Query()) == look_at_everything(folder, Query())


def test_a_segment_that_no_footer_can_tell_of_has_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Admission refuses such an episode; here it is in the log all the same, as after a fault of ours."""
    with unsynced(), opened(tmp_path, config=WIDE) as bench:
        bench.serve(0)
        lease, *others = bench.lease(40)
        wrong = bench.make(lease, 0, reward=None, stop_reason=StopReason.ENV_ERROR, version=1 << 63)
        state = bench.owner._state
        with state.lock:
            future = state.data.submit([wrong], payloads=[encode(wrong)])
        state.finish(future)
        bench.owner.append([bench.make(lease, 1)])
        state.index.flush()
        assert "segments have to be read for their footers" in caplog.text
        for other in others:
            bench.play([other], steps=(make_step(LONG_TOKENS),))
        ledger = bench.owner.ledger()
    log = LogReader(tmp_path / "data")
    first, *rest = log.segments()
    footers = Footers(tmp_path, log)
    with unsynced(), opened(tmp_path, config=WIDE) as bench:
        indexer = bench.owner._state.index
        assert indexer._footers is not None
        while not all(footers.locate(segment).exists() for segment in rest):
            indexer._footers._looked_s = -1e9
            indexer.wake()
            indexer._stopped.wait(0.01)
        for _ in range(2):
            indexer._footers.look(1e18, at_end=False)
            indexer._footers._looked_s = -1e9
        assert not footers.locate(first).exists()
        assert bench.owner.ledger() == ledger
    with pytest.raises(StoreError, match="a value that no column holds"):
        search(tmp_path, Query())


def test_a_rebuilt_index_leaves_the_footers_as_they_are(stores: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "store"
    shutil.copytree(stores["closed"], folder)
    shutil.rmtree(folder / "index")
    missing = sorted((folder / FOLDER).iterdir())[1]
    before = {path.name: path.read_bytes() for path in (folder / FOLDER).iterdir()}
    missing.unlink()
    (folder / FOLDER / f"{7:016x}.footer").write_bytes(b"of a segment that was trimmed")
    with unsynced(), opened(folder):
        pass
    after = {path.name: path.read_bytes() for path in (folder / FOLDER).iterdir()}
    del before[missing.name]  # it says the same, in other bytes perhaps
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2  # that owner's own segment, too
    assert search(folder, Query()) == look_at_everything(folder, Query())
    store = LogReader(folder / "data")
    assert all(footed for _, _, footed in read_segments(folder, store))


def test_what_is_erased_is_still_found(stores: dict[str, Path], tmp_path: Path) -> None:
    """Erasing leaves who, when and how rewarded: the footer says no more."""
    shutil.copytree(stores["closed"], tmp_path / "run" / "store")
    before = search(tmp_path / "run" / "store", Query())
    choice = erasure.Choice(tasks=frozenset({"task/1"}))
    erasure.erase(tmp_path / "run", choice, reason="asked for")
    assert search(tmp_path / "run" / "store", Query()) == before


def test_verify_finds_wrong_footers_and_repair_sets_them_aside(stores: dict[str, Path], tmp_path: Path) -> None:
    for name in ("closed", "damaged", "foreign"):
        shutil.copytree(stores[name], tmp_path / name / "store")
    assert not verify(tmp_path / "closed").defects
    damaged = verify(tmp_path / "damaged").defects
    assert {defect.place for defect in damaged} == {"footer"}
    assert len(damaged) == len(list((tmp_path / "damaged" / "store" / FOLDER).iterdir()))
    (defect,) = verify(tmp_path / "foreign").defects
    assert "is not what its segment says" in defect.text
    with unsynced():
        mended = repair(tmp_path / "foreign")
    assert (len(mended.kept), mended.lost) == (1, ())
    assert not verify(tmp_path / "foreign").defects


def test_sums_are_those_of_the_rows(stores: dict[str, Path]) -> None:
    summary, tables = Summary(0.1), list[pa.Table]()
    for table in find(stores["closed"], Query(producer="rollout-1")):
        summary.add(table)
        tables.append(table)
    rows = [row for table in tables for row in table.to_pylist()]
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    assert summary.to_json() == {
        "episodes": len(rows),
        "tasks": len({row["task_id"] for row in rows}),
        "producers": ["rollout-1"],
        "versions": [min(min(row["versions"]) for row in rows), max(max(row["versions"]) for row in rows)],
        "rewarded": len(rewards),
        "successes": sum(reward > 0.1 for reward in rewards),
        "reward_mean": pytest.approx(sum(rewards) / len(rewards)),
    }


def test_a_range_that_is_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="above the last"):
        Query(versions=(3, 2))
    with pytest.raises(UserError, match="nothing lies between"):
        Query(since=2.0, until=2.0)
    with pytest.raises(StoreIdentityError, match="no store"):
        list(find(tmp_path, Query()))
