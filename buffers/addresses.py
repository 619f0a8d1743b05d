"""Addresses: (shard, LSN) pairs in one integer, see contracts/shards.py; the part of a batch that lies in one shard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from contracts.records import Batch, Dropped, Row
from contracts.shards import SHARD_SPAN


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


def _inside(addresses: Iterable[int], shard: int) -> list[int]:
    return [lsn_of(address) for address in addresses if shard_of(address) == shard]


def _inside_row(row: Row) -> Row:
    return replace(row, episode_lsn=lsn_of(row.episode_lsn), reward_lsn=lsn_of(row.reward_lsn), lease=lsn_of(row.lease))
