"""Held-out accuracy of the version that acts: every item sampled and answered greedily, judged, and summed up."""

from __future__ import annotations

import time

from configs.schema import RunConfig
from contracts.protocols import Request, Sampling
from contracts.records import Evaluation, IntArray
from evaluation.heldout import METRIC, Trial, plan, score
from loops.tasks import derive_seed
from loops.text import Policy, TextEnvironment

SPLIT = "held_out"
ROUNDS = 16  # engine rounds of max_sequences in one call: engine.timeout_s is of a call, whatever the samples


def evaluate(policy: Policy, *, environment: TextEnvironment, config: RunConfig, version: int, step: int) -> Evaluation:
    """Scores on all held-out items. Nothing of it is stored as experience, so nothing of it can be trained on.

    The samples' seeds hang on the run's seed, item and sample alone: two versions answer under the same draws.
    """
    items, samples = config.environment.held_out_items, config.evaluate.samples
    trials = plan(num_items=items, samples=samples)
    prompts = environment.prompts(SPLIT, range(items))
    prompt_ids = [policy.encode(prompt.text) for prompt in prompts]
    requests = [_request(trial, prompt_ids[trial.index], policy=policy, config=config, step=step) for trial in trials]
    size = ROUNDS * config.engine.max_sequences
    completions = [
        completion
        for start in range(0, len(requests), size)
        for completion in policy.complete(requests[start : start + size], timeout_s=config.engine.timeout_s)
    ]
    held_out = [(SPLIT, trial.index) for trial in trials]
    verdicts = policy.judge(completions, environment=environment, items=held_out)
    return Evaluation(
        version=version,
        step=step,
        metric=METRIC,
        scores=score(trials, verdicts),
        items=items,
        samples=samples,
        wall_time=time.time(),
    )


def _request(trial: Trial, prompt_ids: IntArray, *, policy: Policy, config: RunConfig, step: int) -> Request:
    sample = "greedy" if trial.sample is None else str(trial.sample)
    seeded = config.engine.backend == "transformers"  # as in loops/text.py
    return Request(
        request_id=f"held-out:{step}:{trial.index}:{sample}",
        prompt_ids=prompt_ids,
        sampling=Sampling(
            max_tokens=config.engine.max_tokens,
            temperature=trial.temperature,
            stop_token_ids=policy.codec.stop_token_ids,
            seed=derive_seed(config.seed, SPLIT, trial.index, sample) if seeded else None,
        ),
    )
