"""Looks at a store without owning it: of a live run, of a dead one, or of a snapshot, from any process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self
from uuid import UUID

from buffers.fold import Fold
from buffers.folding import load
from buffers.index import IndexView
from buffers.log.identity import read_identity
from buffers.log.readers import reading
from buffers.reading import Records
from contracts.errors import StoreError, StoreIdentityError
from contracts.records import ControlRecord, Episode, Kind, Ledger


class StoreView:
    """The store as of the last `refresh`. For one thread. Made by `open`.

    `fold` is the state of everything below `data_lsn` and `control_lsn`, both durable: what the index holds of it
    (buffers/index.py) and what came after, so that opening takes as long as the newest records do. What has ended is
    recalled from the index when it is asked for, as it is then. Without an index, or with one that is of no use,
    everything is read.
    """

    def __init__(self, records: Records, *, folder: Path) -> None:
        self.uuid, self._folder, self._reading = records.uuid, folder, ExitStack()
        self.fold = Fold()
        self._is_recalling = False  # whether the fold is good only with an index behind it
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
        """Take in what became durable since."""
        try:
            self._refresh_from_index()
        except StoreError:  # it is missing, or of no use: the logs have it all
            self._refresh_from_logs()

    def _refresh_from_index(self) -> None:
        index = IndexView(self._folder / "index", uuid=self.uuid)
        with index.at_one_cut():  # before the marks: it is never past them
            marks = self._read_marks()
            if index.control_lsn > marks[0] or index.data_lsn > marks[1]:
                raise StoreError("the index is ahead of the logs")
            self._fold_on(load(index), marks)

    def _refresh_from_logs(self) -> None:
        marks, fold = self._read_marks(), self.fold
        if self._is_recalling or not self.control_lsn:
            fold = Fold()
            self._records.begin(fold, control_end=marks[0])
        self._fold_on(fold, marks)
        self._is_recalling = False

    def _read_marks(self) -> tuple[int, int]:
        """Of control and data. Control's is read first: what it names is then below data's."""
        return self._records.control.watermark(), self._records.data.watermark()

    def _fold_on(self, fold: Fold, marks: tuple[int, int]) -> None:
        self._is_recalling = True  # also where it ends in an error
        data = (max(fold.data_end, fold.trimmed_lsn), marks[1])
        for lsn, record in self._records.replay(data=data, control=(fold.control_end, marks[0])):
            fold.apply(lsn, record)
        self.fold, (self.control_lsn, self.data_lsn) = fold, marks

    def ledger(self) -> Ledger:
        return self.fold.ledger()

    def episodes(self, lsns: Sequence[int]) -> list[Episode]:
        """Episodes at these LSNs, or those of their FEEDBACK, in their order. Raises StoreError where there is none."""
        return self._records.read_episodes(lsns)

    def decisions(self, *, start: int = 0, kinds: Sequence[Kind] = ()) -> list[tuple[int, ControlRecord]]:
        """Control records with LSN >= start, in order."""
        return self._records.read_decisions(start, self.control_lsn, kinds)
