"""The watermark file: how far the log is durable, for readers now and for recovery after a kill.

The owner rewrites it in place before each durable acknowledgement and does not sync it: the page cache outlives the
process, so after `kill -9` it is exact; after a power loss it may be old, and the frames say the rest.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import google_crc32c

from buffers.log.files import sync_folder, write_all

_RECORD = struct.Struct("<8s16s16sQQQ")  # magic, store uuid, boot id, epoch, durable LSN, end LSN; then their CRC32C
_CRC = struct.Struct("<I")
_MAGIC = b"RATCHWM1"
_NAME = "watermark"


def read_boot_id() -> UUID:
    """Changes with each start of the kernel: the page cache of another boot is gone."""
    return UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip())


@dataclass(frozen=True)
class Watermark:
    """All bytes below `durable_lsn` are synced; all below `end_lsn` were written."""

    uuid: UUID
    boot_id: UUID
    epoch: int
    durable_lsn: int
    end_lsn: int


def read_watermark(folder: Path) -> Watermark | None:
    """What the file says, or None where there is none or its checksum fails."""
    try:
        data = (folder / _NAME).read_bytes()
    except FileNotFoundError:
        return None
    record = data[: _RECORD.size]
    if data[_RECORD.size :] != _CRC.pack(google_crc32c.value(record)) or not record.startswith(_MAGIC):
        return None
    _magic, uuid, boot_id, epoch, durable_lsn, end_lsn = _RECORD.unpack(record)
    return Watermark(UUID(bytes=uuid), UUID(bytes=boot_id), epoch, durable_lsn, end_lsn)


class WatermarkFile:
    """The owner's end of it."""

    def __init__(self, folder: Path, *, uuid: UUID, epoch: int) -> None:
        self._uuid, self._boot_id, self._epoch = uuid, read_boot_id(), epoch
        is_new = not (folder / _NAME).exists()
        self._fd = os.open(folder / _NAME, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            if is_new:
                sync_folder(folder)
        except BaseException:
            os.close(self._fd)
            raise

    def write(self, *, durable_lsn: int, end_lsn: int) -> None:
        fields = (self._uuid.bytes, self._boot_id.bytes, self._epoch, durable_lsn, end_lsn)
        record = _RECORD.pack(_MAGIC, *fields)
        write_all(self._fd, record + _CRC.pack(google_crc32c.value(record)), offset=0)

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)
