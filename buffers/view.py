"""Looks at a store without owning it: of a live run, of a dead one, or of a snapshot, from any process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self
from uuid import UUID

from buffers.fold import Fold
from buffers.log.identity import read_identity
from buffers.log.readers import reading
from buffers.reading import Records
from contracts.errors import StoreIdentityError
from contracts.records import ControlRecord, Episode, Kind, Ledger


class StoreView:
    """The store as of the last `refresh`. For one thread. Made by `open`.

    `fold` is the state of everything below `data_lsn` and `control_lsn`, both durable.
    """

    def __init__(self, records: Records, *, folder: Path) -> None:
        self.uuid, self._folder, self._reading = records.uuid, folder, ExitStack()
        self.fold = Fold()
        self.data_lsn = self.control_lsn = 0
        self._records = records
        self.refresh()

    @classmethod
    def open(cls, folder: Path, *, uuid: UUID | str | None = None) -> StoreView:
        """Raises StoreIdentityError where `folder` holds no store, or another than `uuid`."""
        found = read_identity(folder)
        if uuid is not None and UUID(str(uuid)) != found:
            raise StoreIdentityError(f"{folder} holds store {found}, not {uuid}, which was asked for")
        return cls(Records(folder, uuid=found), folder=folder)

    def __enter__(self) -> Self:
        """Inside a `with` block nothing that the view shows is trimmed."""
        self._reading.enter_context(reading(self._folder))
        return self

    def __exit__(self, *_: object) -> None:
        self._reading.close()

    def refresh(self) -> None:
        """Take in what became durable since. Control's mark is read first: what it names is then below data's."""
        control_lsn, data_lsn = self._records.control.watermark(), self._records.data.watermark()
        if self.control_lsn == 0:
            self._records.begin(self.fold, control_end=control_lsn)
            self.data_lsn = self.fold.trimmed_lsn
        for lsn, record in self._records.replay(
            data=(self.data_lsn, data_lsn), control=(self.control_lsn, control_lsn)
        ):
            self.fold.apply(lsn, record)
        self.data_lsn, self.control_lsn = data_lsn, control_lsn

    def ledger(self) -> Ledger:
        return self.fold.ledger()

    def episodes(self, lsns: Sequence[int]) -> list[Episode]:
        """Episodes at these LSNs, or those of their FEEDBACK, in their order. Raises StoreError where there is none."""
        return self._records.read_episodes(lsns)

    def decisions(self, *, start: int = 0, kinds: Sequence[Kind] = ()) -> list[tuple[int, ControlRecord]]:
        """Control records with LSN >= start, in order."""
        return self._records.read_decisions(start, self.control_lsn, kinds)
