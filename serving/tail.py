"""The server's side of one reader that follows a log: records from an LSN on, as its credit allows.

It reads the log's files, sealed segments or the open one, up to the durable watermark. It holds no queue, no lock and
no open file between two responses, so a reader that stalls costs the writers nothing and this process one thread. One
that comes back after its place was trimmed is told so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from threading import Event, Lock, Thread

import grpc

from buffers.codec import decode
from buffers.log.reader import LogReader
from contracts.errors import StoreError, UserError
from contracts.records import Episode, Kind
from serving.columns import SCHEMA_BYTES, write_batch
from serving.meter import Meter
from serving.v1 import store_pb2 as pb

CHUNK_BYTES = 512 << 10  # of payload in one response, but for a record that is longer by itself
CLOSING_S = 0.5  # until a stream without credit sees that the server closes
POLL_S = 0.02  # between two looks at the watermark of a log in which nothing happens


class TailStream:
    """One call of Tail. `run` is the call's own thread; a second one takes the client's credit in."""

    def __init__(
        self, logs: Mapping[int, LogReader], requests: Iterator[pb.TailRequest], *, meter: Meter, stopping: Event
    ) -> None:
        self._logs, self._requests, self._meter, self._stopping = logs, requests, meter, stopping
        self._lock = Lock()
        self._left_bytes = 0
        self._granted, self._ended = Event(), Event()

    def run(self) -> Iterator[pb.TailResponse]:
        """Responses, until the client or the server goes. Raises UserError, StoreError (trimmed)."""
        start = self._open()
        reader, kinds, lsn = self._logs[start.log], frozenset(start.kinds), start.lsn
        Thread(target=self._take, name="tail stream", daemon=True).start()
        schema = SCHEMA_BYTES
        while self._may_go_on():
            end = reader.watermark()
            if lsn >= end:
                self._ended.wait(POLL_S)
                continue
            response, lsn = _read(reader, lsn, end, kinds)
            if not (response.episode_lsns or response.records):
                continue
            response.schema, schema = schema, b""
            num_bytes = response.ByteSize()
            with self._lock:
                self._left_bytes -= num_bytes
            self._meter.sent(num_bytes)
            yield response

    def _open(self) -> pb.Start:
        request = next(self._requests, None)
        if request is None or not request.HasField("start"):
            raise UserError("a tail", "its first message names no start", "send `start` first")
        start = request.start
        if start.log not in self._logs or start.lsn < 0:
            raise UserError(f"a tail of log {start.log} from LSN {start.lsn}", "there is no such place", "")
        self._grant(start.credit_bytes)
        return start

    def _grant(self, num_bytes: int) -> None:
        with self._lock:
            self._left_bytes += num_bytes
        self._granted.set()

    def _take(self) -> None:
        try:
            for request in self._requests:
                self._grant(max(0, request.credit_bytes))
        except grpc.RpcError:
            pass  # cut: nobody listens any more
        self._ended.set()
        self._granted.set()

    def _may_go_on(self) -> bool:
        """Wait for credit; whether there is still somebody to send to."""
        while not (self._ended.is_set() or self._stopping.is_set()):
            self._granted.clear()
            with self._lock:
                if self._left_bytes > 0:
                    return True
            self._granted.wait(CLOSING_S)
        return False


def _read(reader: LogReader, lsn: int, end: int, kinds: frozenset[int]) -> tuple[pb.TailResponse, int]:
    """The next records with lsn <= LSN < end, and where to go on."""
    oldest = reader.segments()[0].start_lsn
    if 0 < lsn < oldest:
        raise StoreError(f"the log from LSN {lsn} to {oldest} was trimmed: start at 0 or at {oldest}")
    response = pb.TailResponse()
    episodes: list[Episode] = []
    num_bytes = 0
    for frame in reader.scan(lsn, end):
        if not kinds or frame.kind in kinds:
            if frame.kind == Kind.EPISODE:
                episode = decode(frame.kind, frame.payload)
                assert isinstance(episode, Episode)
                episodes.append(episode)
                response.episode_lsns.append(frame.lsn)
            else:
                response.records.add(lsn=frame.lsn, kind=frame.kind, payload=frame.payload)
            num_bytes += len(frame.payload)
        if num_bytes >= CHUNK_BYTES:
            end = frame.next_lsn
            break
    if episodes:
        response.record_batch = write_batch(episodes)
    response.next_lsn = end
    return response, end
