"""One process's Prometheus endpoint, and the file that tells Prometheus where the endpoints of a run are."""

from __future__ import annotations

import difflib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from telemetry.catalogue import CATALOGUE, Metric, MetricType

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Exporter:
    """Metrics of one process, from the catalogue only. Thread-safe. A metric shows once it was first set.

    What the catalogue does not have (metric, type, label value) is our own mistake: AssertionError.
    """

    def __init__(self, role: str, run: str) -> None:
        self.role, self.run = role, run
        self.registry = CollectorRegistry(target_info={"role": role, "run": run})
        self._made: dict[str, Gauge | Counter | Histogram] = {}
        self._lock = threading.Lock()
        self._server: tuple[WSGIServer, threading.Thread] | None = None
        memory = self._series("ratchet_process_resident_bytes", MetricType.GAUGE, {})
        assert isinstance(memory, Gauge)
        memory.set_function(_resident_bytes)

    def set(self, name: str, value: float, **labels: str) -> None:
        """A gauge now has `value`."""
        series = self._series(name, MetricType.GAUGE, labels)
        assert isinstance(series, Gauge)
        series.set(value)

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        """A counter rises by `value` >= 0."""
        series = self._series(name, MetricType.COUNTER, labels)
        assert isinstance(series, Counter)
        series.inc(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """A histogram takes one more value."""
        series = self._series(name, MetricType.HISTOGRAM, labels)
        assert isinstance(series, Histogram)
        series.observe(value)

    def start(self, host: str) -> int:
        """Serve http://host:port/metrics from a thread; the port, chosen by the system."""
        assert self._server is None, "started twice"
        self._server = start_http_server(0, addr=host, registry=self.registry)
        return int(self._server[0].server_port)

    def close(self) -> None:
        """Stop serving; the values stay readable in `registry`."""
        if self._server is not None:
            server, thread = self._server
            self._server = None
            server.shutdown()
            server.server_close()
            thread.join()

    def _series(self, name: str, kind: MetricType, labels: Mapping[str, str]) -> Gauge | Counter | Histogram:
        metric = _known(name, kind, labels)
        with self._lock:
            parent = self._made.get(name)
            if parent is None:
                parent = self._made[name] = self._make(metric)
        return parent.labels(**labels) if metric.labels else parent

    def _make(self, metric: Metric) -> Gauge | Counter | Histogram:
        names = tuple(metric.labels)
        if metric.type is MetricType.HISTOGRAM:
            return Histogram(metric.name, metric.help, names, registry=self.registry, buckets=metric.buckets)
        kind = Gauge if metric.type is MetricType.GAUGE else Counter
        return kind(metric.name, metric.help, names, registry=self.registry)


def write_targets(path: Path, targets: Mapping[str, tuple[str, int]], *, run: str) -> None:
    """Write {role: (host, port)} as Prometheus file_sd JSON. A reader sees the old file or the new one, whole."""
    groups = [
        {"targets": [f"{host}:{port}"], "labels": {"role": role, "run": run}}
        for role, (host, port) in sorted(targets.items())
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(groups, indent=1) + "\n")
    draft.replace(path)


def _known(name: str, kind: MetricType, labels: Mapping[str, str]) -> Metric:
    metric = CATALOGUE.get(name)
    if metric is None:
        nearest = difflib.get_close_matches(name, CATALOGUE, n=1, cutoff=0.0)[0]
        raise AssertionError(f"no metric {name!r} in telemetry/catalogue.py; the nearest is {nearest!r}")
    assert metric.type is kind, f"{name} is a {metric.type.value}, not a {kind.value}"
    assert labels.keys() == metric.labels.keys(), f"{name} has labels {sorted(metric.labels)}, got {sorted(labels)}"
    for label, value in labels.items():
        assert value in metric.labels[label], f"{name}: {label}={value!r} is none of {metric.labels[label]}"
    return metric


def _resident_bytes() -> float:
    with Path("/proc/self/statm").open() as statm:
        return float(int(statm.read().split()[1]) * _PAGE_BYTES)
