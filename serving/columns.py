"""Episodes as Arrow record batches and back: the one place that says which columns there are.

    episode_id lease member task_id environment environment_version purpose stop_reason     one row an episode;
    reward reward_parts reward_code reward_deadline producer producer_epoch seq             the fields of
    wall_time retries                                                                       contracts.records.Episode
    spans    list of (start, version)
    steps    list of (observation, action, log_probs, rewards, end)

    an array (observation, action, log_probs, rewards) is (dtype, shape, values): numpy's name of the type, such as
    int32 or float32; its shape; its values little-endian in C order. Text: observation int32 [P], action int32 [C],
    log_probs float32 [C]. Control: observation float32 [T + 1, D], action int32 [T] or float32 [T, A], log_probs and
    rewards float32 [T]. A prompt, an answer, a remark and another answer are two steps.

Null: `reward` (pending, or never), `reward_deadline`, `rewards` and `end` of text. Nothing else may be.
The schema's metadata says the format version. A record batch travels as one IPC message, not compressed, so that
its length bounds what reading it can cost. What comes from the network is read with `read_batch` alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contracts.errors import FormatError
from contracts.records import Episode, Purpose, Span, Step, StopReason

FORMAT_VERSION = 1
MAX_DIMENSIONS = 8


def _field(name: str, kind: pa.DataType, *, null: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=null)


ARRAY = pa.struct(
    [
        _field("dtype", pa.string()),
        _field("shape", pa.list_(_field("item", pa.int64()))),
        _field("values", pa.binary()),
    ]
)
STEP = pa.struct(
    [
        _field("observation", ARRAY),
        _field("action", ARRAY),
        _field("log_probs", ARRAY),
        _field("rewards", ARRAY, null=True),
        _field("end", pa.string(), null=True),
    ]
)
SPAN = pa.struct([_field("start", pa.int64()), _field("version", pa.int64())])
SCHEMA = pa.schema(
    [
        _field("episode_id", pa.string()),
        _field("lease", pa.int64()),
        _field("member", pa.int64()),
        _field("task_id", pa.string()),
        _field("environment", pa.string()),
        _field("environment_version", pa.string()),
        _field("purpose", pa.string()),
        _field("stop_reason", pa.string()),
        _field("reward", pa.float64(), null=True),
        _field("reward_parts", pa.map_(pa.string(), _field("value", pa.float64()))),
        _field("reward_code", pa.string()),
        _field("reward_deadline", pa.float64(), null=True),
        _field("producer", pa.string()),
        _field("producer_epoch", pa.int64()),
        _field("seq", pa.int64()),
        _field("wall_time", pa.float64()),
        _field("retries", pa.int64()),
        _field("spans", pa.list_(_field("item", SPAN))),
        _field("steps", pa.list_(_field("item", STEP))),
    ],
    metadata={"ratchet.format_version": str(FORMAT_VERSION)},
)
SCHEMA_BYTES: bytes = SCHEMA.serialize().to_pybytes()

# What bytes that are no message raise, in pyarrow and here.
UNREADABLE = (
    pa.ArrowException, OSError, EOFError, ValueError, TypeError, IndexError, KeyError, OverflowError, struct.error
)  # fmt: skip
_DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
        "float16", "float32", "float64",
    )
}  # fmt: skip
_ENUMS: dict[str, Callable[[str], Any]] = {"purpose": Purpose, "stop_reason": StopReason}
_NESTED = ("reward_parts", "spans", "steps")
_RECORD_BATCH = 3  # the union tag of a RecordBatch in Arrow's Message.fbs
_NODES, _COMPRESSION = 1, 3  # slots of its RecordBatch table: a (length, number of nulls) for each column, ...


def _name_full(field: pa.Field, *, inside_null: bool = False) -> Iterator[str | None]:
    """A column and its parts in the order of a message's nodes: the name, or None where there may be nulls."""
    may_be_null = field.nullable or inside_null
    yield None if may_be_null else field.name
    kind = field.type
    children: list[pa.Field] = []
    if pa.types.is_map(kind):
        children = [pa.field("entries", pa.struct([kind.key_field, kind.item_field]), nullable=False)]
    elif pa.types.is_struct(kind):
        children = list(kind)
    elif pa.types.is_list(kind):
        children = [kind.value_field]
    for child in children:
        yield from _name_full(child, inside_null=may_be_null)


_FULL_NODES = tuple(name for field in SCHEMA for name in _name_full(field))


# ---------------------------------------------------------------------------------------------- out


def write_batch(episodes: Sequence[Episode]) -> bytes:
    """One IPC message. Raises FormatError where an array's type does not travel."""
    return bytes(memoryview(to_batch(episodes).serialize()))


def count_bytes(episode: Episode) -> int:
    """About what an episode adds to a message: its arrays, and room for the rest."""
    arrays = (
        array.nbytes
        for step in episode.steps
        for array in (step.observation, step.action, step.log_probs, step.rewards)
        if array is not None
    )
    return 512 + 64 * len(episode.steps) + sum(arrays)


