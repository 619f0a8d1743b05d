"""The house rules that no other tool checks: file length, names, who imports what, every run file loads."""

from __future__ import annotations

import ast
import importlib.metadata
import tomllib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from configs.loader import load
from tests.unit.house.guard import ROOT, foreign_packages, packages

MAX_LINES = 750
ROOMS = [name for name in packages() if name not in {"tests", "benchmarks"}]
FORBIDDEN_NAMES = {"utils", "common", "core", "lib", "misc"}
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python_files() -> Iterator[Path]:
    for top in ROOT.iterdir():
        if top.suffix == ".py":
            yield top
        elif top.is_dir() and not top.name.startswith(".") and top.name not in {"runs", "build"}:
            yield from top.rglob("*.py")


@cache
def imports() -> Mapping[str, frozenset[str]]:
    """What each file under the project imports, anywhere in it."""
    found = {}
    for file in python_files():
        nodes = list(ast.walk(ast.parse(file.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
        found[str(file.relative_to(ROOT))] = frozenset(names)
    return found


def importers(module: str) -> set[str]:
    """Files under the project that import a top-level module."""
    return {file for file, names in imports().items() if any(name.partition(".")[0] == module for name in names)}


def test_no_python_file_is_longer_than_the_limit() -> None:
    files = {file: len(file.read_text().splitlines()) for file in python_files()}
    assert Path(__file__) in files
    assert {str(file.relative_to(ROOT)): lines for file, lines in files.items() if lines > MAX_LINES} == {}


def test_top_level_names_resolve_to_this_project() -> None:
    assert foreign_packages() == {}


def test_no_other_distribution_brings_one_of_our_names() -> None:
    brought = importlib.metadata.packages_distributions()
    assert {room: set(brought[room]) - {"ratchet"} for room in ROOMS if set(brought.get(room, ())) - {"ratchet"}} == {}


def test_every_room_has_a_floor_and_is_packaged() -> None:
    include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert [room for room in ROOMS if not any(fnmatch(room, pattern) for pattern in include)] == []
    assert set(PROJECT["tool"]["importlinter"]["root_packages"]) == set(ROOMS)
    floors = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    assert {room.strip() for floor in floors for room in floor.split("|")} == set(ROOMS)


def test_no_room_is_a_drawer() -> None:
    files = [file.relative_to(ROOT) for file in python_files()]
    assert [str(file) for file in files if FORBIDDEN_NAMES & set(file.with_suffix("").parts)] == []


@pytest.mark.parametrize(("module", "room"), [("ray", "actors"), ("grpc", "serving"), ("vllm", "inference")])
def test_heavy_libraries_stay_in_their_room(module: str, room: str) -> None:
    files = {file for file in importers(module) if not file.startswith(("tests/", "benchmarks/"))}
    assert {file for file in files if not file.startswith(f"{room}/")} == set()


def test_vllm_is_imported_in_one_file() -> None:
    assert len({file for file in importers("vllm") if not file.startswith("tests/")}) <= 1


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_run_file_loads(file: Path) -> None:
    assert load(file).name
