"""Records to bytes and back: golden files of every format version, round trips, and bytes that are no record."""

from __future__ import annotations

import dataclasses
import struct
import types
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffers.codec import FORMAT_VERSION, decode, encode, peek
from contracts.errors import FormatError, StoreError
from contracts.records import Episode, Kind, Record, Served, Task
from tests.unit.buffers.samples import GOLDEN, SAMPLES, STRETCH, golden_files

RECORD_KINDS = [kind for kind in Kind if kind is not Kind.SCHEMA]  # SCHEMA frames are the log's own
FLOATS = st.floats(width=32)


def strategy_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value that a field of this type may hold."""
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        fields = {field.name: strategy_of(hints[field.name]) for field in dataclasses.fields(hint)}
        return st.builds(hint, **fields)
    if origin in (Union, types.UnionType):
        return st.one_of(*(strategy_of(argument) for argument in arguments))
    if origin is np.ndarray:
        scalar = get_args(arguments[1])[0]
        items = (
            FLOATS
            if np.issubdtype(scalar, np.floating)
            else st.integers(int(np.iinfo(scalar).min), int(np.iinfo(scalar).max))
        )
        shapes = st.tuples(st.lists(items, max_size=12), st.booleans())
        return shapes.map(lambda drawn: _array(drawn[0], scalar, square=drawn[1]))
    if origin is tuple:
        return st.lists(strategy_of(arguments[0]), max_size=4).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text(max_size=8), strategy_of(arguments[1]), max_size=3)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(-(2**63), 2**64 - 1),
        float: st.floats(),
        str: st.text(max_size=20),
        bytes: st.binary(max_size=20),
        bool: st.booleans(),
        type(None): st.none(),
    }
    return simple[hint]


def _array(items: list[Any], scalar: type, *, square: bool) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = np.array(items, dtype=scalar)
    return array.reshape(2, -1) if square and len(items) % 2 == 0 else array


def leaves(value: object) -> list[object]:
    """Every scalar in a record, in order; arrays as (dtype, shape, bytes), so that NaN equals NaN."""
    if isinstance(value, np.ndarray):
        return [value.dtype.str, value.shape, value.tobytes()]
    if dataclasses.is_dataclass(value):
        return [leaf for field in dataclasses.fields(value) for leaf in leaves(getattr(value, field.name))]
    if isinstance(value, tuple):
        return [len(value), *(leaf for item in value for leaf in leaves(item))]
    if isinstance(value, dict):
        return [len(value), *(leaf for pair in value.items() for leaf in leaves(pair))]
    return [struct.pack("<d", value) if isinstance(value, float) else value]


@pytest.mark.parametrize("kind", RECORD_KINDS, ids=lambda kind: kind.name)
def test_golden_files_of_every_version_are_read(kind: Kind) -> None:
    versions = sorted(int(folder.name[1:]) for folder in GOLDEN.iterdir())
    assert versions == list(range(1, FORMAT_VERSION + 1))
    for version in versions:
        files = golden_files(kind, version=version)
        assert files
        for file in files:
            record = decode(kind, file.read_bytes())
            assert type(record) is type(SAMPLES[kind])
            assert leaves(record) == leaves(SAMPLES[kind])


@pytest.mark.parametrize("kind", RECORD_KINDS, ids=lambda kind: kind.name)
def test_todays_bytes_are_the_golden_ones(kind: Kind) -> None:
    assert encode(SAMPLES[kind]) == golden_files(kind, version=FORMAT_VERSION)[-1].read_bytes()


def test_a_stretch_of_play_travels_whole() -> None:
    episode = SAMPLES[Kind.EPISODE]
    assert isinstance(episode, Episode)
    played = decode(Kind.EPISODE, encode(dataclasses.replace(episode, steps=(STRETCH,))))
    assert isinstance(played, Episode)
    assert leaves(played.steps[0]) == leaves(STRETCH)
    assert played.steps[0].observation.shape == (3, 2)


@given(st.one_of(*(strategy_of(type(sample)) for sample in SAMPLES.values())))
def test_round_trip(record: Record) -> None:
    payload = encode(record)
    assert leaves(decode(record.KIND, payload)) == leaves(record)
    assert encode(decode(record.KIND, payload)) == payload


def test_arrays_keep_type_and_values_and_are_read_only() -> None:
    episode = decode(Kind.EPISODE, encode(SAMPLES[Kind.EPISODE]))
    assert isinstance(episode, Episode)
    assert episode.steps[0].observation.tolist() == [5, 6, 7]
    assert episode.steps[1].observation.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        episode.steps[0].log_probs[0] = 0.0


def test_columns_are_little_endian_and_aligned() -> None:
    sample = SAMPLES[Kind.EPISODE]
    assert isinstance(sample, Episode)
    big = dataclasses.replace(sample.steps[0], observation=sample.steps[0].observation.astype(">i4"))
    payload = encode(dataclasses.replace(sample, steps=(big, sample.steps[1])))
    assert payload == encode(sample)
    assert payload.index(np.array([5, 6, 7], dtype="<i4").tobytes()) % 8 == 0


def test_peek_leaves_the_arrays_out() -> None:
    sample = SAMPLES[Kind.EPISODE]
    assert isinstance(sample, Episode)
    assert peek(Kind.EPISODE, encode(sample)) == dataclasses.replace(sample, steps=())


def test_unknown_kind_and_version_are_refused_with_a_message() -> None:
    payload = encode(Served(version=1, gap=0.0))
    with pytest.raises(FormatError, match="unknown kind 63"):
        decode(63, payload)
    newer = bytes([FORMAT_VERSION + 1]) + payload[1:]
    with pytest.raises(FormatError, match=f"SERVED record of format version {FORMAT_VERSION + 1}"):
        decode(Kind.SERVED, newer)


def test_bytes_from_before_a_field_was_added_get_its_default() -> None:
    task = Task(task_id="t", position=0, index=0, group_size=2, producer="p", branch=0)
    header = msgpack.packb(["t", 0, 0, 2, "p", 0])  # as if `attempt` and `payload` had not been there
    payload = struct.pack("<BxxxI", FORMAT_VERSION, len(header)) + header
    assert decode(Kind.TASK, payload) == task


def test_a_field_of_newer_code_is_refused() -> None:
    header = msgpack.packb([1, 0.0, 0.0, "new"])
    payload = struct.pack("<BxxxI", FORMAT_VERSION, len(header)) + header
    with pytest.raises(FormatError, match="newer code"):
        decode(Kind.SERVED, payload)


@given(st.sampled_from(RECORD_KINDS), st.data())
def test_damaged_bytes_give_format_errors_or_records(kind: Kind, data: st.DataObject) -> None:
    payload = bytearray(encode(SAMPLES[kind]))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(payload[: data.draw(st.integers(0, len(payload)))])
    try:
        record = decode(kind, cut)
    except FormatError:
        return
    assert type(record) is type(SAMPLES[kind])


def test_what_cannot_be_kept_is_refused() -> None:
    task = SAMPLES[Kind.TASK]
    assert isinstance(task, Task)
    with pytest.raises(StoreError, match="Task cannot be kept"):
        encode(dataclasses.replace(task, position=2**70))
    episode = SAMPLES[Kind.EPISODE]
    assert isinstance(episode, Episode)
    action: Any = np.array([1j, 0j], dtype=np.complex64)
    with pytest.raises(StoreError, match="Episode cannot be kept: array of complex64"):
        encode(dataclasses.replace(episode, steps=(dataclasses.replace(episode.steps[0], action=action),)))
