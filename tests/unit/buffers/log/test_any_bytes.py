"""Whatever bytes a segment holds, they are read as frames and gaps: `python -m tests.fuzz.frames` for longer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.frames import list_corpus, read_anything

CORPUS = list_corpus()


def test_the_corpus() -> None:
    assert sum(read_anything(data) for data in CORPUS) > len(CORPUS)


@given(pieces=st.lists(st.sampled_from(CORPUS) | st.binary(max_size=400), max_size=6))
def test_any_bytes(pieces: list[bytes]) -> None:
    read_anything(b"".join(pieces))


@given(mended=st.booleans(), data=st.data())
def test_a_segment_with_damage(mended: bool, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(CORPUS)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    read_anything(bytes((mended,)) + bytes(content[1:]))
