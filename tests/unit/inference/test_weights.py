"""Weights are checked as a whole before they are touched, and arrive with the bits they were sent with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contracts.errors import EngineError
from contracts.protocols import Array, WeightSet
from inference.weights import as_tensor, check_weights

SHAPES = {"a": (2, 3), "b": (4,)}


def _weights(tensors: dict[str, Array], **dtypes: str) -> WeightSet:
    return WeightSet(
        version=5,
        root_hash="",
        tensors=tensors,
        dtypes={name: dtypes.get(name, str(array.dtype)) for name, array in tensors.items()},
    )


def _good() -> dict[str, Array]:
    return {"a": np.ones((2, 3), dtype=np.float32), "b": np.zeros(4, dtype=np.uint16)}


def test_a_whole_set_passes() -> None:
    check_weights(_weights(_good(), b="bfloat16"), SHAPES, aliases={})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"b": None}, "b is missing"),
        ({"c": np.zeros(1, dtype=np.float32)}, "c is unknown"),
        ({"a": np.zeros((3, 2), dtype=np.float32)}, r"a has shape \[3, 2\], the model's is \[2, 3\]"),
        ({"a": np.zeros((2, 3), dtype=np.int64)}, "a is int64"),
        ({"a": np.zeros((2, 3), dtype=np.uint16)}, "a is uint16 and said to be uint16"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Array | None], complaint: str) -> None:
    tensors = {name: array for name, array in {**_good(), **change}.items() if array is not None}
    with pytest.raises(EngineError, match=f"version 5 was not pushed: .*{complaint}"):
        check_weights(_weights(tensors, b="bfloat16"), SHAPES, aliases={})


def test_many_problems_are_counted_not_all_told() -> None:
    many: dict[str, Array] = {f"x{i}": np.zeros(1, dtype=np.float32) for i in range(9)}
    with pytest.raises(EngineError, match=r"and 8 more"):
        check_weights(_weights(many), SHAPES, aliases={})


def test_a_tied_name_may_come_along_if_it_agrees() -> None:
    good = _good() | {"head": np.ones((2, 3), dtype=np.float32)}
    check_weights(_weights(good, b="bfloat16"), SHAPES, aliases={"head": "a"})
    check_weights(_weights(_good(), b="bfloat16"), SHAPES, aliases={"head": "a"})
    with pytest.raises(EngineError, match="head is tied to a but differs"):
        check_weights(
            _weights(good | {"head": np.zeros((2, 3), dtype=np.float32)}, b="bfloat16"), SHAPES, aliases={"head": "a"}
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("writeable", [True, False])
def test_every_bit_arrives(dtype: torch.dtype, writeable: bool) -> None:
    sent = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    array = (sent.view(torch.int16).numpy().view(np.uint16) if dtype == torch.bfloat16 else sent.numpy()).copy()
    array.flags.writeable = writeable
    received = as_tensor(array, str(dtype).removeprefix("torch."))
    assert received.dtype == dtype
    assert torch.equal(received, sent)


def test_an_array_that_is_a_slice_arrives_in_order() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert as_tensor(array, "float32").tolist() == array.tolist()
