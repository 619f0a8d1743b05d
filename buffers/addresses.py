"""Addresses: (shard, LSN) pairs in one integer, see contracts/shards.py; the part of a batch that lies in one shard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID, uuid5

from buffers.log.identity import BEGUN
from contracts.records import Batch, Dropped, Row
from contracts.shards import SHARD_SPAN


def name_shard(shard: int) -> str:
    """Of a shard's folder in the run's, and of its owner's role."""
    return f"store-{shard}" if shard else "store"


def shard_uuid(first: UUID, shard: int) -> UUID:
    """The identity of a shard's store, from that of shard 0's."""
    return uuid5(first, name_shard(shard)) if shard else first


def find_further(store: Path) -> dict[int, Path]:
    """Shard → folder of the further shards that are on this machine, beside shard 0's `store`."""
    found = {}
    for path in store.parent.glob(f"{name_shard(0)}-*") if store.name == name_shard(0) else ():
        number = path.name.removeprefix(f"{name_shard(0)}-")
        if number.isdecimal() and (path / BEGUN).exists():
            found[int(number)] = path
    return dict(sorted(found.items()))


def address(shard: int, lsn: int) -> int:
    return shard * SHARD_SPAN + lsn


def shard_of(address: int) -> int:
    return address // SHARD_SPAN


def lsn_of(address: int) -> int:
    return address % SHARD_SPAN


def outside(row: Row, *, shard: int) -> Row:
    """A shard's row by addresses."""
    return replace(
        row,
        episode_lsn=address(shard, row.episode_lsn),
        reward_lsn=address(shard, row.reward_lsn),
        lease=address(shard, row.lease),
    )


def leases_in(batch: Batch, *, shard: int) -> list[int]:
    """The shard's leases that a batch trains or drops, as its own LSNs, each once."""
    leases = [row.lease for row in batch.rows] + [drop.lease for drop in batch.dropped]
    return list(dict.fromkeys(_inside(leases, shard)))


def part_of(batch: Batch, *, shard: int) -> Batch:
    """What of a batch lies in `shard`, by the shard's own LSNs. A batch of one shard is its own part 0."""
    if not shard and not batch.shard_lsns:
        return batch
    return replace(
        batch,
        rows=tuple(_inside_row(row) for row in batch.rows if shard_of(row.lease) == shard),
        zero_spread=tuple(_inside(batch.zero_spread, shard)),
        dropped=tuple(
            Dropped(lease=lsn_of(drop.lease), disposition=drop.disposition)
            for drop in batch.dropped
            if shard_of(drop.lease) == shard
        ),
        data_lsn=batch.shard_lsns[shard],
        remembered=tuple(_inside_row(row) for row in batch.remembered if shard_of(row.lease) == shard),
        shard_lsns=(),
    )


def split(batch: Batch) -> list[Batch]:
    """`part_of` each shard, in one pass."""
    parts: list[_Part] = [_Part() for _ in batch.shard_lsns]
    for row in batch.rows:
        parts[shard_of(row.lease)].rows.append(_inside_row(row))
    for row in batch.remembered:
        parts[shard_of(row.lease)].remembered.append(_inside_row(row))
    for lease in batch.zero_spread:
        parts[shard_of(lease)].zero_spread.append(lsn_of(lease))
    for drop in batch.dropped:
        parts[shard_of(drop.lease)].dropped.append(replace(drop, lease=lsn_of(drop.lease)))
    return [
        replace(
            batch,
            rows=tuple(part.rows),
            zero_spread=tuple(part.zero_spread),
            dropped=tuple(part.dropped),
            data_lsn=lsn,
            remembered=tuple(part.remembered),
            shard_lsns=(),
        )
        for part, lsn in zip(parts, batch.shard_lsns, strict=True)
    ]


@dataclass
class _Part:
    rows: list[Row] = field(default_factory=list)
    zero_spread: list[int] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    remembered: list[Row] = field(default_factory=list)


def _inside(addresses: Iterable[int], shard: int) -> list[int]:
    return [lsn_of(address) for address in addresses if shard_of(address) == shard]


def _inside_row(row: Row) -> Row:
    return replace(row, episode_lsn=lsn_of(row.episode_lsn), reward_lsn=lsn_of(row.reward_lsn), lease=lsn_of(row.lease))
