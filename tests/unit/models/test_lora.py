"""Adapters: fresh ones change nothing, a merge is peft's own, and an exported folder is one that peft loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from configs.schema import Lora, ModelInit
from contracts.errors import FormatError, UserError
from contracts.protocols import WeightSet
from models.causal_lm import load_model, named_weights
from models.export import ModelCard, export_adapters, export_model
from models.init import init_model
from models.lora import AdaptedBase, adapter_weights, attach, merge
from models.registry import arrays_of, root_hash

SMALL = ModelInit(layers=2, width=16, heads=2, feed_forward=24, max_positions=64)
SETTINGS = Lora(rank=3, alpha=6, target_modules=("q_proj", "o_proj", "down_proj"))
DROPOUT = SETTINGS.model_copy(update={"dropout": 0.5})
CARD = ModelCard(name="spelling", config_hash="c0ffee", lineage=("made from nothing, seed 0",))
IDS = torch.arange(1, 13)[None]


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    init_model(tmp_path / "base", settings=SMALL.model_copy(update={"tied_embeddings": request.param}), seed=0)
    return tmp_path / "base"


def fresh(base: Path, *, seed: int = 0, settings: Lora = SETTINGS) -> PreTrainedModel:
    model = load_model(base, attention="eager", dtype=torch.float32)
    attach(model, settings, seed=seed)
    return model


def trained(base: Path) -> PreTrainedModel:
    """A network whose adapters moved."""
    model, random = fresh(base), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in adapter_weights(model).values():
            tensor.copy_(torch.randn(tensor.shape, generator=random))
    return model


def version_of(model: PreTrainedModel) -> WeightSet:
    tensors, dtypes = arrays_of(adapter_weights(model))
    return WeightSet(version=7, root_hash=root_hash(tensors, dtypes), tensors=tensors, dtypes=dtypes)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    answer: Tensor = model(input_ids=IDS).logits
    return answer


def test_fresh_adapters_change_nothing_and_come_from_the_seed(base: Path) -> None:
    plain, model = load_model(base, attention="eager", dtype=torch.float32), fresh(base)
    assert torch.equal(logits(plain), logits(model))
    assert not any(module.training for module in fresh(base, settings=DROPOUT).modules())
    one, again, other = (version_of(fresh(base, seed=seed)).root_hash for seed in (0, 0, 1))
    assert one == again != other


def test_attaching_leaves_the_processs_random_numbers(base: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    fresh(base)
    assert torch.equal(torch.rand(4), expected)


def test_only_adapters_learn_and_bear_pefts_names(base: Path) -> None:
    model = fresh(base)
    learning = {id(one) for one in model.parameters() if one.requires_grad}
    named = adapter_weights(model)
    assert {id(one) for one in named.values()} == learning
    assert len(named) == 2 * 2 * 3
    assert tuple(named["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].shape) == (3, 24)


def test_the_bases_files_tell_the_adapters_shapes(base: Path) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter_weights(fresh(base)).items()}
    assert AdaptedBase(base, SETTINGS).shapes == shapes


def test_a_merged_network_answers_as_the_adapted_one(base: Path, tmp_path: Path) -> None:
    model = trained(base)
    expected = logits(model)
    assert not torch.allclose(expected, logits(load_model(base, attention="eager", dtype=torch.float32)), atol=0.01)
    whole = merge(version_of(model), base=AdaptedBase(base, SETTINGS))
    export_model(whole, base=base, out=tmp_path / "merged", card=CARD)
    merged = load_model(tmp_path / "merged", attention="eager", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=0)
    tensors, dtypes = arrays_of(named_weights(merged))
    assert root_hash(tensors, dtypes) == whole.root_hash


def test_peft_loads_an_exported_folder_and_merges_it_to_the_same_weights(base: Path, tmp_path: Path) -> None:
    model = trained(base)
    weights = version_of(model)
    export_adapters(weights, settings=SETTINGS, base=base, out=tmp_path / "adapters", card=CARD)
    plain: Any = load_model(base, attention="eager", dtype=torch.float32)
    loaded = PeftModel.from_pretrained(plain, str(tmp_path / "adapters"))
    assert torch.equal(logits(loaded), logits(model))
    theirs = named_weights(loaded.merge_and_unload())
    ours = dict(AdaptedBase(base, SETTINGS).merged(adapter_weights(model)))
    for name, tensor in theirs.items():
        torch.testing.assert_close(tensor, ours[name], atol=1e-6, rtol=0)
    card = (tmp_path / "adapters" / "README.md").read_text()
    assert "library_name: peft" in card
    assert weights.root_hash in card


def test_adapters_of_another_base_are_refused(base: Path, tmp_path: Path) -> None:
    init_model(tmp_path / "other", settings=SMALL.model_copy(update={"layers": 1}), seed=0)
    with pytest.raises(FormatError, match="do not fit this base"):
        merge(version_of(fresh(base)), base=AdaptedBase(tmp_path / "other", SETTINGS))


@pytest.mark.parametrize("name", ["q_prj", "lm_head", "embed_tokens", "input_layernorm"])
def test_a_target_that_is_no_inner_linear_layer_is_refused(base: Path, name: str) -> None:
    wrong = SETTINGS.model_copy(update={"target_modules": ("q_proj", name)})
    with pytest.raises(UserError) as caught:
        fresh(base, settings=wrong)
    assert caught.value.asked == f"model.lora.target_modules: {name}"
    assert "down_proj" in caught.value.found


def test_a_base_without_the_layers_is_refused(base: Path) -> None:
    with pytest.raises(UserError, match="no layer named c_attn"):
        AdaptedBase(base, SETTINGS.model_copy(update={"target_modules": ("c_attn",)}))


def test_an_occupied_folder_is_refused(base: Path) -> None:
    with pytest.raises(UserError, match="something already"):
        export_adapters(version_of(fresh(base)), settings=SETTINGS, base=base, out=base, card=CARD)
