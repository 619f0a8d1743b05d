"""One GRPO run by TRL, for rft_vs_trl.py and crash_cost.py: PEER_PYTHON benchmarks/trl_child.py SPEC.json.

Runs in TRL's own environment, so it imports nothing of Ratchet. What it is told stands in the specification that
benchmarks/cases.py writes; what it does it appends, line by line, to files in `out`:

    steps.jsonl     a line a finished step: wall clock, CPU clock, seconds by part, mean reward, tokens
    rewards.jsonl   with `audit`: a line a reward call, synced: the step and the prompts that are about to be trained on
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback

PARTIAL_CAP = 0.8


def positions(completion: str, answer: str, *, fold_case: bool) -> float:
    """The verifier `positions` of environments/text/verifiers.py; a test compares the two. spell_backward's own idea
    of a right answer folds case."""
    completion = completion.strip()
    if completion == answer or (fold_case and completion.lower() == answer.lower()):
        return 1.0
    right = sum(given == wanted for given, wanted in zip(completion, answer, strict=False))
    return min(PARTIAL_CAP, right / max(1, len(answer)))


class Recorder(TrainerCallback):
    """Seconds by part, between the ends of two steps."""

    def __init__(self, out: Path, *, audit: bool, fold_case: bool) -> None:
        self._fold_case = fold_case
        self._steps = (out / "steps.jsonl").open("a")
        self._audit = (out / "rewards.jsonl").open("a") if audit else None
        self._seconds: dict[str, float] = {}
        self._step: dict[str, Any] = {}
        self.trainer: Any = None

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - start

        return run

    def watch(self, trainer: Any) -> None:
        self.trainer = trainer
        for part, method in (
            ("generation", "_generate_single_turn"),
            ("reward", "_calculate_rewards"),
            ("prepare", "_prepare_inputs"),
            ("train", "training_step"),
        ):
            setattr(trainer, method, self.timed(part, getattr(trainer, method)))

    def reward(self, completions: list[str], answer: list[str], completion_ids: list[list[int]], **more: Any) -> Any:
        step = self.trainer.state.global_step + 1
        if self._audit is not None:
            self._audit.write(json.dumps({"step": step, "time": time.time(), "prompts": more["prompts"]}) + "\n")
            self._audit.flush()
            os.fsync(self._audit.fileno())
        pairs = zip(completions, answer, strict=True)
        rewards = [positions(said, wanted, fold_case=self._fold_case) for said, wanted in pairs]
        lengths = [len(ids) for ids in completion_ids]
        self._step = {
            "reward_mean": sum(rewards) / len(rewards),
            "exact": sum(reward == 1.0 for reward in rewards) / len(rewards),
            "completions": len(lengths),
            "tokens": sum(lengths),
            "longest": max(lengths),
        }
        return rewards

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        seconds = self._seconds
        parts = {
            "generation_s": seconds.get("generation", 0.0),
            "reward_s": seconds.get("reward", 0.0),
            "update_s": seconds.get("train", 0.0) - seconds.get("prepare", 0.0),
            "batch_s": seconds.get("prepare", 0.0) - seconds.get("generation", 0.0) - seconds.get("reward", 0.0),
        }
        clocks = {"time": time.time(), "cpu": time.process_time()}
        line = {"step": state.global_step, **clocks, **self._step, **parts}
        self._steps.write(json.dumps(line) + "\n")
        self._steps.flush()
        self._seconds = {}


def main(spec: dict[str, Any]) -> None:
    from datasets import Dataset  # here, so that a test can import `positions` where there is no TRL
    from trl import GRPOConfig, GRPOTrainer

    out = Path(spec["out"])
    torch.set_num_threads(spec["threads"])
    recorder = Recorder(out, audit=spec["audit"], fold_case=spec["fold_case"])
    model = AutoModelForCausalLM.from_pretrained(
        spec["model"], dtype=torch.float32, attn_implementation=spec["attention"]
    )
    config = GRPOConfig(
        output_dir=str(out),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="steps" if spec["save_steps"] else "no",
        save_steps=spec["save_steps"] or 500,
        save_total_limit=2,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        shuffle_dataset=False,
        **spec["config"],
    )
    optimizer = torch.optim.AdamW(model.parameters(), **spec["optimizer"], fused=True)
    rates = spec["rates"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[min(step, len(rates) - 1)])
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=recorder.reward,
        args=config,
        train_dataset=Dataset.from_list(spec["items"]),
        processing_class=PreTrainedTokenizerFast.from_pretrained(spec["model"]),
        callbacks=[recorder],
        optimizers=(optimizer, schedule),
    )
    recorder.watch(trainer)
    trainer.train(resume_from_checkpoint=spec["resume"])


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
