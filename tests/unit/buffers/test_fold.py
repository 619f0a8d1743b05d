"""The fold: balanced at every prefix, and the same however the two logs interleave."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from buffers.fold import UNENDED, Fold, leases_of
from buffers.groups import Producer, Stage
from contracts.records import (
    Batch,
    Branch,
    Closed,
    ControlRecord,
    DataRecord,
    Disposition,
    Dropped,
    Episode,
    Feedback,
    Guard,
    Record,
    Row,
    Served,
    Session,
    Skip,
    Span,
    StopReason,
    Task,
    Version,
)
from tests.unit.buffers.samples import EPISODE, TASK

GROUP_SIZE = 2
PRODUCER = "p"
STEP = 8  # bytes between two LSNs


@dataclass
class History:
    """Two logs as an owner would have written them. `needs[i]`: data records that come before control record i."""

    fold: Fold = field(default_factory=Fold)
    data: list[tuple[int, DataRecord]] = field(default_factory=list)
    control: list[tuple[int, ControlRecord]] = field(default_factory=list)
    needs: list[int] = field(default_factory=list)
    order: list[tuple[int, Record]] = field(default_factory=list)  # both, as they came
    seq: int = 0

    @property
    def data_lsn(self) -> int:
        return STEP * (len(self.data) + 1)

    def add_data(self, record: DataRecord) -> int:
        lsn = self.data_lsn
        self.data.append((lsn, record))
        self.order.append((lsn, record))
        self.fold.apply(lsn, record)
        return lsn

    def add_control(self, record: ControlRecord) -> int:
        lsn = STEP * (len(self.control) + 1)
        self.control.append((lsn, record))
        self.order.append((lsn, record))
        self.needs.append(len(self.data))
        self.fold.apply(lsn, record)
        return lsn

    def hand(self, position: int) -> int:
        earlier = self.fold.positions.get(position)
        attempt = 0 if earlier is None else earlier[1] + 1
        return self.add_data(task(position, attempt=attempt))

    def try_(self, lease: int, member: int, *, reward: float | None = 0.5, valid: bool = True) -> int:
        self.seq += 1
        stop_reason = StopReason.TERMINATED if valid else StopReason.ENV_ERROR
        return self.add_data(
            episode(lease, member, seq=self.seq, reward=reward if valid else None, stop_reason=stop_reason)
        )

    def complete(self, position: int) -> int:
        lease = self.hand(position)
        for member in range(GROUP_SIZE):
            self.try_(lease, member)
        return lease

    def cut(self, leases: list[int], *, dropped: tuple[Dropped, ...] = (), step: int | None = None) -> int:
        groups = [self.fold.groups[lease] for lease in leases]
        rows = tuple(
            Row(episode_lsn=group.lsns[member], reward_lsn=group.members[member].reward_lsn, lease=group.lease)
            for group in groups
            for member in range(GROUP_SIZE)
        )
        return self.add_control(
            Batch(
                branch=self.fold.branch,
                step=self.fold.last_step(self.fold.branch) + 1 if step is None else step,
                parent_version=self.fold.newest_version,
                rows=rows,
                zero_spread=tuple(leases[:1]),
                dropped=dropped,
                data_lsn=self.data_lsn,
            )
        )

    def close(self, lease: int, disposition: Disposition) -> int:
        return self.add_control(Closed(leases=(lease,), disposition=disposition, reason="test", data_lsn=self.data_lsn))

    def version(self, *, batch_lsn: int = -1, parent: int | None = None) -> int:
        number = self.fold.newest_version + 1
        self.add_control(
            Version(
                version=number,
                parent=number - 1 if parent is None else parent,
                branch=self.fold.branch,
                step=self.fold.last_step(self.fold.branch),
                root_hash=f"hash-{number}",
                batch_lsn=batch_lsn,
            )
        )
        return number


def task(position: int, *, attempt: int = 0) -> Task:
    return replace(TASK, position=position, group_size=GROUP_SIZE, producer=PRODUCER, attempt=attempt)


def episode(lease: int, member: int, *, seq: int, reward: float | None, stop_reason: StopReason) -> Episode:
    return replace(
        EPISODE,
        episode_id=f"{lease}-{member}",
        lease=lease,
        member=member,
        steps=(),
        spans=(Span(start=0, version=0),),
        stop_reason=stop_reason,
        reward=reward,
        reward_deadline=None if reward is not None else 1.0,
        producer=PRODUCER,
        seq=seq,
    )


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Everything that may happen, in any order that an owner allows."""
    history = History()
    for _ in range(draw(st.integers(0, 40))):
        action = draw(st.sampled_from(ACTIONS))
        _act(history, action, draw)
    return history


ACTIONS = ["hand", "try", "try", "try", "late", "reward", "close", "cut", "version", "skip", "serve", "branch", "owner"]


