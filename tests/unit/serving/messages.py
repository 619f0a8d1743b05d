"""Arrow messages made by hand, good and bad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from contracts.records import Episode
from serving.columns import SCHEMA, to_batch


def compress(batch: pa.RecordBatch) -> bytes:
    """The message of a batch whose body is compressed."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    messages = pa.ipc.MessageReader.open_stream(sink.getvalue())
    messages.read_next_message()
    return bytes(messages.read_next_message().serialize().to_pybytes())


def rewrite(episode: Episode, column: str, change: Callable[[Any], Any]) -> bytes:
    """The message of one episode with `column` as `change` makes it from plain Python values, nulls or not."""
    batch = to_batch([episode])
    place = SCHEMA.get_field_index(column)
    values = [change(value) for value in batch.column(place).to_pylist()]
    loose = pa.array(values, _loosen(SCHEMA.field(column).type))
    columns = [loose if at == place else one for at, one in enumerate(batch.columns)]
    fields = [field.with_nullable(True).with_type(one.type) for field, one in zip(SCHEMA, columns, strict=True)]
    message = pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields)).serialize()
    return bytes(message.to_pybytes())


def _loosen(kind: pa.DataType) -> pa.DataType:
    """The same type with nulls allowed everywhere."""
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _loosen(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, _loosen(kind.item_type))
    if pa.types.is_list(kind):
        return pa.list_(_loosen(kind.value_type))
    return kind
