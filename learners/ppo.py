"""Proximal policy optimisation (Schulman et al. 2017) of a small actor-critic, one batch of stretches at a time.

    stretches ─► rewards scaled ─► values ─► GAE ─► epochs × minibatches: clipped loss, AdamW ─► observation statistics

A fold like any other: the order of the minibatches comes from the batch's seed, the statistics that normalise
observations and rewards are part of the state. Observation statistics change at the step's end, so that the whole step
sees what the engine saw. Defaults and details follow Huang et al. 2022, "The 37 implementation details of PPO".

Shapes: N environment steps of the batch; D numbers of an observation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from configs.schema import Control, Ppo
from configs.schema import Learner as Settings
from contracts.errors import FormatError, LearnerError
from contracts.protocols import Actions, ActRequest, Spaces, StepResult, WeightSet
from contracts.records import Batch, Episode, FloatArray, Scalar
from learners.advantages import Float64Array, Moments, gae
from learners.checkpoint import load_state, save_state
from learners.losses import clipped_losses, effective_sample_share, k3, probability_ratios
from learners.numerics import fingerprint, settle
from learners.optimizer import Optimizer, learning_rate
from learners.stretches import Stretches, read_stretches
from models.actor_critic import load_policy
from models.registry import arrays_of, root_hash

CLIP_REWARD = 10.0  # deviations
EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What the minibatches are cut from; tensors on the learner's device."""

    observations_ND: Tensor
    actions_N: Tensor
    behaviour_N: Tensor
    advantages_N: Tensor
    targets_N: Tensor  # what the critic is to expect
    values_N: Tensor


@dataclass
class Tally:
    """Sums over the gradient steps of one batch, weighted by their rows."""

    rows: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    gradient_steps: int = 0
    norm: float = 0.0

    def add(self, num: int, **means: Tensor) -> None:
        self.rows += num
        for name, value in means.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach()) * num

    def stats(self) -> dict[str, float]:
        means = {name: total / max(1, self.rows) for name, total in self.sums.items()}
        return {
            **means,
            "gradient_steps": float(self.gradient_steps),
            "grad_norm": self.norm / max(1, self.gradient_steps),
        }


