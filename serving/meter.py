"""What the server counts, as metrics of the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

from contracts.errors import FencedError, FormatError, RatchetError, StoreFullError, StoreStoppedError
from telemetry.exporter import Exporter

REASONS: dict[type[RatchetError], str] = {
    FencedError: "fenced",
    FormatError: "format",
    StoreFullError: "full",
    StoreStoppedError: "stopped",
}
TOKEN, OTHER = "token", "other"


class Meter:
    """Thread-safe."""

    def __init__(self, metrics: Exporter) -> None:
        self._metrics = metrics
        self._lock = Lock()
        self.on_stopped: Callable[[], None] = lambda: None  # called when the store was found to take nothing more
        self._streams = {"producer": 0, "tail": 0, "read": 0}
        for kind in self._streams:
            metrics.set("ratchet_serving_streams", 0, kind=kind)

    @contextmanager
    def stream(self, kind: str) -> Iterator[None]:
        """A stream is open."""
        self._count(kind, 1)
        try:
            yield
        finally:
            self._count(kind, -1)

    def received(self, num_bytes: int) -> None:
        self._metrics.add("ratchet_serving_bytes_total", num_bytes, direction="in")

    def sent(self, num_bytes: int) -> None:
        self._metrics.add("ratchet_serving_bytes_total", num_bytes, direction="out")

    def kept(self, num_episodes: int, *, num_duplicates: int) -> None:
        self._metrics.add("ratchet_serving_episodes_total", num_episodes - num_duplicates, copy="first")
        self._metrics.add("ratchet_serving_episodes_total", num_duplicates, copy="again")

    def answered(self, seconds: Sequence[float]) -> None:
        """Frames were answered, each so long after it came."""
        for wait_s in seconds:
            self._metrics.observe("ratchet_serving_ack_seconds", wait_s)

    def refused(self, error: RatchetError) -> None:
        if isinstance(error, StoreStoppedError):
            self.on_stopped()
        self.refused_for(REASONS.get(type(error), OTHER))

    def refused_for(self, reason: str) -> None:
        self._metrics.add("ratchet_serving_refusals_total", reason=reason)

    def _count(self, kind: str, change: int) -> None:
        with self._lock:
            self._streams[kind] += change
            self._metrics.set("ratchet_serving_streams", self._streams[kind], kind=kind)
