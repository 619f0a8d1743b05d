"""A small policy network for vectors: actor and critic as two perceptrons, observations normalised inside.

    policy.json           sizes of the network and the environment's spaces
    model.safetensors     weights, and the observation statistics that travel with them

Shapes: N observations of D numbers; A numbers in an action's distribution.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from contracts.errors import FormatError, UserError
from contracts.protocols import Spaces
from models.durable import publish_file
from models.registry import load_tensors, save_tensors

FORMAT_VERSION = 1
CLIP_OBSERVATION = 10.0  # deviations
EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """What the actor answers: `logits_NA` (discrete), or `mean_NA` and `log_std_A` of independent normals."""

    parameters_NA: Tensor
    log_std_A: Tensor | None

    def log_probs(self, actions: Tensor) -> Tensor:
        """float32 [N] of actions [N] (discrete) or [N, A]."""
        if self.log_std_A is None:
            return self.parameters_NA.log_softmax(-1).gather(1, actions.long()[:, None])[:, 0]
        normal = torch.distributions.Normal(self.parameters_NA, self.log_std_A.exp())
        log_probs_N: Tensor = normal.log_prob(actions).sum(-1)
        return log_probs_N

    def entropy(self) -> Tensor:
        """[N], in nats."""
        if self.log_std_A is None:
            log_probs_NA = self.parameters_NA.log_softmax(-1)
            return -(log_probs_NA.exp() * log_probs_NA).sum(-1)
        normal = torch.distributions.Normal(self.parameters_NA, self.log_std_A.exp())
        entropy_N: Tensor = normal.entropy().sum(-1)
        return entropy_N

    def likeliest(self) -> Tensor:
        return self.parameters_NA.argmax(-1) if self.log_std_A is None else self.parameters_NA

    def draw(self, noise: Tensor) -> Tensor:
        """Actions from uniform noise [N] (the first action whose sum exceeds it), or normal [N, A]."""
        if self.log_std_A is not None:
            return self.parameters_NA + self.log_std_A.exp() * noise
        cumulative_NA = self.parameters_NA.double().softmax(-1).cumsum(-1)
        drawn_N = torch.searchsorted(cumulative_NA, noise.double()[:, None], right=True)[:, 0]
        return drawn_N.clamp_(max=self.parameters_NA.shape[1] - 1)


class ActorCritic(nn.Module):
    """Tanh networks with orthogonal weights (gain √2; 0.01 for the actor's last layer, 1 for the critic's), as PPO's
    authors initialise them. `mean_D` and `variance_D` are set by the learner, not trained."""

    mean_D: Tensor
    variance_D: Tensor

    def __init__(self, spaces: Spaces, *, hidden: Sequence[int]) -> None:
        super().__init__()
        self.spaces, self.hidden = spaces, tuple(hidden)
        self.actor = _perceptron(spaces.observation_size, hidden, spaces.action_size, gain=0.01)
        self.critic = _perceptron(spaces.observation_size, hidden, 1, gain=1.0)
        self.log_std_A = None if spaces.num_actions else nn.Parameter(torch.zeros(spaces.action_size))
        self.register_buffer("mean_D", torch.zeros(spaces.observation_size))
        self.register_buffer("variance_D", torch.ones(spaces.observation_size))

    def normalise(self, observations_ND: Tensor) -> Tensor:
        scaled_ND = (observations_ND - self.mean_D) / torch.sqrt(self.variance_D + EPSILON)
        return scaled_ND.clamp(-CLIP_OBSERVATION, CLIP_OBSERVATION)

    def act(self, observations_ND: Tensor) -> Distribution:
        parameters_NA: Tensor = self.actor(self.normalise(observations_ND))
        return Distribution(parameters_NA=parameters_NA, log_std_A=self.log_std_A)

    def values(self, observations_ND: Tensor) -> Tensor:
        """[N]: the discounted (scaled) reward that the critic expects from here on."""
        values_N1: Tensor = self.critic(self.normalise(observations_ND))
        return values_N1[:, 0]


def _perceptron(size: int, hidden: Sequence[int], outputs: int, *, gain: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [_linear(size, width, gain=2**0.5), nn.Tanh()]
        size = width
    return nn.Sequential(*layers, _linear(size, outputs, gain=gain))


def _linear(inputs: int, outputs: int, *, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def init_policy(folder: Path, *, spaces: Spaces, hidden: Sequence[int], seed: int) -> None:
    """Write a network with seeded weights to `folder`. The same seed gives the same bytes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ActorCritic(spaces, hidden=hidden)
    folder.mkdir(parents=True, exist_ok=True)
    note = {"format_version": FORMAT_VERSION, "hidden": list(hidden), "spaces": dataclasses.asdict(spaces)}
    text = json.dumps(note, indent=1) + "\n"
    publish_file(folder / "policy.json", lambda temporary: temporary.write_text(text))
    save_tensors(folder / "model.safetensors", network.state_dict(), note={"format_version": FORMAT_VERSION})


def load_policy(folder: Path) -> ActorCritic:
    """The network in `folder`, on the CPU. Raises UserError where it is none, FormatError where it is damaged."""
    try:
        note = json.loads((folder / "policy.json").read_text())
        version, spaces = note["format_version"], note["spaces"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"the policy in {folder}", f"it has no readable policy.json: {error!r}", "name another"
        ) from None
    if version != FORMAT_VERSION:
        raise FormatError(f"{folder} has format version {version}; this code reads {FORMAT_VERSION}")
    spaces |= {"low": tuple(spaces["low"]), "high": tuple(spaces["high"])}
    network = ActorCritic(Spaces(**spaces), hidden=note["hidden"])
    network.load_state_dict(load_tensors(folder / "model.safetensors")[0])
    return network
