"""Mends damaged segments from whole copies in the run's snapshots. The damaged file is kept: no only copy is lost.

    a damaged range  ─►  the same bytes in another copy of the segment, if they are whole frames there, of the store
                     │   that wrote ours, and all other frames of the two are each other's
                     └─► none: told as lost. Readers pass over it, the ledger counts what it held as unresolved

What was erased since the copy was made is erased again. Mending writes a new file and renames it: a segment that a
snapshot shares by hard link is never written into. What was there goes to store/damaged/. So do an index and footers
that are not what the logs say: the next owner makes others.
Not covered: a damaged end of the log, which recovery cuts as a tear and keeps as .torn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from buffers import snapshots
from buffers.erasure import ASIDE, blank, find_erased
from buffers.inspection import OnProgress, ignore
from buffers.log.files import make_folder, sync_folder
from buffers.log.identity import read_identity
from buffers.log.lineage import Lineage, lineage_of
from buffers.log.patching import patch
from buffers.log.reader import LogReader
from buffers.log.segments import Gap, Segment, list_starts, name_segment, walk
from buffers.tending import tended
from buffers.verification import Verified, check_footers, check_index
from contracts.errors import StoreIdentityError, UserError


@dataclass(frozen=True, kw_only=True)
class Mended:
    """(log, first LSN, LSN past the end) of ranges. `kept`: where the damaged files are now."""

    mended: tuple[tuple[str, int, int], ...]
    lost: tuple[tuple[str, int, int], ...]
    kept: tuple[Path, ...]


def repair(run_folder: Path, *, sources: Sequence[Path] = (), on_progress: OnProgress = ignore) -> Mended:
    """Mend the store of a run that is not running. `sources`: other copies of the run, beside its snapshots.

    Raises UserError where it runs, or where a source is no copy of it.
    """
    for source in sources:
        _check_source(run_folder, source)
    copies = [*snapshots.find_folders(run_folder), *sources]
    mended: list[tuple[str, int, int]] = []
    lost: list[tuple[str, int, int]] = []
    kept: list[Path] = []
    aside = run_folder / "store" / ASIDE
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    with tended(run_folder / "store") as store:
        for name in ("data", "control"):
            reader = LogReader(store.folder / name, store_uuid=store.uuid)
            end = reader.watermark()
            for segment in reader.segments():
                on_progress(segment.end_lsn, end)
                gaps = [item for item in reader.walk(segment.start_lsn, segment.end_lsn) if isinstance(item, Gap)]
                patches = {}
                uuid = reader.lineage.at(segment.start_lsn)
                for gap in gaps:
                    found = _find_whole(copies, name, segment, gap, uuid=uuid)
                    (lost if found is None else mended).append((name, gap.start, gap.end))
                    if found is not None:
                        patches[gap.start - segment.start_lsn] = found
                if patches:
                    place = aside / f"{name}-{segment.path.name}-{stamp}"
                    patch(segment.path, patches, keep=place)
                    kept.append(place)
        blank(store.folder, find_erased(store.folder))
        checked = Verified()
        if not lost:
            check_index(store.folder, store.uuid, checked)
        if checked.defects:
            place = aside / f"index-{stamp}"
            make_folder(aside)
            (store.folder / "index").rename(place)
            sync_folder(store.folder)
            kept.append(place)
        if not lost:
            for path in check_footers(store.folder, LogReader(store.folder / "data", store_uuid=store.uuid), checked):
                place = aside / f"{path.name}-{stamp}"
                make_folder(aside)
                path.rename(place)
                kept.append(place)
    return Mended(mended=tuple(mended), lost=tuple(lost), kept=tuple(kept))


def _check_source(run_folder: Path, source: Path) -> None:
    """Raises UserError unless the store in `source` is this run's, one that came from it, or one that it came from."""
    asked, todo = f"mend {run_folder.name} from {source}", "name a folder that holds a copy of the run, or a snapshot"
    own, other = (_name_stores(folder / "store", asked, todo) for folder in (run_folder, source))
    if not own & other:
        raise UserError(asked, f"that is another store: {', '.join(map(str, sorted(other)))}", todo)


def _name_stores(store: Path, asked: str, todo: str) -> set[UUID]:
    """The store's uuid, and those of the stores whose segments it shares."""
    try:
        uuid = read_identity(store)
        lineages: list[Lineage] = [lineage_of(store / name, uuid) for name in ("data", "control")]
    except StoreIdentityError as error:
        raise UserError(asked, str(error), todo) from error
    return {uuid, *(ancestor for lineage in lineages for _, ancestor in lineage.ancestors)}


def _find_whole(folders: Sequence[Path], name: str, segment: Segment, gap: Gap, *, uuid: UUID) -> bytes | None:
    """The bytes of the gap out of another copy of the segment, where they are whole frames."""
    for copy in _copies(folders, name, segment):
        with copy.open("rb") as file:
            items = list(walk(file.fileno(), start_lsn=segment.start_lsn, begin=gap.start, end=gap.end, uuid=uuid))
            if any(isinstance(item, Gap) for item in items) or not _agree(segment, copy, uuid=uuid):
                continue
            file.seek(gap.start - segment.start_lsn)
            return file.read(gap.end - gap.start)
    return None


def _agree(segment: Segment, copy: Path, *, uuid: UUID) -> bool:
    """Whether what is whole in both says the same: two copies that both went on are two logs."""
    ours, theirs = (_read_marks(path, segment, uuid=uuid) for path in (segment.path, copy))
    return _explains(ours, theirs) and _explains(theirs, ours)


_Marks = tuple[dict[int, tuple[object, ...]], list[Gap]]  # LSN → all of a frame that erasing leaves as it is


def _read_marks(path: Path, segment: Segment, *, uuid: UUID) -> _Marks:
    start, frames, gaps = segment.start_lsn, dict[int, tuple[object, ...]](), list[Gap]()
    with path.open("rb") as file:
        for item in walk(file.fileno(), start_lsn=start, begin=start, end=segment.end_lsn, uuid=uuid):
            if isinstance(item, Gap):
                gaps.append(item)
            else:
                frames[item.header.lsn] = (item.header._replace(crc=0), item.digest)
    return frames, gaps


def _explains(one: _Marks, other: _Marks) -> bool:
    """Whether every frame of `other` is one of `one`, or lies where `one` is damaged."""
    frames, gaps = one
    return all(
        frames[lsn] == frame if lsn in frames else any(gap.start <= lsn < gap.end for gap in gaps)
        for lsn, frame in other[0].items()
    )


def _copies(folders: Sequence[Path], name: str, segment: Segment) -> Iterator[Path]:
    """Files of the same name in other folders that are files of their own."""
    for folder in folders:
        place = folder / "store" / name
        if place.is_dir() and segment.start_lsn in list_starts(place):
            copy = name_segment(place, segment.start_lsn)
            if not copy.samefile(segment.path):
                yield copy
