"""Any bytes as a segment of the log: `python -m tests.fuzz.frames --seconds 600`.

Atheris (libFuzzer) where it is installed, else hypothesis, draws the bytes, from the corpus beside this file on, and
keeps there what reached new code. The first byte says whether the frames in the rest get right positions, salts and
checksums first: else nothing would come past a checksum. What a reader may do with any bytes is in `read_anything`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import struct
import sys
import time
from hashlib import sha256
from pathlib import Path
from types import FunctionType
from uuid import UUID

import google_crc32c

from buffers.log.frames import (
    HEADER_BYTES,
    RawFrame,
    count_unpadded_bytes,
    decode,
    decode_header,
    decode_schema,
    derive_salt,
)
from buffers.log.segments import Gap, read_frame, walk
from contracts.errors import FormatError

CORPUS = Path(__file__).parent / "corpus" / "frames"
STORE = UUID("3f0f4f5e-9a5b-4b7e-8a53-1c2d3e4f5a6b")
START_LSN = 0  # as in the golden files, which the corpus began with
MOST_BYTES = 1 << 14


def mend(data: bytes) -> bytes:
    """The same bytes, taken as frames one behind the other, each made whole."""
    mended, begin = bytearray(data), 0
    while begin + HEADER_BYTES <= len(mended):
        room = len(mended) - begin - HEADER_BYTES
        length = min(struct.unpack_from("<I", mended, begin)[0] % 512, room)
        epoch = struct.unpack_from("<I", mended, begin + 24)[0] % 4
        chained = bool(mended[begin + 35] & 2) and length >= 32
        mended[begin + 35] = mended[begin + 35] & ~2 | 2 * chained
        struct.pack_into("<I", mended, begin, length - 32 * chained)
        struct.pack_into("<Q", mended, begin + 8, START_LSN + begin)
        struct.pack_into("<II", mended, begin + 24, epoch, derive_salt(STORE, START_LSN, epoch))
        end = begin + HEADER_BYTES + length
        blank = bytes(mended[begin : begin + 4]) + bytes(4) + bytes(mended[begin + 8 : end])
        struct.pack_into("<I", mended, begin + 4, google_crc32c.value(blank))
        begin = end + -end % 8
    return bytes(mended)


def read_anything(data: bytes) -> int:
    """Walk the bytes and read each frame again by its LSN; how many there were. AssertionError where a reader fails.

    Frames and gaps cover the segment without a hole and without an overlap; a frame's checksum, position and salt are
    right, and reading it alone gives the same; the only error there is is FormatError.
    """
    content = mend(data[1:]) if data and data[0] & 1 else data[1:]
    end, at, num_frames = START_LSN + len(content), START_LSN, 0
    fd = os.memfd_create("segment")
    try:
        os.write(fd, content)
        for item in walk(fd, start_lsn=START_LSN, begin=START_LSN, end=end, uuid=STORE):
            if isinstance(item, Gap):
                assert item.start == at < item.end <= end, item
                at = item.end
                continue
            assert item.header.lsn == at
            check_frame(item, content[at - START_LSN :])
            assert read_frame(fd, at, start_lsn=START_LSN, end=end, uuid=STORE) == item
            at, num_frames = item.next_lsn, num_frames + 1
        assert at >= end  # the padding of the last frame may be missing
    except FormatError:
        pass
    finally:
        os.close(fd)
    return num_frames


def check_frame(frame: RawFrame, data: bytes) -> None:
    header = decode_header(data, lsn=frame.header.lsn)
    assert header is not None
    assert header == frame.header
    whole = data[: count_unpadded_bytes(header)]
    assert decode(header, whole) == frame
    blank = whole[:4] + bytes(4) + whole[8:]
    assert google_crc32c.value(blank) == header.crc
    assert header.salt == derive_salt(STORE, START_LSN, header.epoch)
    assert frame.digest in (b"", sha256(whole).digest())
    if frame.is_schema:
        decode_schema(frame)


def list_corpus() -> list[bytes]:
    return [path.read_bytes() for path in sorted(CORPUS.iterdir())]


def fuzz_with_atheris(seconds: float) -> None:
    """Does not return: libFuzzer ends the process, with another code than 0 where `read_anything` raised."""
    import atheris

    atheris.instrument_func(read_anything)
    for module in ("buffers.log.frames", "buffers.log.segments", "buffers.log.files"):
        for name, member in list(vars(sys.modules[module]).items()):
            if isinstance(member, FunctionType) and member.__module__ == module:
                setattr(sys.modules[module], name, atheris.instrument_func(member))
    arguments = [sys.argv[0], f"-max_total_time={seconds:.0f}", f"-max_len={MOST_BYTES}", str(CORPUS)]
    atheris.Setup(arguments, read_anything)
    atheris.Fuzz()


def fuzz_with_hypothesis(seconds: float) -> None:
    from hypothesis import HealthCheck, given, seed, settings
    from hypothesis import strategies as st

    corpus, end_s, rounds = list_corpus(), time.monotonic() + seconds, 0
    pieces = st.lists(st.sampled_from(corpus) | st.binary(max_size=400), max_size=6).map(b"".join)
    while time.monotonic() < end_s:

        @seed(rounds)
        @settings(max_examples=1000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(data=pieces)
        def run(data: bytes) -> None:
            read_anything(data[:MOST_BYTES])

        run()
        rounds += 1
    print(f"{rounds * 1000} inputs by hypothesis; atheris is not installed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        fuzz_with_hypothesis(options.seconds)
    else:
        fuzz_with_atheris(options.seconds)


if __name__ == "__main__":
    main()
