"""Changes bytes of a sealed segment without writing into it: a copy is changed, synced, and takes its name.

Snapshots share segments by hard link, and readers have them open: they go on seeing the bytes that they know.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from buffers.log.files import make_folder, sync_folder, write_all
from buffers.log.frames import MORE, Encoder, RawFrame


def patch(path: Path, patches: Mapping[int, bytes], *, keep: Path | None = None) -> None:
    """Put `patches` (offset → bytes) into the segment at `path`, whole or not at all.

    `keep`: what the file was stays under this name, which is durable before the new one takes over.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # recovery removes what a crash leaves
    try:
        shutil.copyfile(path, draft)
        fd = os.open(draft, os.O_RDWR)
        try:
            for offset, data in patches.items():
                write_all(fd, data, offset=offset)
            os.fsync(fd)
        finally:
            os.close(fd)
        if keep is not None:
            make_folder(keep.parent)
            keep.hardlink_to(path)
            sync_folder(keep.parent)
        draft.replace(path)
        sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def reframe(frame: RawFrame, payload: bytes, *, uuid: UUID, start_lsn: int) -> bytes:
    """The frame's bytes with another payload of the same length. Only in a log without a chain."""
    header = frame.header
    assert not frame.digest
    assert len(payload) == header.length
    encoder = Encoder(uuid=uuid, start_lsn=start_lsn, epoch=header.epoch, digest=None)
    pieces = encoder.encode(
        payload,
        kind=header.kind,
        lsn=header.lsn,
        durable_lsn=header.durable_lsn,
        more=bool(header.flags & MORE),
    )
    return b"".join(pieces)
