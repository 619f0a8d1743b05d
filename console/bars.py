"""A progress bar on standard error, on a terminal only, for commands that read or write for long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(title: str, *, quiet: bool = False, unit: str = "bytes") -> Iterator[Callable[[int, int], None]]:
    """Call what it gives with (bytes done, bytes in all), or of another unit, as often as you like."""
    if quiet or not sys.stderr.isatty():
        yield _ignore
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    sizes = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(), unit)
    with Progress(
        title, BarColumn(), *sizes, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as progress:
        task = progress.add_task(title)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _ignore(_done: int, _total: int) -> None:
    """Nobody watches."""
