"""Schedules, and optimizer steps that happen whole or not at all."""

from __future__ import annotations

import math

import pytest
import torch

from learners.optimizer import Optimizer, learning_rate


def make(parameters: dict[str, torch.Tensor], *, gradient_clip: float = 1e9) -> Optimizer:
    return Optimizer(parameters, betas=(0.9, 0.99), weight_decay=0.01, gradient_clip=gradient_clip)


def make_parameters() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(3, 2, generator=generator).requires_grad_() for name in ("a", "b")}


def set_gradients(parameters: dict[str, torch.Tensor], *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_schedules() -> None:
    def rate(step: int, decay_steps: int | None) -> float:
        return learning_rate(step, base=2.0, warmup_steps=4, decay_steps=decay_steps)

    assert [rate(step, None) for step in (1, 2, 4, 5, 99)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    assert [rate(step, 14) for step in (4, 9, 14, 99)] == pytest.approx([2.0, 1.0, 0.0, 0.0])
    assert learning_rate(1, base=2.0, warmup_steps=0, decay_steps=None) == 2.0


def test_a_step_is_adamw_by_the_formula() -> None:
    parameters = make_parameters()
    before = parameters["a"].detach().clone()
    set_gradients(parameters, seed=1)
    gradient = parameters["a"].grad
    assert gradient is not None
    norm, updated = make(parameters).step(rate=0.1)
    assert updated
    assert norm == pytest.approx(
        math.sqrt(sum(float((p.grad**2).sum()) for p in parameters.values() if p.grad is not None))
    )
    expected = before * (1 - 0.1 * 0.01) - 0.1 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(parameters["a"].detach(), expected)


def test_the_gradient_is_clipped_by_its_whole_norm() -> None:
    parameters = make_parameters()
    set_gradients(parameters, seed=1)
    norm, _ = make(parameters, gradient_clip=0.5).step(rate=0.1)
    clipped = torch.cat([p.grad.flatten() for p in parameters.values() if p.grad is not None])
    assert norm > 0.5
    assert float(clipped.norm()) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    parameters = make_parameters()
    optimizer = make(parameters)
    set_gradients(parameters, seed=1)
    optimizer.step(rate=0.1)
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    moments = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    set_gradients(parameters, seed=2)
    assert parameters["b"].grad is not None
    parameters["b"].grad[0, 0] = bad
    _, updated = optimizer.step(rate=0.1)
    assert not updated
    assert all(torch.equal(parameters[name].detach(), weights[name]) for name in weights)
    assert all(torch.equal(tensor, moments[name]) for name, tensor in optimizer.tensors().items())


def test_restored_moments_go_on_bit_for_bit() -> None:
    first, second = make_parameters(), make_parameters()
    one, other = make(first), make(second)
    for seed in (1, 2):
        set_gradients(first, seed=seed)
        one.step(rate=0.1)
    with torch.no_grad():
        for name, parameter in second.items():
            parameter.copy_(first[name])
    other.restore(one.tensors())
    for parameters, optimizer in ((first, one), (second, other)):
        set_gradients(parameters, seed=3)
        optimizer.step(rate=0.1)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_moments_are_empty_before_the_first_step_and_after_a_reset() -> None:
    parameters = make_parameters()
    optimizer = make(parameters)
    assert optimizer.tensors() == {}
    set_gradients(parameters, seed=1)
    optimizer.step(rate=0.1)
    assert sorted(optimizer.tensors()) == ["exp_avg.a", "exp_avg.b", "exp_avg_sq.a", "exp_avg_sq.b", "step"]
    optimizer.reset()
    assert optimizer.tensors() == {}
    optimizer.restore({})
    assert optimizer.tensors() == {}


def test_cleared_gradients_are_zeros_so_that_momentum_goes_on() -> None:
    parameters = make_parameters()
    optimizer = make(parameters)
    set_gradients(parameters, seed=1)
    optimizer.step(rate=0.1)
    before = parameters["a"].detach().clone()
    optimizer.clear()
    norm, updated = optimizer.step(rate=0.1)
    assert (norm, updated) == (0.0, True)
    assert not torch.equal(parameters["a"].detach(), before)
