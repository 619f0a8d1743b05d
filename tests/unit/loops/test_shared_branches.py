"""Branches of one run share its segments: they cost their checkpoints, and what is done to one touches no other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buffers.erasure import Choice, erase
from buffers.query import Query
from buffers.verification import verify
from buffers.view import StoreView
from contracts.records import Version
from loops.exclusion import Request
from loops.refold import Exclusion
from tests.crash.plain import PlainRun, plain_config
from tests.unit.loops.test_rewind import STEPS, batches_of, make_run, rewind

ACTIONS = ("delete", "go on", "erase")
SMALL_BYTES = 32 << 10  # a branch's own decisions, names, and the heads of its segments


def make_family(root: Path, *, num: int) -> list[Path]:
    """A run, and `num` rewinds of it."""
    run = make_run(root)
    view = StoreView.open(run / "store")
    rows = [row for batch in batches_of(run) for row in batch.rows]
    tasks = sorted({one.task_id for one in view.episodes([row.episode_lsn for row in rows])})
    folders = [run]
    for number in range(num):
        task = tasks[number % len(tasks)]
        kept = number >= len(tasks)
        request = Request(
            queries=(Query(task=task),), text=f"task={task} {number}", descendants="keep" if kept else "drop"
        )
        folders.append(root / f"twig-{number}")
        rewind(run, folders[-1], request)
    return folders


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_family(tmp_path_factory.mktemp("family"), num=3)


def check_growth(family: list[Path]) -> None:
    run, *branches = family
    shared = {path.stat().st_ino for path in run.rglob("*") if path.is_file()}
    segments = {path.stat().st_ino for log in ("data", "control") for path in (run / "store" / log).glob("*.seg")}
    for branch in branches:
        files = [path for path in branch.rglob("*") if path.is_file()]
        assert segments <= {path.stat().st_ino for path in files}
        own = [path for path in files if path.stat().st_ino not in shared]
        checkpoints = [path for path in own if "checkpoints" in path.parts]
        assert checkpoints
        index = [path for path in own if "index" in path.parts]  # it can be thrown away and is made again
        rest = set(own) - set(checkpoints) - set(index)
        assert sum(path.stat().st_size for path in rest) < SMALL_BYTES, rest
        assert {path.name for path in rest} >= {"store.json", "lineage", "manifest.json", "config.yaml"}


def test_disk_grows_by_checkpoints_alone(family: list[Path]) -> None:
    check_growth(family)


@contextmanager
def copied(family: list[Path]) -> Iterator[list[Path]]:
    """A family that may be changed; its members share what they shared."""
    root = family[0].parent
    with TemporaryDirectory(dir=root.parent) as place:
        subprocess.run(["cp", "-a", f"{root}/.", place], check=True)
        yield [Path(place) / folder.name for folder in family]


def look(folder: Path) -> dict[str, tuple[int, str]]:
    """Size, and hash of everything but the index: that is a sparse file, and nobody shares it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path): (path.stat().st_size, "" if "index" in path.parts else sha256(path.read_bytes()).hexdigest())
        for path in files
    }


def act(folder: Path, action: str) -> None:
    if action == "delete":
        shutil.rmtree(folder)
    elif action == "erase":
        first = batches_of(folder)[0]
        erase(folder, Choice(lsns=frozenset((first.rows[0].episode_lsn,))), reason="asked for")
    else:
        named = json.loads((folder / "manifest.json").read_text()).get("store_uuid")
        if named is not None:
            (folder / "uuid").write_text(named)
        steps = max(one.step for _, one in StoreView.open(folder / "store").decisions() if isinstance(one, Version))
        on = PlainRun(folder, config=plain_config(steps=max(steps, STEPS) + 1))
        on.go()
        on.close()


def check_actions(family: list[Path], actions: list[tuple[int, str]]) -> None:
    """Each is done to one member: every other one has the bytes that it had."""
    with copied(family) as members:
        known = {folder: look(folder) for folder in members}
        for number, action in actions:
            folder = members[number % len(members)]
            if folder not in known:
                continue
            act(folder, action)
            del known[folder]
            for other, before in known.items():
                assert look(other) == before, f"{action} of {folder.name} changed {other.name}"
            if folder.exists():
                known[folder] = look(folder)
        for folder in known:
            assert verify(folder).defects == []


@pytest.mark.timeout(300)
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.permutations(range(4)), st.lists(st.sampled_from(ACTIONS), min_size=4, max_size=4))
def test_what_is_done_to_one_harms_no_other(family: list[Path], order: list[int], actions: list[str]) -> None:
    check_actions(family, list(zip(order, actions, strict=True)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_branches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same with twenty, and every order in which they may be deleted is drawn from."""
    family = make_family(tmp_path_factory.mktemp("twenty"), num=20)
    before = _allocated(family[:1])
    check_growth(family)
    checkpoints = [folder / "checkpoints" for folder in family[1:]]
    indices = [folder / "store" / "index" for folder in family[1:]]
    grown = _allocated(family) - before
    assert grown < _allocated([family[0], *checkpoints]) - before + _allocated(indices) + 20 * 4 * SMALL_BYTES

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from(ACTIONS)), min_size=1, max_size=12))
    def any_order(actions: list[tuple[int, str]]) -> None:
        check_actions(family, actions)

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.permutations(range(21)))
    def deleted_in_any_order(order: list[int]) -> None:
        check_actions(family, [(number, "delete") for number in order])

    any_order()
    deleted_in_any_order()


def _allocated(folders: list[Path]) -> int:
    """Bytes on the disk, each file once, whatever names it has."""
    seen: dict[int, int] = {}
    for folder in folders:
        for current, _, names in os.walk(folder):
            for name in names:
                found = (Path(current) / name).stat()
                seen[found.st_ino] = found.st_blocks * 512
    return sum(seen.values())


def test_exclusions_add_up() -> None:
    both = Exclusion(frozenset((1,)), frozenset((10,))) | Exclusion(frozenset((2,)), frozenset((20, 21)))
    assert both == Exclusion(frozenset((1, 2)), frozenset((10, 20, 21)))
