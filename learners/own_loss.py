"""A policy loss of the user's own: `learner.loss: my_losses:cispo`, a pure function in my_losses.py.

    def cispo(log_probs, behaviour, advantages, owners):
        weights = (log_probs.detach() - behaviour).exp().clamp(max=2.0)
        return -weights * advantages * log_probs

Each argument has one entry for each of K tokens that the policy chose: `log_probs` float32, under the weights being
optimised, with gradient; `behaviour` float32, as the engine reported them; `advantages` float32; `owners` int64,
which completion a token belongs to, counted from 0. What comes back is float32 [K]: the loss of each token, which the
learner weighs and adds up (`learner.aggregation`). Clips, dual clip and importance cap are the function's own affair.
It sees one micro-batch at a time: whole completions, never the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.objects import code_hash, load_object
from contracts.errors import UserError

TODO = "See the top of learners/own_loss.py for what it is given and must return."


class OwnLoss:
    """The user's function, checked at every call. `code` is the hash of its file."""

    def __init__(self, name: str, *, folder: Path | None = None) -> None:
        """Loads it and tries it on five tokens. Raises UserError."""
        self._asked = f"The policy loss {name} was asked for (learner.loss)."
        self._function: Callable[..., Any] = load_object(name, asked=self._asked, folder=folder)
        self.code = code_hash(self._function)
        self._try()

    def __call__(self, log_probs_K: Tensor, behaviour_K: Tensor, advantages_K: Tensor, owners_K: Tensor) -> Tensor:
        """float32 [K]. Raises UserError where the function fails, or what it returns is no loss of these tokens."""
        arguments = (log_probs_K, behaviour_K, advantages_K, owners_K)
        try:
            losses_K = self._function(*arguments)
        except Exception as error:  # a named border: the user's own code may fail in any way
            raise self._fault(f"It raised {type(error).__name__}: {error}.") from error
        if not isinstance(losses_K, Tensor):
            raise self._fault(f"It returned a {type(losses_K).__name__}, not a tensor.")
        if losses_K.shape != log_probs_K.shape or not losses_K.is_floating_point():
            got, wanted = list(losses_K.shape), list(log_probs_K.shape)
            raise self._fault(f"It returned {losses_K.dtype} of shape {got}; float32 of shape {wanted} was due.")
        if not losses_K.requires_grad:
            raise self._fault("What it returned does not depend on log_probs: there is nothing to learn from it.")
        known = all(bool(one.isfinite().all()) for one in arguments[:3])
        if known and not losses_K.isfinite().all():
            count = int((~losses_K.isfinite()).sum())
            raise self._fault(
                f"It returned {count} losses of {len(losses_K)} that are not finite, from finite numbers."
            )
        return losses_K.float()

    def _try(self) -> None:
        behaviour_K = torch.tensor([-0.1, -1.0, -2.0, -0.5, -5.0])
        advantages_K = torch.tensor([1.0, 1.0, -0.5, -0.5, -0.5])
        owners_K = torch.tensor([0, 0, 1, 1, 1])
        gradients: list[Tensor] = []
        for _ in range(2):
            given = [(behaviour_K + 0.01).requires_grad_(), behaviour_K.clone(), advantages_K.clone(), owners_K.clone()]
            losses_K = self(*given)
            (gradient_K,) = torch.autograd.grad(losses_K.sum(), given[0], materialize_grads=True)
            if not gradient_K.isfinite().all():
                raise self._fault(f"Its gradient to log_probs is {gradient_K}.")
            kept = zip(given, (behaviour_K + 0.01, behaviour_K, advantages_K, owners_K), strict=True)
            if not all(torch.equal(now, then) for now, then in kept):
                raise self._fault("It wrote into its arguments: it must be pure.")
            gradients += [losses_K.detach(), gradient_K]
        if not (torch.equal(gradients[0], gradients[2]) and torch.equal(gradients[1], gradients[3])):
            raise self._fault("It returned other losses for the same arguments: it must be pure.")

    def _fault(self, found: str) -> UserError:
        return UserError(self._asked, found, TODO)
