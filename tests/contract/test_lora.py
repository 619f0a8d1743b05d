"""Adapters on their way out: pushed into each engine, and exported and loaded by transformers, peft and vLLM.

Each time the log-probs are compared with those of the learner, whose adapters are no part of its base.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from configs.schema import Engine as EngineSettings
from configs.schema import Lora
from contracts.errors import EngineError
from contracts.protocols import Completion, Engine, Request
from inference.parity import gap
from inference.transformers_engine import TransformersEngine
from learners.packing import Sample
from learners.policy import PolicyModel
from models.export import ModelCard, export_adapters, export_model
from models.lora import AdaptedBase, merge
from tests.contract.policies import Reference, log_prob_gap, make_policy, push, requests, settings

LORA = Lora(rank=8, alpha=16)
TIGHT = 2e-4  # float32 on both sides: the order of sums is all that differs
LIMIT = EngineSettings().parity_gap
CARD = ModelCard(name="adapted", config_hash="", lineage=())


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_policy(folder, tied=request.param)
    return folder


@pytest.fixture(scope="module")
def learner(folder: Path) -> PolicyModel:
    """Adapters far enough from zero that a base without them is no match."""
    model, random = PolicyModel(folder, lora=LORA, seed=0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.parameters().values():
            tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.1)
    model.changed()
    return model


def learner_gap(learner: PolicyModel, asked: Sequence[Request], answered: Sequence[Completion]) -> float:
    samples = [
        Sample(prompt_ids=one.prompt_ids, completion_ids=answer.token_ids)
        for one, answer in zip(asked, answered, strict=True)
    ]
    return gap([one.log_probs for one in answered], learner.score(samples, max_tokens=16_384, temperature=1.0))


@pytest.fixture(scope="module", params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[Engine]:
    engine: Engine
    if request.param == "vllm":
        from inference.vllm_engine import VllmEngine

        engine = VllmEngine(folder, settings(), lora=LORA)
    else:
        engine = TransformersEngine(folder, settings(), lora=LORA)
    yield engine
    engine.close()


def test_pushed_adapters_are_merged_and_can_be_taken_back(folder: Path, engine: Engine, learner: PolicyModel) -> None:
    asked = requests(16)
    push(engine, PolicyModel(folder, lora=LORA, seed=0).weights(0))
    fresh = engine.generate(asked, timeout_s=60)
    assert log_prob_gap(Reference(folder), asked, fresh) < TIGHT, "fresh adapters leave the base as it is"
    assert learner_gap(learner, asked, fresh) > LIMIT
    push(engine, learner.weights(1))
    assert engine.version == 1
    assert learner_gap(learner, asked, engine.generate(asked, timeout_s=60)) < TIGHT
    push(engine, PolicyModel(folder, lora=LORA, seed=0).weights(2))
    again = engine.generate(asked, timeout_s=60)
    assert log_prob_gap(Reference(folder), asked, again) < TIGHT, "a merge starts from the base, not from the last one"


def test_what_is_no_set_of_its_adapters_is_refused(folder: Path, engine: Engine, learner: PolicyModel) -> None:
    push(engine, learner.weights(3))
    small = PolicyModel(folder, lora=Lora(rank=2), seed=0)
    for wrong in (Reference(folder).weights(4), small.weights(4)):
        with pytest.raises(EngineError, match="version 4 was not pushed"):
            push(engine, wrong)
    assert engine.version == 3


def test_bf16_engines_stay_within_the_guards_limit(folder: Path, learner: PolicyModel) -> None:
    engine = TransformersEngine(folder, settings(dtype="bfloat16"), lora=LORA)
    push(engine, learner.weights(1))
    asked = requests(16)
    assert learner_gap(learner, asked, engine.generate(asked, timeout_s=60)) < LIMIT
    engine.close()


@pytest.fixture
def merged(folder: Path, learner: PolicyModel, tmp_path: Path) -> Path:
    whole = merge(learner.weights(1), base=AdaptedBase(folder, LORA))
    export_model(whole, base=folder, out=tmp_path / "merged", card=CARD)
    return tmp_path / "merged"


@pytest.fixture
def adapters(folder: Path, learner: PolicyModel, tmp_path: Path) -> Path:
    export_adapters(learner.weights(1), settings=LORA, base=folder, out=tmp_path / "adapters", card=CARD)
    return tmp_path / "adapters"


def test_transformers_and_peft_load_what_is_exported(
    folder: Path, learner: PolicyModel, merged: Path, adapters: Path
) -> None:
    base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    adapted = PeftModel.from_pretrained(base, str(adapters))
    whole = Reference(merged)
    for one in requests(4, lengths=[9]):
        sample = Sample(prompt_ids=one.prompt_ids[:4], completion_ids=one.prompt_ids[4:])
        expected = learner.score([sample], max_tokens=1000, temperature=1.0)[0]
        for model in (whole.model, adapted):
            whole.model = model
            np.testing.assert_allclose(whole.score(sample.prompt_ids, sample.completion_ids), expected, atol=TIGHT)


@pytest.mark.vllm
def test_vllm_loads_a_merged_export(learner: PolicyModel, merged: Path) -> None:
    from inference.vllm_engine import VllmEngine

    engine = VllmEngine(merged, settings())
    try:
        asked = requests(16)
        assert learner_gap(learner, asked, engine.generate(asked, timeout_s=60)) < TIGHT
    finally:
        engine.close()


@pytest.mark.vllm
def test_vllm_loads_exported_adapters_by_its_own_lora(folder: Path, learner: PolicyModel, adapters: Path) -> None:
    """Our engine merges instead: on the CPU vLLM's own way generates a third as fast (docs/log.md)."""
    import vllm
    from vllm.lora.request import LoRARequest

    import inference.vllm_core  # noqa: F401  (sets vLLM's environment variables)

    asked = requests(8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = vllm.LLM(
            str(folder),
            enable_lora=True,
            max_lora_rank=LORA.rank,
            skip_tokenizer_init=True,
            dtype="float32",
            enforce_eager=True,
            max_model_len=256,
            kv_cache_memory_bytes=1 << 26,
        )
        outputs = model.generate(
            [vllm.TokensPrompt(prompt_token_ids=one.prompt_ids.tolist()) for one in asked],
            vllm.SamplingParams(max_tokens=8, temperature=1.0, seed=1, logprobs=0, detokenize=False),
            lora_request=LoRARequest("adapted", 1, str(adapters)),
            use_tqdm=False,
        )
    model.llm_engine.engine_core.shutdown()
    for one, output in zip(asked, outputs, strict=True):
        answer = output.outputs[0]
        sample = Sample(prompt_ids=one.prompt_ids, completion_ids=np.array(answer.token_ids, np.int32))
        expected = learner.score([sample], max_tokens=1000, temperature=1.0)[0]
        assert answer.logprobs is not None
        theirs = [step[token].logprob for step, token in zip(answer.logprobs, answer.token_ids, strict=True)]  # type: ignore[index]
        np.testing.assert_allclose(np.array(theirs), expected, atol=2e-3)
