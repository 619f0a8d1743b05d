"""A number a tensor: which one of a version's tensors is another, told from the log alone, on any machine."""

from __future__ import annotations

from collections.abc import Sequence

import google_crc32c
import numpy as np

from contracts.protocols import WeightSet


def checksums(weights: WeightSet) -> tuple[int, ...]:
    """CRC32C of each tensor's bytes, in the order of their names: `Version.checksums`."""
    arrays = (np.ascontiguousarray(weights.tensors[name]) for name in sorted(weights.tensors))
    return tuple(int(google_crc32c.value(array.tobytes())) for array in arrays)


def find_differing(weights: WeightSet, logged: Sequence[int]) -> tuple[str, ...]:
    """Names of the tensors whose checksum is not the logged one, in order; () where none was logged."""
    names = sorted(weights.tensors)
    if len(logged) != len(names):
        return ()
    return tuple(name for name, ours, theirs in zip(names, checksums(weights), logged, strict=True) if ours != theirs)
