"""Turns a record into bytes and back by its fields alone: a msgpack header, then its arrays as raw columns.

    byte 0       format version
    byte 4..7    header length H, little-endian
    byte 8..     header: msgpack array of the field values in the order of declaration
    then         columns: each array little-endian in C order, at a multiple of 8 from the first one

An array stands in the header as [dtype code, offset from the first column, *shape]. A nested record is an array of its
field values, an enum its value. A field is added at the end of its record, with a default: shorter bytes still read.
The kind travels in the frame, not here. Decoded arrays are read-only views of the payload.
"""

from __future__ import annotations

import dataclasses
import struct
import types
from collections.abc import Callable, Hashable
from enum import Enum
from functools import cache, partial
from operator import attrgetter
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

import msgpack
import numpy as np
from numpy.typing import NDArray

from contracts import records
from contracts.errors import FormatError, StoreError
from contracts.records import Kind, Record

FORMAT_VERSION = 1
_PREFIX = struct.Struct("<BxxxI")
_ALIGNMENT = 8
_COPIED_BYTES = 1 << 14  # larger arrays go into the payload without a copy of their own
# Codes are for ever.
_DTYPES: dict[int, np.dtype[Any]] = {
    code: np.dtype(name)
    for code, name in enumerate(("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<i8", "<f2", "<f4", "<f8", "<u4", "<u8"))
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}

_CLASSES: dict[int, type[Record]] = {
    record.KIND: record
    for record in (
        records.Task, records.Episode, records.Feedback, records.Quarantined, records.Hold, records.Review,
        records.Priority, records.Session, records.Batch,
        records.Version, records.Served, records.Guard, records.Checkpoint, records.Branch, records.Skip,
        records.Closed, records.Failure, records.Evaluation, records.Trim,
        records.Erased, records.Followed,
    )
}  # fmt: skip


class _Columns:
    """The arrays of one record on their way out."""

    def __init__(self) -> None:
        self.chunks: list[bytes | memoryview] = []
        self.size = 0

    def add(self, data: bytes | memoryview, num_bytes: int) -> int:
        offset = self.size
        padding = -num_bytes % _ALIGNMENT
        self.chunks.append(data)
        if padding:
            self.chunks.append(bytes(padding))
        self.size = offset + num_bytes + padding
        return offset


_Encode = Callable[[Any, _Columns], Any]
_Decode = Callable[[Any, bytes, int], Any]  # (header value, payload, start of the columns)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How values of one type travel. None: as they are."""

    encode: _Encode | None = None
    decode: _Decode | None = None
    has_arrays: bool = False
    exact: type | None = None  # values of just this type travel as they are


# ---------------------------------------------------------------------------------------------- public


def encode(record: Record) -> bytes:
    """The payload of `record`'s frame. Raises StoreError where a value cannot be kept."""
    columns = _Columns()
    encode_fields = _plan_of(cast(Hashable, type(record))).encode
    assert encode_fields is not None
    try:
        header = cast(bytes, msgpack.packb(encode_fields(record, columns), use_bin_type=True))
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise StoreError(f"{type(record).__name__} cannot be kept: {error}") from error
    padding = bytes(-len(header) % _ALIGNMENT)
    return b"".join((_PREFIX.pack(FORMAT_VERSION, len(header)), header, padding, *columns.chunks))


def decode(kind: int, payload: bytes) -> Record:
    """The record in `payload`. Raises FormatError: unknown kind or version, or bytes that are no such record."""
    return _decode(kind, payload, with_columns=True)


def peek(kind: int, payload: bytes) -> Record:
    """The record without its arrays: an episode's `steps` are (). Several times faster than `decode`."""
    return _decode(kind, payload, with_columns=False)


# ---------------------------------------------------------------------------------------------- whole records


def _decode(kind: int, payload: bytes, *, with_columns: bool) -> Record:
    record_class = _CLASSES.get(kind)
    if record_class is None:
        raise FormatError(f"frame of unknown kind {kind}: it was written by newer code; known are {sorted(_CLASSES)}")
    if not payload or payload[0] != FORMAT_VERSION:
        found = payload[0] if payload else "none"
        raise FormatError(f"{Kind(kind).name} record of format version {found}; this code reads {FORMAT_VERSION}")
    try:
        _, length = _PREFIX.unpack_from(payload)
        end = _PREFIX.size + length
        values = msgpack.unpackb(payload[_PREFIX.size : end], strict_map_key=False)
        plan = (_plan_of if with_columns else _plan_without_columns)(cast(Hashable, record_class))
        assert plan.decode is not None
        return cast(Record, plan.decode(values, payload, end + (-length % _ALIGNMENT)))
    except (ValueError, TypeError, KeyError, IndexError, struct.error, msgpack.UnpackException) as error:
        raise FormatError(f"{Kind(kind).name} record that does not read: {error!r}") from error


