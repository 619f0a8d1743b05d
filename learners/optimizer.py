"""AdamW, learning-rate schedules, and one guarded optimizer step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate(step: int, *, base: float, warmup_steps: int, decay_steps: int | None) -> float:
    """The rate of 1-based `step`: linear up to base, then level, or a half cosine that reaches 0 at `decay_steps`.

    A pure function of the step: a learner that resumes needs no state for it.
    """
    if step <= warmup_steps:
        return base * step / warmup_steps
    if decay_steps is None:
        return base
    done = min(1.0, (step - warmup_steps) / max(1, decay_steps - warmup_steps))
    return base * 0.5 * (1.0 + math.cos(math.pi * done))


class Optimizer:
    """AdamW over named weights. A step whose gradient is not finite changes nothing."""

    def __init__(
        self, parameters: Mapping[str, Tensor], *, betas: tuple[float, float], weight_decay: float, gradient_clip: float
    ) -> None:
        self._parameters, self._gradient_clip = dict(parameters), gradient_clip
        self._adam = torch.optim.AdamW(
            list(self._parameters.values()), lr=0.0, betas=betas, weight_decay=weight_decay, fused=True
        )

    def clear(self) -> None:
        """Gradients become zeros, not None: a weight that got none still decays and keeps its momentum."""
        for parameter in self._parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad.zero_()

    def step(self, *, rate: float) -> tuple[float, bool]:
        """Clip the gradients' norm and update; (norm before clipping, whether the weights were updated)."""
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._gradient_clip, foreach=True))
        if not math.isfinite(norm):
            return norm, False
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        return norm, True

    def reset(self) -> None:
        """Forget all moments."""
        self._adam.state.clear()

    def tensors(self) -> dict[str, Tensor]:
        """Moments by `moment.weight name`, and the count of updates as `step`; empty before the first update."""
        named: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            state = self._adam.state.get(parameter)
            if state:
                named.update({f"{moment}.{name}": state[moment] for moment in MOMENTS})
                named["step"] = state["step"]
        return named

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """What `tensors` gave. Raises KeyError where moments are missing."""
        state: dict[Tensor, dict[str, Tensor]] = {}
        for name, parameter in self._parameters.items():
            if tensors:
                moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device).clone() for moment in MOMENTS}
                state[parameter] = {"step": tensors["step"].to(parameter.device).clone(), **moments}
        self._adam.state.clear()
        self._adam.state.update(state)
