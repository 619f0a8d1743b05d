"""Mends damaged segments from whole copies in the run's snapshots. The damaged file is kept: no only copy is lost.

    a damaged range  ─►  the same bytes in a snapshot's copy of the segment, if they are whole frames there
                     └─► none: told as lost. Readers pass over it, the ledger counts what it held as unresolved

Mending writes a new file and renames it: a segment that a snapshot shares by hard link is never written into. What was
there goes to store/damaged/. So do an index and footers that are not what the logs say: the next owner makes others.
Not covered: a damaged end of the log, which recovery cuts as a tear and keeps as .torn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from buffers import snapshots
from buffers.inspection import OnProgress, ignore
from buffers.log.files import make_folder, sync_folder
from buffers.log.patching import patch
from buffers.log.reader import LogReader
from buffers.log.segments import Gap, Segment
from buffers.tending import tended
from buffers.verification import Verified, check_footers, check_index

ASIDE = "damaged"


@dataclass(frozen=True, kw_only=True)
class Mended:
    """(log, first LSN, LSN past the end) of ranges. `kept`: where the damaged files are now."""

    mended: tuple[tuple[str, int, int], ...]
    lost: tuple[tuple[str, int, int], ...]
    kept: tuple[Path, ...]


def repair(run_folder: Path, *, sources: Sequence[Path] = (), on_progress: OnProgress = ignore) -> Mended:
    """Mend the store of a run that is not running. `sources`: other copies of the run, beside its snapshots.

    Raises UserError where it runs.
    """
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
                for gap in gaps:
                    found = _find_whole(copies, name, segment, gap)
                    (lost if found is None else mended).append((name, gap.start, gap.end))
                    if found is not None:
                        patches[gap.start - segment.start_lsn] = found
                if patches:
                    place = aside / f"{name}-{segment.path.name}-{stamp}"
                    patch(segment.path, patches, keep=place)
                    kept.append(place)
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


def _find_whole(folders: Sequence[Path], name: str, segment: Segment, gap: Gap) -> bytes | None:
    """The bytes of the gap out of another copy of the segment, where they are whole frames."""
    for copy in _copies(folders, name, segment):
        reader = LogReader(copy.parent)
        if reader.watermark() < gap.end:
            continue
        items = list(reader.walk(gap.start, gap.end))
        whole = bool(items) and not any(isinstance(item, Gap) for item in items)
        starts = [item.header.lsn for item in items if not isinstance(item, Gap)]
        ends = [item.next_lsn for item in items if not isinstance(item, Gap)]
        if whole and starts[0] == gap.start and ends[-1] == gap.end:
            with copy.open("rb") as file:
                file.seek(gap.start - segment.start_lsn)
                return file.read(gap.end - gap.start)
    return None


def _copies(folders: Sequence[Path], name: str, segment: Segment) -> Iterator[Path]:
    """Files of the same name in other folders that are files of their own."""
    for folder in folders:
        copy = folder / "store" / name / segment.path.name
        if copy.is_file() and not copy.samefile(segment.path):
            yield copy
