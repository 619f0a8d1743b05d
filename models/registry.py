"""The versioned registry of weights: one folder a version (models/versions.py), hash-checked, visible only when whole.

versions/v000123/model.safetensors      the root hash stands in the file's metadata
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from contracts.errors import FormatError, UserError
from contracts.protocols import Array, WeightSet
from models.durable import publish_file
from models.versions import FILE_NAME, list_versions, version_folder

FORMAT_VERSION = 1
# Safetensors orders metadata keys at random: everything goes under one, so that the same weights give the same bytes.
METADATA_KEY = "ratchet"


def root_hash(tensors: Mapping[str, Array], dtypes: Mapping[str, str]) -> str:
    """sha256 over (name, dtype, shape, bytes) of every tensor, in the order of the names; 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(json.dumps([name, dtypes[name], list(array.shape)]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def arrays_of(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, Array], dict[str, str]]:
    """(arrays, dtypes) of torch tensors. Tensors on the CPU are shared, not copied; bfloat16 becomes a uint16 view."""
    tensors: dict[str, Array] = {}
    dtypes: dict[str, str] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        dtypes[name] = str(tensor.dtype).removeprefix("torch.")
        tensors[name] = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return tensors, dtypes


def tensors_of(weights: WeightSet) -> dict[str, torch.Tensor]:
    """Torch tensors of a weight set, sharing its memory where that is writable."""
    return {name: _tensor_of(array, weights.dtypes[name]) for name, array in weights.tensors.items()}


def _tensor_of(array: Array, dtype: str) -> torch.Tensor:
    # Arrays from Ray's object store are read-only, and torch warns about (and could write into) those.
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def save_version(folder: Path, weights: WeightSet) -> Path:
    """Write one version durably and return its file. Saving a version again replaces it whole."""
    path = version_folder(folder, weights.version) / FILE_NAME
    note = {"format_version": FORMAT_VERSION, "version": weights.version, "root_hash": weights.root_hash}
    save_tensors(path, tensors_of(weights), note=note)
    return path


def load_version(folder: Path, version: int) -> WeightSet:
    """Read one version back. Raises UserError where it is not there, FormatError where its bytes are damaged."""
    path = version_folder(folder, version) / FILE_NAME
    if not path.exists():
        there = list_versions(folder)
        found = f"{len(there)} versions, from {there[0]} to {there[-1]}" if there else "no version at all"
        raise UserError(f"version {version} in {folder}", f"there is {found}", "ask for one of those")
    state, note = load_tensors(path)
    tensors, dtypes = arrays_of(state)
    actual = root_hash(tensors, dtypes)
    if actual != note.get("root_hash") or note.get("version") != version:
        raise FormatError(f"{path} is damaged: its note says {note}, its weights hash to {actual}")
    return WeightSet(version=version, root_hash=actual, tensors=tensors, dtypes=dtypes)


def prune(folder: Path, *, keep: Collection[int]) -> list[int]:
    """Remove every version not in `keep`; the numbers removed."""
    removed = [version for version in list_versions(folder) if version not in keep]
    for version in removed:
        path = version_folder(folder, version) / FILE_NAME
        path.unlink()
        path.parent.rmdir()
    return removed


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], *, note: Mapping[str, object]) -> None:
    """Write tensors and a JSON note about them as one safetensors file, durably. Same content, same bytes."""
    metadata = {METADATA_KEY: json.dumps(note, sort_keys=True)}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    publish_file(path, lambda temporary: save_file(whole, temporary, metadata=metadata))


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """(tensors, note) as `save_tensors` wrote them. Raises FormatError where the file is damaged or of another kind."""
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no iterator)
    except SafetensorError as error:
        raise FormatError(f"{path} is no whole safetensors file: {error}") from error
    if note.get("format_version") != FORMAT_VERSION:
        raise FormatError(f"{path} has format version {note.get('format_version')}; this code reads {FORMAT_VERSION}")
    return tensors, note
