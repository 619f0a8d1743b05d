"""From what the rooms count to the metrics of the catalogue: one meter a kind of process."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from buffers.archive import Archived
from contracts.records import Episode, Fault, Guard, Ledger, Served
from loops.update import Progress
from telemetry.exporter import Exporter

STAT_GAUGES = {
    "reward_mean": "ratchet_reward_mean",
    "loss": "ratchet_loss",
    "grad_norm": "ratchet_gradient_norm",
    "kl_reference": "ratchet_kl_nats",
    "entropy": "ratchet_entropy_nats",
    "log_prob_gap": "ratchet_log_prob_gap_nats",
    "importance_ess": "ratchet_importance_ess_ratio",
    "episodes": "ratchet_batch_episodes",
}
# Spans in which the update worker computes or writes: on its own thread, unless that waits for a version to be settled,
# and on the one that publishes beside it. In every other one it waits for others.
OWN_WORK = ("warm_start", "read", "update", "save", "decide", "checkpoint")
WORK_BESIDE = ("push", "score")


class Totals:
    """Counters that a room keeps as running sums, turned into rises."""

    def __init__(self, metrics: Exporter) -> None:
        self._metrics = metrics
        self._seen: dict[tuple[str, str], float] = {}

    def advance(self, name: str, total: float, **labels: str) -> None:
        key = (name, str(sorted(labels.items())))
        rise = total - self._seen.get(key, 0.0)
        if rise > 0:
            self._metrics.add(name, rise, **labels)
            self._seen[key] = total


class UpdateMeter:
    """The update worker's metrics, from each step's progress."""

    def __init__(self, metrics: Exporter, *, steps: int) -> None:
        self._metrics = metrics
        metrics.set("ratchet_steps_planned", steps)

    def step(self, progress: Progress) -> None:
        metrics, stats = self._metrics, progress.stats
        metrics.set("ratchet_step", progress.step)
        metrics.set("ratchet_policy_version", progress.version, holder="learner")
        for part, seconds in progress.seconds.items():
            metrics.observe("ratchet_step_seconds", seconds, part=part)
        if progress.evaluation is not None:
            scores = progress.evaluation.scores
            for decoding in ("sampled", "greedy"):
                if f"{decoding}_accuracy" in scores:
                    metrics.set("ratchet_held_out_accuracy", scores[f"{decoding}_accuracy"], decoding=decoding)
            if "greedy_return" in scores:
                metrics.set("ratchet_greedy_return", scores["greedy_return"])
        if progress.phase != "step":
            return
        metrics.set("ratchet_last_step_timestamp_seconds", time.time())
        metrics.set("ratchet_staleness_mean_versions", progress.staleness)
        for stat, name in STAT_GAUGES.items():
            if stat in stats:
                metrics.set(name, stats[stat])
        for side in ("low", "high"):
            if f"clip_fraction_{side}" in stats:
                metrics.set("ratchet_clip_ratio", stats[f"clip_fraction_{side}"], side=side)
        if stats.get("skipped"):
            metrics.add("ratchet_steps_skipped_total")

    def push(self, outcome: Served | Guard, seconds: float) -> None:
        self._metrics.observe("ratchet_push_seconds", seconds)
        if isinstance(outcome, Served):
            self._metrics.set("ratchet_parity_gap_nats", outcome.gap)
        else:
            self._metrics.add("ratchet_push_refusals_total")


class EngineMeter:
    """An engine's metrics, from its counters since start."""

    def __init__(self, metrics: Exporter) -> None:
        self._metrics, self._totals = metrics, Totals(metrics)

    def __call__(self, stats: Mapping[str, float]) -> None:
        self._metrics.set("ratchet_policy_version", stats["version"], holder="engine")
        self._totals.advance("ratchet_completions_total", stats["requests"])
        self._totals.advance("ratchet_tokens_total", stats["prompt_tokens"], kind="prompt")
        self._totals.advance("ratchet_tokens_total", stats["completion_tokens"], kind="completion")


class RolloutMeter:
    """A rollout worker's metrics, from each acknowledged episode."""

    def __init__(self, metrics: Exporter) -> None:
        self._metrics = metrics

    def episode(self, episode: Episode) -> None:
        self._metrics.add("ratchet_episodes_total", stop_reason=episode.stop_reason.value)
        if episode.retries:
            self._metrics.add("ratchet_environment_retries_total", episode.retries)


class StoreMeter:
    """The store's metrics, from its status and its ledger."""

    def __init__(self, metrics: Exporter) -> None:
        self._metrics, self._totals = metrics, Totals(metrics)
        self._syncs: dict[str, float] = {}

    def __call__(self, status: Mapping[str, Any], ledger: Ledger, archived: Archived | None) -> None:
        metrics = self._metrics
        metrics.set("ratchet_groups_ready", ledger.ready)
        metrics.set("ratchet_groups_in_flight", ledger.in_flight)
        metrics.set("ratchet_tasks_handed", ledger.handed)
        for disposition, tasks in ledger.ended.items():
            metrics.set("ratchet_tasks_ended", tasks, disposition=disposition)
        for fault in Fault:
            metrics.set("ratchet_episodes_quarantined", ledger.quarantined.get(fault.value, 0), fault=fault.value)
        kept = (archived.data_lsn, archived.control_lsn) if archived else (0, 0)
        metrics.set("ratchet_archive_lag_bytes", status["data_lsn"] + status["control_lsn"] - sum(kept))
        metrics.set("ratchet_archive_timestamp_seconds", archived.wall_time if archived else 0.0)
        for log in ("data", "control"):
            stats = status[log]
            self._totals.advance("ratchet_log_commits_total", stats["commits"], log=log)
            self._totals.advance("ratchet_log_records_total", stats["frames"], log=log)
            self._totals.advance("ratchet_log_bytes_total", stats["bytes"], log=log)
            metrics.set("ratchet_log_commit_median_seconds", stats["commit_p50_s"], log=log)
            metrics.set("ratchet_log_commit_tail_seconds", stats["commit_p99_s"], log=log)
            metrics.set("ratchet_log_watermark_lag_bytes", status[f"{log}_lag_bytes"], log=log)
            if stats["commits"] > self._syncs.get(log, 0.0):
                self._syncs[log] = stats["commits"]
                metrics.observe("ratchet_log_sync_seconds", stats["last_sync_s"], log=log)


def engine_works(open_spans: Counter[str]) -> bool:
    """An engine works while it loads or checks weights, or has requests in it and is not held for a push or a step."""
    held = open_spans["paused"] or open_spans["asleep"]
    return bool(open_spans["push"] or open_spans["probe"] or (open_spans["generate"] and not held))


def learner_works(open_spans: Counter[str]) -> bool:
    own = not open_spans["settle"] and any(open_spans[name] for name in OWN_WORK)
    return own or any(open_spans[name] for name in WORK_BESIDE)
