"""Recovery: where the log ends, what is damaged, and what a crash left half-written.

First everything is read and nothing is changed (`examine`), then the log is put in order (`repair`).

    LSN  0 ───────────────── durable ───────── cut ──────────────►
         frames, rot            whole commits   tear: kept as .torn

`durable` is the largest LSN that the log is known to have synced: from the watermark file, and from the frames
themselves, since each says how far the log was synced when it was written. A bad frame below it is rot: it was whole
once. The first bad frame at or above it is a tear: one commit is written in any order, so what follows is not trusted.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from buffers.log.ending import END, read_end
from buffers.log.files import find_data_end, sync_folder, write_durably
from buffers.log.frames import FIRST_DIGEST, MORE, RawFrame
from buffers.log.lineage import Lineage, lineage_of
from buffers.log.segments import Gap, list_starts, name_segment, read_frame, read_schema, walk
from buffers.log.watermark import Watermark, read_boot_id, read_watermark
from contracts.errors import FormatError, RotError, StoreFullError, StoreIdentityError, is_disk_full

_MOST_KEPT_BYTES = 128 << 20  # of what was read


@dataclass(frozen=True)
class Recovery:
    """What opening a log found.

    The log goes on at `end_lsn`; `durable_lsn` is how far it was known to be synced. `num_frames` counts whole records
    below `end_lsn`, in the part that was read. `torn_bytes` of an unfinished commit were cut and kept in
    `torn_file`, beside the log.
    `rot`: (start, end) LSNs of damaged ranges. `uncertain_from`: after a power loss, the LSN of the one commit that may
    or may not have been acknowledged: its producers re-send; None where all is known.
    """

    end_lsn: int
    durable_lsn: int
    num_frames: int
    torn_bytes: int
    torn_file: str | None
    rot: tuple[tuple[int, int], ...]
    uncertain_from: int | None
    begin_lsn: int = 0  # where reading began


class _Point(NamedTuple):
    """A place where the log could go on."""

    lsn: int
    num_frames: int  # records below it
    digest: bytes  # sha256 of the last whole frame below it


class _Hole(NamedTuple):
    gap: Gap
    last: _Point  # just before it
    whole: _Point  # before it, where no append is cut in its middle


@dataclass
class Examination:
    """What `examine` found. `digest` is the hash that the next frame of a chained log carries."""

    starts: list[int]
    durable_lsn: int
    epoch: int  # the largest seen
    bound_lsn: int | None  # where an `end` cuts the log
    begin_lsn: int  # where reading began
    end_lsn: int = 0
    num_frames: int = 0
    digest: bytes = FIRST_DIGEST
    rot: list[tuple[int, int]] = field(default_factory=list)
    uncertain_from: int | None = None
    is_synced: bool = False  # for certain, all of it
    frames: list[RawFrame] | None = None  # all that were read; None where that is too much to keep


class _Walker:
    """Goes over all frames once and remembers the holes; what they mean is known only at the end."""

    def __init__(self, *, durable_lsn: int, epoch: int, first_lsn: int) -> None:
        self.durable_lsn, self.epoch, self.first_lsn = durable_lsn, epoch, first_lsn
        self.last = self.whole = _Point(first_lsn, 0, FIRST_DIGEST)
        self.holes: list[_Hole] = []
        self.broken: list[tuple[int, int]] = []  # frames whose successor carries another hash
        self.frames: list[RawFrame] | None = []
        self._before: tuple[int, int] | None = None  # where the frame before lies; None after a gap

    def take(self, item: RawFrame | Gap) -> None:
        if isinstance(item, Gap):
            self.holes.append(_Hole(item, self.last, self.whole))
            self.last = self.whole = self.last._replace(lsn=item.end)
            self._before = None
            return
        header = item.header
        synced = item.next_lsn if item.is_schema else header.durable_lsn  # a segment has no name before it is synced
        self.durable_lsn = max(self.durable_lsn, synced)
        self.epoch = max(self.epoch, header.epoch)
        if self._before is not None and item.previous != self.last.digest:
            self.broken.append(self._before)
        self.last = _Point(item.next_lsn, self.last.num_frames + (not item.is_schema), item.digest)
        self._before = (header.lsn, item.next_lsn)
        if not header.flags & MORE:
            self.whole = self.last
        if self.frames is not None:
            self.frames.append(item)
            if item.next_lsn - self.frames[0].header.lsn > _MOST_KEPT_BYTES:
                self.frames = None


def examine(
    folder: Path, *, uuid: UUID, log_name: str | None = None, chained: bool | None = None, known_lsn: int = 0
) -> Examination:
    """Read the log; change nothing. `log_name` and `chained`, where given, are what the segments must say.

    What lies below `known_lsn`, just past the start of a record, was durable and read before: it is not read again.

    Raises StoreIdentityError (no log here, or another one), FormatError (an unknown version).
    """
    starts = list_starts(folder) if folder.is_dir() else []
    if not starts:
        raise StoreIdentityError(f"{folder}: there is no log here")
    lineage = lineage_of(folder, uuid)
    starts, begin_lsn = _take_up(folder, starts, known_lsn=known_lsn, lineage=lineage)
    mark = read_watermark(folder)
    bound_lsn = read_end(folder) if mark is None else None
    if mark is not None and mark.uuid != uuid:
        mark = None
    for start_lsn in starts:  # identity and versions first, all of them
        schema = read_schema(name_segment(folder, start_lsn), start_lsn=start_lsn, uuid=lineage.at(start_lsn))
        if schema is None:
            continue
        if log_name is not None and schema.log_name != log_name:
            raise StoreIdentityError(f"{folder}: a segment of log {schema.log_name!r} lies in log {log_name!r}")
        if chained is not None and schema.chained != chained:
            raise FormatError(f"{folder}: the log was made with chained={schema.chained}, and opened with {chained}")
    durable_lsn = mark.durable_lsn if mark else bound_lsn or 0
    walker = _Walker(durable_lsn=durable_lsn, epoch=mark.epoch if mark else 0, first_lsn=begin_lsn)
    data_end_lsn = starts[0]
    for start_lsn, limit_lsn in _pair_limits(starts, bound_lsn):
        begin = max(start_lsn, begin_lsn)
        own = lineage.at(start_lsn)
        data_end_lsn = _walk_segment(walker, folder, start_lsn=start_lsn, begin=begin, limit_lsn=limit_lsn, uuid=own)
    return _judge(walker, starts=starts, data_end_lsn=data_end_lsn, mark=mark, bound_lsn=bound_lsn)


def _pair_limits(starts: list[int], bound_lsn: int | None) -> list[tuple[int, int | None]]:
    """Each segment's start, and where the next one begins; for the last the log's bound."""
    return list(zip(starts, [*starts[1:], bound_lsn], strict=True))


def _take_up(folder: Path, starts: list[int], *, known_lsn: int, lineage: Lineage) -> tuple[list[int], int]:
    """The segments to read, and the LSN to begin at: the record known last, for the chain of hashes goes on from it.

    Where there is none, it is damaged, or the segment's head is, everything is read.
    """
    lsn = known_lsn - 1
    first = bisect_right(starts, lsn) - 1
    if lsn <= 0 or first < 0 or lsn % 8:
        return starts, starts[0]
    path, uuid = name_segment(folder, starts[first]), lineage.at(starts[first])
    if read_schema(path, start_lsn=starts[first], uuid=uuid) is None:
        return starts, starts[0]
    fd = os.open(path, os.O_RDONLY)
    try:
        end = starts[first] + os.fstat(fd).st_size
        whole = read_frame(fd, lsn, start_lsn=starts[first], end=end, uuid=uuid) is not None
    finally:
        os.close(fd)
    return (starts[first:], lsn) if whole else (starts, starts[0])


def _walk_segment(
    walker: _Walker, folder: Path, *, start_lsn: int, begin: int, limit_lsn: int | None, uuid: UUID
) -> int:
    """Feed the walker; the LSN just past the segment's last byte that is not zero."""
    fd = os.open(name_segment(folder, start_lsn), os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # see find_data_end
        end = limit_lsn if limit_lsn is not None else start_lsn + os.fstat(fd).st_size
        for item in walk(fd, start_lsn=start_lsn, begin=begin, end=end, uuid=uuid):
            if isinstance(item, Gap) and item.end == end and limit_lsn is None:
                break  # the end of the log, torn or clean
            walker.take(item)
        data_end_lsn = start_lsn + find_data_end(fd, walker.last.lsn - start_lsn)
        return data_end_lsn if limit_lsn is None else min(data_end_lsn, limit_lsn)
    finally:
        os.close(fd)


def _judge(
    walker: _Walker, *, starts: list[int], data_end_lsn: int, mark: Watermark | None, bound_lsn: int | None
) -> Examination:
    """Tear or rot, now that the largest durable LSN is known."""
    durable = walker.durable_lsn
    found = Examination(
        starts,
        durable_lsn=durable,
        epoch=walker.epoch,
        bound_lsn=bound_lsn,
        begin_lsn=walker.first_lsn,
        frames=walker.frames,
    )
    end_gap = Gap(walker.last.lsn, max(durable, data_end_lsn))
    for gap, last, whole in [*walker.holes, _Hole(end_gap, walker.last, walker.whole)]:
        if gap.start < durable:
            found.rot.append((gap.start, min(gap.end, durable)))
        point = last if gap.start < durable else whole
        found.end_lsn, found.num_frames, found.digest = max(point.lsn, durable), point.num_frames, point.digest
        if gap.end > durable:
            break
    found.rot = sorted(found.rot + [pair for pair in walker.broken if pair[0] < found.end_lsn])
    exact = mark is not None and mark.boot_id == read_boot_id()
    if not exact and max(found.end_lsn, data_end_lsn) > durable:
        found.uncertain_from = durable
    found.is_synced = exact and mark is not None and found.end_lsn <= mark.durable_lsn
    return found


def refuse_rot(found: Examination, *, folder: Path) -> None:
    """Strict mode: RotError if anything is damaged."""
    if found.rot:
        raise RotError(
            f"{folder}: {len(found.rot)} damaged ranges below the durable LSN {found.durable_lsn}, the first at "
            f"LSN {found.rot[0][0]}; without store.strict they are set aside and the rest is read"
        )


def repair(folder: Path, found: Examination) -> Recovery:
    """Cut the tear (kept as .torn), seal every segment, remove half-made files, make what is left durable."""
    left = list(folder.glob(".*.tmp"))
    for path in left:
        path.unlink()
    torn_bytes, torn_file = 0, None
    for start_lsn, limit_lsn in _pair_limits(found.starts, found.bound_lsn):
        path = name_segment(folder, start_lsn)
        num_bytes = 0
        if limit_lsn is None or found.end_lsn < limit_lsn:
            begin = max(found.end_lsn, start_lsn)
            name, num_bytes = _keep_tear(path, start_lsn=start_lsn, begin=begin, limit_lsn=limit_lsn)
            torn_bytes, torn_file = torn_bytes + num_bytes, torn_file or name
        if found.end_lsn <= start_lsn:
            if path.stat().st_nlink == 1:
                _truncate(path, 0)  # a reader may have it open
            path.unlink()
            left.append(path)
        else:
            used_lsn = found.end_lsn if limit_lsn is None else min(limit_lsn, found.end_lsn)
            _truncate(path, used_lsn - start_lsn, must_sync=num_bytes > 0 or not found.is_synced)
    if left:
        sync_folder(folder)
    if found.bound_lsn is not None:  # it is cut there
        (folder / END).unlink()
        sync_folder(folder)
    return Recovery(
        end_lsn=found.end_lsn,
        durable_lsn=found.durable_lsn,
        num_frames=found.num_frames,
        torn_bytes=torn_bytes,
        torn_file=torn_file,
        rot=tuple(found.rot),
        uncertain_from=found.uncertain_from,
        begin_lsn=found.begin_lsn,
    )


def _keep_tear(path: Path, *, start_lsn: int, begin: int, limit_lsn: int | None) -> tuple[str | None, int]:
    """Copy what is not zero from `begin` on into a .torn file; its name, and how many bytes."""
    fd = os.open(path, os.O_RDONLY)
    try:
        end = start_lsn + find_data_end(fd, begin - start_lsn)
        num_bytes = (end if limit_lsn is None else min(end, limit_lsn)) - begin
        if num_bytes <= 0:
            return None, 0
        torn = path.with_name(f"{begin:016x}-{os.urandom(4).hex()}.torn")
        write_durably(torn, os.pread(fd, num_bytes, begin - start_lsn))
    except OSError as error:
        if is_disk_full(error):
            raise StoreFullError(f"{path}: no room to keep the torn bytes from LSN {begin}; nothing was cut") from error
        raise
    finally:
        os.close(fd)
    return torn.name, num_bytes


def _truncate(path: Path, size: int, *, must_sync: bool = True) -> None:
    """Cut the file. What a snapshot or its run may have behind, in a file that they share by hard link, is not cut off:
    a shorter copy takes its name. Not `must_sync`: what stays is durable, and zeros need not stay away."""
    fd = os.open(path, os.O_RDWR)
    try:
        found = os.fstat(fd)
        if found.st_nlink > 1 and find_data_end(fd, size) > size:
            with path.open("rb") as file:
                write_durably(path, file.read(size))
            return
        if found.st_size > size:
            os.ftruncate(fd, size)
        if must_sync:
            os.fsync(fd)
    finally:
        os.close(fd)