def to_batch(episodes: Sequence[Episode]) -> pa.RecordBatch:
    """Episodes as SCHEMA says."""
    columns: dict[str, pa.Array] = {
        "reward_parts": pa.array(
            [list(episode.reward_parts.items()) for episode in episodes], SCHEMA.field("reward_parts").type
        ),
        "spans": _list_of(
            [len(episode.spans) for episode in episodes],
            _to_spans([span for episode in episodes for span in episode.spans]),
            SCHEMA.field("spans").type,
        ),
        "steps": _list_of(
            [len(episode.steps) for episode in episodes],
            _to_steps([step for episode in episodes for step in episode.steps]),
            SCHEMA.field("steps").type,
        ),
    }
    for field in SCHEMA:
        if field.name in _ENUMS:
            columns[field.name] = pa.array([getattr(episode, field.name).value for episode in episodes], field.type)
        elif field.name not in columns:
            columns[field.name] = pa.array([getattr(episode, field.name) for episode in episodes], field.type)
    return pa.RecordBatch.from_arrays([columns[field.name] for field in SCHEMA], schema=SCHEMA)


def _list_of(lengths: Iterable[int], items: pa.Array, kind: pa.DataType) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(list(accumulate(lengths, initial=0)), pa.int32()), items, type=kind)


def _to_spans(spans: Sequence[Span]) -> pa.Array:
    columns = [[span.start for span in spans], [span.version for span in spans]]
    return pa.StructArray.from_arrays([pa.array(column, pa.int64()) for column in columns], fields=list(SPAN))


def _to_steps(steps: Sequence[Step]) -> pa.Array:
    columns = [
        _to_arrays([step.observation for step in steps]),
        _to_arrays([step.action for step in steps]),
        _to_arrays([step.log_probs for step in steps]),
        _to_arrays([step.rewards for step in steps]),
        pa.array([None if step.end is None else step.end.value for step in steps], pa.string()),
    ]
    return pa.StructArray.from_arrays(columns, fields=list(STEP))


def _to_arrays(arrays: Sequence[NDArray[Any] | None]) -> pa.Array:
    there = [array for array in arrays if array is not None]
    if unknown := {array.dtype.name for array in there} - _DTYPES.keys():
        raise FormatError(f"arrays of {', '.join(sorted(unknown))} do not travel; there is {', '.join(_DTYPES)}")
    columns = [
        pa.array(["" if array is None else array.dtype.name for array in arrays], pa.string()),
        _list_of(
            [0 if array is None else array.ndim for array in arrays],
            pa.array([size for array in there for size in array.shape], pa.int64()),
            ARRAY.field("shape").type,
        ),
        pa.array([b"" if array is None else _to_bytes(array) for array in arrays], pa.binary()),
    ]
    mask = None if len(there) == len(arrays) else pa.array([array is None for array in arrays], pa.bool_())
    return pa.StructArray.from_arrays(columns, fields=list(ARRAY), mask=mask)


def _to_bytes(array: NDArray[Any]) -> bytes:
    return array.astype(_DTYPES[array.dtype.name], copy=False).tobytes()


# ---------------------------------------------------------------------------------------------- in


def check_schema(data: bytes) -> None:
    """Raises FormatError where an IPC schema message is not SCHEMA, or is of another version."""
    try:
        found = pa.ipc.read_schema(pa.py_buffer(data))
    except UNREADABLE as error:
        raise FormatError(f"the schema does not read: {error}") from error
    version = (found.metadata or {}).get(b"ratchet.format_version", b"none").decode(errors="replace")
    if version != str(FORMAT_VERSION):
        raise FormatError(f"episodes of format version {version}; this code reads {FORMAT_VERSION}")
    for field in SCHEMA:
        place = found.get_field_index(field.name)
        if place < 0 or found.field(place) != field:
            there = "missing" if place < 0 else str(found.field(place))
            raise FormatError(f"column {field.name} is {there}, not {field}; see serving/columns.py")
    if found.names != SCHEMA.names:
        raise FormatError(f"the columns are {found.names}, not {SCHEMA.names}")


def read_batch(data: bytes) -> list[Episode]:
    """The episodes of one IPC message, which may come from anybody. Their arrays are read-only views of `data`.

    Raises FormatError. Whether an episode's content makes sense is for buffers/checks.py to say.
    """
    try:
        message = pa.ipc.read_message(pa.py_buffer(data))
        _check_message(message.metadata.to_pybytes())
        batch = pa.ipc.read_record_batch(message, SCHEMA)
        batch.validate(full=True)
        return _read_rows(batch)
    except UNREADABLE as error:
        raise FormatError(f"a record batch that does not read: {error}") from error


