"""Experience as Parquet: every record is there once, as it was, in bounded batches; whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from buffers import export as exporting
from buffers import tables
from buffers.tables import COLUMNS, SCHEMAS, Experience
from contracts.errors import StoreIdentityError, UserError
from contracts.records import Feedback
from tests.unit.buffers.bench import Bench, opened
from tests.unit.buffers.samples import STRETCH


def fill(bench: Bench) -> dict[str, int]:
    """Two steps, a late reward, a stretch of play, a quarantined episode, an abandoned task. Some LSNs by name."""
    bench.serve(0)
    first, second, *others = bench.lease()
    acks = bench.play([first, second], wall_time=1.75e9)
    late = bench.owner.append_feedback(
        Feedback(
            episode_id=bench.owner.read([acks[0].lsn])[0].episode_id,
            episode_lsn=acks[0].lsn,
            reward=-3.0,
            producer="reviewer",
            wall_time=1.75e9,
        )
    )
    lsn, _ = bench.cut(1)
    bench.serve(1, step=1, batch_lsn=lsn)
    third, fourth, fifth, *_ = [*others, *bench.lease()]
    (stretch, _) = bench.owner.append([bench.make(third, 0, steps=(STRETCH,)), bench.make(third, 1, steps=(STRETCH,))])
    (_, bad) = bench.owner.append([bench.make(fourth, 0), bench.make(fourth, 1, reward=float("nan"))])
    bench.play([fifth], version=1)
    lsn, _ = bench.cut(2, parent_version=1)
    bench.serve(2, step=2, batch_lsn=lsn)
    return {"first": acks[0].lsn, "late": late, "stretch": stretch.lsn, "bad": bad.lsn, "batch": lsn}


def export(folder: Path, out: Path) -> exporting.Exported:
    return exporting.export(folder, out, run="small", config_hash="abc")


def load(out: Path) -> dict[str, pa.Table]:
    return {table: pyarrow.dataset.dataset(out / table).to_table() for table in COLUMNS}


def test_every_record_is_there_once_and_as_it_was(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as bench:
        lsns = fill(bench)
        made = export(tmp_path / "store", tmp_path / "out")
        ledger = bench.owner.ledger()
        kept = {row: bench.owner.read([lsns[row]])[0] for row in ("first", "stretch")}
    found = load(tmp_path / "out")
    assert {table: len(rows) for table, rows in found.items()} == made.rows
    assert all(found[table].schema.equals(SCHEMAS[table]) for table in COLUMNS)
    assert made.rows["tasks"] == ledger.handed
    assert made.rows["episodes"] == ledger.episodes == len(set(found["episodes"]["lsn"].to_pylist()))
    assert made.rows["batches"] == ledger.episodes_trained
    endings = [row["disposition"] for row in found["endings"].to_pylist()]
    assert {name: endings.count(name) for name in set(endings)} == {k: v for k, v in ledger.ended.items() if v}
    episodes = {row["lsn"]: row for row in found["episodes"].to_pylist()}
    late = episodes[lsns["first"]]
    assert (late["reward"], late["recorded_reward"], late["reward_lsn"]) == (-3.0, 0.0, lsns["late"])
    assert late["wall_time"].isoformat() == "2025-06-15T15:06:40"
    assert (late["num_prompt_tokens"], late["num_action_tokens"], late["oldest_version"]) == (4, 3, 0)
    steps = {row["lsn"]: row for row in found["steps"].to_pylist()}
    (text,), (play,) = kept["first"].steps, kept["stretch"].steps
    assert steps[lsns["first"]]["observation_tokens"] == text.observation.tolist()
    assert steps[lsns["first"]]["log_probs"] == text.log_probs.tolist()
    assert steps[lsns["first"]]["observation_values"] is None
    shown = steps[lsns["stretch"]]
    assert np.array_equal(np.reshape(shown["observation_values"], shown["observation_shape"]), play.observation)
    assert (shown["rewards"], shown["end"]) == ([1.0, -0.5], "truncated")
    (bad,) = found["quarantine"].to_pylist()
    assert (bad["lsn"], bad["fault"], bad["detail"]) == (lsns["bad"], "reward", "its reward is nan")
    (blob,) = found["blobs"].to_pylist()
    assert (blob["lsn"], blob["kind"], len(blob["data"])) == (lsns["bad"], "quarantined", bad["num_bytes"])
    assert [row["depth"] for row in found["versions"].to_pylist()] == [0, 1, 2]


def test_batches_and_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "store") as bench:
        fill(bench)
    whole = export(tmp_path / "store", tmp_path / "whole")
    monkeypatch.setattr(tables, "MAX_ROWS", 2)
    monkeypatch.setattr(exporting, "PART_BYTES", 1)
    sizes = [batch.num_rows for _, batch in Experience(tmp_path / "store").stream()]
    assert max(sizes) == 2
    cut = export(tmp_path / "store", tmp_path / "cut")
    assert cut.rows == whole.rows
    assert len(list((tmp_path / "cut" / "episodes").glob("part-*.parquet"))) == -(-cut.rows["episodes"] // 2)
    for table, rows in load(tmp_path / "whole").items():
        assert load(tmp_path / "cut")[table].equals(rows)


def test_one_table_alone_is_the_same(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as bench:
        fill(bench)
        experience = Experience(tmp_path / "store")
        export(tmp_path / "store", tmp_path / "out")
        for table, rows in load(tmp_path / "out").items():
            assert experience.read(table).read_all().equals(rows)


def test_progress_rises_to_the_whole(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as bench:
        fill(bench)
    seen: list[tuple[int, int]] = []
    exporting.export(
        tmp_path / "store", tmp_path / "out", run="r", config_hash="", on_progress=lambda *done: seen.append(done)
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({total for _, total in seen}) == 1
    assert seen[-1][0] <= seen[-1][1]


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "store") as bench:
        fill(bench)

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(pq.ParquetWriter, "write_batch", fail)
    with pytest.raises(OSError, match="is gone"):
        export(tmp_path / "store", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_what_is_there_is_never_written_over(tmp_path: Path) -> None:
    with opened(tmp_path / "store"):
        pass
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    for taken in ("full", "file"):
        with pytest.raises(UserError, match="something already"):
            export(tmp_path / "store", tmp_path / taken)
    (tmp_path / "empty").mkdir()
    assert export(tmp_path / "store", tmp_path / "empty").rows["episodes"] == 0
    with pytest.raises(StoreIdentityError):
        export(tmp_path / "nothing", tmp_path / "out")


def test_the_card_explains_every_column(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as bench:
        fill(bench)
    export(tmp_path / "store", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nconfigs:\n")
    for table, (_, columns) in COLUMNS.items():
        assert f"data_files: {table}/*.parquet" in card
        assert all(f"| `{name}` | {kind} |" in card for name, kind, _ in columns)
    json.dumps(card)
