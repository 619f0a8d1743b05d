"""An exported folder stands alone: transformers loads it, and its card says where the weights came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import ModelInit
from contracts.errors import UserError
from contracts.protocols import WeightSet
from models.causal_lm import load_model, named_weights
from models.export import ModelCard, export_model
from models.init import init_model
from models.registry import arrays_of, root_hash
from models.tokenizer import load_tokenizer

SMALL = ModelInit(layers=1, width=16, heads=2, feed_forward=24, max_positions=64)
CARD = ModelCard(
    name="spelling",
    config_hash="c0ffee",
    lineage=("made from nothing, seed 0", "12 steps"),
    scores={"accuracy": 0.51234},
)


def changed_weights(base: Path, *, dtype: torch.dtype = torch.float32) -> WeightSet:
    state = named_weights(load_model(base, attention="eager", dtype=dtype))
    tensors, dtypes = arrays_of({name: tensor * 2 for name, tensor in state.items()})
    return WeightSet(version=12, root_hash=root_hash(tensors, dtypes), tensors=tensors, dtypes=dtypes)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_export_loads_with_the_new_weights(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    base, out = tmp_path / "base", tmp_path / "somewhere" / "out"
    init_model(base, settings=SMALL.model_copy(update={"tied_embeddings": tied}), seed=0)
    weights = changed_weights(base, dtype=dtype)
    export_model(weights, base=base, out=out, card=CARD)
    tensors, dtypes = arrays_of(named_weights(load_model(out, attention="eager", dtype=dtype)))
    assert root_hash(tensors, dtypes) == weights.root_hash
    assert load_tokenizer(out).encode("a b") == [97, 32, 98]
    assert f'"dtype": "{str(dtype).removeprefix("torch.")}"' in (out / "config.json").read_text()


def test_the_card_says_version_hashes_lineage_and_scores(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    init_model(base, settings=SMALL, seed=0)
    weights = changed_weights(base)
    export_model(weights, base=base, out=out, card=CARD)
    card = (out / "README.md").read_text()
    for expected in ("# spelling, version 12", weights.root_hash, "c0ffee", "2. 12 steps", "| accuracy | 0.5123 |"):
        assert expected in card


def test_an_occupied_folder_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    init_model(base, settings=SMALL, seed=0)
    with pytest.raises(UserError, match="something already"):
        export_model(changed_weights(base), base=base, out=base, card=CARD)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    init_model(base, settings=SMALL, seed=0)
    other = WeightSet(version=1, root_hash="", tensors={"x": np.zeros(2, np.float32)}, dtypes={"x": "float32"})
    with pytest.raises(UserError, match=r"such as lm_head\.weight"):
        export_model(other, base=base, out=tmp_path / "out", card=CARD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]
