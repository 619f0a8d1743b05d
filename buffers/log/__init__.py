"""An append-only log of bytes: frames, segments, group commit, recovery, and the claim of its one owner."""

from buffers.log.frames import MAX_FRAME_BYTES, SCHEMA, Frame
from buffers.log.identity import Claim, claim, create_store, read_identity
from buffers.log.reader import LogReader, verify_chain
from buffers.log.recovery import Recovery
from buffers.log.segments import Segment
from buffers.log.writer import LogWriter

__all__ = [
    "MAX_FRAME_BYTES",
    "SCHEMA",
    "Claim",
    "Frame",
    "LogReader",
    "LogWriter",
    "Recovery",
    "Segment",
    "claim",
    "create_store",
    "read_identity",
    "verify_chain",
]
