"""What the tests of the log share: opening one, reading it back, and damaging its bytes on purpose."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from uuid import UUID, uuid4

import google_crc32c

from buffers.log import LogReader, LogWriter

STORE = UUID("3f0f4f5e-9a5b-4b7e-8a53-1c2d3e4f5a6b")
ROOT = Path(__file__).parents[4]
SMALL_SEGMENT = 16 << 10

Record = tuple[int, bytes]


def open_log(
    folder: Path, *, epoch: int = 1, create: bool = False, chained: bool = False, strict: bool = False
) -> LogWriter:
    """A writer with segments so small that tests cross their borders."""
    return LogWriter.open(
        folder,
        store_uuid=STORE,
        epoch=epoch,
        create=create,
        chained=chained,
        strict=strict,
        segment_bytes=SMALL_SEGMENT,
    )


def write_log(folder: Path, batches: list[list[Record]], *, chained: bool = False) -> list[list[int]]:
    """A closed log that holds `batches`; their LSNs."""
    writer = open_log(folder, create=True, chained=chained)
    lsns = [writer.append(batch) for batch in batches]
    writer.close()
    return lsns


def read_records(folder: Path) -> list[tuple[int, int, bytes]]:
    """(LSN, kind, payload) of every record."""
    return [(frame.lsn, frame.kind, bytes(frame.payload)) for frame in LogReader(folder, store_uuid=STORE).scan()]


def find_path(folder: Path, lsn: int) -> tuple[Path, int]:
    """The segment file that holds `lsn`, and the offset in it."""
    starts = sorted(int(path.stem, 16) for path in folder.glob("*.seg"))
    start = max(start for start in starts if start <= lsn)
    return folder / f"{start:016x}.seg", lsn - start


def flip_bit(folder: Path, lsn: int, *, bit: int = 0) -> None:
    """Damage one bit of the byte at `lsn`, as a bad disk would."""
    path, offset = find_path(folder, lsn)
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def patch_frame(folder: Path, lsn: int, *, offset: int, data: bytes) -> None:
    """Write `data` into the frame at `lsn`, `offset` bytes after its start, and make its checksum right again."""
    path, start = find_path(folder, lsn)
    content = bytearray(path.read_bytes())
    content[start + offset : start + offset + len(data)] = data
    length, flags = struct.unpack_from("<I", content, start)[0], content[start + 35]
    end = start + 48 + 32 * bool(flags & 2) + length
    blank = bytes(content[start : start + 4]) + bytes(4) + bytes(content[start + 8 : end])
    struct.pack_into("<I", content, start + 4, google_crc32c.value(blank))
    path.write_bytes(content)


def boot_again(watermark: bytes) -> bytes:
    """The watermark file as another boot of the machine finds it."""
    record = watermark[:24] + uuid4().bytes + watermark[40:-4]
    return record + int(google_crc32c.value(record)).to_bytes(4, "little")


def start_child(role: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own that runs a role of children.py; its output is a pipe."""
    command = [sys.executable, "-m", "tests.unit.buffers.log.children", role, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
