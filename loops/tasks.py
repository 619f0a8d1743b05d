"""Which task comes next: a seeded permutation of the training items, a fresh one each time round."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from configs.schema import RunConfig
from contracts.protocols import TaskSource


class PermutedSource:
    """Pure TaskSource: the same (name, num_items, seed, position) always names the same item.

    Example: PermutedSource("reasoning_gym/spell_backward", num_items=20_000, seed=0)(7) == ("…/train/1041", 1041)
    """

    def __init__(self, name: str, *, num_items: int, seed: int) -> None:
        assert num_items > 0
        self._name, self._num_items, self._seed = name, num_items, seed
        self._order = lru_cache(maxsize=4)(self._permutation)

    def __call__(self, position: int) -> tuple[str, int]:
        round_, place = divmod(position, self._num_items)
        index = int(self._order(round_)[place])
        return f"{self._name}/train/{index}", index

    def _permutation(self, round_: int) -> NDArray[np.int64]:
        return np.random.default_rng((self._seed, round_)).permutation(self._num_items)


class CountedSource:
    """Pure TaskSource of tasks that are all alike: their place is all there is."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, position: int) -> tuple[str, int]:
        return f"{self._name}/{position}", position


class SharedSource:
    """Pure TaskSource of one shard of several: every `num_shards`-th task of the whole order, from `shard` on."""

    def __init__(self, whole: TaskSource, *, shard: int, num_shards: int) -> None:
        self._whole, self._shard, self._num_shards = whole, shard, num_shards

    def __call__(self, position: int) -> tuple[str, int]:
        return self._whole(position * self._num_shards + self._shard)


def task_source(config: RunConfig, *, shard: int = 0) -> TaskSource:
    """The order of a shard's tasks: training items, or stretches of play."""
    return SharedSource(_whole_source(config), shard=shard, num_shards=config.store.shards)


def _whole_source(config: RunConfig) -> TaskSource:
    if config.control.id is not None:
        return CountedSource(config.control.id)
    environment = config.environment
    return PermutedSource(environment.label, num_items=environment.train_items, seed=config.seed)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on nothing else (not on store ids, leases, or time)."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
