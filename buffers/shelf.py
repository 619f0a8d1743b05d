"""A mapping of which only what may still change is kept in memory; the rest is recalled from where it was put.

    set, touch ─► near (memory) ─► take_changes ─► written by the index ─► forget ─► recalled when asked for

Without a backing everything stays in memory. Iterating goes over everything, near and far: for audits and tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

K = TypeVar("K")
V = TypeVar("V")
Found_co = TypeVar("Found_co", covariant=True)


class Backing(Protocol[K, Found_co]):
    """Where entries lie that memory does not hold."""

    def find(self, key: K) -> Found_co | None: ...

    def scan(self) -> Iterable[tuple[K, Found_co]]: ...


class Shelf(Generic[K, V]):
    """`settled` says of an entry whether it may leave memory once it is written. Compares by contents."""

    def __init__(self, settled: Callable[[V], bool] = lambda _: True) -> None:
        self._settled = settled
        self._near: dict[K, V] = {}
        self._changed: set[K] = set()
        self._recalled: set[K] = set()  # came back into memory and were not changed since
        self.backing: Backing[K, V] | None = None

    def __getitem__(self, key: K) -> V:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def get(self, key: K) -> V | None:
        value = self._near.get(key)
        if value is None and self.backing is not None:
            value = self.backing.find(key)
            if value is not None:
                self._near[key] = value
                self._recalled.add(key)
        return value

    def __contains__(self, key: K) -> bool:
        return self.get(key) is not None

    def __setitem__(self, key: K, value: V) -> None:
        self._near[key] = value
        self._changed.add(key)

    def touch(self, key: K) -> None:
        """The value of `key`, which is in memory, was changed in place."""
        self._changed.add(key)

    # ------------------------------------------------------------------------------------------ to and from the index

    def take_changes(self) -> list[tuple[K, V]]:
        """What was set or touched since the last call."""
        changes = [(key, self._near[key]) for key in self._changed]
        self._changed = set()
        return changes

    def forget(self, keys: Iterable[K]) -> None:
        """Let go of what is written, or was only looked at, and may not change: it can be recalled."""
        for key in [*keys, *self._recalled]:
            if key not in self._changed and key in self._near and self._settled(self._near[key]):
                del self._near[key]
        self._recalled.clear()

    def load(self, key: K, value: V) -> None:
        """Take into memory what is written already."""
        self._near[key] = value

    @property
    def num_near(self) -> int:
        """Entries in memory."""
        return len(self._near)

    # ------------------------------------------------------------------------------------------ everything

    def items(self) -> list[tuple[K, V]]:
        """All entries; those in memory first."""
        far = () if self.backing is None else self.backing.scan()
        return [*self._near.items(), *((key, value) for key, value in far if key not in self._near)]

    def keys(self) -> set[K]:
        return {key for key, _ in self.items()}

    def values(self) -> list[V]:
        return [value for _, value in self.items()]

    def __iter__(self) -> Iterator[K]:
        return iter(key for key, _ in self.items())

    def __len__(self) -> int:
        return len(self.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shelf) and dict(self.items()) == dict(other.items())

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Shelf({dict(self.items())!r})"
