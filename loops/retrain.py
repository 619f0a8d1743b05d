"""Train a new branch of the learner, with other settings, on exactly the batches that a run's log has.

Same genesis, same rows in the same order, same step numbers (so the same learning rates): only the settings differ. The
behaviour policy is the recorded one, so the further the branch moves from it, the more a batch is off its policy: the
learner corrects by truncated importance weights as it does in the run, and `importance_ess` and `kl` say how far off
it is. What other policies would have generated is not known: a branch is no substitute for a run.

Seeds. Genesis and batches are recorded, so initialisation, sampling and warm start cannot vary. Seed 0 is the log as it
is. Every other seed draws each batch's groups with replacement (bootstrap over prompts, Efron 1979), in the recorded
order, so that ages and step numbers stay: it shows how much hangs on the prompts that happened to be met. It says
nothing of other initial weights, other samples from the policy, or other orders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from contracts.errors import RunFolderError
from contracts.protocols import Learner
from contracts.records import Batch, Episode, Row
from loops.replay import Gone, History, computed_batches, kept_checkpoints
from loops.tasks import derive_seed

END_SHARE = 0.1  # of the steps: the last ones, whose mean is the branch's end


@dataclass(frozen=True, kw_only=True)
class BranchStep:
    """One recorded batch, learned from under other settings."""

    seed: int
    step: int
    num_steps: int  # that the log has
    stats: Mapping[str, float]


def retrain(
    history: History,
    *,
    folder: Path,
    learner: Learner,
    seed: int = 0,
    until: int | None = None,
    on_step: Callable[[BranchStep], None] = lambda step: None,
) -> list[BranchStep]:
    """Take `learner` from genesis through every recorded batch up to `until`. Nothing is written.

    Raises RunFolderError where genesis is no longer there or no batch was learned from, LearnerError.
    """
    records = history.decisions()
    genesis = next((one for one in kept_checkpoints(records, folder=folder) if one.step == 0), None)
    batches = computed_batches(records, until=until)
    if genesis is None or not batches:
        lacks = (
            "the checkpoint of its genesis is not in the folder" if genesis is None else "its log has no finished step"
        )
        raise RunFolderError(
            f"train again on the batches of {folder.name}", lacks, "take a snapshot of it, or another run that has both"
        )
    learner.load(str(folder / genesis.folder), genesis.state_hash)
    steps: list[BranchStep] = []
    gone = Gone.of(records)
    for _, batch in batches:
        gone.refuse(batch, folder=folder)
        episodes = history.episodes([row.reward_lsn for row in batch.rows])
        result = learner.step(*(resample(batch, episodes, seed=seed) if seed else (batch, episodes)))
        steps.append(BranchStep(seed=seed, step=batch.step, num_steps=len(batches), stats=dict(result.stats)))
        on_step(steps[-1])
    return steps


def resample(batch: Batch, episodes: Sequence[Episode], *, seed: int) -> tuple[Batch, list[Episode]]:
    """As many groups as the batch has, drawn from it with replacement, in its order. A group drawn twice is two groups:
    leases are -1, -2, … as no lease in a log is."""
    rng = np.random.default_rng(derive_seed("retrain", seed, batch.step))
    groups: dict[int, list[int]] = {}
    for place, row in enumerate(batch.rows):
        groups.setdefault(row.lease, []).append(place)
    leases = list(groups)
    drawn = np.sort(rng.integers(len(leases), size=len(leases)))
    rows: list[Row] = []
    again: list[Episode] = []
    flat: list[int] = []
    for number, choice in enumerate(drawn, start=1):
        lease = leases[choice]
        rows += [replace(batch.rows[place], lease=-number) for place in groups[lease]]
        again += [replace(episodes[place], lease=-number) for place in groups[lease]]
        if lease in batch.zero_spread:
            flat.append(-number)
    resampled = replace(
        batch,
        rows=tuple(rows),
        zero_spread=tuple(flat),
        micro_batches=(),
        seed=derive_seed(batch.seed, seed),
    )
    return resampled, again


def summarise(steps: Sequence[BranchStep]) -> dict[str, dict[str, float]]:
    """Mean of each statistic over all steps that have it, and over the last tenth of the steps."""
    last = steps[-max(1, round(END_SHARE * len(steps))) :]
    return {"mean": _means(steps), "end": _means(last)}


def _means(steps: Sequence[BranchStep]) -> dict[str, float]:
    names = dict.fromkeys(name for step in steps for name in step.stats)
    return {name: float(np.mean([step.stats[name] for step in steps if name in step.stats])) for name in names}
