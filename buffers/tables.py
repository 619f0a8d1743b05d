"""The experience of a run as tables: what each column means, and the rows, read off both logs as a stream.

    tasks ─(lease)─► episodes ─(lsn)─► steps           batches: which episodes each learner step read
      │                 │                              endings: how each task ended, outside a batch or in one
      └► blobs ◄────────┘ quarantine, feedback         versions: what the steps made

Memory does not grow with the log: rows leave in batches. What is kept while streaming is one number a version, one
reward a feedback, and the batches whose version is still to come.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from buffers.codec import decode
from buffers.fold import leases_of
from buffers.inspection import OnProgress, ignore
from buffers.log.identity import read_identity
from buffers.log.reader import LogReader
from contracts.records import (
    Batch,
    Closed,
    Disposition,
    Episode,
    Feedback,
    Kind,
    Quarantined,
    Record,
    Skip,
    Step,
    Task,
    Version,
)

MAX_ROWS, MAX_BYTES = 10_000, 16 << 20  # of one Arrow batch; the second is checked after each record

_TIME = pa.timestamp("us")  # UTC
_LAST_S = 2.5e11  # in the year 9892; what is read in Python ends with 9999
_INTS, _FLOATS, _SHAPE = pa.list_(pa.int32()), pa.list_(pa.float32()), pa.list_(pa.int64())
_PARTS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))
_SPANS = pa.list_(pa.struct([("start", pa.int64()), ("version", pa.int64())]))
Column = tuple[str, pa.DataType, str]

COLUMNS: dict[str, tuple[str, tuple[Column, ...]]] = {
    "tasks": (
        "One row a task handed out; a task that was handed out again has another row.",
        (
            ("lease", pa.int64(), "names this handing out for ever: its place in the data log (LSN)"),
            ("task_id", pa.string(), "the same again when it is handed out again"),
            ("position", pa.int64(), "place in the source's order, from 0"),
            ("index", pa.int64(), "the item's index in its data set; -1: an external task, see blobs"),
            ("group_size", pa.int32(), "tries asked for"),
            ("producer", pa.string(), "who got the lease"),
            ("branch", pa.int64(), "branch of the learner at that time"),
            ("attempt", pa.int32(), "times it was handed out before"),
        ),
    ),
    "episodes": (
        "One row a try that was acknowledged, late ones too.",
        (
            ("lsn", pa.int64(), "names the episode for ever: its place in the data log"),
            ("episode_id", pa.string(), "hash of store, lease and member: 32 hex digits"),
            ("lease", pa.int64(), "its task; the tries of one lease are a group"),
            ("member", pa.int32(), "0 .. group_size - 1"),
            ("task_id", pa.string(), ""),
            ("environment", pa.string(), ""),
            ("environment_version", pa.string(), ""),
            ("purpose", pa.string(), "only `train` is ever sampled"),
            ("stop_reason", pa.string(), "terminated, truncated and length have rewards; the others never"),
            ("reward", pa.float64(), "the last one that the log has, late and corrected ones included; null: none"),
            ("recorded_reward", pa.float64(), "the one that came with the episode; null: pending or none"),
            ("reward_lsn", pa.int64(), "the feedback that counts, or the episode itself"),
            ("reward_parts", _PARTS, ""),
            ("reward_code", pa.string(), "hash of the verifier's code"),
            ("reward_deadline", _TIME, "UTC; after which a pending reward was given up"),
            ("oldest_version", pa.int64(), "oldest policy version that made a token or action of it; -1: none did"),
            ("newest_version", pa.int64(), ""),
            ("spans", _SPANS, "from action `start` of the episode on, `version` acted"),
            ("num_steps", pa.int32(), "rows of `steps`"),
            ("num_prompt_tokens", pa.int64(), "text: tokens shown; control: 0"),
            ("num_action_tokens", pa.int64(), "text: tokens answered; control: actions"),
            ("producer", pa.string(), ""),
            ("producer_epoch", pa.int64(), ""),
            ("seq", pa.int64(), "rises by one per append of this producer epoch"),
            ("wall_time", _TIME, "UTC; nothing is ordered by it"),
            ("retries", pa.int32(), "environment retries that it needed"),
        ),
    ),
    "steps": (
        "Text: one exchange, what the policy was shown and what it answered. Control: one stretch of T actions.",
        (
            ("lsn", pa.int64(), "the episode"),
            ("step", pa.int32(), "from 0"),
            ("observation_tokens", _INTS, "text: token ids; else null"),
            ("observation_values", _FLOATS, "control: T + 1 observations, flattened row by row; else null"),
            ("observation_shape", _SHAPE, ""),
            ("action_tokens", _INTS, "text: token ids; discrete actions; else null"),
            ("action_values", _FLOATS, "continuous actions, flattened row by row; else null"),
            ("action_shape", _SHAPE, ""),
            ("log_probs", _FLOATS, "of the distribution that was sampled from, one an action"),
            ("rewards", _FLOATS, "control: one an action; text: null"),
            ("end", pa.string(), "control: why the stretch ended; null: text, or it goes on in a later episode"),
        ),
    ),
    "feedback": (
        "One row a late or corrected reward, in the order in which they came.",
        (
            ("lsn", pa.int64(), ""),
            ("episode_lsn", pa.int64(), ""),
            ("episode_id", pa.string(), ""),
            ("reward", pa.float64(), ""),
            ("reward_code", pa.string(), ""),
            ("producer", pa.string(), ""),
            ("wall_time", _TIME, "UTC"),
        ),
    ),
    "quarantine": (
        "One row an episode that no learner may read. Never sampled.",
        (
            ("lsn", pa.int64(), "see blobs for the episode itself"),
            ("fault", pa.string(), ""),
            ("detail", pa.string(), ""),
            ("episode_id", pa.string(), ""),
            ("lease", pa.int64(), ""),
            ("member", pa.int32(), ""),
            ("task_id", pa.string(), ""),
            ("producer", pa.string(), ""),
            ("wall_time", _TIME, "UTC"),
            ("num_bytes", pa.int64(), ""),
        ),
    ),
    "blobs": (
        "Bytes that belong to a row of another table.",
        (
            ("lsn", pa.int64(), "the lease of a task, or the LSN of a quarantined episode"),
            ("kind", pa.string(), "`task`: an external task's payload; `quarantined`: an episode record as it came"),
            ("data", pa.large_binary(), ""),
        ),
    ),
    "batches": (
        "One row an episode of a learner step, in training order.",
        (
            ("batch_lsn", pa.int64(), "place of the decision in the control log"),
            ("branch", pa.int64(), ""),
            ("step", pa.int64(), "from 1"),
            ("parent_version", pa.int64(), "the version that learned from it"),
            ("row", pa.int32(), "place in the batch"),
            ("episode_lsn", pa.int64(), ""),
            ("reward_lsn", pa.int64(), "the feedback that counted when the batch was cut, or the episode itself"),
            ("lease", pa.int64(), ""),
            ("weight", pa.float64(), ""),
            ("zero_spread", pa.bool_(), "every reward of its group is the same"),
            ("replayed", pa.bool_(), "a stored success, or all of a group that is learned from once more"),
        ),
    ),
    "endings": (
        "One row a task that ended, by the control log. A task without a row is in flight.",
        (
            ("lease", pa.int64(), ""),
            ("disposition", pa.string(), "an abandoned one whose tries all came later counts as `late` in the ledger"),
            ("reason", pa.string(), "of those that ended outside a batch"),
            ("batch_lsn", pa.int64(), "null: it ended outside a batch"),
            ("control_lsn", pa.int64(), "the decision"),
        ),
    ),
    "versions": (
        "One row a policy version.",
        (
            ("version", pa.int64(), "numbers rise and are never used again"),
            ("parent", pa.int64(), "-1: genesis"),
            ("depth", pa.int64(), "versions between it and genesis along its parents"),
            ("branch", pa.int64(), ""),
            ("step", pa.int64(), ""),
            ("root_hash", pa.string(), "of all weights"),
            ("batch_lsn", pa.int64(), "-1: genesis"),
            ("stats", _PARTS, "what the learner reported of the step"),
            ("wall_time", _TIME, "UTC"),
        ),
    ),
}  # fmt: skip
SCHEMAS: dict[str, pa.Schema] = {
    name: pa.schema([pa.field(column, kind, metadata={"comment": text}) for column, kind, text in columns])
    for name, (_, columns) in COLUMNS.items()
}
_OF_CONTROL = frozenset(("batches", "endings", "versions"))
_SOURCES: dict[str, tuple[Kind, ...]] = {
    "tasks": (Kind.TASK,),
    "episodes": (Kind.EPISODE,),
    "steps": (Kind.EPISODE,),
    "feedback": (Kind.FEEDBACK,),
    "quarantine": (Kind.QUARANTINED,),
    "blobs": (Kind.TASK, Kind.QUARANTINED),
}
_DECIDING = frozenset((Kind.BATCH, Kind.VERSION, Kind.SKIP, Kind.CLOSED))


class Experience:
    """A store as tables, as of the moment at which this was made. Of a live run or a dead one."""

    def __init__(self, folder: Path) -> None:
        """Raises StoreIdentityError where `folder` holds no store."""
        self.uuid = read_identity(folder)
        self._control = LogReader(folder / "control", store_uuid=self.uuid)
        self._data = LogReader(folder / "data", store_uuid=self.uuid)
        self.control_lsn, self.data_lsn = self._control.watermark(), self._data.watermark()

    def read(self, table: str) -> pa.RecordBatchReader:
        """One table as a stream, to be read once."""
        batches = (batch for _, batch in self.stream((table,)))
        return pa.RecordBatchReader.from_batches(SCHEMAS[table], batches)

    def stream(
        self, tables: Collection[str] = tuple(COLUMNS), *, on_progress: OnProgress = ignore
    ) -> Iterator[tuple[str, pa.RecordBatch]]:
        """(table, rows) of all `tables`, in one pass over each log that they come from."""
        rows = {table: _Rows(SCHEMAS[table]) for table in tables}
        total = self.control_lsn + self.data_lsn
        if _OF_CONTROL & rows.keys():
            control = _Control()
            for frame in self._control.scan(0, self.control_lsn):
                if frame.kind in _DECIDING:
                    yield from _take(rows, control.rows(frame.lsn, decode(frame.kind, frame.payload)))
                on_progress(frame.next_lsn, total)
        wanted = {kind for table in rows for kind in _SOURCES.get(table, ())}
        if wanted:
            for frame in self._data.scan(0, self.data_lsn):
                if frame.kind in wanted:
                    happened = self._happened(frame.lsn, decode(frame.kind, frame.payload))
                    yield from _take(rows, happened)
                on_progress(self.control_lsn + frame.next_lsn, total)
        for table, left in rows.items():
            if len(left):
                yield table, left.flush()

    @cached_property
    def _late_rewards(self) -> dict[int, tuple[int, float]]:
        """Episode LSN → (LSN of its newest feedback, reward)."""
        found: dict[int, tuple[int, float]] = {}
        for frame in self._data.scan(0, self.data_lsn):
            if frame.kind == Kind.FEEDBACK:
                record = decode(frame.kind, frame.payload)
                assert isinstance(record, Feedback)
                found[record.episode_lsn] = (frame.lsn, record.reward)
        return found

    def _happened(self, lsn: int, record: Record) -> Iterator[tuple[str, dict[str, Any]]]:
        """(table, row) of one data record, whether the table is wanted or not."""
        if isinstance(record, Task):
            yield "tasks", {"lease": lsn, **_fields(record, "tasks")}
            if record.payload is not None:
                yield "blobs", {"lsn": lsn, "kind": "task", "data": record.payload}
        elif isinstance(record, Episode):
            late = self._late_rewards.get(lsn, (lsn, record.reward))
            yield "episodes", _episode_row(lsn, record, late)
            for number, step in enumerate(record.steps):
                yield "steps", _step_row(lsn, number, step)
        elif isinstance(record, Feedback):
            yield "feedback", {**_fields(record, "feedback"), "lsn": lsn, "wall_time": _time(record.wall_time)}
        elif isinstance(record, Quarantined):
            row = {**_fields(record, "quarantine"), "lsn": lsn, "fault": record.fault.value}
            yield "quarantine", {**row, "wall_time": _time(record.wall_time)}
            yield "blobs", {"lsn": lsn, "kind": "quarantined", "data": record.payload.tobytes()}


class _Control:
    """Rows of the control log's tables. Keeps a number a version, and the batches without a version yet."""

    def __init__(self) -> None:
        self._open: dict[int, Batch] = {}
        self._depths: dict[int, int] = {}

    def rows(self, lsn: int, record: Record) -> Iterator[tuple[str, dict[str, Any]]]:
        """(table, row) of one decision, whether the table is wanted or not."""
        if isinstance(record, Batch):
            self._open[lsn] = record
            for place in range(len(record.rows)):
                yield "batches", _row_row(lsn, record, place)
            for drop in record.dropped:
                yield "endings", _ending(drop.lease, drop.disposition, lsn, batch_lsn=lsn)
        elif isinstance(record, Closed):
            for lease in record.leases:
                yield "endings", _ending(lease, record.disposition, lsn, reason=record.reason)
        elif isinstance(record, Version):
            self._depths[record.version] = self._depths.get(record.parent, -1) + 1
            yield (
                "versions",
                {
                    **_fields(record, "versions"),
                    "depth": self._depths[record.version],
                    "stats": _pairs(record.stats),
                    "wall_time": _time(record.wall_time),
                },
            )
            yield from self._settle(lsn, record.batch_lsn, skipped=False)
        elif isinstance(record, Skip):
            yield from self._settle(lsn, record.batch_lsn, skipped=True)

    def _settle(self, lsn: int, batch_lsn: int, *, skipped: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        batch = self._open.pop(batch_lsn, None)
        if batch is None:  # genesis, or a step that was computed again with other bits
            return
        for lease in leases_of(batch):
            how = Disposition.ZERO_SPREAD if lease in batch.zero_spread else Disposition.TRAINED
            yield "endings", _ending(lease, Disposition.SKIPPED if skipped else how, lsn, batch_lsn=batch_lsn)


# ---------------------------------------------------------------------------------------------- rows


@dataclass
class _Rows:
    """Rows of one table on their way out."""

    schema: pa.Schema

    def __post_init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: dict[str, Any]) -> bool:
        """Whether it is time to flush."""
        self._rows.append(row)
        self._bytes += sum(_count_bytes(value) for value in row.values())
        return len(self._rows) >= MAX_ROWS or self._bytes >= MAX_BYTES

    def flush(self) -> pa.RecordBatch:
        rows, self._rows, self._bytes = self._rows, [], 0
        return pa.RecordBatch.from_pylist(rows, schema=self.schema)


