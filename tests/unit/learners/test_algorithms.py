"""Each published loss, written down once more in NumPy from its paper: the learner's loss and gradient are the same.

The reference gives the loss and, in closed form, its derivative to each token's log-prob. The derivative is carried to
the weights by a plain forward pass, one sequence at a time, and compared with the learner's gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.formulas import FORMULAS
from configs.schema import Learner
from contracts.records import Batch, Episode
from learners.policy_gradient import PolicyGradientLearner
from models.causal_lm import load_model
from tests.unit.learners.builders import MAX_TOKENS, first_gradient, make_batch, make_model

Array = NDArray[np.float64]
CAP = 1.5
REWARDS = ((1, 0, 0, 0.5), (0.2, 0.2, 0.2, 0.2), (0, 1, 1, 0))


@dataclass(frozen=True)
class Given:
    """What a formula is given: for each row its group, reward, and log-probs under policy, behaviour, reference."""

    groups: list[int]
    rewards: Array
    now: list[Array]
    behaviour: list[Array]
    reference: list[Array]
    beta: float

    @property
    def rows(self) -> range:
        return range(len(self.groups))

    def members(self, row: int) -> list[int]:
        return [other for other in self.rows if self.groups[other] == self.groups[row]]

    def num_tokens(self) -> int:
        return sum(len(one) for one in self.now)


Result = tuple[float, list[Array]]


def clipped(weight: float, advantage: float, low: float, high: float) -> tuple[float, float]:
    """Loss -min(w A, clip(w) A), and its derivative to the log of w (PPO, Schulman et al. 2017, eq. 7)."""
    bounded = min(max(weight, 1 - low), 1 + high)
    if weight * advantage <= bounded * advantage:
        return -weight * advantage, -weight * advantage
    return -bounded * advantage, 0.0


def by_token(
    given: Given, advantage: Callable[[int, int], float], size: Callable[[int], float], low: float, high: float
) -> Result:
    loss, gradients = 0.0, [np.zeros(len(one)) for one in given.now]
    for i in given.rows:
        for t in range(len(given.now[i])):
            weight = min(CAP, np.exp(given.now[i][t] - given.behaviour[i][t]))
            value, slope = clipped(weight, advantage(i, t), low, high)
            loss += value / size(i)
            gradients[i][t] = slope / size(i)
    return loss, gradients


def standard(given: Given, row: int) -> float:
    rewards = given.rewards[given.members(row)]
    return float((given.rewards[row] - rewards.mean()) / (rewards.std(ddof=1) + 1e-6))


def grpo(given: Given) -> Result:
    """DeepSeekMath, Shao et al. 2024, eq. 3: 1/G Σ_i 1/|o_i| Σ_t min(ratio A, clip(ratio) A)."""
    rows = len(given.groups)
    return by_token(given, lambda i, t: standard(given, i), lambda i: rows * len(given.now[i]), 0.2, 0.2)


def dr_grpo(given: Given) -> Result:
    """Liu et al. 2025, section 3.2: no 1/|o_i|, no division by the deviation; a constant instead of the length."""
    rows = len(given.groups)

    def advantage(i: int, t: int) -> float:
        return float(given.rewards[i] - given.rewards[given.members(i)].mean())

    return by_token(given, advantage, lambda i: rows * MAX_TOKENS, 0.2, 0.2)


def dapo(given: Given) -> Result:
    """Yu et al. 2025, eq. 8 and 11: groups with spread alone, over all their tokens, the upper clip wider."""
    spread = [i for i in given.rows if np.ptp(given.rewards[given.members(i)]) > 0]
    total = sum(len(given.now[i]) for i in spread)
    return by_token(given, lambda i, t: standard(given, i), lambda i: total if i in spread else np.inf, 0.2, 0.28)


def gspo(given: Given) -> Result:
    """Zheng et al. 2025, eq. 5 to 7: s_i = (π/π_old)^(1/|y_i|), clipped for the whole sequence; gradient as eq. 10."""
    loss, gradients, rows = 0.0, [], len(given.groups)
    for i in given.rows:
        length = len(given.now[i])
        weight = min(CAP, np.exp((given.now[i] - given.behaviour[i]).sum() / length))
        value, slope = clipped(weight, standard(given, i), 3e-4, 4e-4)
        loss += value / rows
        gradients.append(np.full(length, slope / length / rows))
    return loss, gradients


def rloo(given: Given) -> Result:
    """Ahmadian et al. 2024, section 2.2: (R_i - mean of the others' R) ∇ log π(y_i), R = r - β log(π/π_ref)."""
    penalties = [(now - then).sum() for now, then in zip(given.now, given.reference, strict=True)]
    scores = given.rewards - given.beta * np.array(penalties)
    loss, gradients, rows = 0.0, [], len(given.groups)
    for i in given.rows:
        others = [scores[j] for j in given.members(i) if j != i]
        weight = min(CAP, np.exp((given.now[i] - given.behaviour[i]).sum()))
        term = -weight * (scores[i] - sum(others) / len(others)) / rows
        loss += term
        gradients.append(np.full(len(given.now[i]), term))
    return loss, gradients


def reinforce_pp(given: Given) -> Result:
    """Hu et al. 2025, section 3: A_t = r - β Σ_{i>=t} KL(i), normalised over the batch's tokens; PPO's clip."""
    raw = [
        np.array([given.rewards[i] - given.beta * (given.now[i] - given.reference[i])[t:].sum() for t in range(length)])
        for i, length in enumerate(map(len, given.now))
    ]
    everything = np.concatenate(raw)
    mean, deviation = everything.mean(), everything.std() + 1e-6
    total = given.num_tokens()
    return by_token(given, lambda i, t: float((raw[i][t] - mean) / deviation), lambda i: total, 0.2, 0.2)


REFERENCES: dict[str, Callable[[Given], Result]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
}


# ---------------------------------------------------------------------------------------------- the learner's side


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("algorithms") / "model")


