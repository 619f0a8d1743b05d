"""The way from a caller to the fold: submitted in LSN order, applied in the same order once it is as safe as asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from buffers.codec import decode, encode
from buffers.log.writer import LogWriter
from contracts.records import Record

Settle = Callable[[list[int] | None], None]  # gets the LSNs, or None where nothing was written


def ignore(_: list[int] | None) -> None:
    """For a submit that leaves nothing behind to tidy up."""


@dataclass(frozen=True)
class _Waiting:
    future: Future[list[int]]
    records: Sequence[Record]
    settle: Settle


class Pipeline:
    """One log's writer and the appends that are not applied yet. The owner's lock guards every call."""

    def __init__(self, writer: LogWriter, *, apply: Callable[[int, Record], None], durable: bool) -> None:
        self.writer = writer
        self._apply, self._durable = apply, durable
        self._waiting: deque[_Waiting] = deque()

    def submit(
        self, records: Sequence[Record], *, payloads: Sequence[bytes] | None = None, settle: Settle = ignore
    ) -> Future[list[int]]:
        """Queue one atomic append. `settle` is called in `drain`, right after the records were applied.

        What is applied is what will be read back: memory and a later start cannot differ. With `payloads` the caller
        answers for that.
        """
        if payloads is None:
            payloads = [encode(record) for record in records]
            records = [decode(record.KIND, payload) for record, payload in zip(records, payloads, strict=True)]
        frames = [(int(record.KIND), payload) for record, payload in zip(records, payloads, strict=True)]
        future = self.writer.submit(frames, durable=self._durable)
        self._waiting.append(_Waiting(future, records, settle))
        return future

    def drain(self) -> None:
        """Apply what has become safe, in LSN order."""
        while self.has_safe:
            entry = self._waiting[0]
            try:
                self._take_in(entry)
            finally:
                self._waiting.popleft()

    @property
    def has_safe(self) -> bool:
        """Whether an append is safe that is not applied yet, or not wholly. The one question that needs no lock."""
        try:
            return self._waiting[0].future.done()
        except IndexError:
            return False

    def _take_in(self, entry: _Waiting) -> None:
        if entry.future.exception() is not None:
            entry.settle(None)
            return
        lsns = entry.future.result()
        for lsn, record in zip(lsns, entry.records, strict=True):
            self._apply(lsn, record)
        entry.settle(lsns)