def _take(rows: dict[str, _Rows], made: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, pa.RecordBatch]]:
    for table, row in made:
        if table in rows and rows[table].add(row):
            yield table, rows[table].flush()


def _count_bytes(value: object) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    return len(value) if isinstance(value, bytes) else 16


def _fields(record: Record, table: str) -> dict[str, Any]:
    """The record's fields that are columns of the same name."""
    return {name: value for name in SCHEMAS[table].names if (value := getattr(record, name, None)) is not None}


def _episode_row(lsn: int, episode: Episode, late: tuple[int, float | None]) -> dict[str, Any]:
    text = [step for step in episode.steps if step.rewards is None]
    versions = [span.version for span in episode.spans]
    reward_lsn, reward = late
    return {
        **_fields(episode, "episodes"),
        "lsn": lsn,
        "purpose": episode.purpose.value,
        "stop_reason": episode.stop_reason.value,
        "reward": reward,
        "recorded_reward": episode.reward,
        "reward_lsn": reward_lsn,
        "reward_parts": _pairs(episode.reward_parts),
        "reward_deadline": None if episode.reward_deadline is None else _time(episode.reward_deadline),
        "oldest_version": min(versions, default=-1),
        "newest_version": max(versions, default=-1),
        "spans": [{"start": span.start, "version": span.version} for span in episode.spans],
        "num_steps": len(episode.steps),
        "num_prompt_tokens": sum(len(step.observation) for step in text),
        "num_action_tokens": sum(len(step.action) for step in episode.steps),
        "wall_time": _time(episode.wall_time),
    }


