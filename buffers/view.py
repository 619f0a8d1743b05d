"""Looks at a store without owning it: of a live run, of a dead one, or of a snapshot, from any process.

Of several shards it looks at those whose folders are on this machine, beside shard 0's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self
from uuid import UUID

from buffers.addresses import address, find_further, lsn_of, name_shard, shard_of, shard_uuid
from buffers.fold import Fold
from buffers.folding import load
from buffers.index import IndexView
from buffers.log.identity import read_identity
from buffers.log.readers import reading
from buffers.reading import Records
from buffers.sharding import add_ledgers
from contracts.errors import StoreError, StoreIdentityError
from contracts.records import ControlRecord, Episode, Kind, Ledger


class StoreView:
    """The store as of the last `refresh`. For one thread. Made by `open`.

    `fold` is the state of everything below `data_lsn` and `control_lsn`, both durable: what the index holds of it
    (buffers/index.py) and what came after, so that opening takes as long as the newest records do. What has ended is
    recalled from the index when it is asked for, as it is then. Without an index, or with one that is of no use,
    everything is read: the sums and all that may still change are the same then; of what was trimmed it knows the sums
    alone, and neither groups, nor late LSNs, nor priorities, nor stored successes of leases below `fold.trimmed_lsn`.
    """

    def __init__(self, records: Records, *, folder: Path) -> None:
        self.uuid, self._folder, self._reading = records.uuid, folder, ExitStack()
        self.fold = Fold()
        self._is_recalling = False  # whether the fold is good only with an index behind it
        self.data_lsn = self.control_lsn = 0
        self._further: dict[int, StoreView] = {}  # shard → its store
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
        for folder in (self._folder, *(view._folder for view in self._further.values())):
            self._reading.enter_context(reading(folder))
        if self.fold.trimmed_lsn < self._first_lsn():  # something went between the last refresh and now
            self.refresh()
        return self

    def __exit__(self, *_: object) -> None:
        self._reading.close()

    def refresh(self) -> None:
        """Take in what became durable since. Raises StoreError where what it needs was trimmed while it was read, which
        only happens to one who may not write into the store's folder."""
        with reading(self._folder):
            try:
                self._refresh_from_index()
            except StoreError:  # it is missing, or of no use: the logs have it all
                self._refresh_from_logs()
        for view in self._further.values():
            view.refresh()
        self._open_further()

    def _open_further(self) -> None:
        for shard, path in find_further(self._folder).items():
            if shard not in self._further:
                self._further[shard] = StoreView.open(path, uuid=shard_uuid(self.uuid, shard))

    @property
    def shards(self) -> list[int]:
        """Those that are looked at."""
        return [0, *sorted(self._further)]

    def _refresh_from_index(self) -> None:
        index = IndexView(self._folder / "index", uuid=self.uuid)
        with index.at_one_cut():  # before the marks: it is never past them
            marks = self._read_marks()
            if index.control_lsn > marks[0] or index.data_lsn > marks[1]:
                raise StoreError("the index is ahead of the logs")
            self._fold_on(load(index), marks)

    def _refresh_from_logs(self) -> None:
        marks, fold = self._read_marks(), self.fold
        if self._is_recalling or not self.control_lsn or fold.data_end < self._first_lsn():
            fold = Fold()
            self._records.begin(fold, control_end=marks[0])
        self._fold_on(fold, marks)
        self._is_recalling = False

    def _read_marks(self) -> tuple[int, int]:
        """Of control and data. Control's is read first: what it names is then below data's."""
        return self._records.control.watermark(), self._records.data.watermark()

    def _first_lsn(self) -> int:
        """Where the data log begins now."""
        segments = self._records.data.segments()
        return segments[0].start_lsn if segments else 0

    def _fold_on(self, fold: Fold, marks: tuple[int, int]) -> None:
        self._is_recalling = True  # also where it ends in an error
        begin = max(fold.data_end, fold.trimmed_lsn)
        for lsn, record in self._records.replay(data=(begin, marks[1]), control=(fold.control_end, marks[0])):
            fold.apply(lsn, record)
        if begin < self._first_lsn():
            raise StoreError(f"{self._folder}: the log was trimmed while it was read; ask again")
        self.fold, (self.control_lsn, self.data_lsn) = fold, marks

    def ledger(self) -> Ledger:
        """The sums over all shards that are looked at."""
        return add_ledgers([self.fold.ledger(), *(view.ledger() for view in self._further.values())])

    def episodes(self, lsns: Sequence[int]) -> list[Episode]:
        """Episodes at these addresses, or those of their FEEDBACK, in their order. Raises StoreError where there is
        none, or their shard is elsewhere."""
        return [self._episode(one) for one in lsns]

    def _episode(self, one: int) -> Episode:
        shard = shard_of(one)
        if shard not in self.shards:
            raise StoreError(f"{one} is in shard {shard}, whose folder {name_shard(shard)} is not on this machine")
        if not shard:
            return self._records.read_episodes([one])[0]
        (episode,) = self._further[shard].episodes([lsn_of(one)])
        return replace(episode, lease=address(shard, episode.lease))

    def decisions(self, *, start: int = 0, kinds: Sequence[Kind] = ()) -> list[tuple[int, ControlRecord]]:
        """Control records with LSN >= start, in order; of several shards, shard 0's, which decide."""
        return self._records.read_decisions(start, self.control_lsn, kinds)
