"""The state of the store as a pure fold over its records: what every task, group, version and batch has come to.

    state = fold(data prefix, control prefix)

There are two logs, so the state must not hang on how they interleave, as long as a record comes after those it names.
Hence lateness is a matter of LSNs (an episode at or above the `data_lsn` of the CLOSED record is late), the queue is
ordered by LSNs, and a task's newest lease is the one with the most attempts.

    a group   OPEN ──► READY ──► BATCHED ──► TRAINED | ZERO_SPREAD | SKIPPED
                │        └─────► (dropped)─► STALE | OFF_BRANCH | ZERO_SPREAD
                ├──► PENDING (a reward is not there yet) ──► READY | REWARD_TIMEOUT
                ├──► FAULTY (a member is invalid or quarantined) ──► QUARANTINED
                └──► ABANDONED, or LATE once an episode came after all

No I/O here. Memory: about 1.2 KB a group of 8 for every group since the log began; rewards only of those not ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from buffers.groups import Group, Member, Producer, Stage
from contracts.records import (
    Batch,
    Branch,
    Checkpoint,
    Closed,
    Disposition,
    Episode,
    Fault,
    Feedback,
    Guard,
    Ledger,
    Quarantined,
    Record,
    Served,
    Session,
    Skip,
    Task,
    Version,
)

FIRST_CONTROL_KIND = 64  # see Kind
RETRY_WINDOW = 1 << 16  # newest sequence numbers remembered for each producer


_REWARDABLE = (Stage.PENDING, Stage.READY, Stage.OPEN, Stage.FAULTY, Stage.BATCHED)


@dataclass
class Fold:
    """`apply` records of either log, each log in its order. Compares by value."""

    groups: dict[int, Group] = field(default_factory=dict)  # lease → group
    stages: dict[Stage, set[int]] = field(default_factory=lambda: {stage: set() for stage in Stage})
    ended: Counter[Disposition] = field(default_factory=Counter)
    positions: dict[int, int] = field(default_factory=dict)  # task position → its newest lease
    frontier: int = 0  # the smallest position never handed out
    to_hand_again: set[int] = field(default_factory=set)  # positions whose newest lease was abandoned
    producers: dict[str, Producer] = field(default_factory=dict)
    num_episodes: int = 0
    quarantined: Counter[Fault] = field(default_factory=Counter)
    num_late: int = 0
    num_trained: int = 0
    num_doubled: int = 0  # second copies in the log: always 0, counted so that a fault shows
    num_replaced: int = 0  # groups without spread that were closed since the last batch
    num_unresolved: int = 0  # references to a TASK that rot took

    branch: int = 0  # the newest one
    branches: dict[int, Branch] = field(default_factory=dict)
    versions: dict[int, Version] = field(default_factory=dict)
    version_lsns: dict[tuple[int, int, str], int] = field(default_factory=dict)  # (branch, step, root hash) → LSN
    heads: dict[int, int] = field(default_factory=dict)  # branch → its newest version
    served: int = -1  # the version that the engines took last; -1: none since the owner opened the store
    settled: set[int] = field(default_factory=set)  # versions that were served or refused
    batch_lsns: dict[tuple[int, int], int] = field(default_factory=dict)  # (branch, step) → LSN
    last_steps: dict[int, int] = field(default_factory=dict)  # branch → step of its newest batch
    open_batches: dict[int, Batch] = field(default_factory=dict)  # LSN → BATCH without VERSION or SKIP
    skip_lsns: dict[int, int] = field(default_factory=dict)  # BATCH LSN → SKIP LSN
    checkpoints: dict[int, tuple[int, Checkpoint]] = field(default_factory=dict)  # branch → newest
    sessions: dict[str, int] = field(default_factory=dict)  # role → newest SESSION

    data_end: int = 0  # all records of each log below these LSNs were applied
    control_end: int = 0
    touched: set[int] = field(default_factory=set, compare=False)  # leases that changed since the reader emptied it

    def apply(self, lsn: int, record: Record) -> None:
        """Take one record in. Records of one log come in LSN order."""
        if record.KIND < FIRST_CONTROL_KIND:
            self.data_end = lsn + 1
        else:
            self.control_end = lsn + 1
        rule = _RULES.get(type(record))
        if rule is not None:
            rule(self, lsn, record)

    # ------------------------------------------------------------------------------------------ questions

    def ledger(self) -> Ledger:
        """The sums. `in_flight` is counted, not subtracted: `balanced` can fail."""
        unended = sum(len(leases) for stage, leases in self.stages.items() if stage is not Stage.ENDED)
        return Ledger(
            handed=len(self.groups),
            ended={disposition.value: self.ended[disposition] for disposition in Disposition},
            in_flight=unended,
            ready=len(self.stages[Stage.READY]),
            episodes=self.num_episodes,
            episodes_late=self.num_late,
            episodes_trained=self.num_trained,
            quarantined={fault.value: self.quarantined[fault] for fault in Fault if self.quarantined[fault]},
        )

    def staleness(self, version: int, ancestor: int) -> int | None:
        """Versions from `ancestor` to `version` along its parents; None where it is no ancestor."""
        hops = 0
        while version > ancestor and version in self.versions:  # numbers rise along a branch
            version = self.versions[version].parent
            hops += 1
        return hops if version == ancestor and version in self.versions else None

    def queue(self) -> list[int]:
        """Leases of ready groups, in the order in which they became complete."""
        return sorted(self.stages[Stage.READY], key=lambda lease: self.groups[lease].ready_lsn)

    @property
    def num_outstanding(self) -> int:
        """Groups in flight or waiting in the queue: handed out, neither ended nor in a batch."""
        return sum(len(self.stages[stage]) for stage in (Stage.OPEN, Stage.PENDING, Stage.FAULTY, Stage.READY))

    def head(self, branch: int) -> int | None:
        """The newest version of a branch; None before genesis."""
        if branch in self.heads:
            return self.heads[branch]
        return self.branches[branch].from_version if branch in self.branches else None

    def last_step(self, branch: int) -> int:
        """Step of the newest batch of a branch, 0 where there is none."""
        if branch in self.last_steps:
            return self.last_steps[branch]
        head = self.head(branch)
        return self.versions[head].step if head in self.versions else 0

    def num_unsettled(self, branch: int) -> int:
        """Steps that were decided and that the engines have not seen: open batches, and a head neither served nor
        refused."""
        num_open = sum(batch.branch == branch for batch in self.open_batches.values())
        return num_open + (self.head(branch) not in self.settled)

    # ------------------------------------------------------------------------------------------ data

    def _task(self, lsn: int, task: Task) -> None:
        self.groups[lsn] = Group(lease=lsn, task=task, data_lsn=lsn)
        self.stages[Stage.OPEN].add(lsn)
        self.touched.add(lsn)
        known = self.positions.get(task.position)
        if known is None or self.groups[known].task.attempt < task.attempt:
            self.positions[task.position] = lsn
            self.to_hand_again.discard(task.position)
        while self.frontier in self.positions:
            self.frontier += 1

    def _episode(self, lsn: int, episode: Episode) -> None:
        group = self._find(episode.lease)
        if group is None:
            return
        if episode.member in group.lsns:
            self.num_doubled += 1
            return
        self.num_episodes += 1
        group.lsns[episode.member] = lsn
        if group.stage is not Stage.ENDED:
            group.members[episode.member] = Member(
                valid=episode.valid,
                oldest_version=episode.oldest_version,
                reward=episode.reward,
                reward_lsn=lsn,
                ready_lsn=lsn,
                deadline=episode.reward_deadline,
            )
        self._remember(episode, lsn)
        self._place(group, data_lsn=lsn)

    def _quarantined(self, lsn: int, record: Quarantined) -> None:
        """It stands in its member's place, where it has one, and makes the group faulty."""
        self.quarantined[record.fault] += 1
        self._remember(record, lsn)
        group = self._find(record.lease) if record.fault is not Fault.LEASE else None
        if group is None:
            return
        if record.member in group.lsns:
            self.num_doubled += 1
            return
        group.lsns[record.member] = lsn
        if group.stage is not Stage.ENDED:
            group.members[record.member] = Member(
                valid=False, oldest_version=-1, reward=None, reward_lsn=lsn, ready_lsn=lsn, deadline=None
            )
        self._place(group, data_lsn=lsn)

    def _feedback(self, lsn: int, feedback: Feedback) -> None:
        """A reward counts until the group ends; those that may still change are few enough to search."""
        for stage in _REWARDABLE:
            for lease in self.stages[stage]:
                group = self.groups[lease]
                for number, member in group.members.items():
                    if group.lsns[number] == feedback.episode_lsn:
                        if member.reward is None:
                            member.ready_lsn = lsn
                        member.reward, member.reward_lsn = feedback.reward, lsn
                        self._place(group)
                        return

    def _remember(self, episode: Episode | Quarantined, lsn: int) -> None:
        if episode.seq < 0:
            return
        producer = self.producers.get(episode.producer)
        if producer is None or producer.epoch < episode.producer_epoch:
            producer = self.producers[episode.producer] = Producer(episode.producer_epoch)
        if producer.epoch == episode.producer_epoch:
            producer.lsns[episode.seq] = lsn
            producer.newest = max(producer.newest, episode.seq)
            if len(producer.lsns) > RETRY_WINDOW:
                del producer.lsns[next(iter(producer.lsns))]

    # ------------------------------------------------------------------------------------------ groups

    def _find(self, lease: int) -> Group | None:
        group = self.groups.get(lease)
        if group is None:
            self.num_unresolved += 1
        return group

    def _find_all(self, leases: Iterable[int]) -> list[Group]:
        return [group for group in map(self._find, leases) if group is not None]

    def _place(self, group: Group, *, data_lsn: int | None = None) -> None:
        """Put the group where its members and its end say it belongs."""
        if data_lsn is not None:
            group.data_lsn = max(group.data_lsn, data_lsn)
        self.touched.add(group.lease)
        if group.closed_at is not None:
            self._count_late(group, group.closed_at)
        if group.stage in (Stage.BATCHED, Stage.ENDED):
            return
        self._move(group, group.unended_stage())

    def _move(self, group: Group, stage: Stage) -> None:
        self.stages[group.stage].discard(group.lease)
        self.stages[stage].add(group.lease)
        group.stage = stage

    def _end(self, group: Group, disposition: Disposition) -> None:
        if group.disposition is not None:
            self.ended[group.disposition] -= 1
        group.disposition = disposition
        group.members.clear()
        self.ended[disposition] += 1
        self._move(group, Stage.ENDED)
        self.touched.add(group.lease)

    def _count_late(self, group: Group, closed_at: int) -> None:
        """Count its late episodes; an abandoned lease that has no others is LATE."""
        num_late = sum(lsn >= closed_at for lsn in group.lsns.values())
        self.num_late += num_late - group.num_late
        group.num_late = num_late
        if group.disposition is Disposition.ABANDONED and 0 < num_late == len(group.lsns):
            self._end(group, Disposition.LATE)

    # ------------------------------------------------------------------------------------------ decisions

    def _session(self, lsn: int, session: Session) -> None:
        self.sessions[session.role] = lsn
        if session.role == "owner":
            self.served = -1  # the engines that an earlier owner knew are gone

    def _closed(self, lsn: int, closed: Closed) -> None:
        for group in self._find_all(closed.leases):
            group.control_lsn = lsn
            if group.stage in (Stage.BATCHED, Stage.ENDED):
                continue
            group.closed_at = closed.data_lsn
            self.num_replaced += closed.disposition is Disposition.ZERO_SPREAD
            self._end(group, closed.disposition)
            self._place(group)
            position = group.task.position
            if closed.disposition is Disposition.ABANDONED and self.positions[position] == group.lease:
                self.to_hand_again.add(position)

    def _batch(self, lsn: int, batch: Batch) -> None:
        self.batch_lsns[batch.branch, batch.step] = lsn
        self.last_steps[batch.branch] = batch.step
        self.num_replaced = 0
        self.open_batches[lsn] = batch
        for group in self._find_all(leases_of(batch)):
            group.control_lsn = lsn
            self._move(group, Stage.BATCHED)
            self.touched.add(group.lease)
        for drop in batch.dropped:
            for group in self._find_all((drop.lease,)):
                group.control_lsn, group.closed_at = lsn, batch.data_lsn
                self._end(group, drop.disposition)
                self._place(group)

    def _settle_batch(self, lsn: int, batch_lsn: int, end: Callable[[int, Batch], Disposition]) -> Batch | None:
        """End the groups of an open batch; None where it is not open."""
        batch = self.open_batches.pop(batch_lsn, None)
        if batch is not None:
            for group in self._find_all(leases_of(batch)):
                group.control_lsn = lsn
                self._end(group, end(group.lease, batch))
        return batch

    def _version(self, lsn: int, version: Version) -> None:
        self.versions[version.version] = version
        self.heads[version.branch] = version.version
        self.version_lsns[version.branch, version.step, version.root_hash] = lsn
        batch = self._settle_batch(lsn, version.batch_lsn, _trained)
        if batch is not None:
            self.num_trained += len(batch.rows)

    def _skip(self, lsn: int, skip: Skip) -> None:
        self.skip_lsns[skip.batch_lsn] = lsn
        self._settle_batch(lsn, skip.batch_lsn, lambda _lease, _batch: Disposition.SKIPPED)

    def _served(self, _: int, served: Served) -> None:
        self.served = served.version
        self.settled.add(served.version)

    def _guard(self, _: int, guard: Guard) -> None:
        if guard.verdict == "refused":
            self.settled.add(guard.version)

    def _checkpoint(self, lsn: int, checkpoint: Checkpoint) -> None:
        self.checkpoints[checkpoint.branch] = (lsn, checkpoint)

    def _branch(self, _: int, branch: Branch) -> None:
        self.branches[branch.branch] = branch
        self.branch = branch.branch


def leases_of(batch: Batch) -> list[int]:
    """Leases of a batch's rows, each once, in row order."""
    return list(dict.fromkeys(row.lease for row in batch.rows))


def _trained(lease: int, batch: Batch) -> Disposition:
    return Disposition.ZERO_SPREAD if lease in batch.zero_spread else Disposition.TRAINED


_RULES: dict[type[Record], Callable[..., None]] = {
    Task: Fold._task,
    Episode: Fold._episode,
    Feedback: Fold._feedback,
    Quarantined: Fold._quarantined,
    Session: Fold._session,
    Closed: Fold._closed,
    Batch: Fold._batch,
    Version: Fold._version,
    Skip: Fold._skip,
    Served: Fold._served,
    Guard: Fold._guard,
    Checkpoint: Fold._checkpoint,
    Branch: Fold._branch,
}
