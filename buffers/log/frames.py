"""One frame of a log: its bytes on disk, and back.

    offset  0       4    8    16           24     28    32    34     35     36      38     40
            length  crc  lsn  durable_lsn  epoch  salt  kind  codec  flags  cipher  spare  key_id  [previous] payload 0…
            u32     u32  u64  u64          u32    u32   u16   u8     u8     u16     u16    u64     32 bytes

Little-endian. `length` counts the payload alone; zeros pad the frame to 8 bytes. `crc` is CRC32C of header (crc as 0),
previous, and payload. `previous`, in chained logs only, is the sha256 of the frame before (the same bytes as its crc,
but with the crc in place). LSN = byte position in the logical log. All bytes below `durable_lsn` were synced when the
frame was written. `salt` binds a frame to its store, segment, and epoch: bytes of an older life never pass for new.
`cipher` and `key_id` are room for encryption; 0 today.

A SCHEMA frame heads each segment. It keeps this layout for ever, since it says the version of the frames behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import NamedTuple
from uuid import UUID

import google_crc32c

from contracts.errors import FormatError, UserError

FORMAT_VERSION = 1
MAX_FRAME_BYTES = 64 << 20  # of payload
SCHEMA = 1
MUST_UNDERSTAND = 0x8000  # in kind: a frame of the log itself, which a reader may not skip. Records never carry it

MORE = 1  # flag: the next frame belongs to the same atomic append
CHAINED = 2  # flag: the previous frame's sha256 follows the header

_HEADER = struct.Struct("<IIQQIIHBBHHQ")
_CRC = struct.Struct("<I")
_NO_CRC = bytes(_CRC.size)
_PADDINGS = tuple(bytes(-length % 8) for length in range(8))  # by the payload's length; the rest is a multiple of 8
_SCHEMA_PAYLOAD = struct.Struct("<8sHHIQ16s")  # magic, version, chained, salt, start LSN, uuid; then the log's name
_MAGIC = b"RATCHLOG"
_DIGEST_BYTES = 32
FIRST_DIGEST = bytes(_DIGEST_BYTES)  # what the first frame of a chained log carries


class Header(NamedTuple):
    """The fields of a frame's first 48 bytes, in order."""

    length: int
    crc: int
    lsn: int
    durable_lsn: int
    epoch: int
    salt: int
    kind: int
    codec: int
    flags: int
    cipher: int
    spare: int
    key_id: int


@dataclass(frozen=True)
class Frame:
    """A record's bytes in the log, and where they are."""

    lsn: int
    next_lsn: int
    kind: int
    epoch: int
    payload: bytes


class RawFrame(NamedTuple):
    """A frame that passed its checksum, with what the log itself needs of it."""

    header: Header
    next_lsn: int
    previous: bytes  # sha256 of the frame before; empty in a log without a chain
    digest: bytes  # sha256 of this frame; empty in a log without a chain
    payload: bytes

    @property
    def is_schema(self) -> bool:
        return self.header.kind == SCHEMA | MUST_UNDERSTAND

    def to_frame(self) -> Frame:
        header = self.header
        return Frame(header.lsn, self.next_lsn, header.kind & ~MUST_UNDERSTAND, header.epoch, self.payload)


@dataclass(frozen=True)
class Schema:
    """What the frame at the head of a segment says."""

    uuid: UUID
    log_name: str
    start_lsn: int
    chained: bool


HEADER_BYTES = _HEADER.size
_unpack_header, _make_header = _HEADER.unpack_from, Header._make


def count_frame_bytes(payload_bytes: int, *, chained: bool) -> int:
    """Bytes of log that a payload takes, padding included."""
    return (HEADER_BYTES + _DIGEST_BYTES * chained + payload_bytes + 7) & ~7


@lru_cache(maxsize=4096)
def derive_salt(uuid: UUID, start_lsn: int, epoch: int) -> int:
    """The salt of every frame that `epoch` writes into the segment that starts at `start_lsn`."""
    seed = uuid.bytes + struct.pack("<QI", start_lsn, epoch)
    return int.from_bytes(blake2b(seed, digest_size=4).digest(), "little")


def check_records(frames: Sequence[tuple[int, bytes]]) -> None:
    """Refuse what can never be appended. UserError above 64 MiB; ValueError on a kind that is the log's own."""
    for kind, payload in frames:
        if not SCHEMA < kind < MUST_UNDERSTAND:
            raise ValueError(f"a record's kind is between 2 and {MUST_UNDERSTAND - 1}, not {kind}")
        if len(payload) > MAX_FRAME_BYTES:
            raise UserError(
                f"append a record of {len(payload)} bytes (kind {kind})",
                f"a frame holds at most {MAX_FRAME_BYTES} bytes",
                "keep large blobs as files, synced before the record that names them",
            )