def plain_log_probs(model: torch.nn.Module, episodes: Sequence[Episode]) -> list[Tensor]:
    found = []
    for episode in episodes:
        (step,) = episode.steps
        ids = torch.from_numpy(np.concatenate([step.observation, step.action])).long()
        logits = model(input_ids=ids[None]).logits[0, len(step.observation) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(1, ids[len(step.observation) :, None])[:, 0])
    return found


def as_arrays(values: Sequence[Tensor]) -> list[Array]:
    return [one.detach().double().numpy() for one in values]


def make_case(
    folder: Path, name: str, *, beta: float
) -> tuple[PolicyGradientLearner, torch.nn.Module, Given, Batch, list[Episode]]:
    """A learner whose weights have moved away from its reference, the same weights in a plain model, and the numbers
    that a formula needs. Behaviour log-probs lie around the policy's, beyond every clip on both sides."""
    settings = Learner(
        loss=name,
        precision="fp32",
        warmup_steps=0,
        gradient_clip=1e9,
        importance_cap=CAP,
        kl_coefficient=beta,
    )
    learner = PolicyGradientLearner(folder, settings, seed=0, temperature=1.0, max_tokens=MAX_TOKENS)
    batch, episodes = make_batch(REWARDS)
    model = load_model(folder, attention="eager", dtype=torch.float32)
    reference = as_arrays(plain_log_probs(model, episodes))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in learner.model.tensors().values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    learner.model.changed()
    model.load_state_dict(learner.model.tensors())
    given = Given(
        groups=[episode.lease for episode in episodes],
        rewards=np.array([episode.reward for episode in episodes]),
        now=as_arrays(plain_log_probs(model, episodes)),
        behaviour=[episode.steps[0].log_probs.astype(np.float64) for episode in episodes],
        reference=reference,
        beta=beta,
    )
    return learner, model, given, batch, episodes


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_loss_and_gradient_are_the_papers(folder: Path, tmp_path: Path, name: str, beta: float) -> None:
    if beta and FORMULAS[name].kl_in == "loss":
        beta = 0.0  # the k3 term is the same for all of these: test_policy_gradient.py
    learner, model, given, batch, episodes = make_case(folder, name, beta=beta)
    loss, slopes = REFERENCES[name](given)
    log_probs = torch.cat(plain_log_probs(model, episodes))
    torch.autograd.backward((log_probs * torch.from_numpy(np.concatenate(slopes)).float()).sum())
    expected = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    gradient = first_gradient(learner, tmp_path, batch, episodes)
    assert gradient.keys() == expected.keys()
    for weight, one in expected.items():
        torch.testing.assert_close(gradient[weight], one, atol=2e-6, rtol=1e-4)
    assert max(float(one.abs().max()) for one in expected.values()) > 1e-3
    again = make_case(folder, name, beta=beta)[0].step(batch, episodes)
    assert again.stats["loss"] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_reference_itself_is_right_by_finite_differences(folder: Path, name: str) -> None:
    """The importance cap makes the ratio's value and its slope differ, so the check is made below the cap."""
    _, _, full, _, _ = make_case(folder, name, beta=0.0)
    generator = np.random.default_rng(0)
    behaviour = [now - generator.uniform(-0.4, 0.05, len(now)) for now in full.now]
    given = Given(full.groups, full.rewards, full.now, behaviour, full.reference, 0.0)
    _, slopes = REFERENCES[name](given)
    for row, token in [(0, 0), (1, 0), (3, 0), (9, 0)]:
        ends = []
        for sign in (1, -1):
            moved = [now.copy() for now in given.now]
            moved[row][token] += sign * 1e-6
            ends.append(REFERENCES[name](Given(given.groups, given.rewards, moved, behaviour, given.reference, 0.0))[0])
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slopes[row][token], abs=1e-6)


def test_the_six_differ(folder: Path) -> None:
    results = {name: np.concatenate(REFERENCES[name](make_case(folder, name, beta=0.0)[2])[1]) for name in FORMULAS}
    directions = {name: slopes / np.linalg.norm(slopes) for name, slopes in results.items()}
    for one in FORMULAS:
        for other in FORMULAS:
            assert one == other or float(directions[one] @ directions[other]) < 0.999, (one, other)
