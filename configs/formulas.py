"""The published policy-gradient formulas by name: what `learner.loss` stands for where the keys beside it are null.

| loss | advantage | ratio | clip | one token counts | KL | dynamic sampling |
|---|---|---|---|---|---|---|
| grpo | unbiased_std | token | 0.2, 0.2 | sequence | loss | |
| dr_grpo | mean_only | token | 0.2, 0.2 | constant | loss | |
| dapo | unbiased_std | token | 0.2, 0.28 | token | loss | yes |
| gspo | unbiased_std | sequence_mean | 3e-4, 4e-4 | sequence | loss | |
| rloo | leave_one_out | sequence | none | sequence | reward | |
| reinforce_pp | batch_std | token | 0.2, 0.2 | token | reward | |

grpo: Shao et al. 2024, DeepSeekMath. dr_grpo: Liu et al. 2025, Understanding R1-Zero-Like Training. dapo: Yu et al.
2025. gspo: Zheng et al. 2025, Group Sequence Policy Optimization, clips of its section 5.1. rloo: Ahmadian et al. 2024,
Back to Basics. reinforce_pp: Hu et al. 2025, REINFORCE++. The arithmetic is in learners/losses.py.

Not in the presets: a KL term (`kl_coefficient` stays 0 unless set; the papers differ), several steps on one batch, and
the truncated importance weights, which all six take (`importance_cap`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

# What a completion's reward is compared with: its group's mean (and deviation), the mean of the group's others, or the
# mean and deviation over all tokens of the batch.
Advantage = Literal["unbiased_std", "population_std", "mean_only", "leave_one_out", "batch_std"]
# What one token counts: 1 / (tokens of the batch), 1 / (rows · its row's tokens), or 1 / (rows · token limit).
Aggregation = Literal["token", "sequence", "constant"]
# The ratio to the behaviour policy: each token's own, or its completion's, as geometric mean or as product.
Ratio = Literal["token", "sequence_mean", "sequence"]
KlPlace = Literal["loss", "reward"]


# The learner's keys that a formula decides where they are null.
KEYS = ("advantage", "aggregation", "clip_low", "clip_high", "dynamic_sampling")


@dataclass(frozen=True, kw_only=True)
class Formula:
    """A policy-gradient loss: its preset, with what the configuration says otherwise."""

    advantage: Advantage = "unbiased_std"
    ratio: Ratio = "token"
    clip_low: float = 0.2  # the ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_high: float = 0.2
    aggregation: Aggregation = "sequence"
    kl_in: KlPlace = "loss"  # where a KL term goes, if kl_coefficient is above 0
    dynamic_sampling: bool = False  # groups without spread are replaced: a batch is full of groups with spread


FORMULAS: dict[str, Formula] = {
    "grpo": Formula(),
    "dr_grpo": Formula(advantage="mean_only", aggregation="constant"),
    "dapo": Formula(clip_high=0.28, aggregation="token", dynamic_sampling=True),
    "gspo": Formula(ratio="sequence_mean", clip_low=3e-4, clip_high=4e-4),
    "rloo": Formula(
        advantage="leave_one_out",
        ratio="sequence",
        clip_low=math.inf,
        clip_high=math.inf,
        kl_in="reward",
    ),
    "reinforce_pp": Formula(advantage="batch_std", aggregation="token", kl_in="reward"),
}
OWN = Formula(aggregation="token")  # around a loss of the user's own: its advantages, and how its tokens add up
