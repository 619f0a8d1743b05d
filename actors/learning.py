"""What an update worker computes with: the learner, its warm start, the guard's probes. Imports torch: load it late."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from actors.policy import TokenizerCodec, warm_start_pairs
from configs.loader import config_hash
from configs.schema import RunConfig
from contracts.protocols import Fleet, InFlight, Request
from contracts.records import Session
from inference.parity import probe_requests
from learners.grpo import GrpoLearner
from learners.supervised import warm_start
from loops.publish import Publisher
from models.registry import save_version

log = logging.getLogger(__name__)


def build_learner(folder: Path, config: RunConfig) -> GrpoLearner:
    """The configured learner on the run's base weights, with the threads that the configuration fixes."""
    return GrpoLearner(
        folder / "model",
        config.learner,
        seed=config.seed,
        temperature=config.engine.temperature,
        max_tokens=config.engine.max_tokens,
    )


def describe_session(learner: GrpoLearner, config: RunConfig) -> Session:
    """Who learns, from what: the record that fences every older learner of the run."""
    return Session(
        role="learner",
        epoch=0,
        config_hash=config_hash(config),
        base_weights=learner.root_hash(),
        fingerprint=dict(learner.fingerprint()),
        wall_time=time.time(),
    )


def build_publisher(learner: GrpoLearner, fleet: Fleet, *, config: RunConfig) -> Publisher:
    probes: Sequence[Request] = probe_requests(learner.vocab_size, seed=config.seed)
    return Publisher(
        fleet,
        score=learner.score,
        probes=probes,
        parity_gap=config.engine.parity_gap,
        in_flight=InFlight(config.engine.in_flight),
        patience=config.max_staleness,
    )


def prepare(
    learner: GrpoLearner, *, config: RunConfig, folder: Path, on_progress: Callable[[int, float], None]
) -> Mapping[str, float]:
    """Supervised fine-tuning of the base weights, where the configuration asks for it; its last loss and seconds."""
    if config.warm_start.steps == 0:
        return {}
    start = time.monotonic()
    pairs = warm_start_pairs(config, TokenizerCodec(folder / "model", config))
    stats = warm_start(learner.model, pairs, settings=config.warm_start, seed=config.seed, on_progress=on_progress)
    learner.reset()
    seconds = time.monotonic() - start
    log.info("warm start done", extra={"seconds": seconds})
    return {**stats, "seconds": seconds}


def saver(folder: Path) -> Callable[..., object]:
    """Writes a version's weights durably under `folder`."""
    return partial(save_version, folder)
