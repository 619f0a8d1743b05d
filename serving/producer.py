"""A producer's stream, the client's side: sends episodes, again what was not answered for, hears what became of it.

    frame's life:  waiting ─► sent ─► answered (acks, or a refusal)
                      ▲         │
                      └─────────┘  the line was cut: on the next one it is sent again, and the store knows a second copy

What is not answered for is kept here, at most `window_bytes` and one frame: who sends more waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any

import grpc

from contracts.errors import RatchetError, StoreError, StoreStoppedError, StoreUnreachableError
from contracts.records import Ack, Episode
from serving.columns import FORMAT_VERSION, SCHEMA_BYTES, count_bytes, write_batch
from serving.v1 import store_pb2 as pb
from serving.wire import PASSING, error_of, error_of_status, read_acks

FRAME_BYTES = 4 << 20  # of one frame, where the server takes as much
GRACE_S = 2.0  # for the outcomes of what is under way when the stream closes
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0  # before a line that was cut is made again

Connect = Callable[[Iterator[pb.StreamExperienceRequest]], Any]  # requests → the call, which iterates over responses


@dataclass
class _Waiting:
    """A frame that is not answered for."""

    data: bytes
    answer: Future[list[Ack]] = field(default_factory=Future)


class ProducerStream:
    """Thread-safe. The line is made when something is to be sent, and again whenever it was cut."""

    def __init__(self, connect: Connect, *, window_bytes: int) -> None:
        self._connect, self._window_bytes = connect, window_bytes
        self._changed = Condition()
        self._unanswered: dict[int, _Waiting] = {}  # by number, in the order of sending
        self._unsent: deque[int] = deque()  # numbers, on this line
        self._held_bytes = 0
        self._last_number = 0
        self._line = 0  # counts the lines made: what belongs to an older one ends
        self._credit_bytes = 0
        self._max_frame_bytes = 0  # 0: no line was made yet
        self._wanted, self._closed = False, False
        self._fault: RatchetError | None = None  # why the newest line could not be made
        self._call: Any = None
        self._thread = Thread(target=self._run, name="producer stream", daemon=True)
        self._thread.start()

    def append(self, episodes: Sequence[Episode], *, timeout_s: float) -> list[Ack]:
        """Keep episodes. One frame, kept or refused as a whole, unless they are longer than a frame may be.

        Raises what the store raises, or StoreUnreachableError: then it is not known whether they are kept.
        """
        deadline_s = time.monotonic() + timeout_s
        limit = min(self._await_limit(deadline_s), FRAME_BYTES)
        sent: list[tuple[int, Future[list[Ack]]]] = []
        try:
            sent.extend(self._send(frame, deadline_s) for frame in _cut(episodes, limit))
            acks = [ack for _, answer in sent for ack in answer.result(max(0.0, deadline_s - time.monotonic()))]
        except TimeoutError as error:
            raise StoreUnreachableError(f"{len(episodes)} episodes were not answered for in {timeout_s:g} s") from error
        finally:
            self._forget([number for number, _ in sent])
        return acks

    def close(self) -> None:
        """Nothing more is sent; who still waits is told so. Idempotent."""
        with self._changed:
            self._closed = True
            self._end_line()
        self._thread.join(GRACE_S)
        if self._thread.is_alive():
            self._call.cancel()
            self._thread.join()
        self._fail(StoreStoppedError("the connection to the store was closed"))

    # ------------------------------------------------------------------------------------------ callers' threads

    def _await_limit(self, deadline_s: float) -> int:
        """The longest frame that the server takes; makes a line where there was none."""
        with self._changed:
            self._check_open()
            while not self._max_frame_bytes:
                self._wanted = True
                self._fault = None
                self._changed.notify_all()
                self._wait_locked(deadline_s)
                if self._fault is not None:
                    raise self._fault
            return self._max_frame_bytes

    def _send(self, episodes: Sequence[Episode], deadline_s: float) -> tuple[int, Future[list[Ack]]]:
        """Who waits for room has not made its frame yet: that memory, too, is bounded."""
        reserved = sum(count_bytes(episode) for episode in episodes)
        with self._changed:
            while self._held_bytes >= self._window_bytes:
                self._wait_locked(deadline_s)
            self._held_bytes += reserved
        try:
            waiting = _Waiting(write_batch(episodes))
            num_bytes = len(waiting.data)
            if num_bytes > self._max_frame_bytes:
                raise StoreError(f"a frame of {num_bytes} bytes: the store takes at most {self._max_frame_bytes}")
            with self._changed:
                self._check_open()
                self._last_number += 1
                self._unanswered[self._last_number] = waiting
                self._unsent.append(self._last_number)
                self._held_bytes += num_bytes
                return self._last_number, waiting.answer
        finally:
            with self._changed:
                self._held_bytes -= reserved
                self._changed.notify_all()

    def _wait_locked(self, deadline_s: float) -> None:
        """Until something has changed. Raises StoreUnreachableError past the deadline."""
        self._check_open()
        if not self._changed.wait(max(0.0, deadline_s - time.monotonic())):
            raise StoreUnreachableError("the store did not answer in time")

    def _check_open(self) -> None:
        if self._closed:
            raise StoreStoppedError("the connection to the store was closed")

    def _forget(self, numbers: Sequence[int]) -> None:
        """Their caller waits no longer."""
        with self._changed:
            for number in numbers:
                self._take_out(number)
            self._changed.notify_all()

    def _take_out(self, number: int) -> _Waiting | None:
        waiting = self._unanswered.pop(number, None)
        if waiting is not None:
            self._held_bytes -= len(waiting.data)
        return waiting

    # ------------------------------------------------------------------------------------------ the line's threads

    def _run(self) -> None:
        """Makes a line when there is something to send, until closed."""
        pause_s = FIRST_PAUSE_S
        while self._await_work():
            with self._changed:
                self._line += 1
                self._credit_bytes = 0
                self._unsent = deque(self._unanswered)
                line = self._line
            try:
                self._call = self._connect(self._requests(line))
                for response in self._call:
                    self._hear(response)
                    pause_s = FIRST_PAUSE_S
            except grpc.RpcError as error:
                if error.code() not in PASSING:
                    self._fail(error_of_status(error))
            self._pause(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _await_work(self) -> bool:
        with self._changed:
            self._end_line()
            while not (self._closed or self._wanted or self._unanswered):
                self._changed.wait()
            return not self._closed

    def _pause(self, seconds: float) -> None:
        deadline_s = time.monotonic() + seconds
        with self._changed:
            while not self._closed and (left_s := deadline_s - time.monotonic()) > 0:
                self._changed.wait(left_s)

    def _end_line(self) -> None:
        self._line += 1
        self._changed.notify_all()

    def _requests(self, line: int) -> Iterator[pb.StreamExperienceRequest]:
        """What one line sends: the opening, then frames while there is credit."""
        yield pb.StreamExperienceRequest(opening=pb.Opening(format_version=FORMAT_VERSION, schema=SCHEMA_BYTES))
        while True:
            with self._changed:
                while self._line == line and not (self._unsent and self._credit_bytes > 0):
                    self._changed.wait()
                if self._line != line:
                    return
                number = self._unsent.popleft()
                waiting = self._unanswered.get(number)
                if waiting is None:
                    continue
                self._credit_bytes -= len(waiting.data)
            yield pb.StreamExperienceRequest(frame=pb.Frame(number=number, record_batch=waiting.data))

    def _hear(self, response: pb.StreamExperienceResponse) -> None:
        answered = []
        with self._changed:
            self._credit_bytes += response.credit_bytes
            if response.max_frame_bytes:
                self._max_frame_bytes, self._wanted = response.max_frame_bytes, False
            for outcome in response.outcomes:
                waiting = self._take_out(outcome.number)
                if waiting is not None:
                    answered.append((waiting, outcome))
            self._changed.notify_all()
        for waiting, outcome in answered:
            if outcome.HasField("refusal"):
                waiting.answer.set_exception(error_of(outcome.refusal.error, outcome.refusal.reason))
            else:
                waiting.answer.set_result(read_acks(outcome.acks))

    def _fail(self, error: RatchetError) -> None:
        """Nothing that waits can be kept."""
        with self._changed:
            failed = list(self._unanswered.values())
            self._unanswered.clear()
            self._held_bytes = 0
            self._wanted, self._fault = False, error
            self._changed.notify_all()
        for waiting in failed:
            waiting.answer.set_exception(error)


def _cut(episodes: Sequence[Episode], limit_bytes: int) -> Iterator[Sequence[Episode]]:
    """Consecutive parts that fit a frame each; an episode that does not fit any is a part by itself."""
    start, num_bytes = 0, 0
    for place, episode in enumerate(episodes):
        size = count_bytes(episode)
        if place > start and num_bytes + size > limit_bytes:
            yield episodes[start:place]
            start, num_bytes = place, 0
        num_bytes += size
    yield episodes[start:]
