"""Fuzzes the reader of Arrow messages: `.venv/bin/python -m tests.fuzz.arrow [SECONDS]`; 600 s unless told.

What libFuzzer finds new is added to tests/fuzz/corpus/arrow, which tests replay; an input that breaks the reader ends
the command and lies in the working directory. pyarrow's own code is not instrumented: inside it the search is blind.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from buffers.checks import examine
from contracts.errors import FormatError
from serving.columns import check_schema, read_batch, write_batch
from tests.unit.serving.episodes import describe

CORPUS = Path(__file__).parent / "corpus" / "arrow"
MAX_BYTES = 1 << 16


def try_input(data: bytes) -> None:
    """One input: it is refused, or what it holds can be checked, written, and read again as the same."""
    with suppress(FormatError):
        check_schema(data)
    try:
        episodes = read_batch(data)
    except FormatError:
        return
    for episode in episodes:
        examine(episode)
    again = read_batch(write_batch(episodes))
    assert [describe(episode) for episode in again] == [describe(episode) for episode in episodes]


def find_body(data: bytes) -> int:
    """Where the message's body begins: behind 8 bytes and the flatbuffer whose length the second four say."""
    return min(len(data), 8 + int.from_bytes(data[4:8], "little"))


def main(seconds: int) -> int:
    import atheris

    def mutate(data: bytes, max_size: int, seed: int) -> Any:
        """Every other time the flatbuffer stays as it is: few inputs pass its verifier otherwise."""
        start = find_body(data) if seed % 2 else 0
        return data[:start] + atheris.Mutate(data[start:], max(1, max_size - start))

    words = [sys.argv[0], str(CORPUS), f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}"]
    atheris.instrument_func(try_input)
    atheris.Setup(words, try_input, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 600))
