"""Reads small JSON files that a crash, a disk or a person may have changed: nothing in them is believed unchecked.

    value = read(path, Shape)    Shape: a dataclass whose annotations say types and ranges

Keys that a shape does not know are passed over: a format number, which readers compare first, says when they matter.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

T = TypeVar("T")

Lsn = Annotated[int, Field(ge=0, lt=1 << 63)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

STRICT = ConfigDict(strict=True)  # a shape's __pydantic_config__: "5" is no 5
_MOST_SHOWN = 3
_LONGEST_SHOWN = 60


class DocumentError(ValueError):
    """What does not fit, in one line."""


def read(path: Path, shape: type[T]) -> T:
    """The file's contents. Raises DocumentError where they do not fit, FileNotFoundError where there is no file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(*error.args) from error
    except OSError as error:
        raise DocumentError(f"it cannot be read: {error.strerror or error}") from error
    return parse(data, shape)


def parse(data: bytes, shape: type[T]) -> T:
    """The same of bytes."""
    adapter: TypeAdapter[T] = _adapter(shape)  # type: ignore[arg-type]
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        raise DocumentError(_describe(error)) from None


@lru_cache(maxsize=64)
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def _describe(error: ValidationError) -> str:
    faults = []
    for fault in error.errors(include_url=False)[:_MOST_SHOWN]:
        where = ".".join(map(str, fault["loc"]))
        found = "" if fault["type"] in ("json_invalid", "missing") else f", not {_shorten(repr(fault['input']))}"
        faults.append(f"{_shorten(where)}: {fault['msg']}{found}" if where else f"{fault['msg']}{found}")
    return "; ".join(faults)


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"
