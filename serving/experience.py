"""The server's side of one producer's stream: frames in, appended together, outcomes and credit out.

credit    what the client may still send, in bytes of its frames. It sends only while that is above zero, so at most
          `credit_bytes` and one frame wait here. The outcome of a frame gives its bytes back
batching  frames that came while the disk was waited for are one append: one stream needs no other's company to
          fill a commit. Where that append is refused, each frame is tried by itself
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Condition, Thread

import grpc

from contracts.errors import FormatError, RatchetError, UserError
from contracts.protocols import Store
from contracts.records import Ack, Episode
from serving.columns import FORMAT_VERSION, check_schema, read_batch
from serving.meter import Meter
from serving.v1 import store_pb2 as pb
from serving.wire import name_error, to_acks


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bytes: what one producer may have on its way, and the longest frame."""

    credit_bytes: int
    max_frame_bytes: int


@dataclass(frozen=True)
class _Arrived:
    frame: pb.Frame
    num_bytes: int
    time_s: float  # monotonic


class ExperienceStream:
    """One call of StreamExperience. `run` is the call's own thread; a second one takes the frames in."""

    def __init__(
        self, store: Store, requests: Iterator[pb.StreamExperienceRequest], *, limits: Limits, meter: Meter
    ) -> None:
        self._store, self._requests, self._limits, self._meter = store, requests, limits, meter
        self._changed = Condition()
        self._arrived: deque[_Arrived] = deque()
        self._left_bytes = limits.credit_bytes  # the client's credit
        self._ended = False
        self._fault: RatchetError | None = None

    def run(self) -> Iterator[pb.StreamExperienceResponse]:
        """Responses, until the client has closed its side and all is answered. Raises UserError, FormatError."""
        self._open()
        yield pb.StreamExperienceResponse(
            credit_bytes=self._limits.credit_bytes, max_frame_bytes=self._limits.max_frame_bytes
        )
        Thread(target=self._take, name="producer stream", daemon=True).start()
        while arrived := self._wait():
            outcomes = self._keep([entry.frame for entry in arrived])
            num_bytes = sum(entry.num_bytes for entry in arrived)
            with self._changed:
                self._left_bytes += num_bytes
            self._meter.answered([time.monotonic() - entry.time_s for entry in arrived])
            yield pb.StreamExperienceResponse(outcomes=outcomes, credit_bytes=num_bytes)
        if self._fault is not None:
            raise self._fault

    def end(self) -> None:
        """Take nothing more in; what has come is still answered."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _open(self) -> None:
        request = next(self._requests, None)
        if request is None or not request.HasField("opening"):
            raise UserError("a stream of experience", "its first message is no opening", "send the schema first")
        if request.opening.format_version != FORMAT_VERSION:
            raise FormatError(
                f"episodes of format version {request.opening.format_version}; this server reads {FORMAT_VERSION}"
            )
        check_schema(request.opening.schema)

    def _take(self) -> None:
        """Frames into the queue, as the client's credit allows, until it closes its side or the line is cut."""
        try:
            for request in self._requests:
                self._fault = self._enter(request)
                if self._fault is not None:
                    break
        except grpc.RpcError:
            pass  # cut: what had come is kept, its outcomes reach nobody, and the client sends it again
        self.end()

    def _enter(self, request: pb.StreamExperienceRequest) -> RatchetError | None:
        if not request.HasField("frame"):
            return UserError("a stream of experience", "a message holds no frame", "open once, then send frames")
        num_bytes = len(request.frame.record_batch)
        self._meter.received(num_bytes)
        if num_bytes > self._limits.max_frame_bytes:
            return UserError(
                f"a frame of {num_bytes} bytes", f"the longest is {self._limits.max_frame_bytes}", "send fewer episodes"
            )
        with self._changed:
            if self._ended:
                return None
            if self._left_bytes <= 0:
                return UserError("a frame", "the client's credit is used up", "wait for outcomes before sending more")
            self._left_bytes -= num_bytes
            self._arrived.append(_Arrived(request.frame, num_bytes, time.monotonic()))
            self._changed.notify_all()
        return None

    def _wait(self) -> list[_Arrived]:
        """What has arrived, up to the length of one frame; nothing when the stream has ended."""
        with self._changed:
            while not self._arrived and not self._ended:
                self._changed.wait()
            taken: list[_Arrived] = []
            num_bytes = 0
            while self._arrived and num_bytes < self._limits.max_frame_bytes:
                taken.append(self._arrived.popleft())
                num_bytes += taken[-1].num_bytes
            return taken

    def _keep(self, frames: Sequence[pb.Frame]) -> list[pb.Outcome]:
        """Outcomes in the order of the frames."""
        outcomes: dict[int, pb.Outcome] = {}
        readable: list[tuple[int, list[Episode]]] = []
        for place, frame in enumerate(frames):
            try:
                readable.append((place, read_batch(frame.record_batch)))
            except FormatError as error:
                outcomes[place] = self._refuse(frame, error)
        acks = self._append_all([episodes for _, episodes in readable])
        for (place, episodes), answer in zip(readable, acks, strict=True):
            if isinstance(answer, RatchetError):
                outcomes[place] = self._refuse(frames[place], answer)
            else:
                self._meter.kept(len(episodes), num_duplicates=sum(ack.duplicate for ack in answer))
                outcomes[place] = pb.Outcome(number=frames[place].number, acks=to_acks(answer))
        return [outcomes[place] for place in range(len(frames))]

    def _append_all(self, frames: Sequence[list[Episode]]) -> list[list[Ack] | RatchetError]:
        """One append for all; where it is refused, one for each."""
        if not frames:
            return []
        try:
            acks = iter(self._store.append([episode for episodes in frames for episode in episodes]))
            return [[next(acks) for _ in episodes] for episodes in frames]
        except RatchetError as error:
            if len(frames) == 1:
                return [error]
            return [answer for episodes in frames for answer in self._append_all([episodes])]

    def _refuse(self, frame: pb.Frame, error: RatchetError) -> pb.Outcome:
        self._meter.refused(error)
        return pb.Outcome(number=frame.number, refusal=name_error(error))
