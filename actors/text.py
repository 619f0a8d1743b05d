"""The text tenant: a language model answers prompts, an environment in a child process judges the text."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from configs.objects import own_folder
from configs.schema import RunConfig
from contracts.protocols import Completion, Engine, Fleet, InFlight, Request
from contracts.records import Batch, Episode, Evaluation, IntArray
from environments.host import EnvironmentHost
from loops.evaluate import evaluate, measure
from loops.imitation import pairs_to_imitate
from loops.publish import Publisher
from loops.text import Policy, TextPlayer

if TYPE_CHECKING:
    from learners.policy_gradient import PolicyGradientLearner

log = logging.getLogger(__name__)


class TextTenant:
    """actors.tenants.Tenant."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def make_model(self, folder: Path) -> None:
        from models.init import init_model

        init_model(folder, settings=self._config.model.init, seed=self._config.seed)

    def build_engine(self, model_folder: Path) -> Engine:
        settings, lora = self._config.engine, self._config.model.lora
        if settings.backend == "vllm":
            from inference.vllm_engine import VllmEngine

            shared = self._config.cluster.mode == "colocated"
            return VllmEngine(model_folder, settings, version=-1, lora=lora, sleeps=shared)
        from inference.transformers_engine import TransformersEngine

        return TransformersEngine(model_folder, settings, version=-1, lora=lora)

    def build_learner(self, folder: Path, *, own_code: Path | None = None) -> PolicyGradientLearner:
        from learners.policy_gradient import PolicyGradientLearner

        config = self._config
        return PolicyGradientLearner(
            folder / "model",
            config.learner,
            seed=config.seed,
            temperature=config.engine.temperature,
            max_tokens=config.engine.max_tokens * config.environment.max_turns,
            own_code=own_code or own_folder(folder),
            lora=config.model.lora,
        )

    def build_publisher(
        self, learner: PolicyGradientLearner, fleet: Fleet[Request, Completion]
    ) -> Publisher[Request, Completion]:
        from inference.parity import probe_requests, text_gap

        config = self._config
        probes = probe_requests(learner.vocab_size, seed=config.seed)
        return Publisher(
            fleet,
            probes=probes,
            gap=text_gap(probes, score=learner.score),
            parity_gap=config.engine.parity_gap,
            in_flight=InFlight(config.engine.in_flight),
            patience=config.max_staleness,
        )

    def prepare(
        self, learner: PolicyGradientLearner, folder: Path, on_progress: Callable[[int, float], None]
    ) -> Mapping[str, float]:
        """Supervised fine-tuning of the base weights."""
        config = self._config
        if config.warm_start.steps == 0:
            return {}
        from learners.supervised import warm_start

        start = time.monotonic()
        pairs = warm_start_pairs(config, TokenizerCodec(folder / "model", config), folder)
        stats = warm_start(learner.model, pairs, settings=config.warm_start, seed=config.seed, on_progress=on_progress)
        learner.reset()
        seconds = time.monotonic() - start
        log.info("warm start done", extra={"seconds": seconds})
        return {**stats, "seconds": seconds}

    def influences(self, batch: Batch, episodes: Sequence[Episode]) -> NDArray[np.float64]:
        from learners.rows import read_shares

        config = self._config
        tokens = config.engine.max_tokens * config.environment.max_turns
        return read_shares(batch, episodes, settings=config.learner, max_tokens=tokens).influences()

    def open_stage(self, folder: Path, engine: Any, *, rank: int) -> TextStage:
        return TextStage(self._config, folder=folder, engine=engine)


class TextStage:
    """actors.tenants.Stage: one environment process, shared by all slots."""

    def __init__(self, config: RunConfig, *, folder: Path, engine: Any) -> None:
        self._config = config
        self._environment = start_environment(config, folder)  # it makes its items while the tokenizer loads
        self._policy = Policy(engine=engine, codec=TokenizerCodec(folder / "model", config))

    def player(self, slot: int) -> TextPlayer:
        return TextPlayer(self._policy, self._environment, config=self._config)

    def evaluate(self, version: int, step: int) -> Evaluation:
        return evaluate(self._policy, environment=self._environment, config=self._config, version=version, step=step)

    def measure(self, step: int) -> Mapping[str, NDArray[np.float64]]:
        return measure(self._policy, environment=self._environment, config=self._config, step=step)

    def status(self) -> Mapping[str, Any]:
        return {"environment": self._environment.counts, "items": asdict(self._environment.disjoint)}

    def close(self) -> None:
        self._environment.close()


def start_environment(config: RunConfig, folder: Path) -> EnvironmentHost:
    """The environment's child process; it makes its items while others load."""
    return EnvironmentHost(config.environment, seed=config.seed, folder=own_folder(folder))


def warm_start_pairs(config: RunConfig, codec: TokenizerCodec, folder: Path) -> list[tuple[IntArray, IntArray]]:
    """(prompt ids, completion ids) that supervised fine-tuning is shown."""
    settings = config.environment
    with start_environment(config, folder) as environment:
        return pairs_to_imitate(
            environment, codec, num_items=settings.train_items, max_turns=settings.max_turns, seed=config.seed
        )


class TokenizerCodec:
    """loops.text.TextCodec by a Hugging Face tokenizer."""

    def __init__(self, model_folder: Path, config: RunConfig) -> None:
        from models.tokenizer import load_tokenizer

        self._tokenizer, self._config = load_tokenizer(model_folder), config

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return (int(self._tokenizer.eos_token_id),)

    def encode_prompt(self, text: str) -> IntArray:
        from models.tokenizer import encode_prompt

        model = self._config.model
        return encode_prompt(
            self._tokenizer,
            text,
            chat_template=model.chat_template,
            max_tokens=self._config.engine.max_prompt_tokens,
            truncation=model.truncation,
        )

    def encode_remark(self, text: str) -> IntArray:
        from models.tokenizer import encode_remark

        return encode_remark(self._tokenizer, text, chat_template=self._config.model.chat_template)

    def encode_completion(self, text: str) -> IntArray:
        from models.tokenizer import encode_completion

        return encode_completion(self._tokenizer, text)

    def decode(self, token_ids: IntArray) -> str:
        from models.tokenizer import decode

        return decode(self._tokenizer, np.asarray(token_ids))
