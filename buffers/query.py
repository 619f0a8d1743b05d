"""Finds episodes by who made them, when, under which version, and how they went: out of columns, not payloads.

    footers of sealed segments (buffers/footers.py), the open one read ─► rows that fit, newest segment first

Rewards are the newest that the log has, so a FEEDBACK counts wherever it lies: it comes after its episode, which is why
the newest segment is looked at first. Memory: the columns of one segment, and one entry a FEEDBACK whose episode is
still to come. Late episodes are found too; what is quarantined is not (`ratchet store inspect`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from buffers.footers import SCHEMA, read_segments
from buffers.inspection import OnProgress, ignore
from buffers.log.identity import read_identity
from buffers.log.reader import LogReader
from buffers.log.readers import reading
from contracts.errors import UserError

Mask = NDArray[np.bool_]
FOUND = pa.schema([one for one in SCHEMA if one.name != "about"]).append(pa.field("reward_lsn", pa.int64()))


@dataclass(frozen=True, kw_only=True)
class Query:
    """What an episode must be; None: anything. Raises UserError on a range that is empty.

    versions: (first, last), both included: one of them at least acted. success: its reward is above `min_reward`;
    False: it has one that is not. since, until: wall time (s since 1970), `until` not included.
    """

    versions: tuple[int, int] | None = None
    task: str | None = None
    environment: str | None = None
    producer: str | None = None
    success: bool | None = None
    min_reward: float = 0.1
    since: float | None = None
    until: float | None = None

    def __post_init__(self) -> None:
        if self.versions is not None and self.versions[0] > self.versions[1]:
            first, last = self.versions
            raise UserError(f"versions {first}:{last}", "the first one is above the last", "--version FIRST:LAST")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise UserError(
                f"episodes since {self.since} and until {self.until}", "nothing lies between", "--since before --until"
            )


def find(store: Path, query: Query, *, on_progress: OnProgress = ignore) -> Iterator[pa.Table]:
    """Tables of FOUND, one a segment that has any, newest first; in each the rows are in log order.

    Of a live store, a dead one, or a snapshot's. Raises StoreIdentityError where there is none.
    """
    uuid = read_identity(store)
    with reading(store) as first_lsn:
        log = LogReader(store / "data", store_uuid=uuid)
        total = log.watermark() - first_lsn
        rewards: dict[int, tuple[int, float]] = {}  # episode → the newest FEEDBACK, for episodes that are still to come
        for segment, table, _ in read_segments(store, log):
            found = _choose(table, query, rewards)
            if found.num_rows:
                yield found
            on_progress(total - (segment.start_lsn - first_lsn), total)


def count_acted(
    store: Path, *, versions: tuple[int, int], on_progress: OnProgress = ignore
) -> dict[int, dict[str, int]]:
    """Version → producer → episodes in which it acted, of the versions from one number to another, both included."""
    acted: dict[int, dict[str, int]] = {}
    for table in find(store, Query(versions=versions), on_progress=on_progress):
        column = table["versions"].combine_chunks()
        numbers = pc.list_flatten(column)
        producers = table["producer"].take(pc.list_parent_indices(column))
        pairs = pa.table({"version": numbers, "producer": producers}).group_by(["version", "producer"])
        for row in pairs.aggregate([([], "count_all")]).to_pylist():
            if versions[0] <= row["version"] <= versions[1]:
                counts = acted.setdefault(row["version"], {})
                counts[row["producer"]] = counts.get(row["producer"], 0) + row["count_all"]
    return acted


def _choose(table: pa.Table, query: Query, rewards: dict[int, tuple[int, float]]) -> pa.Table:
    """The episodes of one segment that fit, with their rewards as they are now."""
    is_episode = table["about"].to_numpy() == table["lsn"].to_numpy()
    given = table.filter(~is_episode)
    columns = (given[name].to_pylist() for name in ("about", "lsn", "reward"))
    for about, lsn, reward in reversed(list(zip(*columns, strict=True))):
        rewards.setdefault(about, (lsn, reward))
    episodes = table.filter(is_episode).drop_columns(["about"])
    episodes = _reward(episodes, rewards)
    return episodes.filter(_fits(episodes, query)) if episodes.num_rows else episodes


def _reward(episodes: pa.Table, rewards: dict[int, tuple[int, float]]) -> pa.Table:
    """Take what came later into account; it is needed no more."""
    lsns = episodes["lsn"].to_numpy()
    values, reward_lsns = episodes["reward"].to_numpy(), lsns
    if rewards:
        places = np.flatnonzero(np.isin(lsns, np.fromiter(rewards, dtype=np.int64)))
        values, reward_lsns = values.copy(), lsns.copy()
        for place in places.tolist():
            reward_lsns[place], values[place] = rewards.pop(int(lsns[place]))
    episodes = episodes.set_column(episodes.schema.get_field_index("reward"), "reward", [_nullable(values)])
    return episodes.append_column("reward_lsn", [pa.array(reward_lsns)]).cast(FOUND)


def _nullable(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))


def _fits(episodes: pa.Table, query: Query) -> Mask:
    fits: Mask = np.ones(episodes.num_rows, dtype=np.bool_)
    for name, wanted in (
        ("task_id", query.task),
        ("environment", query.environment),
        ("producer", query.producer),
    ):
        if wanted is not None:
            fits &= pc.equal(episodes[name], wanted).to_numpy()
    if query.versions is not None:
        fits &= _acted(episodes["versions"].combine_chunks(), *query.versions)
    if query.success is not None:
        rewards = episodes["reward"].to_numpy()  # NaN, where there is none, is neither
        fits &= (rewards > query.min_reward) if query.success else (rewards <= query.min_reward)
    times = episodes["wall_time"].to_numpy()
    if query.since is not None:
        fits &= times >= query.since
    if query.until is not None:
        fits &= times < query.until
    return fits


def _acted(versions: Any, first: int, last: int) -> Mask:
    """Rows with a version between the two; `versions`: a list column."""
    flat = pc.list_flatten(versions).to_numpy()
    rows = pc.list_parent_indices(versions).to_numpy()
    inside = rows[(first <= flat) & (flat <= last)]
    found: Mask = np.bincount(inside, minlength=len(versions)) > 0
    return found


@dataclass
class Summary:
    """Sums over tables of FOUND, in any order."""

    min_reward: float
    episodes: int = 0
    rewarded: int = 0
    successes: int = 0
    reward_sum: float = 0.0
    tasks: set[str] = field(default_factory=set)
    producers: set[str] = field(default_factory=set)
    first_version: int | None = None
    last_version: int | None = None

    def add(self, table: pa.Table) -> None:
        rewards = table["reward"].drop_null().to_numpy()
        self.episodes += table.num_rows
        self.rewarded += len(rewards)
        self.successes += int((rewards > self.min_reward).sum())
        self.reward_sum += float(rewards.sum())
        self.tasks.update(pc.unique(table["task_id"]).to_pylist())
        self.producers.update(pc.unique(table["producer"]).to_pylist())
        acted = pc.min_max(pc.list_flatten(table["versions"])).as_py()
        if acted["min"] is not None:
            self.first_version = min(acted["min"], acted["min"] if self.first_version is None else self.first_version)
            self.last_version = max(acted["max"], acted["max"] if self.last_version is None else self.last_version)

    @property
    def reward_mean(self) -> float | None:
        return self.reward_sum / self.rewarded if self.rewarded else None

    def to_json(self) -> dict[str, Any]:
        return {
            "episodes": self.episodes,
            "tasks": len(self.tasks),
            "producers": sorted(self.producers),
            "versions": [self.first_version, self.last_version],
            "rewarded": self.rewarded,
            "successes": self.successes,
            "reward_mean": self.reward_mean,
        }
