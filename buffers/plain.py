"""Whether a record's values are what its fields say: a caller in this process may have put anything there.

A number of another library (numpy's) is as good as a plain one; it becomes one on its way through the codec, and what
is folded is what everyone will read back. A whole number has 64 bits, as the index and the footers hold it.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Hashable
from enum import Enum
from functools import cache
from numbers import Integral, Real
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from contracts.errors import StoreError

MAX_INT = (1 << 63) - 1
LAST_S = 253_402_300_799.0  # the last second of the year 9999: a wall time is shown as a date
_NAMES = {int: "a whole number of 64 bits", float: "a number", str: "text", bytes: "bytes", bool: "true or false"}


def check_values(record: Any) -> None:
    """Raises StoreError where a field holds what cannot be kept, or another type than the record says."""
    name = type(record).__name__
    misfits = find_misfits(record)
    if misfits:
        raise StoreError(f"{name} is not kept: its {next(iter(misfits.values()))}")
    wall_time = getattr(record, "wall_time", 0.0)
    if not abs(wall_time) <= LAST_S:
        raise StoreError(f"{name} is not kept: its wall_time is {wall_time}, not seconds since 1970")


def find_misfits(record: Any) -> dict[str, str]:
    """Fields that hold something else than the record says → what, in words."""
    return {
        name: f"{name} is {_show(value)}, not {_describe(hint)}"
        for name, hint in hints_of(cast(Hashable, type(record))).items()
        if not fits(value := getattr(record, name), hint)
    }


def fits(value: Any, hint: Any) -> bool:
    """Whether the codec can keep `value` in a field of this type, and give the same back."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple | list) and all(fits(entry, arguments[0]) for entry in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            isinstance(key, str) and fits(entry, arguments[1]) for key, entry in value.items()
        )
    if origin is np.ndarray:
        return isinstance(value, np.ndarray)
    if dataclasses.is_dataclass(hint):
        return isinstance(value, cast(type, hint)) and not find_misfits(value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, Real)
    if hint is int:
        return isinstance(value, Integral) and -MAX_INT - 1 <= int(value) <= MAX_INT
    return isinstance(value, hint)


@cache
def hints_of(record_class: Hashable) -> dict[str, Any]:
    """The type of each field, by name."""
    hints = get_type_hints(record_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(cast(Any, record_class))}


def _describe(hint: Any) -> str:
    others = [argument for argument in get_args(hint) if argument is not type(None)]
    if get_origin(hint) in (Union, types.UnionType) and len(others) == 1:
        return f"{_describe(others[0])}, or none"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"a {hint.__name__}"
    return _NAMES.get(hint) or str(hint).replace("contracts.records.", "")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