def _fields_plan(record_class: type, plans: list[_Plan]) -> _Plan:
    """A record as the array of its field values."""
    names = tuple(field.name for field in dataclasses.fields(record_class))
    values_of = attrgetter(*names)  # a tuple: every record has two fields or more
    encoders = tuple((place, plan.encode, plan.exact) for place, plan in enumerate(plans) if plan.encode is not None)
    decoders = tuple((place, plan.decode) for place, plan in enumerate(plans) if plan.decode is not None)
    num_fields, make = len(names), partial(object.__new__, record_class)

    def encode_record(record: Any, columns: _Columns) -> list[Any]:
        values = list(values_of(record))
        for place, encode_value, exact in encoders:
            value = values[place]
            if type(value) is not exact:
                values[place] = encode_value(value, columns)
        return values

    def decode_record(values: list[Any], payload: bytes, base: int) -> Any:
        num = len(values)
        if num > num_fields:
            raise ValueError(f"{num} fields, this code knows {num_fields}: written by newer code")
        for place, decode_value in decoders:
            if place < num:
                values[place] = decode_value(values[place], payload, base)
        if num < num_fields:
            return record_class(**dict(zip(names, values, strict=False)))
        record: Any = make()
        record.__dict__.update(zip(names, values, strict=True))  # __init__ of a frozen class makes a call a field
        return record

    return _Plan(encode_record, decode_record, any(plan.has_arrays for plan in plans))


@cache
def _plan_of(hint: Any) -> _Plan:
    """The plan of a type hint. Raises TypeError at import time of a record that cannot travel."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _fields_plan(hint, _field_plans(hint))
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _union_plan(hint, arguments)
    if origin is np.ndarray:
        return _Plan(_encode_array, _decode_array, has_arrays=True)
    if origin is tuple:
        return _tuple_plan(arguments)
    if origin is dict and arguments[0] is str:
        return _dict_plan(_plan_of(arguments[1]))
    if isinstance(hint, type) and issubclass(hint, Enum):
        members = {member.value: member for member in hint}
        return _Plan(lambda value, _: value._value_, lambda value, _payload, _base: members[value])
    if hint is float:
        return _Plan(lambda value, _: float(value), exact=float)
    if hint is int:
        return _Plan(lambda value, _: value.__index__(), exact=int)
    if hint in (str, bool, bytes, type(None)):
        return _Plan()
    raise TypeError(f"no rule for a field of type {hint}")


def _field_plans(record_class: type) -> list[_Plan]:
    hints = get_type_hints(record_class)
    return [_plan_of(hints[field.name]) for field in dataclasses.fields(record_class)]


@cache
def _plan_without_columns(record_class: type) -> _Plan:
    """As `_plan_of`, with () for each field that has arrays inside."""
    empty = _Plan(decode=lambda _value, _payload, _base: ())
    return _fields_plan(record_class, [empty if plan.has_arrays else plan for plan in _field_plans(record_class)])


# ---------------------------------------------------------------------------------------------- values


def _encode_array(value: NDArray[Any], columns: _Columns) -> list[int]:
    code = _CODES.get(value.dtype)
    if code is None:
        dtype = value.dtype.newbyteorder("<")
        if dtype not in _CODES:
            raise TypeError(f"array of {value.dtype}")
        value, code = value.astype(dtype), _CODES[dtype]
    is_large = value.nbytes > _COPIED_BYTES and value.flags.c_contiguous
    return [code, columns.add(value.data if is_large else value.tobytes(), value.nbytes), *value.shape]


def _decode_array(value: list[int], payload: bytes, base: int) -> NDArray[Any]:
    code, offset, *shape = value
    if len(shape) == 1:
        return np.frombuffer(payload, _DTYPES[code], shape[0], base + offset)
    count = int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(payload, _DTYPES[code], count, base + offset).reshape(shape)


def _tuple_plan(arguments: tuple[Any, ...]) -> _Plan:
    item, *rest = arguments
    if rest != [Ellipsis]:
        raise TypeError(f"tuples travel with one item type and any length, not {arguments}")
    plan = _plan_of(item)
    encode_item, decode_item = plan.encode, plan.decode
    encode_tuple: _Encode | None = None
    if encode_item is not None:
        encode_tuple = lambda value, columns: [encode_item(entry, columns) for entry in value]  # noqa: E731
    if decode_item is None:
        return _Plan(encode_tuple, lambda value, _payload, _base: tuple(value))
    return _Plan(
        encode_tuple,
        lambda value, payload, base: tuple([decode_item(entry, payload, base) for entry in value]),
        plan.has_arrays,
    )


def _dict_plan(plan: _Plan) -> _Plan:
    encode_value = plan.encode
    if plan.decode is not None:
        raise TypeError("a dict travels with scalar values")
    if encode_value is None:
        return _Plan()
    return _Plan(lambda value, columns: {key: encode_value(entry, columns) for key, entry in value.items()})


def _union_plan(hint: Any, arguments: tuple[Any, ...]) -> _Plan:
    """Arrays of several types, one type or None, or scalars."""
    if all(get_origin(argument) is np.ndarray for argument in arguments):
        return _Plan(_encode_array, _decode_array, has_arrays=True)
    others = [argument for argument in arguments if argument is not type(None)]
    if len(others) == 1:
        return _optional_plan(_plan_of(others[0]))
    if set(others) <= {str, int, float, bool}:
        return _Plan()
    raise TypeError(f"no rule for a field of type {hint}")


def _optional_plan(plan: _Plan) -> _Plan:
    encode_value, decode_value = plan.encode, plan.decode
    encode_optional: _Encode | None = None
    decode_optional: _Decode | None = None
    if encode_value is not None:
        encode_optional = lambda value, columns: None if value is None else encode_value(value, columns)  # noqa: E731
    if decode_value is not None:
        decode_optional = (  # noqa: E731
            lambda value, payload, base: None if value is None else decode_value(value, payload, base)
        )
    return _Plan(encode_optional, decode_optional, plan.has_arrays, plan.exact)
