"""Weights on their way into an engine: checked as a whole before one tensor is touched, then made torch tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from contracts.errors import EngineError
from contracts.protocols import Array, WeightSet
from models.lora import AdaptedBase, Shape

# The dtype's name in a WeightSet: how numpy carries it, what torch makes of it. numpy has no bfloat16.
_CARRIERS: Mapping[str, tuple[type[np.generic], torch.dtype]] = {
    "float32": (np.float32, torch.float32),
    "float16": (np.float16, torch.float16),
    "bfloat16": (np.uint16, torch.bfloat16),
}


def check_weights(weights: WeightSet, shapes: Mapping[str, Shape], *, aliases: Mapping[str, str]) -> None:
    """Raise EngineError unless `weights` holds exactly the tensors of `shapes`, of those shapes, as it says.

    `aliases`: other names of a tied tensor; they may come too, with equal values.
    """
    found = set(weights.tensors) - set(aliases)
    problems = [f"{name} is missing" for name in sorted(set(shapes) - found)]
    problems += [f"{name} is unknown" for name in sorted(found - set(shapes))]
    problems += [_complaint(weights, name, shapes[name]) for name in sorted(found & set(shapes))]
    for alias, name in aliases.items():
        if alias in weights.tensors and name in found and not np.array_equal(*_both(weights, alias, name)):
            problems.append(f"{alias} is tied to {name} but differs from it")
    problems = [problem for problem in problems if problem]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise EngineError(f"version {weights.version} was not pushed: {'; '.join(problems[:3])}{more}")


def network_tensors(weights: WeightSet, base: AdaptedBase | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the network as it shall be, one at a time: the (checked) pushed ones, or `base` with the pushed
    adapters merged into it."""
    pushed = ((name, as_tensor(weights.tensors[name], weights.dtypes[name])) for name in weights.tensors)
    return pushed if base is None else base.merged(dict(pushed))


def _both(weights: WeightSet, first: str, second: str) -> tuple[Array, Array]:
    return weights.tensors[first], weights.tensors[second]


def _complaint(weights: WeightSet, name: str, shape: Shape) -> str:
    array, dtype = weights.tensors[name], weights.dtypes.get(name, "of no stated dtype")
    if dtype not in _CARRIERS or array.dtype != _CARRIERS[dtype][0]:
        return f"{name} is {array.dtype} and said to be {dtype}: one of {', '.join(_CARRIERS)} is needed"
    if array.shape != shape:
        return f"{name} has shape {list(array.shape)}, the model's is {list(shape)}"
    return ""


def as_tensor(array: Array, dtype: str) -> torch.Tensor:
    """The array's values as a torch tensor; shares memory where the array may be written to."""
    own = np.ascontiguousarray(array) if array.flags.writeable else array.copy()
    if dtype == "bfloat16":
        return torch.from_numpy(own.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(own)
