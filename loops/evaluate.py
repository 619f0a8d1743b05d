"""Held-out accuracy of the version that acts: every item sampled and answered greedily, judged, and summed up."""

from __future__ import annotations

import time

from configs.schema import RunConfig
from contracts.records import Evaluation, IntArray
from evaluation.heldout import METRIC, Trial, plan, score, score_first_tries
from loops.text import Opening, Policy, TextEnvironment, converse

SPLIT = "held_out"
ROUNDS = 16  # engine rounds of max_sequences in one call: engine.timeout_s is of a call, whatever the samples


def evaluate(policy: Policy, *, environment: TextEnvironment, config: RunConfig, version: int, step: int) -> Evaluation:
    """Scores on all held-out items. Nothing of it is stored as experience, so nothing of it can be trained on.

    The samples' seeds hang on the run's seed, item and sample alone: two versions answer under the same draws. An item
    has as many turns as in training; the first one's scores then stand beside those of the whole.
    """
    items, samples = config.environment.held_out_items, config.evaluate.samples
    trials = plan(num_items=items, samples=samples)
    prompt_ids = [policy.encode(prompt.text) for prompt in environment.prompts(SPLIT, range(items))]
    openings = [_opening(trial, prompt_ids[trial.index], config=config, step=step) for trial in trials]
    size = ROUNDS * config.engine.max_sequences
    talks = [
        talk
        for start in range(0, len(openings), size)
        for talk in converse(policy, openings[start : start + size], environment=environment, engine=config.engine)
    ]
    scores = score(trials, [talk.verdict for talk in talks])
    if config.environment.max_turns > 1:
        first, turns = [talk.verdicts[0] for talk in talks], [len(talk.steps) for talk in talks]
        scores |= score_first_tries(trials, first, turns, tries=config.environment.max_turns)
    return Evaluation(
        version=version,
        step=step,
        metric=METRIC,
        scores=scores,
        items=items,
        samples=samples,
        wall_time=time.time(),
    )


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
