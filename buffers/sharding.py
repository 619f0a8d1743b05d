"""Several owners as one store: contracts.protocols.Store over contracts.shards.Shard, for producers and for a learner.

Every client has one of these; it keeps nothing that must outlive it. A group lives in the shard that handed it out, and
its address says which. What is decided, shard 0 decides, in its control log; docs/decisions has why.

    a producer   asks its own first shard for tasks, then the others, and brings episodes where their leases are from
    a learner    brings every shard up to date, asks for offers, reads what it chose, has shard 0 decide, and tells all

A shard that does not answer is lost until it answers again: its groups wait, the others' go on, and the live ones share
its part of each step. Rows are read before their batch is decided, so a shard that dies afterwards holds nobody up.
"""

from __future__ import annotations

import time
from binascii import crc32
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from threading import Lock
from typing import Any, TypeVar

from buffers.addresses import address, lsn_of, outside, shard_of
from buffers.following import FOLLOWED_KINDS, concern
from contracts.errors import (
    FencedError,
    NotFollowedError,
    StoreError,
    StoreIdentityError,
    StoreStoppedError,
    StoreUnreachableError,
)
from contracts.protocols import BatchRequest
from contracts.records import (
    Ack,
    Batch,
    ControlRecord,
    Decision,
    Dropped,
    Episode,
    Feedback,
    Hold,
    Kind,
    Lease,
    Ledger,
    Priority,
    Review,
    Session,
)
from contracts.shards import SHARD_SPAN, Candidate, News, Offer, Shard, Share, Standing

ASK_AGAIN_S = 1.0  # a lost shard is asked again after this long, or after RESPITE times as long as it kept us waiting
RESPITE = 4.0
LOOK_S = 0.02  # between two looks for a full queue
LOST = (StoreUnreachableError, StoreStoppedError)

T = TypeVar("T")
Concerns = list[tuple[int, Sequence[ControlRecord] | ControlRecord]]  # (LSN, what of it, see `concern`)


@dataclass
class _Place:
    """One shard as this client knows it."""

    number: int
    shard: Shard
    ask_at: float = 0.0  # it is lost, and not asked before this time (s)
    live: bool = True
    standing: Standing | None = None  # None: to be asked for
    share: Share | None = None  # that it was told last
    ledger: Ledger | None = None  # its last one


