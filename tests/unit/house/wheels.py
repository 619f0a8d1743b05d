"""Tiny wheels in a folder, so that pip can be run for real without a registry."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path


def write_wheel(folder: Path, name: str, version: str, *, requires: Sequence[str] = ()) -> str:
    """Write a wheel with one module whose VERSION is `version`; its sha256."""
    stem = f"{name.replace('-', '_')}-{version}"
    needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
    file = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr(f"{name.replace('-', '_')}.py", f"VERSION = {version!r}\n")
        wheel.writestr(
            f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        )
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def environment(folder: Path, **more: str) -> dict[str, str]:
    """This process's environment, with pip seeing the wheels in `folder` and nothing else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_") and name != "BUILD"}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), **more}
