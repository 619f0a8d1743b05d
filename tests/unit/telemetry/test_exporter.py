"""The exporter: what it serves, what it refuses, and the targets file."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from prometheus_client.parser import text_string_to_metric_families

from telemetry.catalogue import CATALOGUE, MetricType, num_series
from telemetry.exporter import Exporter, write_targets


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    exporter = Exporter("update-0", "run-1")
    yield exporter
    exporter.close()


def scrape(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_serves_what_was_set(exporter: Exporter) -> None:
    exporter.set("ratchet_reward_mean", 0.25)
    exporter.set("ratchet_reward_mean", 0.5)
    exporter.add("ratchet_tokens_total", 7, kind="prompt")
    exporter.add("ratchet_tokens_total", 3, kind="prompt")
    exporter.observe("ratchet_log_sync_seconds", 0.003, log="data")
    samples = scrape(exporter.start("127.0.0.1"))
    assert samples["ratchet_reward_mean", ()] == 0.5
    assert samples["ratchet_tokens_total", (("kind", "prompt"),)] == 10
    assert samples["ratchet_log_sync_seconds_count", (("log", "data"),)] == 1
    assert samples["ratchet_log_sync_seconds_bucket", (("le", "0.005"), ("log", "data"))] == 1
    assert samples["ratchet_log_sync_seconds_bucket", (("le", "0.002"), ("log", "data"))] == 0
    assert samples["target_info", (("role", "update-0"), ("run", "run-1"))] == 1


def test_shows_its_own_memory_and_nothing_unset(exporter: Exporter) -> None:
    samples = scrape(exporter.start("127.0.0.1"))
    assert samples["ratchet_process_resident_bytes", ()] > 1 << 20
    assert {name for name, _ in samples} == {"ratchet_process_resident_bytes", "target_info"}


def test_unknown_metric_names_the_nearest(exporter: Exporter) -> None:
    with pytest.raises(AssertionError, match="the nearest is 'ratchet_reward_mean'"):
        exporter.set("ratchet_rewards_mean", 1.0)


def test_wrong_type_and_wrong_labels_are_refused(exporter: Exporter) -> None:
    with pytest.raises(AssertionError, match="ratchet_step is a gauge, not a counter"):
        exporter.add("ratchet_step")
    with pytest.raises(AssertionError, match=r"has labels \['kind'\], got \[\]"):
        exporter.add("ratchet_tokens_total")
    with pytest.raises(AssertionError, match="kind='image' is none of"):
        exporter.add("ratchet_tokens_total", kind="image")


def test_everything_set_stays_within_the_bound(exporter: Exporter) -> None:
    write = {
        MetricType.GAUGE: exporter.set,
        MetricType.COUNTER: exporter.add,
        MetricType.HISTOGRAM: exporter.observe,
    }
    for metric in CATALOGUE.values():
        for label, values in metric.labels.items() or [("", ("",))]:
            for value in values:
                write[metric.type](metric.name, 1.0, **({label: value} if label else {}))
    samples = [sample for family in exporter.registry.collect() for sample in family.samples]
    assert len(samples) == num_series() + 1  # target_info


def test_threads_lose_nothing(exporter: Exporter) -> None:
    def work() -> None:
        for _ in range(500):
            exporter.add("ratchet_completions_total")

    threads = [Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert exporter.registry.get_sample_value("ratchet_completions_total") == 4000


def test_close_frees_the_port() -> None:
    exporter = Exporter("store", "run-1")
    port = exporter.start("127.0.0.1")
    exporter.close()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_targets_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics" / "targets.json"
    write_targets(path, {"store": ("127.0.0.1", 9001), "engine-0": ("127.0.0.1", 9002)}, run="run-1")
    write_targets(path, {"store": ("127.0.0.1", 9003)}, run="run-1")
    assert json.loads(path.read_text()) == [
        {"targets": ["127.0.0.1:9003"], "labels": {"role": "store", "run": "run-1"}}
    ]
    assert list(path.parent.iterdir()) == [path]