def _act(history: History, action: str, draw: st.DrawFn) -> None:  # noqa: C901  one branch for each kind of event
    fold = history.fold
    leases = sorted(fold.groups)
    open_ = sorted(fold.stages[Stage.OPEN])
    if action == "hand":
        again = sorted(fold.to_hand_again)
        new = [position for position in range(fold.frontier, fold.frontier + 3) if position not in fold.ahead]
        history.hand(draw(st.sampled_from([*again, *new[:2]])))
    elif action == "try" and open_:
        lease = draw(st.sampled_from(open_))
        member = draw(st.sampled_from(fold.groups[lease].missing))
        history.try_(lease, member, reward=draw(st.sampled_from([0.5, 1.0, None])), valid=draw(st.integers(0, 7)) > 0)
    elif action == "late":
        ended = [lease for lease in leases if fold.groups[lease].closed_at is not None and fold.groups[lease].missing]
        if ended:
            lease = draw(st.sampled_from(ended))
            history.try_(lease, draw(st.sampled_from(fold.groups[lease].missing)))
    elif action == "reward":
        tried = sorted(lsn for group in fold.groups.values() for lsn in group.lsns.values())
        if tried:
            history.add_data(Feedback(episode_id="x", episode_lsn=draw(st.sampled_from(tried)), reward=0.25))
    elif action == "close":
        for stage, how in (
            (Stage.OPEN, Disposition.ABANDONED),
            (Stage.FAULTY, Disposition.QUARANTINED),
            (Stage.PENDING, Disposition.REWARD_TIMEOUT),
        ):
            found = sorted(fold.stages[stage])
            if found:
                history.close(draw(st.sampled_from(found)), how)
                return
    elif action == "cut" and len(fold.queue()) >= 2 and not fold.open_batches:
        queue = fold.queue()
        history.cut(queue[:1], dropped=(Dropped(lease=queue[1], disposition=Disposition.STALE),))
    elif action == "version":
        history.version(batch_lsn=min(fold.open_batches, default=-1))
    elif action == "skip" and fold.open_batches:
        lsn = min(fold.open_batches)
        history.add_control(Skip(batch_lsn=lsn, step=fold.open_batches[lsn].step, branch=fold.branch, reason="nan"))
    elif action == "serve" and fold.newest_version >= 0:
        newest = fold.newest_version
        served = draw(st.booleans())
        history.add_control(
            Served(version=newest, gap=0.0) if served else Guard(version=newest, verdict="refused", reason="gap")
        )
    elif action == "branch" and fold.newest_version >= 0:
        history.add_control(
            Branch(branch=fold.branch + 1, parent_branch=fold.branch, from_version=0, reason="roll-back")
        )
    elif action == "owner":
        history.add_control(Session(role=draw(st.sampled_from(["owner", "learner"])), epoch=1))


@given(histories(), st.data())
def test_every_interleaving_gives_the_same_state_and_every_prefix_balances(
    history: History, data: st.DataObject
) -> None:
    fold = Fold()
    num_data = num_control = 0
    while num_data < len(history.data) or num_control < len(history.control):
        can_decide = num_control < len(history.control) and history.needs[num_control] <= num_data
        can_happen = num_data < len(history.data)
        lsn: int
        record: Record
        if can_decide and (not can_happen or data.draw(st.booleans())):
            (lsn, record), num_control = history.control[num_control], num_control + 1
        else:
            (lsn, record), num_data = history.data[num_data], num_data + 1
        fold.apply(lsn, record)
        assert fold.ledger().balanced
    assert fold == history.fold


@given(histories())
def test_the_sums_are_those_of_the_groups(history: History) -> None:
    fold, ledger = history.fold, history.fold.ledger()
    ends = Counter(group.disposition.value for group in fold.groups.values() if group.disposition)
    assert {name: count for name, count in ledger.ended.items() if count} == ends
    assert ledger.episodes == sum(len(group.lsns) for group in fold.groups.values())
    assert ledger.episodes_late == sum(group.num_late for group in fold.groups.values())
    assert fold.num_doubled == fold.num_unresolved == 0
    for lease, group in fold.groups.items():
        assert [stage for stage in UNENDED if lease in fold.stages[stage]] == [group.stage] * (group.stage in UNENDED)


def test_a_batch_takes_its_groups_from_ready_to_trained() -> None:
    history = History()
    history.version()
    first, second = history.complete(0), history.complete(1)
    assert history.fold.queue() == [first, second]
    batch_lsn = history.cut([first, second])
    assert leases_of(history.fold.open_batches[batch_lsn]) == [first, second]
    assert history.fold.ledger().in_flight == 2
    assert history.fold.ledger().ready == 0
    history.version(batch_lsn=batch_lsn)
    ledger = history.fold.ledger()
    assert (ledger.ended["trained"], ledger.ended["zero_spread"], ledger.in_flight) == (1, 1, 0)
    assert ledger.episodes_trained == 2 * GROUP_SIZE


