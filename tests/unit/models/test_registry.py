"""The registry of weights: hashes, durable and whole files, damage refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from contracts.errors import FormatError, UserError
from contracts.protocols import WeightSet
from models.registry import arrays_of, load_version, prune, root_hash, save_version, tensors_of
from models.versions import list_versions


def make(version: int, *, fill: float = 1.0) -> WeightSet:
    state = {
        "b": torch.full((2, 3), fill),
        "a": torch.arange(4, dtype=torch.float32).to(torch.bfloat16),
        "scalar": torch.tensor(2.0),
    }
    tensors, dtypes = arrays_of(state)
    return WeightSet(version=version, root_hash=root_hash(tensors, dtypes), tensors=tensors, dtypes=dtypes)


def test_a_version_comes_back_bit_for_bit(tmp_path: Path) -> None:
    weights = make(7)
    path = save_version(tmp_path, weights)
    assert path == tmp_path / "v000007" / "model.safetensors"
    back = load_version(tmp_path, 7)
    assert (back.version, back.root_hash, dict(back.dtypes)) == (7, weights.root_hash, dict(weights.dtypes))
    for name, array in weights.tensors.items():
        assert back.tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(back.tensors[name], array)
    assert back.dtypes["a"] == "bfloat16"
    assert back.tensors["a"].dtype == np.uint16


def test_the_hash_sees_name_type_shape_and_bytes_but_not_order() -> None:
    array = np.arange(6, dtype=np.float32)
    base = root_hash({"w": array, "v": array}, {"w": "float32", "v": "float32"})
    assert root_hash({"v": array, "w": array}, {"w": "float32", "v": "float32"}) == base
    changed = array.copy()
    changed[5] = np.nextafter(changed[5], 9)
    others = [
        root_hash({"w": array, "x": array}, {"w": "float32", "x": "float32"}),
        root_hash({"w": array.reshape(2, 3), "v": array}, {"w": "float32", "v": "float32"}),
        root_hash({"w": array.view(np.int32), "v": array}, {"w": "int32", "v": "float32"}),
        root_hash({"w": changed, "v": array}, {"w": "float32", "v": "float32"}),
    ]
    assert len({base, *others}) == 5


def test_the_hash_does_not_depend_on_memory_layout() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert root_hash({"w": np.asfortranarray(array)}, {"w": "float32"}) == root_hash({"w": array}, {"w": "float32"})


def test_saving_again_replaces_and_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    first = save_version(tmp_path, make(1)).read_bytes()
    assert save_version(tmp_path, make(1)).read_bytes() == first
    save_version(tmp_path, make(1, fill=2.0))
    assert load_version(tmp_path, 1).root_hash == make(1, fill=2.0).root_hash
    assert [path.name for path in (tmp_path / "v000001").iterdir()] == ["model.safetensors"]


def test_one_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = save_version(tmp_path, make(1))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match="damaged"):
        load_version(tmp_path, 1)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = save_version(tmp_path, make(1))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FormatError, match="no whole safetensors file"):
        load_version(tmp_path, 1)


def test_a_version_under_another_number_is_refused(tmp_path: Path) -> None:
    save_version(tmp_path, make(1))
    (tmp_path / "v000001").rename(tmp_path / "v000002")
    with pytest.raises(FormatError):
        load_version(tmp_path, 2)


def test_a_missing_version_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no version at all"):
        load_version(tmp_path, 1)
    for version in (3, 5):
        save_version(tmp_path, make(version))
    with pytest.raises(UserError, match="2 versions, from 3 to 5"):
        load_version(tmp_path, 4)


def test_prune_keeps_what_it_is_told_and_skips_what_is_no_version(tmp_path: Path) -> None:
    for version in (0, 1, 2, 1_000_000):
        save_version(tmp_path, make(version))
    (tmp_path / "v000009").mkdir()  # a save that never finished
    assert list_versions(tmp_path) == [0, 1, 2, 1_000_000]
    assert prune(tmp_path, keep={0, 2}) == [1, 1_000_000]
    assert list_versions(tmp_path) == [0, 2]


def test_a_failed_write_leaves_the_old_version_and_no_scrap(tmp_path: Path) -> None:
    good = make(1)
    path = save_version(tmp_path, good)
    broken = WeightSet(version=1, root_hash="x", tensors={"a": np.zeros(2, np.float32)}, dtypes={"a": "bfloat16"})
    object.__setattr__(broken, "tensors", {"a": np.zeros(3, np.uint8)})  # cannot be seen as bfloat16
    with pytest.raises(RuntimeError):
        save_version(tmp_path, broken)
    assert load_version(tmp_path, 1).root_hash == good.root_hash
    assert [entry.name for entry in path.parent.iterdir()] == ["model.safetensors"]


def test_read_only_arrays_become_tensors() -> None:
    """Ray hands out read-only views of its object store."""
    weights = make(1)
    for array in weights.tensors.values():
        array.flags.writeable = False
    tensors = tensors_of(weights)
    assert tensors["a"].dtype == torch.bfloat16
    assert tensors["a"].tolist() == [0.0, 1.0, 2.0, 3.0]
