"""The metric catalogue: names, bounds, and the files that are generated from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from contracts.records import Disposition, StopReason
from telemetry.catalogue import ALERTS, CATALOGUE, Metric, MetricType, num_series, render_markdown, render_rules

RULES = Path(__file__).parents[3] / "deploy" / "prometheus" / "ratchet.rules.yml"
UNITS = ("seconds", "bytes", "ratio", "nats", "versions", "total")


@pytest.mark.parametrize("metric", CATALOGUE.values(), ids=lambda metric: metric.name)
def test_names_follow_prometheus_habits(metric: Metric) -> None:
    assert re.fullmatch(r"ratchet_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.type is MetricType.COUNTER)
    assert bool(metric.buckets) == (metric.type is MetricType.HISTOGRAM)
    if metric.unit in UNITS:
        assert metric.unit in metric.name
    assert metric.help.endswith(".")


def test_versions_are_values_never_labels() -> None:
    assert not any("version" in label for metric in CATALOGUE.values() for label in metric.labels)


def test_labels_name_every_disposition_and_stop_reason() -> None:
    assert set(CATALOGUE["ratchet_tasks_ended"].labels["disposition"]) == {one.value for one in Disposition}
    assert set(CATALOGUE["ratchet_episodes_total"].labels["stop_reason"]) == {one.value for one in StopReason}


def test_number_of_series_is_bounded() -> None:
    assert num_series() == sum(metric.num_series for metric in CATALOGUE.values()) < 400


def test_rule_file_is_what_the_catalogue_says() -> None:
    assert RULES.read_text() == render_rules(), "run: python -m telemetry.catalogue rules > " + str(RULES)


def test_alerts_speak_of_metrics_that_exist() -> None:
    for alert in ALERTS:
        named = re.findall(r"ratchet_[a-z_]+", alert.expression)
        assert all(name.removesuffix("_bucket") in CATALOGUE for name in named), alert.name
    rules = yaml.safe_load(render_rules())["groups"][0]["rules"]
    assert [rule["alert"] for rule in rules] == [alert.name for alert in ALERTS]


def test_documentation_has_a_row_for_each_metric() -> None:
    rows = [line for line in render_markdown().splitlines() if line.startswith("| `ratchet_")]
    assert len(rows) == len(CATALOGUE)
    assert all(len(re.split(r"(?<!\\)\|", row)) == 7 for row in rows)
