"""Who holds which GPU on a real two-node Ray cluster with four logical GPUs, and what too small a cluster says."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from actors.base_model import main as make_base_model
from actors.crew import Crew
from actors.placement import reserve
from buffers.owner import StoreOwner
from configs.loader import dump, load
from configs.schema import RunConfig
from contracts.errors import PlacementError
from loops.tasks import task_source
from tests.unit.house.guard import foreign_packages

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "engine.backend=transformers",
    "engine.count=2",
    "rollout.num_gpus=1",
    "cluster.mode=gpu",
    "model.init.layers=1",
    "model.init.width=32",
    "model.init.heads=2",
    "environment.train_items=200",
    "environment.held_out_items=16",
    "metrics.enabled=false",
]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=4, num_gpus=2)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def config_with(*settings: str) -> RunConfig:
    return load(ROOT / "configs" / "quickstart.yaml", [*SMALL, *settings])


@contextmanager
def hired(config: RunConfig, folder: Path) -> Iterator[dict[str, Mapping[str, Any]]]:
    """What every process of a run says of itself; the crew is dismissed after the block."""
    (folder / "config.yaml").write_text(dump(config))
    make_base_model(folder)
    store = StoreOwner.open(folder / "store", config=config, source=task_source(config), create=True)
    store.close()
    crew = Crew.hire(config, folder=folder, uuid=str(store.uuid))
    try:
        assert crew.meet(timeout_s=120)
        yield crew.cards
    finally:
        crew.dismiss()


def test_processes_hold_disjoint_gpus(two_nodes: Cluster, tmp_path: Path) -> None:
    with hired(config_with(), tmp_path) as every:
        cards = {role: card for role, card in every.items() if role != "store"}
        assert set(cards) == {"engine-0", "engine-1", "rollout-0", "update-0"}
        held = {role: {(card["node"], gpu) for gpu in card["gpus"]} for role, card in cards.items()}
        assert all(len(gpus) == 1 for gpus in held.values()), held
        for one, other in itertools.combinations(held.values(), 2):
            assert not one & other, held
        assert len({node for gpus in held.values() for node, _ in gpus}) == 2, "four GPUs lie on two nodes"
        assert every["store"]["node"] == ray.get_runtime_context().get_node_id()
        assert not every["store"]["gpus"]


def test_colocated_processes_hold_the_same_gpu(two_nodes: Cluster, tmp_path: Path) -> None:
    """The learner's device alone asks for the GPU here: these are logical ones, which an engine would not find."""
    config = config_with(
        "cluster.mode=colocated", "mode=sync", "max_staleness=0", "engine.count=1", "learner.device=cuda"
    )
    with hired(config, tmp_path) as cards:
        held = {role: (card["node"], card["gpus"]) for role, card in cards.items()}
        assert held["engine-0"] == held["update-0"]
        assert len(held["engine-0"][1]) == 1
        assert held["rollout-0"] != held["engine-0"], "a worker's own GPU is another one"


def test_a_workers_imports_are_ours(two_nodes: Cluster) -> None:
    """Top-level package names are common words: another distribution must not take one over, in workers either."""
    assert ray.get(ray.remote(num_cpus=0)(foreign_packages).remote()) == {}


@pytest.mark.parametrize(
    ("setting", "missing"), [("engine.count=9", "GPU"), ("learner.threads=64", "CPU"), ("rollout.workers=7", "GPU")]
)
def test_what_cannot_fit_is_named(two_nodes: Cluster, setting: str, missing: str) -> None:
    with pytest.raises(PlacementError) as caught:
        reserve(config_with(setting))
    assert f"{missing} missing" in caught.value.found


def test_what_is_taken_is_named_in_time(two_nodes: Cluster) -> None:
    config = config_with("cluster.placement_timeout_s=3")
    taken: Any = reserve(config)
    try:
        with pytest.raises(PlacementError) as caught:
            reserve(config)
        assert "is free" in caught.value.found
    finally:
        taken.release()
