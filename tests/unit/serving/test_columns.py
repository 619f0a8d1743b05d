"""Episodes as Arrow columns: nothing is lost on the way, and nothing is taken that is not what it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import FormatError
from contracts.records import Episode
from serving.columns import SCHEMA, SCHEMA_BYTES, check_schema, count_bytes, read_batch, to_batch, write_batch
from tests.unit.buffers.samples import EPISODE, STRETCH
from tests.unit.serving.episodes import EPISODES, describe
from tests.unit.serving.messages import compress, rewrite

PLAIN = dataclasses.replace(EPISODE, steps=(EPISODE.steps[0], STRETCH))


@given(st.lists(EPISODES, max_size=2))
def test_episodes_come_back_as_they_were(episodes: list[Episode]) -> None:
    assert [describe(episode) for episode in read_batch(write_batch(episodes))] == [
        describe(episode) for episode in episodes
    ]


def test_every_field_of_an_episode_is_a_column() -> None:
    assert {field.name for field in dataclasses.fields(Episode)} == set(SCHEMA.names)


def test_schema_and_messages_in_a_row_are_an_arrow_stream() -> None:
    stream = SCHEMA_BYTES + write_batch([PLAIN]) + write_batch([PLAIN, PLAIN])
    table = pa.ipc.open_stream(stream).read_all()
    assert table.num_rows == 3
    assert table.column("spans").to_pylist()[0] == [{"start": 0, "version": 4}, {"start": 2, "version": 5}]
    first = table.column("steps").to_pylist()[0][0]
    assert np.frombuffer(first["action"]["values"], first["action"]["dtype"]).tolist() == [8, 2]


def test_what_is_read_is_a_view_of_the_message() -> None:
    (episode,) = read_batch(write_batch([PLAIN]))
    assert not episode.steps[0].action.flags.writeable
    assert episode.steps[1].observation.shape == (3, 2)


def test_the_estimate_of_a_length_is_near_it() -> None:
    large = dataclasses.replace(STRETCH, observation=np.zeros((1001, 40), dtype=np.float32))
    episode = dataclasses.replace(PLAIN, steps=(large,))
    assert 0.9 < count_bytes(episode) * 50 / len(write_batch([episode] * 50)) < 1.2


def test_the_schema_is_the_schema() -> None:
    check_schema(SCHEMA_BYTES)


def _without(name: str) -> pa.Schema:
    return SCHEMA.remove(SCHEMA.get_field_index(name))


def _with(name: str, kind: pa.DataType) -> pa.Schema:
    return SCHEMA.set(SCHEMA.get_field_index(name), pa.field(name, kind))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (SCHEMA.with_metadata({}), "version none"),
        (SCHEMA.with_metadata({"ratchet.format_version": "2"}), "version 2; this code reads 1"),
        (_without("seq"), "column seq is missing"),
        (_with("member", pa.string()), "column member is pyarrow.Field<member: string>"),
        (_with("episode_id", pa.dictionary(pa.int8(), pa.string())), "column episode_id"),
        (SCHEMA.append(pa.field("more", pa.int8())), "the columns are"),
        (pa.schema(list(SCHEMA)[::-1], metadata=SCHEMA.metadata), "the columns are"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_schema_is_refused(schema: pa.Schema, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        check_schema(schema.serialize().to_pybytes())


@pytest.mark.parametrize("data", [b"", b"\x00" * 64, b"schema", SCHEMA_BYTES[:-9]])
def test_bytes_that_are_no_schema_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        check_schema(data)


Change = Callable[[Any], Any]


def _array(**changes: Any) -> Change:
    """Change the observation of the first step."""

    def change(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
        first = {**steps[0], "observation": {**steps[0]["observation"], **changes}}
        return [first, *steps[1:]]

    return change


BAD: dict[str, tuple[str, Change, str]] = {
    "no id": ("episode_id", lambda _: None, "episode_id is null"),
    "no member": ("member", lambda _: None, "member is null"),
    "no steps": ("steps", lambda _: None, "steps is null"),
    "a step that is none": ("steps", lambda steps: [None, *steps], "null"),
    "no action": ("steps", lambda steps: [{**steps[0], "action": None}], "action is null"),
    "no version": ("spans", lambda spans: [{**spans[0], "version": None}], "version is null"),
    "a part without a value": ("reward_parts", lambda _: [("length", None)], "value is null"),
    "a purpose that is none": ("purpose", lambda _: "fun", "'fun' is not a valid Purpose"),
    "a stop reason that is none": ("stop_reason", lambda _: "bored", "'bored' is not a valid StopReason"),
    "an end that is none": ("steps", lambda steps: [{**steps[0], "end": "bored"}], "not a valid StopReason"),
    "objects": ("steps", _array(dtype="object"), "an array of 'object'"),
    "a type of one's own": ("steps", _array(dtype="V8"), "an array of 'V8'"),
    "a shape that is too large": ("steps", _array(shape=[2**40, 2**40]), "12 bytes for an array"),
    "a shape that overflows": ("steps", _array(shape=[2**62, 4, 3]), "12 bytes for an array"),
    "a shape below zero": ("steps", _array(shape=[-1, -3]), "shape"),
    "many dimensions": ("steps", _array(shape=[1] * 40 + [3]), "shape"),
    "too few values": ("steps", _array(values=b"\0" * 8), "8 bytes for an array of int32"),
    "a dimension that is none": ("steps", _array(shape=[None]), "null"),
}


@pytest.mark.parametrize(("column", "change", "reason"), BAD.values(), ids=BAD.keys())
def test_a_row_that_is_no_episode_is_refused(column: str, change: Change, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        read_batch(rewrite(PLAIN, column, change))


def test_a_null_that_is_not_counted_is_no_null() -> None:
    """Where a message says that there is none, its mask is not looked at: what is read is a number, or refused."""
    data = rewrite(PLAIN, "member", lambda _: None)
    one_null = (1).to_bytes(8, "little") * 2  # a node: one row, one null
    places = [place for place in range(len(data)) if data.startswith(one_null, place)]
    assert places
    for place in places:
        try:
            (episode,) = read_batch(data[: place + 8] + bytes(8) + data[place + 16 :])
        except FormatError:
            continue
        assert isinstance(episode.member, int)


def test_the_messages_made_by_hand_are_good_where_nothing_is_changed() -> None:
    (episode,) = read_batch(rewrite(PLAIN, "steps", lambda steps: steps))
    assert describe(episode) == describe(PLAIN)


def test_a_compressed_message_is_refused() -> None:
    with pytest.raises(FormatError, match="compressed"):
        read_batch(compress(to_batch([PLAIN])))


def test_a_message_that_is_no_batch_is_refused() -> None:
    with pytest.raises(FormatError, match="no record batch"):
        read_batch(SCHEMA_BYTES)


def test_a_message_that_is_cut_anywhere_is_refused() -> None:
    data = write_batch([PLAIN])
    for length in range(0, len(data) - 8, 7):
        with pytest.raises(FormatError):
            read_batch(data[:length])


def test_a_type_that_does_not_travel_is_refused_before_it_is_sent() -> None:
    odd: Any = np.array(["a"])
    step = dataclasses.replace(EPISODE.steps[0], observation=odd)
    with pytest.raises(FormatError, match="arrays of str"):
        write_batch([dataclasses.replace(EPISODE, steps=(step,))])
