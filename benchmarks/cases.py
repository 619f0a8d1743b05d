"""What rft_vs_trl.py and crash_cost.py give to both systems: the same weights, prompts, order, settings, and cores.

A case is a Ratchet run file in words; TRL's specification is derived from the resolved configuration, so that nothing
can be said twice and differently. Where the two systems have settings of their own, TRL gets those that were fastest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.loader import load
from configs.schema import RunConfig
from environments.text.dataset import TextTasks
from learners.optimizer import learning_rate
from loops.tasks import task_source

ROOT = Path(__file__).resolve().parents[1]
PREPARE_S = 900.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One task at one size. `warm` are the settings under which the common starting weights are made."""

    name: str
    run_file: str
    settings: tuple[str, ...]
    warm: tuple[str, ...]
    trl: dict[str, Any] = field(default_factory=dict)  # GRPOConfig's own

    def config(self, *settings: str) -> RunConfig:
        return load(ROOT / self.run_file, [*self.settings, *settings])


# Words of five letters and an end: six tokens each, as soon as the end has been learned.
SHORT = Case(
    name="short",
    run_file="configs/quickstart.yaml",
    settings=(
        "environment.parameters={min_word_len: 5, max_word_len: 5}",
        "environment.train_items=9000",
        "engine.max_tokens=6",
        "learner.decay_steps=null",
        "warm_start.steps=0",
    ),
    warm=("warm_start.steps=105",),
)


def child_environment() -> dict[str, str]:
    """Both systems' processes see one thread a process unless they ask for more, and no accelerator."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def ratchet(*words: str, timeout_s: float) -> str:
    """The output of one `ratchet` command. Raises SystemExit with its words where it fails."""
    command = [sys.executable, "-m", "console.main", *words]
    done = subprocess.run(
        command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode:
        raise SystemExit(f"ratchet {' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def prepare_model(case: Case, *, seed: int, folder: Path) -> Path:
    """The weights from which both systems start: Ratchet's own warm start, exported as a Hugging Face folder."""
    out = folder / f"{case.name}-{seed}"
    if not out.exists():
        runs = folder / "warm"
        settings = [
            *case.settings,
            *case.warm,
            f"seed={seed}",
            "steps=0",
            f"root={runs}",
            "engine.backend=transformers",
            "environment.held_out_items=64",
            "evaluate.samples=1",
        ]
        ratchet("run", case.run_file, *(word for one in settings for word in ("--set", one)), timeout_s=PREPARE_S)
        run = (runs / "latest").resolve()
        ratchet("model", "export", str(run), "--version", "0", "--out", str(out), timeout_s=PREPARE_S)
    return out


def items_in_order(config: RunConfig, *, num_items: int) -> list[dict[str, str]]:
    """The first prompts of a run with their answers, in the order in which Ratchet hands them out."""
    tasks, source = TextTasks(config.environment, seed=config.seed), task_source(config)
    chosen = [tasks.train[source(position)[1]] for position in range(num_items)]
    return [{"prompt": item.prompt, "answer": str(item.entry["answer"])} for item in chosen]


def trl_spec(
    config: RunConfig,
    *,
    case: Case,
    out: Path,
    threads: int,
    save_steps: int = 0,
    audit: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """TRL's run of the same configuration (benchmarks/trl_child.py). Raises SystemExit for what has no counterpart."""
    learner, engine = config.learner, config.engine
    if learner.aggregation != "token" or learner.advantage != "unbiased_std" or learner.kl_coefficient:
        raise SystemExit("TRL's settings are derived for token aggregation, unbiased std and no KL term only")
    batch = learner.groups_per_step * learner.group_size
    rates = [
        learning_rate(step, base=1.0, warmup_steps=learner.warmup_steps, decay_steps=learner.decay_steps)
        for step in range(1, config.steps + 1)
    ]
    return {
        "out": str(out),
        "model": config.model.path,
        "attention": learner.attention,
        "threads": threads,
        "save_steps": save_steps,
        "audit": audit,
        "resume": resume,
        "items": items_in_order(config, num_items=config.steps * learner.groups_per_step),
        "optimizer": {
            "lr": learner.learning_rate,
            "betas": list(learner.betas),
            "weight_decay": learner.weight_decay,
        },
        "rates": rates,
        "config": {
            "per_device_train_batch_size": batch,
            "num_generations": learner.group_size,
            "max_completion_length": engine.max_tokens,
            "temperature": engine.temperature,
            "max_steps": config.steps,
            "learning_rate": learner.learning_rate,
            "max_grad_norm": learner.gradient_clip,
            "beta": 0.0,
            "epsilon": learner.clip_low,
            "epsilon_high": learner.clip_high,
            "loss_type": "dapo",
            "scale_rewards": "group",
            "bf16": learner.precision == "bf16",
            "seed": config.seed,
            **case.trl,
        },
    }


def start_trl(python: Path, spec: dict[str, Any]) -> subprocess.Popen[bytes]:
    """A run in a process of its own; what it says goes to `out`/trl.log."""
    out = Path(spec["out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "spec.json").write_text(json.dumps(spec))
    with (out / "trl.log").open("a") as log:
        return subprocess.Popen(
            [str(python), str(ROOT / "benchmarks" / "trl_child.py"), str(out / "spec.json")],
            cwd=out,
            env={name: value for name, value in child_environment().items() if name != "PYTHONPATH"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def start_ratchet(config_file: Path, settings: Sequence[str]) -> subprocess.Popen[bytes]:
    """`ratchet run` in a process of its own."""
    words = [word for one in settings for word in ("--set", one)]
    root = next(one.partition("=")[2] for one in settings if one.startswith("root="))
    Path(root).mkdir(parents=True, exist_ok=True)
    with (Path(root) / "ratchet.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "console.main", "run", str(config_file), *words, "--json"],
            cwd=ROOT,
            env=child_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
