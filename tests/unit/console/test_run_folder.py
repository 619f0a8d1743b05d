"""Run folders: made whole or not at all, found again by name, path, or `latest`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from buffers.log.identity import create_store
from configs.loader import config_hash, load
from configs.schema import RunConfig
from console.run_folder import check_store, create, discard, names, occupied, read_manifest, resolve
from contracts.errors import RunFolderError


def config(root: Path, *, name: str = "small") -> RunConfig:
    return RunConfig(name=name, root=str(root))


def test_a_new_folder_holds_the_resolved_configuration(tmp_path: Path) -> None:
    folder = create(config(tmp_path / "runs"))
    assert load(folder / "config.yaml") == config(tmp_path / "runs")
    manifest = read_manifest(folder)
    assert manifest["run"] == folder.name
    assert manifest["store_uuid"] is None
    assert manifest["config_hash"] == config_hash(config(tmp_path / "runs"))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["latest", folder.name]


def test_two_runs_in_one_second_have_two_folders(tmp_path: Path) -> None:
    folders = [create(config(tmp_path)) for _ in range(3)]
    assert len(set(folders)) == 3
    assert resolve("latest", root=tmp_path) == folders[-1]
    assert names(tmp_path) == [folder.name for folder in folders]


def test_a_run_is_found_by_name_and_by_path(tmp_path: Path) -> None:
    folder = create(config(tmp_path))
    assert resolve(folder.name, root=tmp_path) == folder
    assert resolve(str(folder)) == folder
    assert resolve(str(tmp_path / "latest")) == folder


def test_a_wrong_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    folder = create(config(tmp_path, name="quickstart"))
    with pytest.raises(RunFolderError) as caught:
        resolve("quikstart", root=tmp_path)
    assert folder.name in caught.value.todo


def test_another_format_is_refused(tmp_path: Path) -> None:
    folder = create(config(tmp_path))
    (folder / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(RunFolderError, match="its format is 99; this code knows 1"):
        resolve(folder.name, root=tmp_path)


def test_discard_points_latest_back(tmp_path: Path) -> None:
    first, second = create(config(tmp_path)), create(config(tmp_path))
    discard(second)
    assert resolve("latest", root=tmp_path) == first
    discard(first)
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        create(config(tmp_path / "file" / "runs"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_one_driver_at_a_time(tmp_path: Path) -> None:
    folder = create(config(tmp_path))
    with occupied(folder), pytest.raises(RunFolderError, match="another process drives it"), occupied(folder):
        pass
    with occupied(folder):
        pass


def test_a_run_knows_its_own_store(tmp_path: Path) -> None:
    folder = create(config(tmp_path))
    check_store(folder)  # not made yet
    name_store(folder, str(create_store(folder / "store")))
    check_store(folder)
    name_store(folder, "00000000-0000-0000-0000-000000000000")
    with pytest.raises(RunFolderError, match="holds another store"):
        check_store(folder)
    (folder / "store" / "store.json").unlink()
    with pytest.raises(RunFolderError, match=r"store\.json is missing"):
        check_store(folder)


def name_store(folder: Path, uuid: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"store_uuid": uuid}))
