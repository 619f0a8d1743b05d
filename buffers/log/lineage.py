"""Whose bytes a log holds: a branch shares the segments of the store that it came from, and each was written under its
own store's name.

`lineage`, in a log's folder, is there only where segments are shared: {"uuid": own, "ancestors": [[end LSN, uuid], …]},
oldest first. A segment that starts below an ancestor's end LSN is that ancestor's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from uuid import UUID

from buffers.log.files import write_durably
from configs.documents import STRICT, DocumentError, Lsn, read
from contracts.errors import StoreIdentityError

LINEAGE = "lineage"


@dataclass(frozen=True)
class Lineage:
    """The store's own uuid, and (end LSN, uuid) of those that it came from, oldest first."""

    __pydantic_config__ = STRICT
    uuid: UUID
    ancestors: tuple[tuple[Lsn, UUID], ...]

    def at(self, start_lsn: int) -> UUID:
        """Under which uuid the segment that starts there was written."""
        return next((uuid for end_lsn, uuid in self.ancestors if start_lsn < end_lsn), self.uuid)

    def branch(self, uuid: UUID, *, end_lsn: int) -> Lineage:
        """Of a store that shares this one's segments up to `end_lsn`."""
        return Lineage(uuid, (*self.ancestors, (end_lsn, self.uuid)))


def read_lineage(folder: Path) -> Lineage | None:
    """What the log's folder says; None where it shares nothing. Raises StoreIdentityError where it does not read."""
    try:
        found = read(folder / LINEAGE, Lineage)
    except FileNotFoundError:
        return None
    except DocumentError as error:
        raise StoreIdentityError(f"{folder / LINEAGE} does not name stores: {error}") from error
    if any(earlier > later for (earlier, _), (later, _) in pairwise(found.ancestors)):
        raise StoreIdentityError(f"{folder / LINEAGE} does not name stores: their ends do not rise")
    return found


def lineage_of(folder: Path, uuid: UUID) -> Lineage:
    """The lineage of the log of store `uuid`. Raises StoreIdentityError where the log is another store's."""
    found = read_lineage(folder) or Lineage(uuid, ())
    if found.uuid != uuid:
        raise StoreIdentityError(f"{folder} belongs to store {found.uuid}, not to {uuid}")
    return found


def write_lineage(folder: Path, lineage: Lineage) -> None:
    """Durably."""
    ancestors = [[end_lsn, str(uuid)] for end_lsn, uuid in lineage.ancestors]
    write_durably(folder / LINEAGE, (json.dumps({"uuid": str(lineage.uuid), "ancestors": ancestors}) + "\n").encode())