def test_a_second_version_of_a_batch_counts_its_rows_once() -> None:
    history = History()
    history.version()
    batch_lsn = history.cut([history.complete(0)])
    history.version(batch_lsn=batch_lsn)
    history.version(batch_lsn=batch_lsn, parent=0)
    assert history.fold.ledger().episodes_trained == GROUP_SIZE


def test_a_skipped_batch_stays_skipped() -> None:
    history = History()
    history.version()
    batch_lsn = history.cut([history.complete(0)])
    history.add_control(Skip(batch_lsn=batch_lsn, step=1, branch=0, reason="nan"))
    history.version(batch_lsn=batch_lsn)
    assert history.fold.ledger().ended["skipped"] == 1
    assert history.fold.ledger().episodes_trained == 0


def test_the_queue_is_in_order_of_completion() -> None:
    history = History()
    first, second = history.hand(0), history.hand(1)
    history.try_(first, 0)
    history.try_(second, 0)
    history.try_(second, 1)
    history.try_(first, 1)
    assert history.fold.queue() == [second, first]


def test_an_abandoned_lease_with_only_late_episodes_is_late() -> None:
    history = History()
    empty, partial = history.hand(0), history.hand(1)
    history.try_(partial, 0)
    history.close(empty, Disposition.ABANDONED)
    history.close(partial, Disposition.ABANDONED)
    assert history.fold.to_hand_again == {0, 1}
    history.try_(empty, 0)
    history.try_(partial, 1)
    ledger = history.fold.ledger()
    assert (ledger.ended["late"], ledger.ended["abandoned"], ledger.episodes_late) == (1, 1, 2)
    assert history.fold.queue() == []


def test_a_task_handed_out_again_leaves_the_list_whichever_log_speaks_first() -> None:
    history = History()
    lease = history.hand(0)
    again = history.add_data(task(0, attempt=1))
    history.close(lease, Disposition.ABANDONED)
    assert history.fold.to_hand_again == set()
    assert history.fold.positions == {0: (again, 1)}


def test_a_late_reward_makes_a_group_ready_where_it_came() -> None:
    history = History()
    waiting = history.hand(0)
    lsn = history.try_(waiting, 0, reward=None)
    history.try_(waiting, 1)
    ready = history.complete(1)
    assert history.fold.stages[Stage.PENDING] == {waiting}
    reward_lsn = history.add_data(Feedback(episode_id="x", episode_lsn=lsn, reward=0.75))
    assert history.fold.queue() == [ready, waiting]
    member = history.fold.groups[waiting].members[0]
    assert (member.reward, member.reward_lsn) == (0.75, reward_lsn)


def test_a_second_copy_is_counted_and_changes_nothing() -> None:
    history = History()
    lease = history.complete(0)
    first = dict(history.fold.groups[lease].lsns)
    history.try_(lease, 0)
    assert history.fold.groups[lease].lsns == first
    assert (history.fold.num_doubled, history.fold.num_episodes) == (1, GROUP_SIZE)


def test_references_to_what_rot_took_are_counted() -> None:
    fold = Fold()
    fold.apply(8, episode(4096, 0, seq=1, reward=0.5, stop_reason=StopReason.TERMINATED))
    fold.apply(8, Closed(leases=(4096,), disposition=Disposition.STALE, reason="test"))
    assert fold.num_unresolved == 2
    assert fold.ledger().balanced


def test_staleness_counts_along_parents() -> None:
    history = History()
    for parent in (-1, 0, 1, 1, 3):  # 0 ─ 1 ─ 2, and 1 ─ 3 ─ 4
        history.version(parent=parent)
    fold = history.fold
    assert [fold.staleness(4, ancestor) for ancestor in (4, 3, 1, 0)] == [0, 1, 2, 3]
    assert fold.staleness(4, 2) is None
    assert fold.staleness(2, 3) is None
    assert fold.staleness(4, -1) is None
    assert fold.staleness(9, 9) is None


def test_a_new_owner_means_new_engines() -> None:
    history = History()
    history.version()
    history.add_control(Served(version=0, gap=0.0))
    assert history.fold.served == 0
    history.add_control(Session(role="owner", epoch=2))
    assert history.fold.served == -1
    assert history.fold.num_unsettled(0) == 0


def test_the_newest_record_of_a_producer_is_remembered() -> None:
    history = History()
    lease = history.complete(0)
    assert history.fold.producers[PRODUCER] == Producer(
        epoch=EPISODE.producer_epoch, newest=2, newest_lsn=lease + 2 * STEP
    )