class Encoder:
    """Writes frames of one segment and epoch; carries the hash chain from frame to frame.

    `digest` is the sha256 of the last frame, or None in a log without a chain.
    """

    def __init__(self, *, uuid: UUID, start_lsn: int, epoch: int, digest: bytes | None) -> None:
        self.start_lsn, self.epoch, self.digest = start_lsn, epoch, digest
        self._uuid = uuid
        self._salt = derive_salt(uuid, start_lsn, epoch)

    def encode(self, payload: bytes, *, kind: int, lsn: int, durable_lsn: int, more: bool = False) -> list[bytes]:
        """The frame's bytes, padded, in pieces."""
        digest, length = self.digest, len(payload)
        flags = MORE * more | CHAINED * (digest is not None)
        blank = _HEADER.pack(length, 0, lsn, durable_lsn, self.epoch, self._salt, kind, 0, flags, 0, 0, 0)
        crc, padding = google_crc32c.value(blank), _PADDINGS[length & 7]
        if digest is None:
            crc = google_crc32c.extend(crc, payload)
            return [blank[:4] + _CRC.pack(crc) + blank[8:], payload, padding]
        body = digest + payload
        frame = blank[:4] + _CRC.pack(google_crc32c.extend(crc, body)) + blank[8:] + body
        self.digest = sha256(frame).digest()
        return [frame, padding]

    def encode_schema(self, *, log_name: str) -> bytes:
        """The frame that heads the segment. Everything below it is durable: it is written after a sync."""
        chained = self.digest is not None
        fixed = (_MAGIC, FORMAT_VERSION, chained, self._salt, self.start_lsn, self._uuid.bytes)
        payload = _SCHEMA_PAYLOAD.pack(*fixed) + log_name.encode()
        lsn = self.start_lsn
        return b"".join(self.encode(payload, kind=SCHEMA | MUST_UNDERSTAND, lsn=lsn, durable_lsn=lsn))


def decode_header(data: bytes, offset: int = 0, *, lsn: int) -> Header | None:
    """The header at `lsn`, or None where the bytes cannot be one. Not yet verified by the checksum."""
    if len(data) - offset < HEADER_BYTES:
        return None
    header = _make_header(_unpack_header(data, offset))
    return header if header.lsn == lsn and header.length <= MAX_FRAME_BYTES else None


def decode(header: Header, data: bytes, offset: int = 0) -> RawFrame | None:
    """The frame whose bytes stand in `data` from `offset` on, or None where the checksum fails. Does not look at the
    salt.

    Raises FormatError on a whole frame that this code does not understand.
    """
    begin, end = offset + HEADER_BYTES, offset + count_unpadded_bytes(header)
    blank = b"".join((data[offset : offset + 4], _NO_CRC, data[offset + 8 : begin]))
    body = data[begin:end]
    if google_crc32c.extend(google_crc32c.value(blank), body) != header.crc:
        return None
    unknown = header.kind & MUST_UNDERSTAND and header.kind != SCHEMA | MUST_UNDERSTAND
    if unknown or header.codec or header.cipher or header.flags & ~(MORE | CHAINED):
        raise FormatError(
            f"the frame at LSN {header.lsn} has type {header.kind:#x}, codec {header.codec}, cipher {header.cipher}, "
            f"flags {header.flags:#x}; format version {FORMAT_VERSION} does not know them: read it with a newer Ratchet"
        )
    next_lsn = header.lsn + ((end - offset + 7) & ~7)
    if header.flags & CHAINED:
        digest = sha256(data[offset:end]).digest()
        return RawFrame(header, next_lsn, body[:_DIGEST_BYTES], digest, body[_DIGEST_BYTES:])
    return RawFrame(header, next_lsn, b"", b"", body)


def count_unpadded_bytes(header: Header) -> int:
    """Bytes of the frame before its padding."""
    return HEADER_BYTES + _DIGEST_BYTES * bool(header.flags & CHAINED) + header.length


def decode_schema(frame: RawFrame) -> Schema:
    """What a SCHEMA frame says. FormatError on a version that this code does not know."""
    try:
        magic, version, chained, _salt, start_lsn, uuid = _SCHEMA_PAYLOAD.unpack_from(frame.payload)
        name = frame.payload[_SCHEMA_PAYLOAD.size :].decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise FormatError(f"the head of the segment at LSN {frame.header.lsn} does not read: {error}") from error
    if magic != _MAGIC or version != FORMAT_VERSION:
        raise FormatError(
            f"the segment at LSN {frame.header.lsn} has format version {version}; "
            f"this code reads version {FORMAT_VERSION}: read it with a newer Ratchet"
        )
    return Schema(UUID(bytes=uuid), name, start_lsn, bool(chained))
