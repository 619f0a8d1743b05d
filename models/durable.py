"""Write, sync, then make visible: how every file of weights reaches the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from contracts.errors import StoreFullError, is_disk_full


def publish_file(path: Path, write: Callable[[Path], object]) -> None:
    """`write` fills a temporary file beside `path`; it is synced and renamed over `path`, then the folder is synced.

    Raises StoreFullError where the disk is full; `path` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
    except Exception as error:
        if is_disk_full(error):
            raise StoreFullError(f"no space is left for {path}") from None
        raise
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)
    sync(path.parent.parent)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
