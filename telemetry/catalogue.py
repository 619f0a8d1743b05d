"""Every metric of Ratchet, once: `python -m telemetry.catalogue` prints the documentation, `... rules` the alert rules.

Prefix `ratchet_`, base units, and label values that are listed here: the number of series a process can make is
known before it starts (`num_series`). Policy versions are values, never labels. The scrape target carries `role`
and `run`, so that no metric repeats them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain

import yaml

from contracts.records import Disposition, Fault, StopReason

_SYNC_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
_WORK_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)

LOGS = ("data", "control")
STEP_PARTS = ("wait", "read", "update", "save", "decide", "publish", "evaluate", "checkpoint")


class MetricType(str, Enum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric. `labels` lists every value that each label may take; `buckets` are upper bounds of a histogram."""

    name: str
    type: MetricType
    unit: str
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()

    @property
    def num_series(self) -> int:
        """The most series that one process can make of it (`_created`, `_sum`, `_count` and +Inf included)."""
        combinations = 1
        for values in self.labels.values():
            combinations *= len(values)
        each = {MetricType.GAUGE: 1, MetricType.COUNTER: 2, MetricType.HISTOGRAM: len(self.buckets) + 4}
        return combinations * each[self.type]


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One Prometheus alert. `wait` is how long the expression must hold."""

    name: str
    expression: str
    wait: str
    severity: str
    summary: str


def _gauge(name: str, unit: str, text: str, **labels: tuple[str, ...]) -> Metric:
    return Metric(name=name, type=MetricType.GAUGE, unit=unit, help=text, labels=labels)


def _counter(name: str, unit: str, text: str, **labels: tuple[str, ...]) -> Metric:
    return Metric(name=name, type=MetricType.COUNTER, unit=unit, help=text, labels=labels)


def _histogram(name: str, text: str, buckets: tuple[float, ...], **labels: tuple[str, ...]) -> Metric:
    return Metric(name=name, type=MetricType.HISTOGRAM, unit="seconds", help=text, labels=labels, buckets=buckets)


_LEARNING = (
    _gauge("ratchet_reward_mean", "reward", "Mean reward of the newest batch's episodes."),
    _gauge("ratchet_held_out_accuracy", "share of items", "Held-out items solved.", decoding=("sampled", "greedy")),
    _gauge("ratchet_greedy_return", "reward", "Mean return of greedy episodes in a control environment."),
    _gauge("ratchet_step", "steps", "Learner steps finished on this branch."),
    _gauge("ratchet_steps_planned", "steps", "Learner steps that the configuration asks for."),
    _gauge("ratchet_policy_version", "version", "Newest version, as holder has it.", holder=("learner", "engine")),
    _gauge("ratchet_last_step_timestamp_seconds", "seconds since 1970", "When the newest learner step ended."),
    _gauge("ratchet_batch_episodes", "episodes", "Episodes in the newest batch."),
    _gauge("ratchet_loss", "loss", "Loss of the newest learner step."),
    _gauge("ratchet_gradient_norm", "norm", "Gradient norm of the newest step, before clipping."),
    _gauge("ratchet_clip_ratio", "ratio", "Share of tokens whose probability ratio was clipped.", side=("low", "high")),
    _gauge("ratchet_kl_nats", "nats", "KL divergence to the reference policy (k3), mean over tokens."),
    _gauge("ratchet_entropy_nats", "nats", "Entropy of the policy, mean over the batch's tokens."),
    _counter("ratchet_steps_skipped_total", "steps", "Steps without an update: not finite, or failed twice."),
    _histogram("ratchet_step_seconds", "Wall time of one step, by part.", _WORK_BUCKETS, part=STEP_PARTS),
)
_MISMATCH = (
    _gauge("ratchet_staleness_mean_versions", "versions", "Mean age of the newest batch's episodes."),
    _gauge("ratchet_staleness_max_versions", "versions", "Age of the oldest episode in the newest batch."),
    _gauge("ratchet_log_prob_gap_nats", "nats", "Mean |engine - learner log-prob| over the newest batch's tokens."),
    _gauge("ratchet_importance_ess_ratio", "ratio", "Effective sample size of the importance weights / tokens."),
    _gauge("ratchet_parity_gap_nats", "nats", "Mean |engine - learner log-prob| over the guard's tokens."),
    _histogram("ratchet_push_seconds", "Wall time of one weight push, pause to resume.", _WORK_BUCKETS),
    _counter("ratchet_push_refusals_total", "pushes", "Pushes that the parity guard refused."),
)
_ROLLOUT = (
    _counter("ratchet_completions_total", "completions", "Completions that the engines returned."),
    _counter(
        "ratchet_tokens_total", "tokens", "Tokens that the engines read and wrote.", kind=("prompt", "completion")
    ),
    _counter(
        "ratchet_episodes_total",
        "episodes",
        "Episodes acknowledged, by how they ended.",
        stop_reason=tuple(reason.value for reason in StopReason),
    ),
    _counter("ratchet_environment_retries_total", "retries", "Environment calls tried again after an error or a hang."),
    _histogram("ratchet_generation_seconds", "Wall time of one call of an engine.", _WORK_BUCKETS),
    _gauge("ratchet_groups_ready", "groups", "Complete groups that wait for the learner."),
    _gauge("ratchet_groups_in_flight", "groups", "Groups handed out and not yet ended, the ready ones included."),
)
_STORE = (
    _gauge("ratchet_tasks_handed", "tasks", "Tasks handed out since the run began."),
    _gauge(
        "ratchet_tasks_ended",
        "tasks",
        "Tasks by how they ended. With those in flight they sum to ratchet_tasks_handed.",
        disposition=tuple(disposition.value for disposition in Disposition),
    ),
    _gauge(
        "ratchet_episodes_quarantined",
        "episodes",
        "Episodes that no learner may read, since the run began, by what is wrong with them.",
        fault=tuple(fault.value for fault in Fault),
    ),
    _gauge(
        "ratchet_archive_lag_bytes",
        "bytes",
        "Bytes of both logs that no archive has: what the loss of this disk would lose.",
    ),
    _gauge("ratchet_archive_timestamp_seconds", "seconds since 1970", "Of the newest moment in the archive; 0: none."),
    _counter("ratchet_log_commits_total", "commits", "Group commits.", log=LOGS),
    _counter("ratchet_log_records_total", "records", "Records appended. Over commits: the size of a batch.", log=LOGS),
    _counter("ratchet_log_bytes_total", "bytes", "Bytes appended.", log=LOGS),
    _gauge("ratchet_log_commit_median_seconds", "seconds", "Median of the newest thousand group commits.", log=LOGS),
    _gauge("ratchet_log_commit_tail_seconds", "seconds", "99th percentile of the same.", log=LOGS),
    _histogram("ratchet_log_sync_seconds", "Wall time of one fdatasync.", _SYNC_BUCKETS, log=LOGS),
    _gauge("ratchet_log_watermark_lag_bytes", "bytes", "Bytes appended and not yet known durable.", log=LOGS),
)
_SERVING = (
    _gauge("ratchet_serving_streams", "streams", "gRPC streams that are open.", kind=("producer", "tail", "read")),
    _counter(
        "ratchet_serving_episodes_total",
        "episodes",
        "Episodes acknowledged over gRPC: kept (first), or known already (again).",
        copy=("first", "again"),
    ),
    _counter(
        "ratchet_serving_bytes_total",
        "bytes",
        "Bytes of episodes and records that came and went over gRPC.",
        direction=("in", "out"),
    ),
    _counter(
        "ratchet_serving_refusals_total",
        "refusals",
        "Calls and frames that the gRPC server refused.",
        reason=("token", "format", "fenced", "full", "stopped", "other"),
    ),
    _histogram("ratchet_serving_ack_seconds", "From a frame's arrival over gRPC to its answer.", _SYNC_BUCKETS),
)
_PROCESS = (
    _gauge("ratchet_process_resident_bytes", "bytes", "Resident memory of the process."),
    _gauge(
        "ratchet_idle_ratio",
        "ratio",
        "Share of its time in which an engine or the update worker had nothing to do, over the last minute and since "
        "its first work.",
        window=("minute", "run"),
    ),
)

CATALOGUE: Mapping[str, Metric] = {
    metric.name: metric for metric in chain(_LEARNING, _MISMATCH, _ROLLOUT, _STORE, _SERVING, _PROCESS)
}

ALERTS = (
    Alert(
        name="RatchetProcessDown",
        expression='up{job="ratchet"} == 0',
        wait="30s",
        severity="page",
        summary="{{ $labels.role }} of {{ $labels.run }} does not answer; `ratchet resume {{ $labels.run }}` goes on",
    ),
    Alert(
        name="RatchetLearnerStalled",
        expression="time() - ratchet_last_step_timestamp_seconds > 600 and ratchet_step < ratchet_steps_planned",
        wait="1m",
        severity="page",
        summary="no learner step of {{ $labels.run }} for {{ $value | humanizeDuration }}",
    ),
    Alert(
        name="RatchetPushRefused",
        expression="increase(ratchet_push_refusals_total[10m]) > 0",
        wait="0s",
        severity="page",
        summary="the parity guard refused weights in {{ $labels.run }}: engine and learner disagree",
    ),
    Alert(
        name="RatchetLogProbGapHigh",
        expression="ratchet_log_prob_gap_nats > 0.15",
        wait="5m",
        severity="warn",
        summary="engine and learner log-probs of {{ $labels.run }} differ by {{ $value | humanize }} nats",
    ),
    Alert(
        name="RatchetImportanceWeightsCollapsed",
        expression="ratchet_importance_ess_ratio < 0.5",
        wait="5m",
        severity="warn",
        summary="effective sample size of {{ $labels.run }} is {{ $value | humanizePercentage }} of its tokens",
    ),
    Alert(
        name="RatchetStepsSkipped",
        expression="increase(ratchet_steps_skipped_total[10m]) > 0",
        wait="0s",
        severity="warn",
        summary="a learner step of {{ $labels.run }} was skipped",
    ),
    Alert(
        name="RatchetEpisodesQuarantined",
        expression="sum by (run) (delta(ratchet_episodes_quarantined[10m])) > 0",
        wait="0s",
        severity="warn",
        summary="{{ $value | humanize }} episodes of {{ $labels.run }} are no good: `ratchet store inspect` says why",
    ),
    Alert(
        name="RatchetLogSyncSlow",
        expression=(
            "histogram_quantile(0.99, sum by (run, log, le) (rate(ratchet_log_sync_seconds_bucket[5m]))) > 0.1"
        ),
        wait="5m",
        severity="warn",
        summary="p99 of fdatasync, {{ $labels.log }} log of {{ $labels.run }}, is {{ $value | humanizeDuration }}",
    ),
    Alert(
        name="RatchetLedgerUnbalanced",
        expression="ratchet_tasks_handed - on (run) sum by (run) (ratchet_tasks_ended) != ratchet_groups_in_flight",
        wait="1m",
        severity="page",
        summary="the ledger of {{ $labels.run }} does not balance",
    ),
)


def num_series() -> int:
    """The most series that one process can export."""
    return sum(metric.num_series for metric in CATALOGUE.values())


def render_markdown() -> str:
    """The documentation table."""
    lines = ["| metric | type | unit | labels | meaning |", "|---|---|---|---|---|"]
    for metric in CATALOGUE.values():
        labels = "; ".join(f"`{name}`: {', '.join(values)}" for name, values in metric.labels.items())
        text = metric.help.replace("|", "\\|")
        lines.append(f"| `{metric.name}` | {metric.type.value} | {metric.unit} | {labels} | {text} |")
    lines.append("")
    lines.append(f"Every series carries `role` and `run`. One process exports at most {num_series()} series.")
    return "\n".join(lines) + "\n"


def render_rules() -> str:
    """The alerts as a Prometheus rule file."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expression,
            "for": alert.wait,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary},
        }
        for alert in ALERTS
    ]
    head = "# Alert rules. Written by `python -m telemetry.catalogue rules`: change telemetry/catalogue.py, not this.\n"
    return head + yaml.safe_dump({"groups": [{"name": "ratchet", "rules": rules}]}, sort_keys=False, width=1000)


if __name__ == "__main__":
    print(render_rules() if sys.argv[1:] == ["rules"] else render_markdown(), end="")
