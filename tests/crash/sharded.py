"""A plain run over three shards in this process, one of which dies between any two calls and comes back later."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from buffers.addresses import name_shard, shard_uuid
from buffers.log.identity import create_store
from buffers.owner import StoreOwner
from buffers.sharding import ShardedStore
from configs.schema import Learner, RunConfig, Store
from contracts.errors import StoreUnreachableError
from contracts.shards import Shard
from loops.tasks import PermutedSource, SharedSource
from tests.crash.plain import PlainRun, plain_config

NUM_SHARDS = 3
PASS_S = 0.1  # the clock goes on so far at each pass


def sharded_config(*, mode: str, steps: int) -> RunConfig:
    return plain_config(
        mode=mode,
        steps=steps,
        learner=Learner(groups_per_step=4, group_size=2),
        store=Store(segment_mib=1, control_segment_mib=1, reserve_mib=0, index_map_mib=16, shards=NUM_SHARDS),
    )


class Wire:
    """Between the run and its shards. Passed before and after each call: at pass `point` shard `victim` dies; it is
    back `away` passes later."""

    def __init__(self, *, point: int = 0, victim: int = -1, away: int = 0) -> None:
        self.point, self.victim, self.away = point, victim, away
        self.passed = 0
        self.shards: list[FragileShard] = []

    def pass_by(self) -> None:
        self.passed += 1
        if self.passed == self.point:
            self.shards[self.victim].die()
        if self.passed == self.point + self.away:
            self.shards[self.victim].come_back()

    def clock(self) -> float:
        return self.passed * PASS_S


class FragileShard:
    """contracts.shards.Shard: an owner that can go away."""

    def __init__(self, owner: StoreOwner, wire: Wire, *, reopen: Callable[[], StoreOwner]) -> None:
        self._owner: StoreOwner | None = owner
        self._wire, self._reopen = wire, reopen

    def die(self) -> None:
        if self._owner is not None:
            self._owner.close()
        self._owner = None

    def come_back(self) -> None:
        if self._owner is None:
            self._owner = self._reopen()

    @property
    def owner(self) -> StoreOwner:
        if self._owner is None:
            raise StoreUnreachableError("it is dead")
        return self._owner

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._wire.pass_by()
            answer = getattr(self.owner, name)(*args, **kwargs)
            self._wire.pass_by()
            assert self.owner is not None  # else the answer is lost with it
            return answer

        return call


class ShardedRun:
    """A PlainRun whose store is three."""

    def __init__(self, folder: Path, *, config: RunConfig, wire: Wire) -> None:
        self.folder, self.config, self.wire = folder, config, wire
        self._first: StoreOwner | None = None
        self.run = PlainRun(folder, config=config, wrap=self._wrap)
        self.acknowledged = self.run.acknowledged

    def _wrap(self, name: str, port: Any) -> Any:
        if name != "store":
            return port
        self._uuid = port.uuid
        for shard in range(NUM_SHARDS):
            owner = port if shard == 0 else self._open(shard)
            self.wire.shards.append(FragileShard(owner, self.wire, reopen=partial(self._open, shard)))
        self.store = ShardedStore(cast("list[Shard]", self.wire.shards), clock=self.wire.clock)
        return self.store

    def _open(self, shard: int) -> StoreOwner:
        folder = self.folder / name_shard(shard)
        source = SharedSource(PermutedSource("guess", num_items=50, seed=1), shard=shard, num_shards=NUM_SHARDS)
        if not (folder / "store.json").exists():
            create_store(folder, uuid=shard_uuid(self._uuid, shard))
        return StoreOwner.open(folder, config=self.config, source=source)

    @property
    def owners(self) -> list[StoreOwner]:
        return [shard.owner for shard in self.wire.shards]

    @property
    def first(self) -> StoreOwner:
        return self.wire.shards[0].owner

    def go(self) -> None:
        self.run.go()

    def close(self) -> None:
        for shard in self.wire.shards:
            shard.die()
