"""Where the registry keeps versions: folders and names, without loading a tensor.

    versions/v000123/model.safetensors

A version exists if and only if its `model.safetensors` does.
"""

from __future__ import annotations

import re
from pathlib import Path

FILE_NAME = "model.safetensors"
_FOLDER = re.compile(r"v(\d{6,})")


def version_folder(folder: Path, version: int) -> Path:
    return folder / f"v{version:06d}"


def list_versions(folder: Path) -> list[int]:
    """Versions present, rising."""
    found = (_FOLDER.fullmatch(path.parent.name) for path in folder.glob(f"v*/{FILE_NAME}"))
    return sorted(int(match[1]) for match in found if match)
