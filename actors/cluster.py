"""Joining a Ray cluster, or starting one for this run alone; every way in which that fails has one clear message."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.schema import RunConfig
from contracts.errors import ClusterError

JOIN_TIMEOUT_S = 20
ROOT = Path(__file__).resolve().parent.parent


def prepare_environment() -> None:
    """What Ray reads from the environment when it is imported or started. Values that are set already stay."""
    for name, value in {
        "RAY_AUTH_MODE": "token",  # never left to Ray's guess: a head started without it fails only after a minute
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_process_group_cleanup_enabled": "1",  # an engine's children die with it and give the GPU back
        "RAY_DEDUP_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(JOIN_TIMEOUT_S),
    }.items():
        os.environ.setdefault(name, value)


@contextmanager
def joined(config: RunConfig) -> Iterator[None]:
    """Connected to the cluster of `config.cluster.address` inside the block.

    "local": a cluster of this run's own, whatever else runs on the machine. Raises ClusterError.
    """
    prepare_environment()
    import ray

    address = config.cluster.address
    try:
        if address == "local":
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                object_store_memory=config.cluster.object_store_mib << 20,
            )
        else:
            ray.init(
                address=address, log_to_driver=False, logging_level="error", _node_ip_address=None, namespace="ratchet"
            )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        raise ClusterError(
            f"join the Ray cluster at {address!r}",
            str(error).strip().splitlines()[0],
            "start one with `ray start --head`, check RAY_AUTH_MODE and the token, or use cluster.address=local",
        ) from error
    try:
        _refuse_open_cluster(config)
        yield
    finally:
        ray.shutdown()


def _refuse_open_cluster(config: RunConfig) -> None:
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1 and os.environ["RAY_AUTH_MODE"] != "token" and not config.cluster.insecure:
        raise ClusterError(
            f"run on a cluster of {len(nodes)} nodes",
            "it has no token authentication: anyone who reaches it can run code on it",
            "set RAY_AUTH_MODE=token on every node, or say --set cluster.insecure=true",
        )