class ShardedStore:
    """Thread-safe. `clock` (s) times when a lost shard is asked again."""

    def __init__(self, shards: Sequence[Shard], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._places = [_Place(number, shard) for number, shard in enumerate(shards)]
        self._first = shards[0]
        self._clock = clock
        self._deciding = Lock()
        self._session = -1
        self._rows: dict[int, Episode] = {}  # of the newest batch, by address

    def _ask(self, place: _Place, call: Callable[[], T]) -> T:
        """What a shard answers to a call. Raises StoreUnreachableError where it is lost."""
        began = self._clock()
        if began < place.ask_at:
            raise StoreUnreachableError(f"shard {place.number} is lost: its groups wait until it is back")
        try:
            answer = call()
        except NotFollowedError:
            place.standing = None  # to be told again
            raise
        except LOST as error:
            now = self._clock()
            place.live, place.standing = False, None
            if place.number:  # without shard 0 nothing goes on: it is asked at once
                place.ask_at = now + max(ASK_AGAIN_S, RESPITE * (now - began))
            raise StoreUnreachableError(
                f"shard {place.number} is lost: its groups wait until it is back ({error})"
            ) from error
        place.live = True
        return answer

    def _may_ask(self) -> list[_Place]:
        """Shard 0, and the others that are there as far as is known, or may be back."""
        now = self._clock()
        return [place for place in self._places if now >= place.ask_at]

    @property
    def lost(self) -> list[int]:
        """Shards that did not answer when they were asked last."""
        return [place.number for place in self._places if not place.live]

    # ------------------------------------------------------------------------------------------ producers

    def attach(self, producer: str) -> int:
        """An epoch of shard 0, that the others take over; those that are lost take it when they are back."""
        epoch = self._first.attach(producer)
        for place in self._may_ask()[1:]:
            try:
                self._ask(place, partial(place.shard.join, producer, epoch))
            except StoreUnreachableError:
                continue
        return epoch

    def lease(
        self, producer: str, epoch: int, *, max_tasks: int, rank: int = 0, world: int = 1, wait_s: float = 0.0
    ) -> list[Lease]:
        found: list[Lease] = []
        for wait in dict.fromkeys((0.0, wait_s)):
            places = self._may_ask()
            turn = crc32(producer.encode()) % len(places)
            for place in [*places[turn:], *places[:turn]]:
                if found and (wait or len(found) == max_tasks):
                    break
                ask = partial(place.shard.lease, producer, epoch, rank=rank, world=world, wait_s=wait / len(places))
                ask = partial(ask, max_tasks=max_tasks - len(found))
                try:
                    leases = self._ask(place, partial(self._as_known, place.shard, producer, epoch, ask))
                except StoreUnreachableError:
                    continue
                found += [self._outside_lease(lease, shard=place.number) for lease in leases]
        return sorted(found, key=lambda lease: lease.lsn)

    def _outside_lease(self, lease: Lease, *, shard: int) -> Lease:
        """By its address, and with its place in the order of all shards' tasks."""
        position = lease.task.position * len(self._places) + shard
        return replace(lease, lsn=address(shard, lease.lsn), task=replace(lease.task, position=position))

    def _as_known(self, shard: Shard, producer: str, epoch: int, call: Callable[[], T]) -> T:
        """A shard that was away knows no epochs: it is told this one, if shard 0 says that it is the newest."""
        try:
            return call()
        except FencedError:
            if shard is self._first:
                raise
            self._first.check(producer, epoch)
            shard.join(producer, epoch)
            return call()

    def append(self, episodes: Sequence[Episode]) -> list[Ack]:
        """See contracts.protocols.Store. Raises StoreUnreachableError where a shard is lost; what belongs to others is
        then kept all the same, and told as a second copy when it is brought again."""
        acks: dict[int, Ack] = {}
        lost: StoreUnreachableError | None = None
        for number, places in self._by_shard(episode.lease for episode in episodes).items():
            place, part = self._places[number], [self._inside_episode(episodes[at]) for at in places]
            try:
                answers = self._ask(place, partial(self._append, place.shard, part))
            except StoreUnreachableError as error:
                lost = error
                continue
            for at, ack in zip(places, answers, strict=True):
                acks[at] = replace(ack, lsn=address(number, ack.lsn))
        if lost is not None:
            raise lost
        return [acks[at] for at in range(len(episodes))]

    def _append(self, shard: Shard, episodes: Sequence[Episode]) -> list[Ack]:
        try:
            return shard.append(episodes)
        except FencedError:
            for producer, epoch in {(episode.producer, episode.producer_epoch) for episode in episodes}:
                self._as_known(shard, producer, epoch, partial(shard.check, producer, epoch))
            return shard.append(episodes)

    def append_feedback(self, feedback: Feedback) -> int:
        """See buffers.owner.StoreOwner; and so the next two."""
        number = shard_of(feedback.episode_lsn)
        inside, place = replace(feedback, episode_lsn=lsn_of(feedback.episode_lsn)), self._places[number]
        return address(number, self._ask(place, partial(place.shard.append_feedback, inside)))

    def hold(self, record: Hold) -> bool:
        inside, place = replace(record, lease=lsn_of(record.lease)), self._places[shard_of(record.lease)]
        return self._ask(place, partial(place.shard.hold, inside))

    def review(self, record: Review) -> bool:
        inside, place = replace(record, lease=lsn_of(record.lease)), self._places[shard_of(record.lease)]
        return self._ask(place, partial(place.shard.review, inside))

    def _by_shard(self, addresses: Iterable[int]) -> dict[int, list[int]]:
        """Shard → places in `addresses`; what is no address of any shard is shard 0's to refuse."""
        places: dict[int, list[int]] = {}
        for at, one in enumerate(addresses):
            number = shard_of(one)
            places.setdefault(number if 0 <= number < len(self._places) else 0, []).append(at)
        return places

    def _inside_episode(self, episode: Episode) -> Episode:
        known = SHARD_SPAN <= episode.lease < len(self._places) * SHARD_SPAN
        return replace(episode, lease=lsn_of(episode.lease)) if known else episode

    # ------------------------------------------------------------------------------------------ decisions

    def open_session(self, record: ControlRecord) -> int:
        lsn = self._first.open_session(record)
        if isinstance(record, Session) and record.role == "learner":
            with self._deciding:
                self._session = lsn
                for place in self._places:
                    place.share = None  # so that each hears of the session
                self._tell()
        return lsn

    def decide(self, record: Decision, session: int) -> int:
        if isinstance(record, Priority) and any(map(shard_of, record.leases)):
            raise StoreError("priorities are kept of shard 0's groups alone: nothing is replayed from several shards")
        lsn = self._first.decide(record, session)
        if record.KIND in FOLLOWED_KINDS:
            with self._deciding:
                self._tell()
        return lsn

    def decisions(self, *, start: int = 0, kinds: Sequence[Kind] = ()) -> list[tuple[int, ControlRecord]]:
        return self._first.decisions(start=start, kinds=kinds)

    def _tell(self) -> list[_Place]:
        """Bring every shard that answers up to date with shard 0, and tell it its share; those that did."""
        while True:
            places = self._may_ask()
            shares = [Share(rank=rank, world=len(places)) for rank in range(len(places))]
            first = self._follow(self._places[0], start=0, records=(), share=shares[0], served=-1)
            decided: dict[int, Concerns] = {}  # from where on → what
            done = places[:1]
            for place, share in list(zip(places, shares, strict=True))[1:]:
                try:
                    self._tell_one(place, share=share, first=first, decided=decided)
                except StoreUnreachableError:
                    continue
                done.append(place)
            if len(done) == len(places):
                return done

    def _tell_one(self, place: _Place, *, share: Share, first: Standing, decided: dict[int, Concerns]) -> None:
        """`first`: where shard 0 stands. Raises StoreIdentityError where this one is not of the same history."""
        if place.standing is None:
            place.standing = self._follow(place, start=-1, records=(), share=share, served=-1)
            place.share = None
        while True:
            standing = place.standing
            start = standing.followed
            if start > first.control_end:
                raise StoreIdentityError(
                    f"shard {place.number} followed shard 0 up to LSN {start}, and shard 0 ends at "
                    f"{first.control_end}: they are not of one history; restore both from the same snapshot"
                )
            if start not in decided:
                records = self._first.decisions(start=start, kinds=FOLLOWED_KINDS)
                decided[start] = [(lsn, part) for lsn, record in records if (part := concern(record)) is not None]
            news = tuple((lsn, _pick(part, place.number)) for lsn, part in decided[start])
            if not news and place.share == share and standing.served == first.served:
                return
            end = news[-1][0] + 1 if news else start
            place.standing = self._follow(place, start=start, records=news, share=share, served=first.served)
            if place.standing.followed == end:
                place.share = share
                return

    def _follow(self, place: _Place, **news: Any) -> Standing:
        return self._ask(place, partial(place.shard.follow, News(session=self._session, **news)))

    # ------------------------------------------------------------------------------------------ batches

    def append_batch(self, request: BatchRequest, *, wait_s: float = 0.0) -> tuple[int, Batch] | None:
        deadline = self._clock() + wait_s
        while True:
            with self._deciding:
                answer = self._cut(request)
            if answer is not None or self._clock() + LOOK_S > deadline:
                return answer
            time.sleep(LOOK_S)

    def _cut(self, request: BatchRequest) -> tuple[int, Batch] | None:
        stored = self._first.find_batch(request)
        if stored is not None:
            return stored
        offers = self._collect(self._tell(), request)
        chosen = _merge({number: offer.candidates for number, offer in offers.items()})[: request.num_groups]
        if len(chosen) < request.num_groups or not self._read_ahead(chosen):
            self._release(offers)
            return None
        batch = self._make(request, chosen, offers)
        cut = self._first.commit(batch, request.session)  # from here on it is decided
        self._tell()
        return cut

    def _collect(self, places: Sequence[_Place], request: BatchRequest) -> dict[int, Offer]:
        offers = {}
        for place in places:
            try:
                offers[place.number] = self._ask(place, partial(place.shard.offer, request))
            except StoreUnreachableError:
                if place.number == 0:
                    raise
        return offers

    def _release(self, offers: dict[int, Offer]) -> None:
        for number, offer in offers.items():
            if offer.candidates or offer.dropped:
                place = self._places[number]
                try:
                    self._ask(place, partial(place.shard.release, offer.dropped))
                except StoreUnreachableError:
                    continue

    def _read_ahead(self, chosen: Sequence[tuple[int, Candidate]]) -> bool:
        """Have the rows of a batch here before it is decided. False: a shard went away meanwhile."""
        lsns = [address(number, row.reward_lsn) for number, group in chosen for row in group.rows]
        lacking = [lsn for lsn in lsns if lsn not in self._rows]
        try:
            found = dict(zip(lacking, self._read(lacking), strict=True))
        except StoreUnreachableError:
            return False
        self._rows = {lsn: found[lsn] if lsn in found else self._rows[lsn] for lsn in lsns}
        return True

    def _make(self, request: BatchRequest, chosen: Sequence[tuple[int, Candidate]], offers: dict[int, Offer]) -> Batch:
        order = sorted(chosen, key=lambda one: (one[1].position, one[0]))
        marks = tuple(offers[number].mark if number in offers else -1 for number in range(len(self._places)))
        return Batch(
            branch=request.branch,
            step=request.step,
            parent_version=request.parent_version,
            rows=tuple(outside(row, shard=number) for number, group in order for row in group.rows),
            zero_spread=tuple(address(number, group.lease) for number, group in chosen if group.zero_spread),
            dropped=tuple(
                Dropped(lease=address(number, drop.lease), disposition=drop.disposition)
                for number, offer in offers.items()
                for drop in offer.dropped
            ),
            seed=request.seed,
            data_lsn=marks[0],
            coefficients=dict(request.coefficients),
            shard_lsns=marks,
        )

    def read(self, lsns: Sequence[int]) -> list[Episode]:
        """See contracts.protocols.Store. The rows of the newest batch are here already."""
        known = self._rows
        lacking = [lsn for lsn in lsns if lsn not in known]
        found = dict(zip(lacking, self._read(lacking), strict=True))
        return [known[lsn] if lsn in known else found[lsn] for lsn in lsns]

    def _read(self, lsns: Sequence[int]) -> list[Episode]:
        episodes: dict[int, Episode] = {}
        for number, places in self._by_shard(lsns).items():
            place, inside = self._places[number], [lsn_of(lsns[at]) for at in places]
            answers = self._ask(place, partial(place.shard.read, inside))
            for at, episode in zip(places, answers, strict=True):
                episodes[at] = replace(episode, lease=address(number, episode.lease))
        return [episodes[at] for at in range(len(lsns))]

    def ledger(self) -> Ledger:
        """The sums over all shards; of a lost one, what it said last."""
        for place in self._may_ask():
            try:
                place.ledger = self._ask(place, place.shard.ledger)
            except StoreUnreachableError:
                continue
        return add_ledgers([place.ledger for place in self._places if place.ledger is not None])


def _pick(part: Sequence[ControlRecord] | ControlRecord, number: int) -> ControlRecord:
    return part[number] if isinstance(part, Sequence) else part


def _merge(queues: dict[int, tuple[Candidate, ...]]) -> list[tuple[int, Candidate]]:
    """(shard, group) of all shards' queues, the first of each, then the second of each: no shard waits for another."""
    numbers = sorted(queues)
    rounds = zip_longest(*(queues[number] for number in numbers))
    return [
        (number, group) for groups in rounds for number, group in zip(numbers, groups, strict=True) if group is not None
    ]


def add_ledgers(ledgers: Sequence[Ledger]) -> Ledger:
    """One of all shards."""
    return Ledger(
        handed=sum(one.handed for one in ledgers),
        ended=_add_up([one.ended for one in ledgers]),
        in_flight=sum(one.in_flight for one in ledgers),
        ready=sum(one.ready for one in ledgers),
        episodes=sum(one.episodes for one in ledgers),
        episodes_late=sum(one.episodes_late for one in ledgers),
        episodes_trained=sum(one.episodes_trained for one in ledgers),
        quarantined=_add_up([one.quarantined for one in ledgers]),
    )


def _add_up(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for count in counts for name in count)
    return {name: sum(count.get(name, 0) for count in counts) for name in names}
