"""What rft_vs_trl.py and crash_cost.py give to both systems: the same weights, prompts, order, settings, and cores.

A case is a Ratchet run file and settings; TRL's specification is derived from the resolved configuration, so that
nothing can be said twice and differently. Where TRL has settings of its own, it gets those that were fastest.
"""

from __future__ import annotations

import json
import random
import shutil
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.processes import Job
from benchmarks.runs import QUICKSTART, ROOT, SAID, environment_of, ratchet, set_words, start_run
from configs.formulas import Formula
from configs.loader import load
from configs.schema import RunConfig
from environments.text.dataset import TextTasks
from learners.optimizer import learning_rate
from loops.tasks import task_source

DERIVED = Formula(aggregation="token", clip_high=0.28)  # TRL: loss_type dapo, scale_rewards group


@dataclass(frozen=True, kw_only=True)
class Case:
    """One task at one size. Speed is counted from the first to the second of `quick_steps` or `full_steps`."""

    name: str
    settings: tuple[str, ...]
    warm: tuple[str, ...]  # how the common starting weights are made
    quick_steps: tuple[int, int] = (0, 0)
    full_steps: tuple[int, int] = (0, 0)
    micro_batch: int | None = None  # TRL's rows in one forward pass; None: all at once
    run_file: Path = QUICKSTART

    def config(self, *settings: str) -> RunConfig:
        return load(self.run_file, [*self.settings, *settings])


_COMMON = ("learner.decay_steps=null", "warm_start.steps=0", "evaluate.samples=1", "environment.held_out_items=64")

# Words of five letters and an end: six tokens each, as soon as the end has been learned.
SHORT = Case(
    name="short",
    settings=(
        *_COMMON,
        "environment.parameters={min_word_len: 5, max_word_len: 5}",
        "environment.train_items=9000",
        "engine.max_tokens=6",
    ),
    warm=("warm_start.steps=105",),
    quick_steps=(10, 40),
    full_steps=(20, 170),
)

# The quickstart's own words, of which there are enough for many kills.
WORDS = Case(name="words", settings=(*_COMMON, "engine.max_tokens=7"), warm=("warm_start.steps=105",))

# Counting down in two hexadecimal digits from a number that the prompt names: `xyq05=` asks for 0403020100. The numbers
# 1 to 127 are equally frequent, so the answers, end included, have 3, 5, ... 255 tokens, as many of each.
COUNTDOWN = "countdown.jsonl"
GRADED = '''"""The verifier `positions`, for a file of items, which has no verifier of its own."""


def graded(answer, item):
    wanted = item["answer"]
    right = sum(given == letter for given, letter in zip(answer, wanted))
    return 1.0 if answer == wanted else min(0.8, right / max(1, len(wanted)))
'''
VERIFIERS = ("positions", "countdown:graded")
LONG = Case(
    name="long",
    settings=(
        *_COMMON,
        "model.init.max_positions=320",
        "environment.name=dataset",
        f"environment.dataset={COUNTDOWN}",
        "environment.parameters={}",
        "environment.prompt='{question}'",
        "environment.verifier=countdown:graded",
        "environment.train_items=9000",
        "engine.max_tokens=256",
        "learner.learning_rate=1e-5",
        "learner.micro_batch_tokens=4096",
        "rollout.lease_timeout_s=600",
    ),
    warm=("warm_start.steps=200", "warm_start.batch_size=32"),
    quick_steps=(2, 6),
    full_steps=(3, 15),
    micro_batch=32,
)


def placed(case: Case, folder: Path) -> Case:
    """The case with its own items, where it has any, in a folder inside `folder`: a run takes a copy of all that is
    beside its configuration."""
    if case is not LONG:
        return case
    folder = folder / f"case-{case.name}"
    folder.mkdir(parents=True, exist_ok=True)
    draws = random.Random(0)
    prefixes = ["".join(letters) for letters in _triples()]
    draws.shuffle(prefixes)
    with (folder / COUNTDOWN).open("w") as file:
        for place, prefix in enumerate(prefixes):
            start = 1 + place % 127
            answer = "".join(f"{number:02x}" for number in reversed(range(start)))
            file.write(json.dumps({"question": f"{prefix}{start:02x}=", "answer": answer}) + "\n")
    (folder / "countdown.py").write_text(GRADED)
    shutil.copyfile(QUICKSTART, folder / QUICKSTART.name)
    return replace(case, run_file=folder / QUICKSTART.name)


