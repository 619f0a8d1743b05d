"""Which process gets which cores and GPUs: one placement group a replaceable unit.

    mode cpu         engine: `engine.threads` CPUs each   update worker: `learner.threads` CPUs   rollout: none reserved
    mode gpu         the same, and one GPU for each engine and for the update worker; rollout.num_gpus for each worker
    mode colocated   one bundle for the engines and the update worker, who use it in turn: the larger number of threads
                     and, where one of them is on `cuda`, one GPU. On paper each process holds an equal share; in their
                     turn the engines, or the update worker, have it all

Bundle order is not node order (ray #51117): what a process really got is asked of the process (`card`), not inferred.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from configs.schema import RunConfig
from contracts.errors import PlacementError

SHARED = "shared"  # the unit of engines and update worker in mode colocated
UNIT = 10_000  # Ray counts resources in ten-thousandths and rounds: three thirds, rounded up, would not fit into one


@dataclass(frozen=True, kw_only=True)
class Units:
    """The reserved groups of a run, by unit; how many processes are in the shared one."""

    groups: Mapping[str, PlacementGroup]
    num_sharing: int

    def seat(self, role: str) -> dict[str, Any]:
        """Actor options that put `role` in its place: a bundle of its own, a share of the shared one, or nowhere."""
        kind, _, rank = role.partition("-")
        if role in self.groups:
            return _inside(self.groups[role])
        if kind in self.groups:
            return _inside(self.groups[kind], bundle=int(rank))
        if kind == "rollout":
            return {"num_cpus": 0}
        return _inside(self.groups[SHARED], sharing=self.num_sharing)

    def release(self) -> None:
        for group in self.groups.values():
            remove_placement_group(group)


def wanted(config: RunConfig) -> dict[str, list[dict[str, float]]]:
    """Bundles by unit."""
    mode, engine, learner = config.cluster.mode, config.engine, config.learner
    units: dict[str, list[dict[str, float]]] = {}
    if mode == "colocated":
        gpu = 1.0 if "cuda" in (engine.device, learner.device) else 0.0
        units[SHARED] = [_bundle(cpus=max(engine.count * engine.threads, learner.threads), gpus=gpu)]
    else:
        gpu = 1.0 if mode == "gpu" else 0.0
        units = {f"engine-{rank}": [_bundle(cpus=engine.threads, gpus=gpu)] for rank in range(engine.count)}
        units["update-0"] = [_bundle(cpus=learner.threads, gpus=gpu)]
    if config.rollout.num_gpus:
        units["rollout"] = [_bundle(cpus=0, gpus=config.rollout.num_gpus)] * config.rollout.workers
    return units


def reserve(config: RunConfig) -> Units:
    """All units, or PlacementError within `cluster.placement_timeout_s` naming what is missing."""
    bundles = wanted(config)
    _refuse_what_cannot_fit(bundles)
    groups = {name: placement_group(list(each), strategy="PACK") for name, each in bundles.items()}
    pending = [group.ready() for group in groups.values()]
    _, waiting = ray.wait(pending, num_returns=len(pending), timeout=config.cluster.placement_timeout_s)
    if waiting:
        for group in groups.values():
            remove_placement_group(group)
        raise PlacementError(
            f"reserve {_text(_sum(bundles))}",
            f"after {config.cluster.placement_timeout_s:g} s only {_text(ray.available_resources())} is free; "
            f"the cluster has {_text(ray.cluster_resources())}",
            "wait for other jobs, add nodes, or ask for less (engine.count, engine.threads, learner.threads)",
        )
    return Units(groups=groups, num_sharing=config.engine.count + 1)


def _inside(group: PlacementGroup, *, bundle: int = 0, sharing: int = 1) -> dict[str, Any]:
    """Actor options that take an equal share of a group's bundle, of `sharing`."""
    resources = {
        name: math.floor(amount / sharing * UNIT) / UNIT for name, amount in group.bundle_specs[bundle].items()
    }
    return {
        "num_cpus": resources.get("CPU", 0.0),
        "num_gpus": resources.get("GPU", 0.0),
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=bundle
        ),
    }


def _bundle(*, cpus: float, gpus: float) -> dict[str, float]:
    return {name: float(amount) for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}


def _refuse_what_cannot_fit(bundles: dict[str, list[dict[str, float]]]) -> None:
    """Fails at once where the whole cluster, empty, would be too small: waiting would not help."""
    need, have = _sum(bundles), ray.cluster_resources()
    missing = {name: amount - have.get(name, 0.0) for name, amount in need.items() if amount > have.get(name, 0.0)}
    if missing:
        raise PlacementError(
            f"reserve {_text(need)} for {', '.join(bundles)}",
            f"the cluster has {_text(have)}: {_text(missing)} missing",
            "add nodes, or ask for less (cluster.mode, engine.count, engine.threads, learner.threads)",
        )


def _sum(bundles: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for bundle in (bundle for unit in bundles.values() for bundle in unit):
        for name, amount in bundle.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _text(resources: dict[str, float]) -> str:
    return (
        ", ".join(f"{resources.get(name, 0.0):g} {name}" for name in ("CPU", "GPU") if name in resources) or "nothing"
    )


def name_resource(shard: int) -> str:
    """What the node offers whose disk holds a further shard of the store (actors/shards.py)."""
    return f"ratchet_shard_{shard}"


def shard_resources(config: RunConfig) -> dict[str, float]:
    """What a cluster must offer for the shards beside the driver's."""
    return {name_resource(shard): 1.0 for shard in range(1, config.store.shards)}


def refuse_homeless(config: RunConfig) -> None:
    """Raises PlacementError where no node offers a shard's disk."""
    have = ray.cluster_resources()
    missing = [name for name in shard_resources(config) if have.get(name, 0.0) < 1]
    if missing:
        raise PlacementError(
            f"place {config.store.shards} shards (store.shards)",
            f"no node offers {', '.join(missing)}",
            f"""start the node whose disk is to hold it with: ray start ... --resources '{{"{missing[0]}": 1}}'""",
        )
