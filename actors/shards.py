"""Where the shards of a store live: shard 0 with the driver, shard k on whichever node offers its resource.

A shard's disk is the one thing that cannot move, so the node that has it says so, for ever, when it joins the cluster:
`ray start --address … --resources '{"ratchet_shard_1": 1}'`. A node that comes back says it again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from actors.placement import name_resource
from actors.process import on_this_node, start
from actors.store import StoreActor
from configs.schema import RunConfig


def start_shard(shard: int, *, config: RunConfig, folder: Path, uuid: str, token: str | None = None) -> Any:
    """The handle of a shard's new owner."""
    where: dict[str, Any] = (
        {"resources": {name_resource(shard): 1}} if shard else {"scheduling_strategy": on_this_node()}
    )
    return start(StoreActor, config, str(folder), uuid, token, shard, num_cpus=0, **where)


def start_shards(*, config: RunConfig, folder: Path, uuid: str, token: str | None = None) -> list[Any]:
    """The owners of all shards; that of shard 0 knows the others."""
    first, *others = (
        start_shard(shard, config=config, folder=folder, uuid=uuid, token=token) for shard in range(config.store.shards)
    )
    for shard, owner in enumerate(others, start=1):
        first.place.remote(shard, owner)
    return [first, *others]


def restart_shard(shard: int, first: Any, *, config: RunConfig, folder: Path, uuid: str) -> Any:
    """The handle of a lost shard's new owner; None while no node offers its disk."""
    if ray.available_resources().get(name_resource(shard), 0.0) < 1:
        return None
    owner = start_shard(shard, config=config, folder=folder, uuid=uuid)
    first.place.remote(shard, owner)
    return owner
