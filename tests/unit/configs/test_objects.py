"""`module:object`: found in the user's folder, never mixed up with a module of ours, every mistake explained."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.objects import code_hash, load_object
from contracts.errors import UserError

ASKED = "Something was asked for."


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A user's folder; what was imported from it is forgotten afterwards."""
    before = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = before[0]
    for name in set(sys.modules) - before[1]:
        del sys.modules[name]


def test_functions_classes_and_packages_of_a_folder(folder: Path) -> None:
    (folder / "my_rewards.py").write_text("class Judge:\n    word = 'ok'\ndef short(text):\n    return len(text) < 3\n")
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").write_text("def top():\n    return 1\n")
    (folder / "my_package" / "inner.py").write_text("from my_rewards import Judge as Other\n")
    assert load_object("my_rewards:short", asked=ASKED, folder=folder)("ab") is True
    assert load_object("my_package:top", asked=ASKED, folder=folder)() == 1
    judge = load_object("my_rewards:Judge", asked=ASKED, folder=folder)
    assert load_object("my_package.inner:Other", asked=ASKED, folder=folder) is judge


def test_without_a_folder_it_is_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "beside_me.py").write_text("def one():\n    return 1\n")
    monkeypatch.chdir(folder)
    assert load_object("beside_me:one", asked=ASKED)() == 1


def test_the_folder_comes_before_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = folder / "copy"
    copy.mkdir()
    for place in (folder, copy):
        (place / "main_part.py").write_text("from helping_part import which\ndef one():\n    return which\n")
        (place / "helping_part.py").write_text(f"which = {place.name!r}\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend("")
    assert load_object("main_part:one", asked=ASKED, folder=copy)() == "copy"


@pytest.mark.parametrize(
    ("name", "found", "todo"),
    [
        ("exact", "'exact' is not of the form module:object", "my_module:my_name"),
        (":short", "not of the form", "my_module:my_name"),
        ("mine:", "not of the form", "my_module:my_name"),
        ("mine:a.b", "not of the form", "my_module:my_name"),
        ("nowhere_at_all:short", "No module named 'nowhere_at_all'", "nowhere_at_all.py"),
        ("broken_one:short", "ZeroDivisionError: division by zero (broken_one.py, line 1)", "broken_one.py"),
        ("mine:digits", "mine has digits, which cannot be called", "It has: first, Second."),
        ("mine:third", "mine has no third", "It has: first, Second."),
        ("math:third", "The name math already means", "math.py another name"),
        ("contracts:third", "The name contracts already means", "contracts.py another name"),
    ],
)
def test_a_wrong_name_is_explained(folder: Path, name: str, found: str, todo: str) -> None:
    (folder / "mine.py").write_text("digits = 3\ndef first(): ...\nclass Second: ...\ndef _hidden(): ...\n")
    (folder / "broken_one.py").write_text("1 / 0\n")
    for taken in ("math.py", "contracts.py"):
        (folder / taken).write_text("def third(): ...\n")
    with pytest.raises(UserError) as caught:
        load_object(name, asked=ASKED, folder=folder)
    assert caught.value.asked == ASKED
    assert found in caught.value.found
    assert todo in caught.value.todo


def test_the_hash_is_of_the_whole_file_and_the_name(folder: Path) -> None:
    file = folder / "hashed.py"
    file.write_text("scale = 1\ndef one(): return scale\ndef two(): return scale\n")
    one, two = (load_object(f"hashed:{name}", asked=ASKED, folder=folder) for name in ("one", "two"))
    before = code_hash(one)
    assert before == code_hash(one) != code_hash(two)
    file.write_text(file.read_text().replace("scale = 1", "scale = 2"))
    assert code_hash(one) != before
    assert len(code_hash(operator.eq)) == 64  # compiled: there is no source
