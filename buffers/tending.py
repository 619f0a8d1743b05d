"""Owns a store that no run owns, for as long as a command changes what lies in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from buffers.codec import encode
from buffers.log.identity import claim, read_identity
from buffers.log.writer import LogWriter
from contracts.errors import StoreBusyError, UserError
from contracts.records import ControlRecord


@dataclass(frozen=True)
class Tended:
    """A store at rest: both logs are recovered and every segment of the data log is sealed."""

    folder: Path
    uuid: UUID
    data_lsn: int  # where the data log ends
    _control: LogWriter

    def decide(self, records: Sequence[ControlRecord]) -> None:
        """Append decisions, all or none, durably."""
        self._control.append([(int(record.KIND), encode(record)) for record in records])


@contextmanager
def tended(folder: Path) -> Iterator[Tended]:
    """Take the store in `folder`.

    Raises UserError where a live process owns it, StoreIdentityError where there is none.
    """
    uuid = read_identity(folder)
    with ExitStack() as resources:
        try:
            held = claim(folder, uuid=uuid)
        except StoreBusyError as error:
            raise UserError(
                f"change what lies in {folder}", str(error), "end the run that owns it first: ratchet stop"
            ) from error
        resources.callback(held.release)
        data = _open(folder / "data", uuid=uuid, epoch=held.epoch, chained=False)
        data_lsn = data.end_lsn
        data.close()  # which seals it
        control = _open(folder / "control", uuid=uuid, epoch=held.epoch, chained=True)
        resources.callback(control.close)
        yield Tended(folder=folder, uuid=uuid, data_lsn=data_lsn, _control=control)


def _open(folder: Path, *, uuid: UUID, epoch: int, chained: bool) -> LogWriter:
    return LogWriter.open(folder, store_uuid=uuid, epoch=epoch, chained=chained, segment_bytes=1 << 20)