def _triples() -> list[tuple[str, str, str]]:
    letters = string.ascii_lowercase
    return [(a, b, c) for a in letters for b in letters for c in letters]


def prepare_model(case: Case, *, seed: int, folder: Path) -> Path:
    """The weights from which both systems start: Ratchet's own warm start, exported as a Hugging Face folder."""
    out = folder / f"{case.name}-{seed}"
    if not out.exists():
        runs = folder / "warm"
        settings = [*case.settings, *case.warm, f"seed={seed}", "steps=0", f"root={runs}"]
        ratchet("run", str(case.run_file), *set_words([*settings, "engine.backend=transformers"]))
        ratchet("model", "export", str((runs / "latest").resolve()), "--version", "0", "--out", str(out))
    return out


def start_ratchet(case: Case, *, settings: Sequence[str], root: Path) -> Job:
    """`ratchet run` of the case with its run folder in `root`."""
    return start_run(case.run_file, settings=[*case.settings, *settings], root=root)


def items_in_order(case: Case, config: RunConfig, *, num_items: int) -> list[dict[str, str]]:
    """The first prompts of a run with their answers, in the order in which Ratchet hands them out."""
    tasks = TextTasks(config.environment, seed=config.seed, folder=case.run_file.parent)
    source = task_source(config)
    chosen = [tasks.train[source(position)[1]] for position in range(num_items)]
    return [{"prompt": item.prompt, "answer": str(item.entry["answer"])} for item in chosen]


def start_trl(
    python: Path,
    case: Case,
    *,
    settings: Sequence[str],
    folder: Path,
    threads: int,
    save_steps: int = 0,
    audit: bool = False,
    resume: bool = False,
) -> Job:
    """TRL's run of the same configuration, in `folder` (benchmarks/trl_child.py says what it writes there).

    `save_steps` 0: no checkpoint. Raises SystemExit for settings that have no counterpart.
    """
    config = case.config(*settings)
    learner, engine, formula = config.learner, config.engine, config.learner.formula()
    batch = learner.groups_per_step * learner.group_size
    rows = case.micro_batch or batch
    rates = [
        learning_rate(step, base=1.0, warmup_steps=learner.warmup_steps, decay_steps=learner.decay_steps)
        for step in range(1, config.steps + 1)
    ]
    if config.environment.verifier not in VERIFIERS or formula != DERIVED or learner.kl_coefficient:
        raise SystemExit(f"TRL's side of this benchmark knows {VERIFIERS} and {DERIVED} without a KL term")
    spec = {
        "out": str(folder),
        "model": config.model.path,
        "attention": learner.attention,
        "threads": threads,
        "save_steps": save_steps,
        "audit": audit,
        "fold_case": config.environment.name == "reasoning_gym",
        "resume": resume,
        "items": items_in_order(case, config, num_items=config.steps * learner.groups_per_step),
        "optimizer": {
            "lr": learner.learning_rate,
            "betas": list(learner.betas),
            "weight_decay": learner.weight_decay,
        },
        "rates": rates,
        "config": {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": batch // rows,
            "num_generations": learner.group_size,
            "max_completion_length": engine.max_tokens,
            "temperature": engine.temperature,
            "max_steps": config.steps,
            "learning_rate": learner.learning_rate,
            "max_grad_norm": learner.gradient_clip,
            "beta": 0.0,
            "epsilon": formula.clip_low,
            "epsilon_high": formula.clip_high,
            "loss_type": "dapo",
            "scale_rewards": "group",
            "bf16": learner.precision == "bf16",
            "seed": config.seed,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [str(python), str(ROOT / "benchmarks" / "trl_child.py"), str(folder / "spec.json")]
    return Job(command, cwd=folder, environment=environment_of("trl"), log=folder / SAID)
