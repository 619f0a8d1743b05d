"""A learner's whole state on disk: tensors by part, and a state.json with every hash, written last.

    step-000020/weights.safetensors, optimizer.safetensors, reference.safetensors (with a KL term), state.json

A folder without state.json is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from contracts.errors import FormatError
from models.durable import publish_file, sync
from models.registry import arrays_of, load_tensors, root_hash, save_tensors

FORMAT_VERSION = 1
STATE_FILE = "state.json"

Parts = Mapping[str, Mapping[str, Tensor]]


def state_hash(parts: Parts, numbers: Mapping[str, int]) -> str:
    """sha256 over the root hash of each part and the numbers."""
    hashes = {part: root_hash(*arrays_of(tensors)) for part, tensors in parts.items()}
    return hashlib.sha256(json.dumps([hashes, dict(numbers)], sort_keys=True).encode()).hexdigest()


def save_state(folder: Path, parts: Parts, numbers: Mapping[str, int]) -> str:
    """Write and sync; the state's hash. Saving into the same folder again replaces what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / STATE_FILE).exists():
        (folder / STATE_FILE).unlink()
        sync(folder)
    for part, tensors in parts.items():
        save_tensors(folder / f"{part}.safetensors", tensors, note={"format_version": FORMAT_VERSION, "part": part})
    whole = state_hash(parts, numbers)
    note = {"format_version": FORMAT_VERSION, "state_hash": whole, "parts": sorted(parts), "numbers": dict(numbers)}
    text = json.dumps(note, indent=2, sort_keys=True) + "\n"
    publish_file(folder / STATE_FILE, lambda temporary: temporary.write_text(text))
    return whole


def load_state(folder: Path, expected_hash: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, int]]:
    """(parts, numbers). Raises FormatError where the folder is no whole checkpoint or its hash is another."""
    try:
        note = json.loads((folder / STATE_FILE).read_text())
        version, names, numbers = note["format_version"], note["parts"], note["numbers"]
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(f"{folder} is no whole checkpoint: {error!r}") from error
    if version != FORMAT_VERSION:
        raise FormatError(f"{folder} has format version {version}; this code reads {FORMAT_VERSION}")
    parts: dict[str, dict[str, Tensor]] = {}
    for part in names:
        path = folder / f"{part}.safetensors"
        if not path.is_file():
            raise FormatError(f"{folder} is no whole checkpoint: {path.name} is missing")
        parts[part] = load_tensors(path)[0]
    actual = state_hash(parts, numbers)
    if actual != expected_hash:
        raise FormatError(f"the state in {folder} hashes to {actual}, expected {expected_hash}")
    return parts, {str(name): int(number) for name, number in numbers.items()}
