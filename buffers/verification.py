"""Reads everything that a store holds and says what is not as it should be. Changes nothing; works on a live run too.

| checked | by |
|---|---|
| every frame of both logs, up to the watermark | its checksum, and that its record decodes |
| the control log | each frame carries the hash of the one before |
| what decisions name | it is in the data log, and is what the decision takes it for |
| erased records | their contents are gone |
| the index | it holds, entry for entry, what a fold over the logs up to its cut gives, until they are trimmed |
| footers of sealed segments | they say what their segment says |
| snapshots | every file's sha256 is the manifest's |

Not covered: that a checkpoint's weights are those that its record names (loading it compares them). Memory: 8 bytes a
record, and the whole fold for the index.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

from buffers import snapshots
from buffers.addresses import find_further, part_of
from buffers.codec import peek
from buffers.erasure import has_contents
from buffers.fold import Fold
from buffers.folding import save_shelves, save_state
from buffers.footers import Footers
from buffers.index import SHELVES, IndexView, pack_entries, pack_state
from buffers.inspection import OnProgress, ignore
from buffers.log.frames import FIRST_DIGEST, RawFrame
from buffers.log.identity import read_identity
from buffers.log.reader import LogReader
from buffers.log.segments import Gap
from buffers.reading import Records
from contracts.errors import FormatError, RunFolderError, StoreError, UserError
from contracts.records import Batch, Checkpoint, Closed, Erased, Kind


@dataclass(frozen=True, kw_only=True)
class Defect:
    """`place`: data, control, or a snapshot's name; of a further shard store-1/data. `lsn` None: it is not about one
    place in a log."""

    place: str
    lsn: int | None
    text: str


@dataclass(kw_only=True)
class Verified:
    """What was looked at, and what is wrong with it."""

    num_bytes: int = 0
    num_records: int = 0
    num_snapshots: int = 0
    num_shards: int = 0  # those whose folders are here
    defects: list[Defect] = field(default_factory=list)


def verify(run_folder: Path, *, on_progress: OnProgress = ignore) -> Verified:
    """Read the stores and the snapshots of a run, or a snapshot. Raises StoreIdentityError where there is none."""
    store, found = run_folder / "store", Verified()
    _verify_store(store, found, on_progress)
    for path in find_further(store).values():
        there = Verified()
        _verify_store(path, there, on_progress)
        found.num_bytes += there.num_bytes
        found.num_records += there.num_records
        found.num_shards += there.num_shards
        found.defects += [replace(defect, place=f"{path.name}/{defect.place}") for defect in there.defects]
    _check_snapshots(run_folder, found)
    return found


def _verify_store(store: Path, found: Verified, on_progress: OnProgress) -> None:
    """Into an empty `found`."""
    uuid = read_identity(store)
    control, data = (LogReader(store / name, store_uuid=uuid) for name in ("control", "data"))
    marks = control.watermark(), data.watermark()  # control's first: what it names is then below data's
    found.num_bytes, found.num_shards = sum(marks), 1
    known = _DataRecords(first_lsn=data.segments()[0].start_lsn)
    decisions: list[tuple[int, Batch | Closed | Erased | Checkpoint]] = []
    for frame in _walk(data, marks[1], "data", found, lambda lsn: on_progress(lsn, sum(marks))):
        known.take(frame, found)
    for frame in _walk(control, marks[0], "control", found, lambda lsn: on_progress(marks[1] + lsn, sum(marks))):
        record = _decode(frame, "control", found)
        if isinstance(record, Batch | Closed | Erased | Checkpoint):
            decisions.append((frame.header.lsn, record))
    for lsn, decision in decisions:
        found.defects += [Defect(place="control", lsn=lsn, text=text) for text in known.find_faults(decision)]
    if not found.defects:  # else the logs do not say what the index should hold
        check_index(store, uuid, found)
        check_footers(store, data, found)


def _walk(
    reader: LogReader, end: int, name: str, found: Verified, on_progress: Callable[[int], None]
) -> Iterator[RawFrame]:
    """Whole frames of records; what is no frame, or breaks the chain, goes into `found`."""
    digest: bytes | None = None
    for item in reader.walk(0, end):
        if isinstance(item, Gap):
            found.defects.append(
                Defect(
                    place=name, lsn=item.start, text=f"{item.end - item.start} bytes are damaged, up to LSN {item.end}"
                )
            )
            digest = None
            continue
        expected = FIRST_DIGEST if item.header.lsn == 0 else digest
        if reader.chained and expected is not None and item.previous != expected:
            found.defects.append(
                Defect(place=name, lsn=item.header.lsn, text="it does not carry the hash of the frame before it")
            )
        digest = item.digest
        on_progress(item.next_lsn)
        if not item.is_schema:
            found.num_records += 1
            yield item


def _decode(frame: RawFrame, name: str, found: Verified) -> object:
    try:
        return peek(frame.header.kind, frame.payload)
    except FormatError as error:
        found.defects.append(Defect(place=name, lsn=frame.header.lsn, text=str(error)))
        return None


class _DataRecords:
    """Where tasks and tries lie: 8 bytes each."""

    def __init__(self, *, first_lsn: int) -> None:
        self._first_lsn = first_lsn
        self._tasks, self._tries = array("q"), array("q")
        self._full = array("q")  # those that have contents

    def take(self, frame: RawFrame, found: Verified) -> None:
        lsn, kind = frame.header.lsn, frame.header.kind
        _decode(frame, "data", found)
        if kind == Kind.TASK:
            self._tasks.append(lsn)
        elif kind in (Kind.EPISODE, Kind.QUARANTINED):
            self._tries.append(lsn)
        if has_contents(kind, frame.payload):
            self._full.append(lsn)

    def find_faults(self, decision: Batch | Closed | Erased | Checkpoint) -> Iterator[str]:
        if isinstance(decision, Batch):
            for row in part_of(decision, shard=0).rows:
                if self._lacks(self._tries, row.episode_lsn):
                    yield f"batch of step {decision.step}: there is no episode at LSN {row.episode_lsn}"
                if self._lacks(self._tasks, row.lease):
                    yield f"batch of step {decision.step}: there is no task at LSN {row.lease}"
        elif isinstance(decision, Closed):
            for lease in decision.leases:
                if self._lacks(self._tasks, lease):
                    yield f"closed: there is no task at LSN {lease}"
        elif isinstance(decision, Erased):
            for lsn in decision.lsns:
                if _has(self._full, lsn):
                    yield f"LSN {lsn} was to be erased, and its contents are still there: `ratchet store erase` ends it"

    def _lacks(self, lsns: array[int], lsn: int) -> bool:
        return lsn >= self._first_lsn and not _has(lsns, lsn)


def _has(lsns: array[int], lsn: int) -> bool:
    place = bisect_left(lsns, lsn)
    return place < len(lsns) and lsns[place] == lsn


def check_index(store: Path, uuid: UUID, found: Verified) -> None:
    """Compare the index with the logs. A store without one is whole: the next owner makes it."""
    if not (store / "index" / "data.mdb").is_file():
        return
    try:
        cut = IndexView(store / "index", uuid=uuid)
        with cut.at_one_cut():
            there = {name: cut.read_entries(name) for name in SHELVES}
    except StoreError as error:
        found.defects.append(Defect(place="index", lsn=None, text=f"{error}; `ratchet store repair` sets it aside"))
        return
    fold, records = Fold(), Records(store, uuid=uuid)
    records.begin(fold, control_end=cut.control_lsn)
    if fold.trim is not None:
        return  # the index knows what the logs no longer say
    for lsn, record in records.replay(data=(0, cut.data_lsn), control=(0, cut.control_lsn)):
        fold.apply(lsn, record)
    wrong = [name for name, entries in save_shelves(fold).items() if pack_entries(entries) != there[name]]
    if pack_state(save_state(fold)) != cut.state:
        wrong.append("state")
    if wrong:
        text = f"{', '.join(wrong)}: not what the logs say up to its cut; `ratchet store repair` sets it aside"
        found.defects.append(Defect(place="index", lsn=cut.data_lsn, text=text))


def check_footers(store: Path, log: LogReader, found: Verified) -> list[Path]:
    """Compare the footers with their segments; those that are of no use. One that is missing is made by an owner."""
    footers, bad = Footers(store, log), []
    for segment in log.segments():
        path = footers.locate(segment)
        if not segment.sealed or not path.is_file():
            continue
        table = footers.read(segment)
        if table is None or not table.replace_schema_metadata().equals(footers.scan(segment)):
            text = f"{path.name} is not what its segment says; `ratchet store repair` sets it aside"
            found.defects.append(Defect(place="footer", lsn=segment.start_lsn, text=text))
            bad.append(path)
    return bad


def _check_snapshots(run_folder: Path, found: Verified) -> None:
    if (run_folder / snapshots.MANIFEST).is_file():
        folders = [run_folder]
    else:
        folders = snapshots.find_folders(run_folder)
    for folder in folders:
        found.num_snapshots += 1
        try:
            snapshots.verify(folder)
        except (RunFolderError, FormatError, UserError) as error:
            text = error.found if isinstance(error, UserError) else str(error)
            found.defects.append(Defect(place=f"snapshot {folder.name}", lsn=None, text=text))
