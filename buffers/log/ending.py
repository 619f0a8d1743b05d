"""Where the log of a snapshot ends: its last segment is its run's own, by hard link, and the run may have gone on.

`end`, in a log's folder, holds an LSN. What lies at or behind it is no part of this log: readers stop there, and an
owner cuts it off before he writes. It counts only where no owner was yet, so beside a watermark file it says nothing.
"""

from __future__ import annotations

from pathlib import Path

from configs.documents import DocumentError, Lsn, read
from contracts.errors import FormatError

END = "end"


def read_end(folder: Path) -> int | None:
    """None where the log ends where its bytes do. Raises FormatError where it does not read."""
    try:
        return read(folder / END, Lsn)
    except FileNotFoundError:
        return None
    except DocumentError as error:
        raise FormatError(f"{folder / END} holds no LSN: {error}") from error


def write_end(folder: Path, lsn: int) -> None:
    """Not synced."""
    (folder / END).write_text(f"{lsn}\n")
