"""Joining a Ray cluster, or starting one for this run alone; every way in which that fails has one clear message."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from actors.placement import shard_resources
from configs.schema import RunConfig
from contracts.errors import ClusterError


@contextmanager
def joined(config: RunConfig) -> Iterator[None]:
    """Connected to the cluster of `config.cluster.address` inside the block.

    "local": a cluster of this run's own, whatever else runs on the machine. Raises ClusterError.
    """
    address = config.cluster.address
    try:
        if address == "local":
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # of this cluster alone
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=config.cluster.object_store_mib << 20,
                resources=shard_resources(config),
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
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
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1 and os.environ["RAY_AUTH_MODE"] != "token" and not config.cluster.insecure:
        raise ClusterError(
            f"run on a cluster of {len(nodes)} nodes",
            "it has no token authentication: anyone who reaches it can run code on it",
            "set RAY_AUTH_MODE=token on every node, or say --set cluster.insecure=true",
        )
