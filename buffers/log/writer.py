"""The one writer of a log: group commit over all callers, by one thread.

    submit ─► queue ─► gather (1 MiB, 2 ms, or queue drained) ─► one write ─► ack `os`
                                                                   └► fdatasync ─► watermark ─► ack `durable`

What happens when something fails:

    no room for a segment, or a refused write  StoreFullError to those callers, nothing of theirs stays; serving goes on
    fsync, or any other I/O error              StoreStoppedError to everyone, for good: what is on disk is unknown
    a newer owner                              FencedError to everyone, for good
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from buffers.log.files import in_store_errors, make_folder
from buffers.log.frames import FIRST_DIGEST, Encoder, Frame, RawFrame, check_records, count_frame_bytes
from buffers.log.recovery import Recovery, examine, refuse_rot, repair
from buffers.log.segments import SegmentFile, list_starts
from buffers.log.watermark import WatermarkFile
from contracts.errors import (
    FencedError,
    StoreError,
    StoreFullError,
    StoreIdentityError,
    StoreStoppedError,
    is_disk_full,
)

_SCHEMA_ROOM_BYTES = 1024  # more than a SCHEMA frame takes
_RECENT, _QUANTILES = 1_000, {"commit_p50_s": 0.5, "commit_p99_s": 0.99}
_OS_SYNC_LAG_S = 0.05  # what only `os` callers wrote is synced, and so becomes visible, this late at most


@dataclass
class _Request:
    """One atomic append; or, with `seal`, the wish to end the active segment."""

    frames: Sequence[tuple[int, bytes]]
    durable: bool
    num_bytes: int  # in the log
    seal: bool = False
    future: Future[list[int]] = field(default_factory=Future)
    lsns: list[int] = field(default_factory=list)


@dataclass
class _Stats:
    commits: int = 0
    commit_s_total: float = 0.0
    last_sync_s: float = 0.0
    sync_s_total: float = 0.0
    frames: int = 0
    bytes: int = 0
    recent_s: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))  # of the newest commits

    def summarise(self) -> dict[str, float]:
        recent = sorted(self.recent_s.copy())
        at = {name: recent[int(share * (len(recent) - 1))] if recent else 0.0 for name, share in _QUANTILES.items()}
        return {name: float(value) for name, value in vars(self).items() if name != "recent_s"} | at


class LogWriter:
    """Appends to the log in `folder`. Made by `open`; every method may be called from any thread."""

    recovery: Recovery

    def __init__(
        self,
        folder: Path,
        *,
        store_uuid: UUID,
        epoch: int,
        recovery: Recovery,
        digest: bytes | None,
        segment_bytes: int,
        commit_bytes: int,
        commit_wait_s: float,
        reserve_bytes: int,
        still_owner: Callable[[], bool],
    ) -> None:
        self.recovery = recovery
        self._folder, self._uuid, self._epoch = folder, store_uuid, epoch
        self._segment_bytes, self._reserve_bytes = segment_bytes, reserve_bytes
        self._commit_bytes, self._commit_wait_s = commit_bytes, commit_wait_s
        self._still_owner = still_owner
        self._end_lsn = self._durable_lsn = recovery.end_lsn
        self._unsynced_since: float | None = None
        self._digest = digest
        self._recovered: list[RawFrame] | None = None
        self._active: SegmentFile | None = None
        self._encoder: Encoder | None = None
        self._watermark = WatermarkFile(folder, uuid=store_uuid, epoch=epoch)
        self._stats = _Stats()
        self._queue: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._failure: StoreError | None = None
        self._thread = threading.Thread(target=self._serve, name=f"log-{folder.name}", daemon=True)

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        store_uuid: UUID,
        epoch: int,
        create: bool = False,
        segment_bytes: int = 128 << 20,
        chained: bool = False,
        commit_bytes: int = 1 << 20,
        commit_wait_s: float = 0.002,
        reserve_bytes: int = 0,
        strict: bool = False,
        known_lsn: int = 0,
        still_owner: Callable[[], bool] = lambda: True,
    ) -> LogWriter:
        """Recover the log and go on writing it in a new segment; with `create`, make an empty one.

        What lies below `known_lsn`, just past the start of a record, was read before and is not again, unless `strict`.
        `reserve_bytes` of the file system are never taken by this log. `still_owner` is asked before each
        acknowledgement. The folder's name is the log's name.

        Raises StoreIdentityError (no log here, or another one; `create`: there is one already), FormatError,
        FencedError (an owner with a larger epoch was here), RotError (damage, if `strict`), StoreFullError (`create`,
        or no room to keep a tear), StoreStoppedError (the disk fails). A log whose disk is full opens: it reads, and
        refuses appends until there is room.
        """
        with in_store_errors(f"{folder} cannot be opened"):
            frames: list[RawFrame] | None = None
            if create:
                recovery, digest = _create(folder), FIRST_DIGEST
            else:
                known_lsn = 0 if strict else known_lsn
                found = examine(folder, uuid=store_uuid, log_name=folder.name, chained=chained, known_lsn=known_lsn)
                if found.epoch > epoch:
                    raise FencedError(f"{folder}: epoch {epoch} is over, an owner of epoch {found.epoch} wrote here")
                if strict:
                    refuse_rot(found, folder=folder)
                recovery, digest, frames = repair(folder, found), found.digest, found.frames
            writer = cls(
                folder,
                store_uuid=store_uuid,
                epoch=epoch,
                recovery=recovery,
                digest=digest if chained else None,
                segment_bytes=segment_bytes,
                commit_bytes=commit_bytes,
                commit_wait_s=commit_wait_s,
                reserve_bytes=reserve_bytes,
                still_owner=still_owner,
            )
            writer._recovered = None if chained else frames
            writer._start(must_have_room=create)
        return writer

    def append(self, frames: Sequence[tuple[int, bytes]], *, durable: bool = True) -> list[int]:
        """Append (kind, payload) records, all or none, and wait for the acknowledgement; their LSNs.

        Raises StoreFullError, FencedError, StoreStoppedError; UserError on a record above 64 MiB.
        """
        return self.submit(frames, durable=durable).result()

    def submit(self, frames: Sequence[tuple[int, bytes]], *, durable: bool = True) -> Future[list[int]]:
        """`append` without the wait. Futures complete in the order of submission within an ack level."""
        check_records(frames)
        chained = self._digest is not None
        num_bytes = sum(count_frame_bytes(len(payload), chained=chained) for _, payload in frames)
        return self._enqueue(_Request(frames, durable, num_bytes))

    def take_recovered(self) -> list[Frame] | None:
        """The records that recovery read, in order, to be had once; None where they were too many to keep, or the log
        has a chain."""
        frames, self._recovered = self._recovered, None
        if frames is None:
            return None
        end_lsn = self.recovery.end_lsn
        return [frame.to_frame() for frame in frames if not frame.is_schema and frame.header.lsn < end_lsn]

    def sync(self) -> int:
        """Make everything appended so far durable; the new watermark."""
        self.append(())
        return self._durable_lsn

    def rotate(self) -> None:
        """Seal the active segment: all frames so far lie in files that never change again."""
        self._enqueue(_Request((), durable=True, num_bytes=0, seal=True)).result()

    def close(self) -> None:
        """Commit what is queued, seal, and stop. A second call does nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def end_lsn(self) -> int:
        """Where the next frame goes."""
        return self._end_lsn

    @property
    def durable_lsn(self) -> int:
        """All bytes below it survive a power loss."""
        return self._durable_lsn

    def stats(self) -> dict[str, float]:
        """Since the log was opened: commits, frames, bytes, and commit_s_total, sync_s_total, last_sync_s (s); of the
        newest commits, from the first request taken to its acknowledgement, commit_p50_s and commit_p99_s."""
        return self._stats.summarise()

    # ------------------------------------------------------------------------------------- the writer's thread

    def _start(self, *, must_have_room: bool) -> None:
        try:
            try:
                self._active = self._create_segment(0)
            except StoreFullError:
                if must_have_room:
                    raise
            self._watermark.write(durable_lsn=self._durable_lsn, end_lsn=self._end_lsn)
            self._watermark.sync()
        except BaseException:
            self._close_files()
            raise
        self._thread.start()

    def _close_files(self) -> None:
        if self._active is not None:
            self._active.close()
        self._watermark.close()

    def _enqueue(self, request: _Request) -> Future[list[int]]:
        with self._changed:
            if self._failure is not None:
                raise _again(self._failure)
            if self._closing:
                raise StoreStoppedError(f"{self._folder}: the log was closed")
            request.future.set_running_or_notify_cancel()  # from here on it cannot be taken back
            self._queue.append(request)
            self._changed.notify()
        return request.future

    def _serve(self) -> None:
        try:
            while (request := self._take()) is not None:
                self._handle(request)
            self._seal()
            self._watermark.sync()
        except StoreError as error:
            self._stop(error)
        except Exception as error:  # noqa: BLE001  the border of the thread: whatever it was, nobody may wait for ever
            self._stop(StoreStoppedError(f"{self._folder}: the log stopped for good: {error!r}"))
        finally:
            self._close_files()

    def _stop(self, error: StoreError) -> None:
        with self._changed:
            self._failure = error
            waiting = list(self._queue)
            self._queue.clear()
        for request in waiting:
            request.future.set_exception(_again(error))

    def _take(self) -> _Request | None:
        """The next request; an empty one when unsynced bytes have waited long enough; None when closed and drained."""
        with self._changed:
            while not self._queue:
                if self._closing:
                    return None
                if self._unsynced_since is None:
                    self._changed.wait()
                elif (left_s := self._unsynced_since + _OS_SYNC_LAG_S - time.monotonic()) > 0:
                    self._changed.wait(left_s)
                else:
                    return _Request((), durable=True, num_bytes=0)
            return self._queue.popleft()

    def _handle(self, request: _Request) -> None:
        """Serve `request`, and whatever of the queue goes into the same commit."""
        group = [request]
        try:
            if request.seal:
                self._seal()
                self._acknowledge(group)
                return
            if request.num_bytes and not self._has_room(request.num_bytes):
                self._replace_segment(request.num_bytes)
            self._commit(group)
        except StoreFullError as error:
            self._refuse(group, error)
        except FencedError as error:
            self._refuse(group, error)
            raise
        except Exception as error:
            stopped = StoreStoppedError(f"{self._folder}: the log stopped for good: {error!r}")
            self._refuse(group, stopped)
            raise stopped from error

    def _commit(self, group: list[_Request]) -> None:
        """Encode `group[0]` and what else is queued and fits, appending it to `group`; write, sync, acknowledge."""
        began = time.monotonic()
        pieces, num_bytes, num_frames, digest = [], 0, 0, self._digest
        request: _Request | None = group[0]
        while request is not None:
            pieces += self._encode(request, lsn=self._end_lsn + num_bytes)
            num_bytes, num_frames = num_bytes + request.num_bytes, num_frames + len(request.frames)
            late = num_bytes >= self._commit_bytes or time.monotonic() - began >= self._commit_wait_s
            request = None if late else self._take_fitting(num_bytes)
            if request is not None:
                group.append(request)
        if pieces:
            self._write(pieces, num_bytes=num_bytes, digest=digest)
            if not all(request.durable for request in group):
                self._check_owner()
                self._acknowledge([request for request in group if not request.durable])
        waited_s = 0.0 if self._unsynced_since is None else time.monotonic() - self._unsynced_since
        if waited_s >= _OS_SYNC_LAG_S or any(request.durable for request in group):
            self._sync()
            self._acknowledge([request for request in group if request.durable])
        stats, took_s = self._stats, time.monotonic() - began
        stats.commits, stats.commit_s_total = stats.commits + 1, stats.commit_s_total + took_s
        stats.recent_s.append(took_s)
        stats.frames, stats.bytes = stats.frames + num_frames, stats.bytes + num_bytes

    def _take_fitting(self, num_bytes: int) -> _Request | None:
        with self._changed:
            if not self._queue or self._queue[0].seal:
                return None
            return self._queue.popleft() if self._has_room(num_bytes + self._queue[0].num_bytes) else None

    def _has_room(self, num_bytes: int) -> bool:
        return self._active is not None and self._end_lsn + num_bytes <= self._active.limit_lsn

    def _encode(self, request: _Request, *, lsn: int) -> list[bytes]:
        if not request.frames:
            return []
        assert self._encoder is not None
        encode, durable_lsn, num_left = self._encoder.encode, self._durable_lsn, len(request.frames)
        pieces: list[bytes] = []
        for kind, payload in request.frames:
            num_left -= 1
            frame = encode(payload, kind=kind, lsn=lsn, durable_lsn=durable_lsn, more=num_left > 0)
            request.lsns.append(lsn)
            pieces += frame
            lsn += sum(map(len, frame))
        self._digest = self._encoder.digest
        return pieces

    def _write(self, pieces: Sequence[bytes], *, num_bytes: int, digest: bytes | None) -> None:
        """Write at the end of the log. On a full disk take it back, with the chain's `digest` before it."""
        assert self._active is not None
        if self._unsynced_since is None:
            self._unsynced_since = time.monotonic()
        try:
            self._active.write(pieces, lsn=self._end_lsn)
        except OSError as error:
            if not is_disk_full(error):
                raise
            self._digest = digest
            self._seal()  # cuts what was half-written; the next append starts a segment, if there is room
            raise StoreFullError(f"{self._folder}: no room for {num_bytes} bytes: {error.strerror}") from error
        self._end_lsn += num_bytes

    def _sync(self) -> None:
        """Everything written is durable, and the watermark says so. FencedError if it is not ours any more."""
        if self._unsynced_since is not None and self._active is not None:
            began = time.monotonic()
            self._active.sync()
            self._stats.last_sync_s = took_s = time.monotonic() - began
            self._stats.sync_s_total += took_s
        self._check_owner()
        self._unsynced_since = None
        self._durable_lsn = self._end_lsn
        self._watermark.write(durable_lsn=self._durable_lsn, end_lsn=self._end_lsn)

    def _check_owner(self) -> None:
        if not self._still_owner():
            raise FencedError(f"{self._folder}: epoch {self._epoch} is over, a newer owner took the store")

    def _seal(self) -> None:
        if self._active is None:
            return
        self._active.cut(self._end_lsn)
        self._sync()
        self._active.close()
        self._active = self._encoder = None

    def _replace_segment(self, num_bytes: int) -> None:
        """A segment with room for `num_bytes`; the old one goes on if there is no room for it."""
        self._sync()
        old, end_lsn = self._active, self._end_lsn
        new = self._create_segment(num_bytes)
        if old is not None:
            old.cut(end_lsn)
            old.close()
        self._active = new

    def _create_segment(self, num_bytes: int) -> SegmentFile:
        """A new segment at the end of the log. All that lies below must be synced."""
        encoder = Encoder(uuid=self._uuid, start_lsn=self._end_lsn, epoch=self._epoch, digest=self._digest)
        schema = encoder.encode_schema(log_name=self._folder.name)
        segment = SegmentFile.create(
            self._folder,
            start_lsn=self._end_lsn,
            size=max(self._segment_bytes, num_bytes + _SCHEMA_ROOM_BYTES),
            schema=schema,
            reserve_bytes=self._reserve_bytes,
        )
        self._encoder, self._digest = encoder, encoder.digest
        self._end_lsn += len(schema)
        self._durable_lsn = self._end_lsn
        return segment

    def _acknowledge(self, group: list[_Request]) -> None:
        for request in group:
            request.future.set_result(request.lsns)

    def _refuse(self, group: list[_Request], error: StoreError) -> None:
        for request in group:
            if not request.future.done():
                request.future.set_exception(_again(error))


def _create(folder: Path) -> Recovery:
    """An empty log folder. StoreIdentityError if it holds a log already."""
    make_folder(folder)
    if list_starts(folder):
        raise StoreIdentityError(f"{folder} already holds a log")
    return Recovery(end_lsn=0, durable_lsn=0, num_frames=0, torn_bytes=0, torn_file=None, rot=(), uncertain_from=None)


def _again(error: StoreError) -> StoreError:
    """The same error for another caller: one exception object must not be raised in two threads."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy
