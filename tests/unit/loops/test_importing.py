"""Experience from elsewhere: an export or a file becomes groups that the learner reads next; the same bytes once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from threading import Event

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from buffers.export import export
from buffers.foreign import ForeignGroup, hash_source, read_groups
from buffers.query import Query, find
from contracts.errors import UserError
from contracts.records import Batch, Disposition, FloatArray, IntArray
from loops.importing import Imported, import_groups
from tests.crash.plain import VOCABULARY, DigitCodec, PlainRun, plain_config
from tests.unit.console.played import play


class Codec(DigitCodec):
    """One token, one digit. loops.importing.Encode."""

    def encode_completion(self, text: str) -> IntArray:
        return self.encode_remark(text)


def score(pairs: Sequence[tuple[IntArray, IntArray]]) -> list[FloatArray]:
    return [np.full(len(completion), -np.log(VOCABULARY), dtype=np.float32) for _, completion in pairs]


def take(run: PlainRun, source: Path, *, groups: Iterator[ForeignGroup] | None = None) -> Imported:
    return import_groups(
        run.owner,
        groups or read_groups(source),
        digest=hash_source(source),
        store_uuid=str(run.uuid),
        environment=run.config.environment_label,
        version=run.loop.version,
        encode=Codec(),
        score=score,
        max_tokens=8,
    )


@pytest.fixture
def run(tmp_path: Path) -> Iterator[PlainRun]:
    """A run at genesis with room for more."""
    folder = tmp_path / "run"
    folder.mkdir()
    run = PlainRun(folder, config=plain_config(steps=0))
    run.go()
    run.close()
    run = PlainRun(folder, config=plain_config(steps=3))
    run.loop.recover()
    yield run
    run.close()


def write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS: list[dict[str, object]] = [
    {"prompt": "1", "completion": "1", "reward": 1, "site": "lab"},
    {"prompt": "1", "completion": "2", "reward": 0.0},
    {"prompt": "2", "completion": "2", "reward": 1},
    {"prompt": "2", "completion": "0", "reward": None},
    {"prompt": "3", "completion": "111111111", "reward": 1},
    {"prompt": "3", "completion": "1", "reward": 0},
]


def test_a_files_groups_are_learned_from_next(run: PlainRun, tmp_path: Path) -> None:
    source = write(tmp_path / "mine.jsonl", ROWS)
    done = take(run, source)
    assert (done.groups, done.episodes, done.quarantined, done.scored, done.known) == (3, 6, 2, 5, 0)
    ledger = run.owner.ledger()
    assert ledger.balanced
    assert ledger.quarantined == {"reward": 1, "empty": 1}
    again = take(run, source)
    assert (again.groups, again.known) == (0, 3)
    assert (run.owner.ledger().handed, run.owner.ledger().episodes) == (ledger.handed, ledger.episodes)

    run.loop.run(Event())
    batches = [one for _, one in run.owner.decisions() if isinstance(one, Batch)]
    (table,) = find(run.folder / "store", Query(producer=f"import:{done.digest[:12]}"))
    rows = {row["lsn"]: row for row in table.to_pylist()}
    imported = [row for row in batches[0].rows if row.episode_lsn in rows]
    assert [rows[row.episode_lsn]["reward"] for row in imported] == [1.0, 0.0]
    assert run.owner.ledger().balanced
    assert run.owner.ledger().ended[Disposition.QUARANTINED.value] == 2


def test_an_export_keeps_its_log_probs(run: PlainRun, tmp_path: Path) -> None:
    other = play(tmp_path / "others")
    source = tmp_path / "export"
    export(other / "store", source, run="plain", config_hash="0")
    groups = list(read_groups(source))
    assert all(len(group.tries) == 2 for group in groups)
    done = take(run, source)
    assert (done.groups, done.scored, done.quarantined) == (len(groups), 0, 0)
    (table,) = find(run.folder / "store", Query(producer=f"import:{done.digest[:12]}"))
    episodes = run.owner.read(table["lsn"].to_pylist())
    for episode, one in zip(episodes, (one for group in groups for one in group.tries), strict=True):
        assert episode.reward == one.reward
        assert np.array_equal(episode.steps[0].log_probs, one.steps[0].log_probs)
        assert episode.spans[0].version == 0


def test_a_killed_import_brings_the_rest(run: PlainRun, tmp_path: Path) -> None:
    source = write(tmp_path / "many.jsonl", [{"prompt": "1", "completions": ["1", "2"], "rewards": [1, 0]}] * 100)
    first = take(run, source, groups=islice(read_groups(source), 64))
    producer = f"import:{first.digest[:12]}"
    epoch = run.owner.attach(producer)
    run.owner.adopt([(f"import/{first.digest[:12]}/64", 2, b"{}")], producer=producer, epoch=epoch)  # and no more
    run.close()
    run.owner = PlainRun(run.folder, config=run.config).owner
    done = take(run, source)
    assert (done.known, done.groups) == (64, 36)
    assert run.owner.ledger().balanced
    assert len(run.owner.list_adopted(producer)) == 100


def test_parquet_rows_and_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{**row, "site": "x"} for row in ROWS]), path)
    groups = list(read_groups(path))
    assert [(one.prompt, len(one.tries), one.key) for one in groups] == [("1", 2, "0"), ("2", 2, "2"), ("3", 2, "4")]
    assert groups[0].origin["site"] == "x"


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.txt", "", "no format known"),
        ("a.jsonl", "{", "line 1 is no JSON object"),
        ("a.jsonl", '{"question": 1}', "row 0 has the fields question"),
        ("a.jsonl", '{"prompt": "a", "completions": ["b"], "rewards": []}', "row 0 has the fields"),
    ],
)
def test_what_is_no_experience(tmp_path: Path, name: str, content: str, found: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=found):
        list(read_groups(path))
    with pytest.raises(UserError, match="no such file"):
        hash_source(tmp_path / "nothing.jsonl")