class PpoLearner:
    """contracts.protocols.Learner by PPO. Single-threaded; owns the process's torch settings."""

    def __init__(self, folder: Path, settings: Settings, *, ppo: Ppo, control: Control, seed: int) -> None:
        """The policy in `folder`. Raises UserError."""
        settle(threads=settings.threads, device=settings.device, folder=folder)
        torch.manual_seed(seed)
        self._settings, self._ppo, self._control = settings, ppo, control
        self._network = load_policy(folder).to(settings.device)
        self.base_hash = self.root_hash()
        self._optimizer = Optimizer(
            dict(self._network.named_parameters()),
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            gradient_clip=settings.gradient_clip,
        )
        self._optimizer.clear()
        self._seen = Moments.of_nothing(self._network.spaces.observation_size)
        self._returns = Moments.of_nothing()
        self._last_step = self._num_skipped = 0

    @property
    def spaces(self) -> Spaces:
        return self._network.spaces

    # ------------------------------------------------------------------------------------------ the step

    def step(
        self, batch: Batch, episodes: Sequence[Episode], *, before_change: Callable[[], None] = lambda: None
    ) -> StepResult:
        """One batch. Raises LearnerError, and then nothing has changed.

        A loss or gradient that is not finite changes nothing either, but is no error: the result is `skipped`.
        """
        started = time.perf_counter()
        if batch.step <= self._last_step:
            raise LearnerError(f"step {batch.step} comes after step {self._last_step}: it would be learned from twice")
        if batch.coefficients:
            raise LearnerError(f"step {batch.step}: coefficients {sorted(batch.coefficients)} mean nothing to PPO")
        stretches = read_stretches(batch, episodes, discount=self._ppo.discount)
        before_change()
        before = self._keep()
        tally = Tally()
        try:
            returns = self._returns.merge(np.concatenate(stretches.discounted))
            rows = self._rows(stretches, returns)
            updated = self._epochs(batch, rows, tally)
        except (RuntimeError, IndexError, ValueError) as error:  # torch: out of memory; shapes of another environment
            self._put_back(before)
            raise LearnerError(f"step {batch.step} could not be computed: {error}") from error
        finally:
            self._optimizer.clear()
        if updated:
            self._returns = returns
            self._observe(stretches)
        else:
            self._put_back(before)
        self._last_step = batch.step
        self._num_skipped += not updated
        stats = {**stretches.stats, **tally.stats(), **_fit(rows), "learning_rate": self._rate(batch)}
        stats |= {"skipped": float(not updated), "num_skipped": float(self._num_skipped)}
        result = StepResult(root_hash=self.root_hash(), stats=stats, skipped=not updated)
        stats["step_s"] = time.perf_counter() - started
        return result

    def _rows(self, stretches: Stretches, returns: Moments) -> Rows:
        """Values under the weights at the step's start; scaled rewards; advantages and the critic's targets."""
        ppo, lengths = self._ppo, [len(one) for one in stretches.observations]
        with torch.no_grad():
            everything = self._to_device(np.concatenate(stretches.observations))
            flat = self._network.values(everything).cpu().numpy().astype(np.float64)
        values = np.split(flat, np.cumsum(lengths)[:-1])
        advantages = gae(
            [self._scale(rewards, returns) for rewards in stretches.rewards],
            values,
            stretches.terminated,
            discount=ppo.discount,
            gae_lambda=ppo.gae_lambda,
        )
        advantages_N = np.concatenate(advantages)
        values_N = np.concatenate([one[:-1] for one in values])
        return Rows(
            observations_ND=self._to_device(stretches.acted_on),
            actions_N=self._to_device(stretches.actions_N),
            behaviour_N=self._to_device(stretches.behaviour_N),
            advantages_N=self._to_device(advantages_N.astype(np.float32)),
            targets_N=self._to_device((advantages_N + values_N).astype(np.float32)),
            values_N=self._to_device(values_N.astype(np.float32)),
        )

    def _scale(self, rewards: Float64Array, returns: Moments) -> Float64Array:
        """Rewards divided by the deviation of the discounted return, not centred: their sign keeps its meaning."""
        if not self._control.normalise_rewards:
            return rewards
        scaled: Float64Array = np.clip(rewards / np.sqrt(returns.variance + EPSILON), -CLIP_REWARD, CLIP_REWARD)
        return scaled

    def _epochs(self, batch: Batch, rows: Rows, tally: Tally) -> bool:
        """All gradient steps; False where one was not finite."""
        order = np.random.default_rng(batch.seed)
        num, size = len(rows.actions_N), self._ppo.minibatch_steps
        for _ in range(self._ppo.epochs):
            places = order.permutation(num)
            kl = 0.0
            for part in np.array_split(places, max(1, round(num / size))):
                loss, kl_part = self._loss(rows, self._to_device(part), tally)
                if not math.isfinite(float(loss.detach())):
                    return False
                self._optimizer.clear()
                torch.autograd.backward(loss)
                norm, updated = self._optimizer.step(rate=self._rate(batch))
                if not updated:
                    return False
                tally.gradient_steps += 1
                tally.norm += norm
                kl += kl_part * len(part) / num
            if self._ppo.target_kl is not None and kl > self._ppo.target_kl:
                break
        return True

    def _loss(self, rows: Rows, part: Tensor, tally: Tally) -> tuple[Tensor, float]:
        """The loss of one minibatch and its KL to the behaviour policy (estimator k3)."""
        ppo, settings = self._ppo, self._settings
        observations_ND, behaviour_N = rows.observations_ND[part], rows.behaviour_N[part]
        distribution = self._network.act(observations_ND)
        log_probs_N = distribution.log_probs(rows.actions_N[part])
        advantages_N = rows.advantages_N[part]
        advantages_N = (advantages_N - advantages_N.mean()) / (advantages_N.std() + EPSILON)
        ratios_N = probability_ratios(log_probs_N, behaviour_N, torch.ones_like(behaviour_N))
        low, high = settings.formula().clip_low, settings.formula().clip_high
        losses_N = clipped_losses(ratios_N, advantages_N, clip_low=low, clip_high=high, dual_clip=settings.dual_clip)
        value_loss = 0.5 * (self._network.values(observations_ND) - rows.targets_N[part]).square().mean()
        entropy = distribution.entropy().mean()
        kl = k3(behaviour_N, log_probs_N.detach()).mean()
        tally.add(
            len(part),
            loss=losses_N.mean(),
            value_loss=value_loss,
            entropy=entropy,
            kl=kl,
            ratio_mean=ratios_N.mean(),
            importance_ess=torch.tensor(effective_sample_share(ratios_N.detach())),
            clip_fraction_low=((advantages_N < 0) & (ratios_N < 1 - low)).float().mean(),
            clip_fraction_high=((advantages_N > 0) & (ratios_N > 1 + high)).float().mean(),
            log_prob_gap=(log_probs_N.detach() - behaviour_N).abs().mean(),
        )
        total = losses_N.mean() + ppo.value_coefficient * value_loss - ppo.entropy_coefficient * entropy
        return total, float(kl)

    def _observe(self, stretches: Stretches) -> None:
        if self._control.normalise_observations:
            self._seen = self._seen.merge(stretches.acted_on.astype(np.float64))
            self._network.mean_D.copy_(torch.from_numpy(self._seen.mean))
            self._network.variance_D.copy_(torch.from_numpy(self._seen.variance))

    def _rate(self, batch: Batch) -> float:
        settings = self._settings
        return learning_rate(
            batch.step,
            base=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            decay_steps=settings.decay_steps,
        )

    def _to_device(self, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._settings.device)

    # ------------------------------------------------------------------------------------------ the state

    def _keep(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies of weights and moments: a step that fails half way is taken back whole."""
        copies = [{name: tensor.detach().clone() for name, tensor in part.items()} for part in self._parts()]
        return copies[0], copies[1]

    def _put_back(self, kept: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
        self._network.load_state_dict(kept[0])
        self._optimizer.restore(kept[1])

    def _parts(self) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        return self._network.state_dict(), self._optimizer.tensors()

    def root_hash(self) -> str:
        return root_hash(*arrays_of(self._network.state_dict()))

    def weights(self, version: int) -> WeightSet:
        """A copy: actor, critic, and the observation statistics."""
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._network.state_dict().items()}
        tensors, dtypes = arrays_of(copies)
        return WeightSet(version=version, root_hash=self.root_hash(), tensors=tensors, dtypes=dtypes)

    def score(self, requests: Sequence[ActRequest], answers: Sequence[Actions]) -> list[FloatArray]:
        """Log-probs [N] of each answer's actions under the present weights."""
        with torch.no_grad():
            return [
                self._network.act(self._to_device(request.observations))
                .log_probs(self._to_device(answer.actions))
                .cpu()
                .numpy()
                for request, answer in zip(requests, answers, strict=True)
            ]

    def log_probs(self, episodes: Sequence[Episode]) -> list[FloatArray]:
        with torch.no_grad():
            return [
                np.concatenate(
                    [
                        self._network.act(self._to_device(step.observation[:-1]))
                        .log_probs(self._to_device(step.action))
                        .cpu()
                        .numpy()
                        for step in episode.steps
                    ]
                )
                for episode in episodes
            ]

    def save(self, folder: str) -> str:
        weights, moments = self._parts()
        parts = {"weights": weights, "optimizer": moments, "statistics": self._statistics()}
        return save_state(Path(folder), parts, {"last_step": self._last_step, "num_skipped": self._num_skipped})

    def load(self, folder: str, state_hash: str) -> None:
        parts, numbers = load_state(Path(folder), state_hash)
        theirs = {name: tuple(tensor.shape) for name, tensor in parts["weights"].items()}
        if theirs != {name: tuple(tensor.shape) for name, tensor in self._network.state_dict().items()}:
            raise FormatError(f"the state in {folder} is of another network: its names or shapes differ")
        self._put_back((parts["weights"], parts["optimizer"]))
        kept = {name: tensor.numpy() for name, tensor in parts["statistics"].items()}
        self._seen = Moments(
            mean=kept["observations.mean"],
            variance=kept["observations.variance"],
            count=float(kept["observations.count"]),
        )
        self._returns = Moments(
            mean=kept["returns.mean"], variance=kept["returns.variance"], count=float(kept["returns.count"])
        )
        self._last_step, self._num_skipped = numbers["last_step"], numbers["num_skipped"]

    def _statistics(self) -> dict[str, Tensor]:
        named = {"observations": self._seen, "returns": self._returns}
        return {
            f"{name}.{part}": torch.from_numpy(np.array(value, dtype=np.float64))
            for name, moments in named.items()
            for part, value in (("mean", moments.mean), ("variance", moments.variance), ("count", moments.count))
        }

    def fingerprint(self) -> Mapping[str, Scalar]:
        return fingerprint(device=self._settings.device)


def _fit(rows: Rows) -> dict[str, float]:
    """How much of the targets' variance the critic explained before the step: 1 all of it, 0 none."""
    variance = float(rows.targets_N.var())
    return {"explained_variance": 1.0 - float((rows.targets_N - rows.values_N).var()) / variance if variance else 0.0}
