"""Held-out accuracy of the version that acts: every item sampled and answered greedily, judged, and summed up."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from configs.schema import RunConfig
from contracts.records import Evaluation, IntArray
from evaluation.heldout import GREEDY, METRIC, Trial, item_means, plan, score, score_first_tries
from loops.text import Opening, Policy, Talk, TextEnvironment, converse

SPLIT = "held_out"
ROUNDS = 16  # engine rounds of max_sequences in one call: engine.timeout_s is of a call, whatever the samples


def evaluate(policy: Policy, *, environment: TextEnvironment, config: RunConfig, version: int, step: int) -> Evaluation:
    """Scores on all held-out items. Nothing of it is stored as experience, so nothing of it can be trained on.

    The samples' seeds hang on the run's seed, item and sample alone: two versions answer under the same draws. An item
    has as many turns as in training; the first one's scores then stand beside those of the whole.
    """
    trials, talks = _ask(policy, environment=environment, config=config, step=step)
    scores = score(trials, [talk.verdict for talk in talks])
    if config.environment.max_turns > 1:
        first, turns = [talk.verdicts[0] for talk in talks], [len(talk.steps) for talk in talks]
        scores |= score_first_tries(trials, first, turns, tries=config.environment.max_turns)
    return Evaluation(
        version=version,
        step=step,
        metric=METRIC,
        scores=scores,
        items=config.environment.held_out_items,
        samples=config.evaluate.samples,
        wall_time=time.time(),
    )


def measure(
    policy: Policy, *, environment: TextEnvironment, config: RunConfig, step: int
) -> dict[str, NDArray[np.float64]]:
    """The same for each item, float64 [items]; NaN where it got no verdict."""
    trials, talks = _ask(policy, environment=environment, config=config, step=step)
    verdicts = [talk.verdict for talk in talks]
    return {
        METRIC: item_means(trials, verdicts, greedy=False),
        GREEDY: item_means(trials, verdicts, greedy=True),
    }


def _ask(
    policy: Policy, *, environment: TextEnvironment, config: RunConfig, step: int
) -> tuple[list[Trial], list[Talk]]:
    items = config.environment.held_out_items
    trials = plan(num_items=items, samples=config.evaluate.samples)
    prompt_ids = [policy.encode(prompt.text) for prompt in environment.prompts(SPLIT, range(items))]
    openings = [_opening(trial, prompt_ids[trial.index], config=config, step=step) for trial in trials]
    size = ROUNDS * config.engine.max_sequences
    talks = [
        talk
        for start in range(0, len(openings), size)
        for talk in converse(policy, openings[start : start + size], environment=environment, engine=config.engine)
    ]
    return trials, talks


def _opening(trial: Trial, prompt_ids: IntArray, *, config: RunConfig, step: int) -> Opening:
    sample = "greedy" if trial.sample is None else str(trial.sample)
    seeded = config.engine.backend == "transformers"  # as in loops/text.py
    return Opening(
        split=SPLIT,
        index=trial.index,
        prompt_ids=prompt_ids,
        request_id=f"held-out:{step}:{trial.index}:{sample}",
        temperature=trial.temperature,
        seed=(config.seed, SPLIT, trial.index, sample) if seeded else None,
    )
