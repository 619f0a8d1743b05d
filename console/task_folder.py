"""The user's own folder: that of the configuration file, copied into a run, or shipped with a submitted one.

Only what a configuration needs is copied: the whole folder where it names a `module:object`, the one file where it
names a data set of its own, else nothing.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from configs.objects import own_names
from configs.schema import RunConfig
from contracts.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
MOST_FILES, MOST_MIB = 2_000, 64
_LEFT_OUT = frozenset({"__pycache__", "runs", "node_modules"})


def copy(config: RunConfig, source: Path, target: Path) -> None:
    """Copy what the configuration needs of the folder `source` to the new folder `target`.

    Raises UserError where a module there has the name of a package of ours, or the folder is too large to be meant.
    """
    for file in needed(config, source):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


def needed(config: RunConfig, source: Path) -> list[Path]:
    """The files of `source` that the configuration needs, in order. Raises UserError."""
    names = own_names(config)
    environment = config.environment
    files: list[Path] = []
    if names:
        _refuse_clashes(source, names)
        runs = Path(config.root).absolute()
        files = _checked(sorted(file for file in _files(source) if runs not in file.absolute().parents), source, names)
    if environment.name == "dataset" and not Path(environment.dataset).is_absolute():
        file = source / environment.dataset
        if file not in files and file.is_file():  # a missing one is explained by who reads it
            files.append(file)
    return files


def digest(config: RunConfig, source: Path) -> str:
    """SHA-256 (hex) of the names and contents of the needed files."""
    result = hashlib.sha256()
    for file in needed(config, source):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        result.update(f"{file.relative_to(source)}\0{content}\0".encode())
    return result.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """All files but hidden ones, caches, runs, and virtual environments; links are followed to files only."""
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name in _LEFT_OUT:
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and not path.is_symlink() and not (path / "pyvenv.cfg").exists():
            yield from _files(path)


def _checked(files: list[Path], source: Path, names: dict[str, str]) -> list[Path]:
    mib = sum(file.stat().st_size for file in files) / 2**20
    if len(files) <= MOST_FILES and mib <= MOST_MIB:
        return files
    raise UserError(
        f"{_listed(names)}: the folder {source} goes with the run.",
        f"It holds {len(files):,} files, {mib:,.0f} MiB; at most {MOST_FILES:,} and {MOST_MIB} MiB are copied.",
        "Give the configuration and its code a folder of their own, and name large data by an absolute path.",
    )


def _refuse_clashes(source: Path, names: dict[str, str]) -> None:
    """A module called like a package of ours would never be found: ours come first on Python's path."""
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    for name in sorted(packages):
        file, package = source / f"{name}.py", source / name
        taken = file if file.is_file() else package
        if source != ROOT / name and (file.is_file() or any(package.glob("*.py"))):
            raise UserError(
                f"{_listed(names)}: modules of {source} are imported.",
                f"{taken} has the name of a package of Ratchet's: whoever imports {name} gets Ratchet's.",
                f"Give it another name; taken are {', '.join(sorted(packages))}.",
            )


def _listed(names: dict[str, str]) -> str:
    return ", ".join(f"{key} is {name}" for key, name in names.items())
