"""One policy-gradient step on whole groups of episodes: GRPO, Dr. GRPO, DAPO, GSPO, RLOO, REINFORCE++, or your own.

    episodes ─► advantages ─► micro-batches ─► loss, gradient ─► AdamW ─► the next version's weights

What each name means is in configs/formulas.py, the arithmetic in learners/losses.py, a loss of the user's own in
learners/own_loss.py, the packing of rows in learners/packing.py.
Shapes: M rows (episodes) that are computed, K completion tokens of a micro-batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from configs.schema import Learner as Settings
from configs.schema import Lora
from contracts.errors import FormatError, LearnerError
from contracts.protocols import StepResult, WeightSet
from contracts.records import Batch, Episode, FloatArray, IntArray, Scalar
from learners.checkpoint import load_state, save_state
from learners.losses import (
    at_level,
    clipped_losses,
    effective_sample_share,
    importance_weights,
    k3,
    probability_ratios,
)
from learners.optimizer import Optimizer, learning_rate
from learners.own_loss import OwnLoss
from learners.packing import MicroBatch, Sample, pack
from learners.policy import PolicyModel
from learners.rows import Rows, read_rows, sample_of

LEARNING_RATE = "learning_rate"  # the one coefficient that a batch may bring from outside


@dataclass
class Tally:
    """What a step's micro-batches add up to."""

    loss: float = 0.0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    importance: list[Tensor] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"forward_s": 0.0, "backward_s": 0.0, "optimizer_s": 0.0})

    def count(self, part: MicroBatch) -> None:
        self.num_tokens += len(part.targets_K)
        self.num_padded_tokens += part.num_padded_tokens

    def add(self, name: str, values_K: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(values_K.detach().double().sum())

    def stats(self) -> dict[str, float]:
        """Means over the tokens that were computed; no means where none were."""
        stats = {"loss": self.loss, "tokens_computed": float(self.num_tokens), **self.seconds}
        stats["tokens_padded"] = float(self.num_padded_tokens)
        if self.num_tokens:
            stats |= {name: total / self.num_tokens for name, total in self.sums.items()}
            stats["importance_ess"] = effective_sample_share(torch.cat(self.importance))
        return stats


class PolicyGradientLearner:
    """contracts.protocols.Learner by policy gradients. Single-threaded; owns the process's torch settings.

    The KL term's reference is the weights at `reset`, that is after any warm start; it is part of the state.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        *,
        seed: int,
        temperature: float,
        max_tokens: int,
        own_code: Path | None = None,
        lora: Lora = Lora(),  # noqa: B008 (frozen)
    ) -> None:
        """The model in `folder`; `temperature` is the engine's, `max_tokens` the most that one episode's actions have.
        `own_code` is the folder in which a loss of the user's own lies; None: the working directory.

        `seed` is for what a learner draws by itself: fresh adapters. All else is drawn by a batch's seed.
        Raises UserError.
        """
        torch.manual_seed(seed)
        self._formula = settings.formula()
        self._own_loss = OwnLoss(settings.loss, folder=own_code) if ":" in settings.loss else None
        self.model = PolicyModel(
            folder,
            attention=settings.attention,
            precision=settings.precision,
            device=settings.device,
            threads=settings.threads,
            lora=lora,
            seed=seed,
        )
        self._settings, self._temperature = settings, temperature
        self._max_tokens = max_tokens
        self._optimizer = Optimizer(
            self.model.parameters(),
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            gradient_clip=settings.gradient_clip,
        )
        self._optimizer.clear()
        self.reset()

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    def reset(self) -> None:
        """Begin anew from the weights as they are now: no moments, no reference, step 0."""
        self._optimizer.reset()
        self._reference = self.model.copy() if self._settings.kl_coefficient > 0.0 else None
        self._last_step = self._num_skipped = 0
        self.model.changed()

    # ------------------------------------------------------------------------------------------ the step

    def step(
        self, batch: Batch, episodes: Sequence[Episode], *, before_change: Callable[[], None] = lambda: None
    ) -> StepResult:
        """One update. Raises LearnerError, and then nothing has changed.

        A loss or gradient that is not finite changes nothing either, but is no error: the result is `skipped`.
        """
        started = time.perf_counter()
        self._check(batch)
        tally = Tally()
        try:
            if self.model.has_dropout:  # what others compute meanwhile would draw from the same numbers, and be dropped
                before_change()
            with _computing(batch):
                rows = self._read(batch, episodes)
                if rows.samples:
                    with self.model.learning(seed=batch.seed):
                        for part in pack(rows.samples, max_tokens=self._settings.micro_batch_tokens, cuts=rows.cuts):
                            self._accumulate(part, rows, tally)
            if not self.model.has_dropout:
                before_change()
            with _computing(batch):
                norm, updated = self._update(batch, tally)
        finally:
            self._optimizer.clear()
        self._last_step = batch.step
        self._num_skipped += not updated
        stats = {**rows.stats, **tally.stats(), "grad_norm": norm, "learning_rate": self._rate(batch)}
        stats |= {"skipped": float(not updated), "num_skipped": float(self._num_skipped)}
        result = StepResult(root_hash=self.root_hash(), stats=stats, skipped=not updated)
        stats["step_s"] = time.perf_counter() - started
        return result

    def _check(self, batch: Batch) -> None:
        if batch.step <= self._last_step:
            raise LearnerError(f"step {batch.step} comes after step {self._last_step}: it would be learned from twice")
        if unknown := batch.coefficients.keys() - {LEARNING_RATE}:
            raise LearnerError(f"step {batch.step}: coefficients {sorted(unknown)} mean nothing to it")

    def _read(self, batch: Batch, episodes: Sequence[Episode]) -> Rows:
        priced = self._reference is not None and self._formula.kl_in == "reward"
        return read_rows(
            batch,
            episodes,
            settings=self._settings,
            max_tokens=self._max_tokens,
            log_ratios=self._log_ratios if priced else None,
        )

    def _log_ratios(self, samples: Sequence[Sample]) -> list[FloatArray]:
        """log π - log π_reference of every acted token, at the step's start."""
        now, then = (
            model.score(samples, max_tokens=self._settings.micro_batch_tokens, temperature=self._temperature)
            for model in (self.model, self._reference)
            if model is not None
        )
        return [one - other for one, other in zip(now, then, strict=True)]

    def _accumulate(self, part: MicroBatch, rows: Rows, tally: Tally) -> None:
        """Add one micro-batch's gradient. Every token already counts its share of the batch, so they simply add up."""
        settings, device = self._settings, self.model.device
        began = time.perf_counter()
        log_probs_K = self.model.log_probs(part, temperature=self._temperature)
        behaviour_K, advantages_K = (
            torch.from_numpy(np.concatenate([values[place] for place in part.samples])).float().to(device)
            for values in (rows.behaviours, rows.advantages)
        )
        weights_K = torch.from_numpy(rows.token_weights_M[part.owners_K]).float().to(device)
        lengths = [len(rows.behaviours[place]) for place in part.samples]
        owners_K = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device)
        losses_K = self._losses(log_probs_K, behaviour_K, advantages_K, owners_K, tally)
        if self._reference is not None and self._formula.kl_in == "loss":
            with torch.no_grad():
                reference_K = self._reference.log_probs(part, temperature=self._temperature)
            divergences_K = k3(log_probs_K, reference_K)
            tally.add("kl_reference", divergences_K)
            losses_K = losses_K + settings.kl_coefficient * divergences_K
        loss = (losses_K * weights_K).sum()
        forward = time.perf_counter()
        torch.autograd.backward(loss)
        tally.seconds["forward_s"] += forward - began
        tally.seconds["backward_s"] += time.perf_counter() - forward
        tally.loss += float(loss.detach())
        tally.count(part)
        start_K = log_probs_K.detach()
        tally.add("kl", k3(behaviour_K, start_K))
        tally.add("log_prob_gap", (start_K - behaviour_K).abs())
        tally.add("entropy", -start_K)

    def _losses(
        self, log_probs_K: Tensor, behaviour_K: Tensor, advantages_K: Tensor, owners_K: Tensor, tally: Tally
    ) -> Tensor:
        """The policy's loss of each token, without a KL term."""
        level, cap, dual = self._formula.ratio, self._settings.importance_cap, self._settings.dual_clip
        low, high = self._formula.clip_low, self._formula.clip_high
        start_K = at_level(log_probs_K.detach(), owners_K, ratio=level)
        importance_K = importance_weights(start_K, at_level(behaviour_K, owners_K, ratio=level), cap=cap)
        tally.importance.append(importance_K)
        if self._own_loss is not None:
            return self._own_loss(log_probs_K, behaviour_K, advantages_K, owners_K)
        ratios_K = probability_ratios(at_level(log_probs_K, owners_K, ratio=level), start_K, importance_K)
        tally.add("ratio_mean", ratios_K)
        tally.add("clip_fraction_low", (advantages_K < 0) & (ratios_K < 1.0 - low))
        tally.add("clip_fraction_high", (advantages_K > 0) & (ratios_K > 1.0 + high))
        if dual is not None:
            tally.add("clip_fraction_dual", (advantages_K < 0) & (ratios_K > dual))
        return clipped_losses(ratios_K, advantages_K, clip_low=low, clip_high=high, dual_clip=dual)

    def _update(self, batch: Batch, tally: Tally) -> tuple[float, bool]:
        if not math.isfinite(tally.loss):
            return math.nan, False
        began = time.perf_counter()
        norm, updated = self._optimizer.step(rate=self._rate(batch))
        if updated:
            self.model.changed()
        tally.seconds["optimizer_s"] = time.perf_counter() - began
        return norm, updated

    def _rate(self, batch: Batch) -> float:
        settings = self._settings
        scheduled = learning_rate(
            batch.step,
            base=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            decay_steps=settings.decay_steps,
        )
        return batch.coefficients.get(LEARNING_RATE, scheduled)

    # ------------------------------------------------------------------------------------------ the state

    @property
    def base_hash(self) -> str:
        return self.model.base_hash

    def root_hash(self) -> str:
        return self.model.root_hash()

    def weights(self, version: int) -> WeightSet:
        """A copy, float32: the learner's own precision, whatever engines make of it."""
        return self.model.weights(version)

    def score(self, completions: Sequence[tuple[IntArray, IntArray]]) -> list[FloatArray]:
        """Log-probs of each (prompt_ids, completion_ids)'s completion tokens at the engine's temperature."""
        samples = [Sample(prompt_ids=prompt, completion_ids=completion) for prompt, completion in completions]
        return self.model.score(samples, max_tokens=self._settings.micro_batch_tokens, temperature=self._temperature)

    def log_probs(self, episodes: Sequence[Episode]) -> list[FloatArray]:
        """Of each episode's own tokens, at the engine's temperature."""
        samples = [sample_of(episode) for episode in episodes]
        return self.model.score(samples, max_tokens=self._settings.micro_batch_tokens, temperature=self._temperature)

    def save(self, folder: str) -> str:
        parts: dict[str, Mapping[str, Tensor]] = {"weights": self.model.tensors()}
        parts["optimizer"] = self._optimizer.tensors()
        if self._reference is not None:
            parts["reference"] = self._reference.tensors()
        return save_state(Path(folder), parts, {"last_step": self._last_step, "num_skipped": self._num_skipped})

    def load(self, folder: str, state_hash: str) -> None:
        parts, numbers = load_state(Path(folder), state_hash)
        if numbers["last_step"] == 0:  # the reference is what there is now, whether it was saved or not
            parts["reference"] = parts["weights"]
        elif ("reference" in parts) != (self._reference is not None):
            raise FormatError(f"the state in {folder} was made with another learner.kl_coefficient: it is 0 in one")
        self.model.restore(parts["weights"])
        self._optimizer.restore(parts["optimizer"])
        if self._reference is not None:
            self._reference.restore(parts["reference"])
        self._last_step, self._num_skipped = numbers["last_step"], numbers["num_skipped"]

    def fingerprint(self) -> Mapping[str, Scalar]:
        loss = self._settings.loss if self._own_loss is None else f"{self._settings.loss} {self._own_loss.code}"
        return {**self.model.fingerprint(), "loss": loss}


@contextmanager
def _computing(batch: Batch) -> Iterator[None]:
    """What torch cannot do is the batch's fault: out of memory, a token beyond the vocabulary."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        raise LearnerError(f"step {batch.step} could not be computed: {error}") from error
