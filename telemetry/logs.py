"""Structured logs: one JSON object a line in logs/ROLE.jsonl; rich text where a person sits at a terminal."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

_FILE_BYTES = 64 << 20  # of one log file before it rolls over
_FILES_KEPT = 3
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A log record as one line: time, level, run, role, logger, message, then whatever came in `extra`."""

    def __init__(self, role: str, *, run: str) -> None:
        super().__init__()
        self._role, self._run = role, run

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "run": self._run,
            "role": self._role,
            "logger": record.name,
            "message": record.getMessage(),
        }
        extras = vars(record).items()  # and what a library's record factory adds: Ray's _ray_timestamp_ns
        line.update((name, value) for name, value in extras if name not in _STANDARD and not name.startswith("_"))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return dump_line(line)


def configure(role: str, *, run: str, folder: Path | None, level: int = logging.INFO) -> None:
    """Send this process's logs to `folder`/ROLE.jsonl and its warnings to the terminal, if there is one.

    Without a folder and without a terminal the JSON lines go to standard error. A second call replaces the first.
    """
    logging.raiseExceptions = False  # a full disk must not fill the terminal with tracebacks of the log itself
    handlers: list[logging.Handler] = []
    json_lines = JsonFormatter(role, run=run)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        file = RotatingFileHandler(folder / f"{role}.jsonl", maxBytes=_FILE_BYTES, backupCount=_FILES_KEPT, delay=True)
        file.setFormatter(json_lines)
        handlers.append(file)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handlers.append(RichHandler(logging.WARNING, console=Console(stderr=True), show_path=False))
    elif folder is None:
        stream: logging.StreamHandler[TextIO] = logging.StreamHandler(sys.stderr)
        stream.setFormatter(json_lines)
        handlers.append(stream)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)


class JsonLines:
    """Appends one JSON object a line to a file. A line is one write: after a crash at most the last one is torn."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if _ends_torn(path):
            os.write(self._file, b"\n")
        self.size = os.fstat(self._file).st_size  # bytes

    def append(self, fields: Mapping[str, Any]) -> None:
        self.size += os.write(self._file, dump_line(fields).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file in order; torn lines are left out. Nothing if there is no file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                value = json.loads(line)
            except ValueError:
                continue  # the write that a crash cut off
            if isinstance(value, dict):
                yield value


def dump_line(fields: Mapping[str, Any]) -> str:
    """One strict JSON object on one line. A number that is not finite becomes null, an unknown type its text."""
    return json.dumps(_plain(fields), ensure_ascii=False, allow_nan=False, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _ends_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
