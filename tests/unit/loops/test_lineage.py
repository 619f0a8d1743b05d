"""The tree of versions: ancestry, branches, what each was made of, and how it is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from buffers.view import StoreView
from contracts.errors import UserError
from contracts.records import Branch, ControlRecord, Version
from loops.lineage import Lineage, draw
from tests.unit.console.played import STEPS, play


def version(number: int, parent: int, *, branch: int = 0) -> Version:
    return Version(version=number, parent=parent, branch=branch, step=max(0, number), root_hash=f"{number:064x}")


TREE = [version(0, -1), version(1, 0), version(2, 1), version(3, 1, branch=1), version(4, 3, branch=1), version(5, 2)]


@pytest.fixture(scope="module")
def tree() -> Lineage:
    branch = Branch(branch=1, parent_branch=0, from_version=1, reason="rewind")
    records: list[tuple[int, ControlRecord]] = [*enumerate(TREE), (9, branch)]
    return Lineage.of(records)


def test_the_way_along_the_parents(tree: Lineage) -> None:
    assert [one.version for one in tree.ancestry(4)] == [0, 1, 3, 4]
    assert [one.version for one in tree.path(1, 5)] == [1, 2, 5]
    assert [one.version for one in tree.path(5, 5)] == [5]
    with pytest.raises(UserError, match="3 is no ancestor of 5"):
        tree.path(3, 5)


def test_what_two_versions_share(tree: Lineage) -> None:
    found = [tree.common(one, other) for one, other in ((4, 5), (2, 5), (0, 4))]
    assert [one.version for one in found if one is not None] == [1, 2, 0]
    assert sorted(one.version for one in tree.children(1)) == [2, 3]
    assert [one.from_version for one in tree.branches] == [1]


def test_a_version_that_is_not_there_is_told_with_those_that_are(tree: Lineage) -> None:
    assert tree.find(None).version == 5
    with pytest.raises(UserError, match="the log has 0 to 5"):
        tree.find(7)
    with pytest.raises(UserError, match="the log has none yet"):
        Lineage.of([]).find(None)


def test_the_tree_as_lines_of_a_terminal() -> None:
    lines = draw(sorted(TREE, key=lambda one: -one.version))
    assert [edges.rstrip() + ("" if number is None else f" {number}") for edges, number in lines] == [
        "* 5",
        "| * 4",
        "| * 3",
        "* | 2",
        "|/",
        "* 1",
        "* 0",
    ]


def test_a_line_ends_where_its_parent_is_not_shown() -> None:
    assert draw([TREE[5], TREE[4]]) == [("* ", 5), ("* ", 4)]


def test_three_children_come_together() -> None:
    lines = draw([version(3, 0), version(2, 0), version(1, 0), version(0, -1)])
    assert [edges.rstrip() for edges, _ in lines] == ["*", "| *", "| | *", "| |/", "|/", "*"]


def test_a_run_as_its_log_tells_it(tmp_path: Path) -> None:
    lineage = Lineage.of(StoreView.open(play(tmp_path) / "store").decisions())
    path = lineage.ancestry(STEPS)
    assert [one.step for one in path] == list(range(STEPS + 1))
    assert lineage.batch_of(path[0]) is None
    for one in path[1:]:
        batch = lineage.batch_of(one)
        assert batch is not None
        assert (batch.step, batch.parent_version) == (one.step, one.parent)
    assert {one.version: len(lineage.fates[one.version].served) for one in path} == dict.fromkeys(range(STEPS + 1), 1)
    assert lineage.fates[STEPS].metric is not None
    assert lineage.fates[2].metric is None
    assert [len(lineage.fates[number].checkpoints) for number in (0, 1, 2)] == [1, 0, 1]
    assert lineage.sessions.keys() == set(range(STEPS + 1))