def _step_row(lsn: int, number: int, step: Step) -> dict[str, Any]:
    return {
        "lsn": lsn,
        "step": number,
        **_split("observation", step.observation),
        **_split("action", step.action),
        "log_probs": step.log_probs,
        "rewards": step.rewards,
        "end": None if step.end is None else step.end.value,
    }


def _split(name: str, values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Integers and floats stand in columns of their own."""
    column = f"{name}_tokens" if values.dtype.kind == "i" else f"{name}_values"
    return {column: values.reshape(-1), f"{name}_shape": list(values.shape)}


def _row_row(lsn: int, batch: Batch, place: int) -> dict[str, Any]:
    row = batch.rows[place]
    return {
        "batch_lsn": lsn,
        "branch": batch.branch,
        "step": batch.step,
        "parent_version": batch.parent_version,
        "row": place,
        "episode_lsn": row.episode_lsn,
        "reward_lsn": row.reward_lsn,
        "lease": row.lease,
        "weight": row.weight,
        "zero_spread": row.lease in batch.zero_spread,
        "replayed": row.replayed,
    }


def _ending(
    lease: int, how: Disposition, lsn: int, *, reason: str | None = None, batch_lsn: int | None = None
) -> dict[str, Any]:
    return {
        "lease": lease,
        "disposition": how.value,
        "reason": reason,
        "batch_lsn": batch_lsn,
        "control_lsn": lsn,
    }


def _pairs(values: dict[str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _time(seconds: float) -> int | None:
    """Microseconds since 1970; None where a producer's clock said what no calendar has."""
    return round(seconds * 1e6) if math.isfinite(seconds) and abs(seconds) < _LAST_S else None