def _check_message(metadata: bytes) -> None:
    """Refuse what is not a plain record batch without nulls. pyarrow does not tell, so the flatbuffer (Message.fbs) is
    asked, whose offsets pyarrow has verified; that its counts of nulls are true is for validate() to say.

    A compressed body of a few bytes could ask for any amount of memory.
    """
    root = struct.unpack_from("<I", metadata)[0]
    kind = _find_slot(metadata, root, 1)
    header = _find_slot(metadata, root, 2)
    if kind is None or header is None or metadata[kind] != _RECORD_BATCH:
        raise ValueError("the message is no record batch")
    table = _follow(metadata, header)
    if _find_slot(metadata, table, _COMPRESSION) is not None:
        raise ValueError("the message is compressed")
    nodes = _find_slot(metadata, table, _NODES)
    if nodes is None:
        raise ValueError("the message has no columns")
    start = _follow(metadata, nodes)
    num_nodes = struct.unpack_from("<I", metadata, start)[0]
    if num_nodes != len(_FULL_NODES):
        raise ValueError(f"the message has {num_nodes} columns and parts of columns, not {len(_FULL_NODES)}")
    for place, name in enumerate(_FULL_NODES):
        _length, num_nulls = struct.unpack_from("<qq", metadata, start + 4 + 16 * place)
        if num_nulls and name is not None:
            raise ValueError(f"{name} is null")


def _follow(metadata: bytes, place: int) -> int:
    """Where a flatbuffer's relative offset leads."""
    return place + int(struct.unpack_from("<I", metadata, place)[0])


def _find_slot(metadata: bytes, table: int, slot: int) -> int | None:
    """Where a flatbuffer table's field lies; None where it is not set."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    size = struct.unpack_from("<H", metadata, vtable)[0]
    place = 4 + 2 * slot
    offset = struct.unpack_from("<H", metadata, vtable + place)[0] if place + 2 <= size else 0
    return table + offset if offset else None


def _read_rows(batch: pa.RecordBatch) -> list[Episode]:
    columns = {field.name: batch.column(field.name) for field in SCHEMA}
    values = {name: column.to_pylist() for name, column in columns.items() if name not in _NESTED}
    for name, read in _ENUMS.items():
        values[name] = [read(value) for value in values[name]]
    values["reward_parts"] = [dict(pairs) for pairs in columns["reward_parts"].to_pylist()]
    spans = [Span(start=span["start"], version=span["version"]) for span in _flatten(columns["spans"]).to_pylist()]
    values["spans"] = _cut(spans, columns["spans"])
    values["steps"] = _cut(_read_steps(_flatten(columns["steps"])), columns["steps"])
    names = list(values)
    return [Episode(**dict(zip(names, row, strict=True))) for row in zip(*values.values(), strict=True)]


def _flatten(lists: pa.ListArray) -> pa.Array:
    """The items of all lists. validate() does not look at the offsets where there is no list, and flatten() would end
    the process over them."""
    return lists.flatten() if len(lists) else lists.values.slice(0, 0)


def _cut(items: Sequence[Any], lists: pa.ListArray) -> list[tuple[Any, ...]]:
    """`items` in the lengths of `lists`, in order."""
    ends = list(accumulate(lists.value_lengths().to_pylist(), initial=0))
    return [tuple(items[start:end]) for start, end in pairwise(ends)]


def _read_steps(steps: pa.StructArray) -> list[Step]:
    arrays = [_read_arrays(steps.field(name)) for name in ("observation", "action", "log_probs", "rewards")]
    ends = [None if end is None else StopReason(end) for end in steps.field("end").to_pylist()]
    return [
        Step(observation=observation, action=action, log_probs=log_probs, rewards=rewards, end=end)
        for observation, action, log_probs, rewards, end in zip(*arrays, ends, strict=True)
    ]


def _read_arrays(structs: pa.StructArray) -> list[Any]:
    """The arrays of one field; None where it is null."""
    names, shapes = structs.field("dtype").to_pylist(), structs.field("shape").to_pylist()
    values = structs.field("values")
    there = structs.is_valid().to_pylist()
    _, offsets_buffer, data = values.buffers()
    offsets: Sequence[int] = ()
    if len(values):
        offsets = np.frombuffer(offsets_buffer, np.int32, len(values) + 1, 4 * values.offset).tolist()
    found: list[Any] = []
    for row, is_there in enumerate(there):
        if is_there:
            found.append(_read_array(names[row], shapes[row], data, start=offsets[row], end=offsets[row + 1]))
        else:
            found.append(None)
    return found


def _read_array(name: str, shape: Sequence[int], data: pa.Buffer | None, *, start: int, end: int) -> NDArray[Any]:
    dtype = _DTYPES.get(name)
    if dtype is None:
        raise ValueError(f"an array of {name!r}; there is {', '.join(_DTYPES)}")
    if len(shape) > MAX_DIMENSIONS or any(size < 0 for size in shape):
        raise ValueError(f"an array of shape {list(shape)[: MAX_DIMENSIONS + 1]}")
    count = 1
    for size in shape:
        count *= size
    if count * dtype.itemsize != end - start:
        raise ValueError(f"{end - start} bytes for an array of {name} {list(shape)}")
    if count == 0 or data is None:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(data, dtype, count, start)
    array = flat if flat.flags.aligned else flat.copy()
    return array.reshape(shape)
