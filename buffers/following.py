"""One shard's part in what shard 0 decides: it copies decisions into its own control log and offers groups for batches.

    News of shard 0 ─► copies of what concerns this shard, by its own LSNs, with FOLLOWED behind them, as one append
                    ─► the fold, which is thus, as ever, a fold over this shard's own two logs

A crash in between: the copies are whole or absent, and FOLLOWED says where to go on. Groups that were offered are
promised: shard 0 may have decided about them already, so they are neither held nor reviewed until this shard has
followed again; after a start that is any group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from buffers.addresses import leases_in, split
from buffers.decider import Decider
from buffers.sampling import find_zero_spread, order_rows
from buffers.state import StoreState
from configs.schema import RunConfig
from contracts.errors import FencedError, NotFollowedError, StoreIdentityError
from contracts.protocols import BatchRequest
from contracts.records import (
    Batch,
    Branch,
    ControlRecord,
    Dropped,
    Followed,
    Guard,
    Kind,
    Served,
    Session,
    Skip,
    Version,
)
from contracts.shards import Candidate, News, Offer, Share, Standing

FOLLOWED_KINDS = (
    Kind.SESSION, Kind.BATCH, Kind.VERSION, Kind.SERVED, Kind.GUARD, Kind.SKIP, Kind.BRANCH,
)  # fmt: skip


class Following:
    def __init__(self, state: StoreState, *, decider: Decider) -> None:
        self._state, self._decider = state, decider
        self._whole: RunConfig = state.config  # as if this were the only shard
        self._session = -1  # the newest learner's that was heard of
        self._offered_below = 0  # durable watermark of the last offer
        if state.fold.followed:
            state.promised = None

    # ------------------------------------------------------------------------------------------ what was decided

    def follow(self, news: News) -> Standing:
        """See contracts.shards.Shard. Raises StoreIdentityError where this shard's folder was lost and made again."""
        state = self._state
        self._check_session(news.session)
        if news.start == state.fold.followed:
            if not news.start and any(isinstance(one, Batch) and one.data_lsn >= 0 for _, one in news.records):
                raise StoreIdentityError("this shard is new, and shard 0 has had offers of it: its folder was lost")
            for chunk in _cut(news.records):
                self._append(chunk)
            with state.lock:
                state.promised = set()
                state.config = _with_share(self._whole, news.share)
            if state.fold.served != news.served >= 0:
                self._append([(state.fold.followed - 1, Served(version=news.served, gap=0.0))])
        end = state.control.writer.durable_lsn
        return Standing(followed=state.fold.followed, served=state.fold.served, control_end=end)

    def _append(self, records: Sequence[tuple[int, ControlRecord]]) -> None:
        state = self._state
        with state.lock:
            copies = [self._localise(record) for _, record in records]
            leases = [
                lease for copy in copies if isinstance(copy, Batch) for lease in leases_in(copy, shard=0)
            ]  # its own LSNs, which read like addresses of shard 0
            followed = Followed(control_lsn=records[-1][0] + 1, session=self._session)
            future = state.end_locked(*copies, followed, leases=leases)
        state.finish(future)

    def _localise(self, record: ControlRecord) -> ControlRecord:
        """By this log's LSNs. A batch's own is known from its step, which is why VERSION and SKIP come after it."""
        batch_lsns = self._state.fold.batch_lsns
        if (isinstance(record, Version) and record.batch_lsn >= 0) or isinstance(record, Skip):
            return replace(record, batch_lsn=batch_lsns[record.branch, record.step])
        return record

    def _check_session(self, session: int) -> None:
        if session < self._session:
            raise FencedError(f"session {session} is over: a newer one, {self._session}, has come")
        self._session = session

    # ------------------------------------------------------------------------------------------ batches

    def offer(self, request: BatchRequest) -> Offer:
        """See contracts.shards.Shard."""
        state = self._state
        self._check_session(request.session)
        state.sweep()
        mark = state.data.writer.sync()  # a BATCH may name only what is durable
        with state.lock:
            if state.promised is None:
                raise NotFollowedError("this shard has not followed shard 0 since it was opened")
            fold = state.fold
            choice = self._decider.choose(request, mark, num_groups=request.num_groups)
            state.promised, self._offered_below = {*choice.leases, *(drop.lease for drop in choice.dropped)}, mark
            candidates = tuple(
                Candidate(
                    lease=lease,
                    position=fold.groups[lease].task.position,
                    rows=order_rows(fold, (lease,)),
                    zero_spread=bool(find_zero_spread(fold, (lease,))),
                )
                for lease in choice.leases
            )
        return Offer(mark=mark, candidates=candidates, dropped=choice.dropped)

    def release(self, dropped: Sequence[Dropped]) -> None:
        """See contracts.shards.Shard."""
        state = self._state
        with state.lock:
            if state.promised is None:
                return  # it was opened again since
            mine = [drop for drop in dropped if drop.lease in state.promised and drop.lease not in state.ending]
            futures = self._decider.close_dropped(mine, mark=self._offered_below)
            state.promised = set()
        for future in futures:
            state.finish(future)


def _cut(records: Sequence[tuple[int, ControlRecord]]) -> Iterator[list[tuple[int, ControlRecord]]]:
    """What this shard copies, cut before each record that names a batch: its copy must be in the log by then."""
    chunk: list[tuple[int, ControlRecord]] = []
    for lsn, record in records:
        if isinstance(record, Version | Skip) and chunk:
            yield chunk
            chunk = []
        chunk.append((lsn, record))
    if chunk:
        yield chunk


def concern(record: ControlRecord) -> Sequence[ControlRecord] | ControlRecord | None:
    """What of a decision the shards are to copy: by shard, the same for all, or nothing."""
    if isinstance(record, Batch):
        return split(record)
    if isinstance(record, Session):
        return record if record.role == "owner" else None
    return record if isinstance(record, Version | Served | Guard | Skip | Branch) else None


def _with_share(config: RunConfig, share: Share) -> RunConfig:
    """The configuration of a store that hands out only its share of each step's groups."""
    learner = config.learner
    part = share.of(learner.groups_per_step)
    return config.model_copy(update={"learner": learner.model_copy(update={"groups_per_step": part})})
