"""What every test runs under: one thread, no hub, longer limits for marked tests, no process left behind."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

# Before any test module imports torch, ray, or vllm: all read these at import.
os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    VLLM_NO_USAGE_STATS="1",
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),  # of the clusters that this process starts
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",  # Ray's coming default; unset, Ray warns at each actor without a GPU
)

import hypothesis
import psutil
import pytest

HEAVY = frozenset({"slow", "vllm", "ray", "cluster"})
HEAVY_TIMEOUT_S = 600.0

# `scripts/test --all` asks for the second: pytest --hypothesis-profile=whole.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.register_profile("whole", deadline=None, derandomize=True, max_examples=500)
hypothesis.settings.load_profile("house")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that start engines or clusters, or draw many examples, get ten minutes, unless they say otherwise."""
    whole = config.getoption("--hypothesis-profile") == "whole"
    for item in items:
        markers = {mark.name for mark in item.iter_markers()}
        if (whole or markers & HEAVY) and "timeout" not in markers:
            item.add_marker(pytest.mark.timeout(HEAVY_TIMEOUT_S))


def _left_behind() -> list[psutil.Process]:
    """Our living children, but for Python's own helpers, which end with us."""
    helpers = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            dead, command = child.status() == psutil.STATUS_ZOMBIE, " ".join(child.cmdline())
        except psutil.NoSuchProcess:
            continue
        if not dead and not any(helper in command for helper in helpers):
            found.append(child)
    return found


@pytest.fixture(scope="session", autouse=True)
def no_process_left_behind() -> Iterator[None]:
    """End what tests left running, and fail: they own what they start."""
    yield
    _, alive = psutil.wait_procs(_left_behind(), timeout=10)
    names = [child.name() for child in alive]
    for child in alive:
        child.kill()
    assert not names, f"tests left processes running: {names}"
