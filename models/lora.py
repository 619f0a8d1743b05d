"""Low-rank adapters by peft: put into a network that learns, and merged into a base by those who only run it.

LoRA (Hu et al. 2021, arXiv 2106.09685): the weights W of a linear layer act as W + alpha / rank · B A, and only A and B
learn. Adapters bear the names of peft's own files (`base_model.model.LAYER.lora_A.weight`) wherever they are stored or
sent. Shapes: W [out, in], A [rank, in], B [out, rank].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from configs.schema import Lora
from contracts.errors import FormatError, UserError
from contracts.protocols import WeightSet
from models.registry import arrays_of, root_hash, tensors_of

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel  # an engine of another kind merges without it

Shape = tuple[int, ...]

PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_INNER = ".default"  # what peft calls the one adapter inside a network


def attach(model: PreTrainedModel, settings: Lora, *, seed: int) -> None:
    """Put fresh adapters into `model` in place: A random by `seed`, B zero, so that it answers as before.

    Only they require a gradient from then on. Raises UserError where a name of `target_modules` is no linear layer
    inside the network.
    """
    _check_targets(model, settings)
    from peft import inject_adapter_in_model  # takes seconds

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(peft_config(settings), model)
    model.eval()  # what was put in would drop out until told otherwise


def adapter_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The adapters inside `model` by their stored names, sharing memory."""
    return {
        PREFIX + name.replace(_INNER, ""): tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if name.replace(_INNER, "").endswith((_DOWN, _UP))
    }


def peft_config(settings: Lora, *, base: str | None = None) -> LoraConfig:
    """`settings` as peft writes them down. One rank for all layers."""
    from peft import LoraConfig, TaskType

    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
        inference_mode=base is not None,
    )


def _check_targets(model: PreTrainedModel, settings: Lora) -> None:
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    head = model.get_output_embeddings()
    linear -= {name.rpartition(".")[2] for name, module in model.named_modules() if module is head}
    if unknown := [name for name in settings.target_modules if name not in linear]:
        raise UserError(
            f"model.lora.target_modules: {', '.join(unknown)}",
            f"{type(model).__name__} has no linear layers of that name inside it; it has {', '.join(sorted(linear))}",
            "name some of those",
        )


class AdaptedBase:
    """A base model's files, which adapters can be merged into. Holds no weights: each merge reads them anew.

    Layers are chosen by the last part of their name, as `attach` does.
    """

    def __init__(self, folder: Path, settings: Lora) -> None:
        """Raises UserError where `folder` has no safetensors files, or none of the layers."""
        self._files = sorted(folder.glob("*.safetensors"))
        self._scale = settings.alpha / settings.rank
        self.shapes: dict[str, Shape] = {}  # of the adapters
        for name, (num_out, num_in) in _matrices(self._files):
            layer = name.removesuffix(".weight")
            if layer != name and layer.rpartition(".")[2] in settings.target_modules:
                self.shapes[PREFIX + layer + _DOWN] = (settings.rank, num_in)
                self.shapes[PREFIX + layer + _UP] = (num_out, settings.rank)
        if not self.shapes:
            raise UserError(
                f"low-rank adapters for the model in {folder}",
                f"its safetensors files hold no layer named {' or '.join(settings.target_modules)}",
                "name its linear layers in model.lora.target_modules",
            )

    def merged(self, adapters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the base by name, one at a time; those with adapters in float32, the rest as stored."""
        for path in self._files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no iterator)
                    tensor = file.get_tensor(name)
                    layer = PREFIX + name.removesuffix(".weight")
                    if layer + _UP in adapters:
                        delta = adapters[layer + _UP].float() @ adapters[layer + _DOWN].float()
                        tensor = tensor.float() + delta * self._scale
                    yield name, tensor


def merge(adapters: WeightSet, *, base: AdaptedBase) -> WeightSet:
    """The whole network as one set of float32 weights. Raises FormatError where the adapters are another base's."""
    found = {name: tuple(array.shape) for name, array in adapters.tensors.items()}
    if found != base.shapes:
        raise FormatError(f"the adapters of version {adapters.version} do not fit this base: names or shapes differ")
    with torch.no_grad():
        whole = {name: tensor.float() for name, tensor in base.merged(tensors_of(adapters))}
    tensors, dtypes = arrays_of(whole)
    return WeightSet(version=adapters.version, root_hash=root_hash(tensors, dtypes), tensors=tensors, dtypes=dtypes)


def _matrices(files: list[Path]) -> Iterator[tuple[str, Shape]]:
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                shapes = [(name, tuple(file.get_slice(name).get_shape())) for name in file.keys()]  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"the base model's {path}", f"it does not read: {error}", "check the file") from error
        yield from ((name, shape) for name, shape in shapes if len(shape) == 2)
