"""The state of the store as a pure fold over its records: what every task, group, version and batch has come to.

    state = fold(data prefix, control prefix)

There are two logs, so the state must not hang on how they interleave, as long as a record comes after those it names.
Hence lateness is a matter of LSNs (an episode at or above the `data_lsn` of the CLOSED record is late), the queue is
ordered by LSNs, and a task's newest lease is the one with the most attempts.

    a group   OPEN ──► READY ──► BATCHED ──► TRAINED | ZERO_SPREAD | SKIPPED
                │        └─────► (dropped)─► STALE | OFF_BRANCH | ZERO_SPREAD
                ├──► PENDING (a reward is not there yet) ──► READY | REWARD_TIMEOUT
                ├──► HELD (somebody is to look at it) ──► as it was | QUARANTINED
                ├──► FAULTY (a member is invalid or quarantined) ──► QUARANTINED
                └──► ABANDONED, or LATE once an episode came after all

No I/O here. What has ended, or is history, stands on shelves (buffers/shelf.py): with an index behind them memory holds
what may still change and nothing else, so it does not grow with the log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from buffers.addresses import part_of
from buffers.groups import Group, Member, Producer, Stage, Verdict
from buffers.shelf import Shelf
from contracts.records import (
    Batch,
    Branch,
    Checkpoint,
    Closed,
    Disposition,
    Episode,
    Erased,
    Fault,
    Feedback,
    Followed,
    Guard,
    Hold,
    Ledger,
    Priority,
    Quarantined,
    Record,
    Review,
    Served,
    Session,
    Skip,
    Task,
    Trim,
    Version,
)

FIRST_CONTROL_KIND = 64  # see Kind
SUCCESSES_A_TASK = 8
Successes = tuple[tuple[int, int], ...]  # (episode LSN, reward LSN) of each
UNENDED = tuple(stage for stage in Stage if stage is not Stage.ENDED)
_REWARDABLE = (Stage.PENDING, Stage.READY, Stage.HELD, Stage.OPEN, Stage.FAULTY, Stage.BATCHED)


def _has_ended(group: Group) -> bool:
    return group.stage is Stage.ENDED


@dataclass
class Fold:
    """`apply` records of either log, each log in its order. Compares by value."""

    groups: Shelf[int, Group] = field(default_factory=lambda: Shelf(_has_ended))  # lease → group
    producers: Shelf[str, Producer] = field(default_factory=Shelf)
    versions: Shelf[int, Version] = field(default_factory=Shelf)
    version_lsns: Shelf[tuple[int, int, str], int] = field(default_factory=Shelf)  # (branch, step, root hash) → LSN
    batch_lsns: Shelf[tuple[int, int], int] = field(default_factory=Shelf)  # (branch, step) → LSN
    successes: Shelf[str, Successes] = field(default_factory=Shelf)  # task → its newest ones, oldest first
    priorities: Shelf[int, int] = field(default_factory=Shelf)  # lease → its newest PRIORITY
    late: Shelf[int, int] = field(default_factory=Shelf)  # LSN of a late episode → the LSN its lease closed at
    settled: Shelf[int, int] = field(default_factory=Shelf)  # version → LSN of the SERVED or refusal it had last

    stages: dict[Stage, set[int]] = field(default_factory=lambda: {stage: set() for stage in UNENDED})
    ended: Counter[Disposition] = field(default_factory=Counter)
    positions: dict[int, tuple[int, int]] = field(default_factory=dict)  # unfinished task's position → (lease, attempt)
    frontier: int = 0  # the smallest position never handed out
    ahead: set[int] = field(default_factory=set)  # positions above it that were
    to_hand_again: set[int] = field(default_factory=set)  # positions whose newest lease was abandoned
    num_handed: int = 0
    num_episodes: int = 0
    quarantined: Counter[Fault] = field(default_factory=Counter)
    num_late: int = 0
    num_trained: int = 0
    num_doubled: int = 0  # second copies in the log: always 0, counted so that a fault shows
    num_replaced: int = 0  # groups without spread that were closed since the last batch
    num_unresolved: int = 0  # references to a TASK that rot took

    branch: int = 0  # the newest one
    branches: dict[int, Branch] = field(default_factory=dict)
    newest_version: int = -1
    heads: dict[int, int] = field(default_factory=dict)  # branch → its newest version
    served: int = -1  # the version that the engines took last; -1: none since the owner opened the store
    last_steps: dict[int, int] = field(default_factory=dict)  # branch → step of its newest batch
    open_batches: dict[int, Batch] = field(default_factory=dict)  # LSN → BATCH without VERSION or SKIP
    skip_lsns: dict[int, int] = field(default_factory=dict)  # BATCH LSN → SKIP LSN
    checkpoints: dict[int, tuple[int, Checkpoint]] = field(default_factory=dict)  # branch → newest
    sessions: dict[str, int] = field(default_factory=dict)  # role → newest SESSION

    trim: Trim | None = None  # the newest one
    followed: int = 0  # a shard: what shard 0 decided below this LSN is taken in
    data_end: int = 0  # all records of each log below these LSNs were applied
    control_end: int = 0

    @property
    def shelves(self) -> dict[str, Shelf[Any, Any]]:
        """What an index keeps, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Shelf)}

    def apply(self, lsn: int, record: Record) -> None:
        """Take one record in. Records of one log come in LSN order."""
        if record.KIND < FIRST_CONTROL_KIND:
            self.data_end = lsn + 1
        else:
            self.control_end = lsn + 1
        rule = _RULES.get(type(record))
        if rule is not None:
            rule(self, lsn, record)

    def begin(self, trim: Trim) -> None:
        """Take up, before any record, where a log begins that was trimmed."""
        self.trim = trim
        self.num_handed, self.num_episodes, self.num_late = trim.handed, trim.episodes, trim.episodes_late
        self.ended = Counter({Disposition(name): count for name, count in trim.ended.items()})
        self.quarantined = Counter({Fault(name): count for name, count in trim.quarantined.items()})
        self.frontier, self.ahead = trim.frontier, set(trim.ahead)

    # ------------------------------------------------------------------------------------------ questions

    def ledger(self) -> Ledger:
        """The sums. `in_flight` is counted, not subtracted: `balanced` can fail."""
        return Ledger(
            handed=self.num_handed,
            ended={disposition.value: self.ended[disposition] for disposition in Disposition},
            in_flight=sum(map(len, self.stages.values())),
            ready=len(self.stages[Stage.READY]),
            episodes=self.num_episodes,
            episodes_late=self.num_late,
            episodes_trained=self.num_trained,
            quarantined={fault.value: self.quarantined[fault] for fault in Fault if self.quarantined[fault]},
        )

    @property
    def trimmed_lsn(self) -> int:
        """The data log holds nothing below it."""
        return 0 if self.trim is None else self.trim.data_lsn

    def staleness(self, version: int, ancestor: int) -> int | None:
        """Versions from `ancestor` to `version` along its parents; None where it is no ancestor."""
        hops = 0
        while version > ancestor and (known := self.versions.get(version)) is not None:  # numbers rise along a branch
            version = known.parent
            hops += 1
        return hops if version == ancestor and version in self.versions else None

    def queue(self) -> list[int]:
        """Leases of ready groups, in the order in which they became complete."""
        return sorted(self.stages[Stage.READY], key=lambda lease: self.groups[lease].ready_lsn)

    @property
    def num_outstanding(self) -> int:
        """Groups in flight or waiting in the queue: handed out, neither ended, nor in a batch, nor pending."""
        return sum(len(self.stages[stage]) for stage in (Stage.OPEN, Stage.FAULTY, Stage.READY))

    @property
    def num_pending(self) -> int:
        """Complete groups that cannot be trained on yet: a reward is not there, or somebody is to look at them."""
        return len(self.stages[Stage.PENDING]) + len(self.stages[Stage.HELD])

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
        version = None if head is None else self.versions.get(head)
        return 0 if version is None else version.step

    def num_unsettled(self, branch: int) -> int:
        """Steps that were decided and that the engines have not seen: open batches, and a head neither served nor
        refused."""
        num_open = sum(batch.branch == branch for batch in self.open_batches.values())
        head = self.head(branch)
        return num_open + (head is None or head not in self.settled)

    # ------------------------------------------------------------------------------------------ data

    def _task(self, lsn: int, task: Task) -> None:
        self.groups[lsn] = Group(lease=lsn, task=task)
        self.stages[Stage.OPEN].add(lsn)
        self.num_handed += 1
        position = task.position
        known = self.positions.get(position)
        if known is None or known[1] < task.attempt:
            self.positions[position] = (lsn, task.attempt)
            self.to_hand_again.discard(position)
        if position >= self.frontier:
            self.ahead.add(position)
        while self.frontier in self.ahead:
            self.ahead.remove(self.frontier)
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
            deadline = episode.reward_deadline
            group.members[episode.member] = Member(
                episode.valid, episode.oldest_version, episode.reward, reward_lsn=lsn, ready_lsn=lsn, deadline=deadline
            )
        self._remember(episode, lsn)
        self._place(group)

    def _quarantined(self, lsn: int, record: Quarantined) -> None:
        """It stands in its member's place, where it has one, and makes the group faulty."""
        self._remember(record, lsn)
        if record.fault is Fault.LEASE:
            self.quarantined[record.fault] += 1
            return
        group = self._find(record.lease)
        if group is None:
            return
        if record.member in group.lsns:
            self.num_doubled += 1
            return
        self.quarantined[record.fault] += 1
        group.lsns[record.member] = lsn
        group.faults[record.member] = record.fault
        if group.stage is not Stage.ENDED:
            group.members[record.member] = Member(
                valid=False, oldest_version=-1, reward=None, reward_lsn=lsn, ready_lsn=lsn, deadline=None
            )
        self._place(group)

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

    def _hold(self, lsn: int, hold: Hold) -> None:
        self._judge(lsn, hold.lease, Verdict.HELD)

    def _review(self, lsn: int, review: Review) -> None:
        self._judge(lsn, review.lease, Verdict.ACCEPTED if review.accepted else Verdict.REJECTED)

    def _priority(self, _: int, record: Priority) -> None:
        for lease, priority in zip(record.leases, record.priorities, strict=True):
            self.priorities[lease] = priority

    def _judge(self, lsn: int, lease: int, verdict: Verdict) -> None:
        """The last one counts, until the group ends; in a batch it changes nothing any more."""
        group = self._find(lease)
        if group is not None and group.stage is not Stage.ENDED:
            group.verdict, group.verdict_lsn = verdict, lsn
            self._place(group)

    def _remember(self, record: Episode | Quarantined, lsn: int) -> None:
        """The high-water mark of its producer."""
        name, epoch, seq = record.producer, record.producer_epoch, record.seq
        if seq < 0:
            return
        known = self.producers.get(name)
        if known is None:
            self.producers[name] = Producer(epoch, seq, lsn)
        elif known.epoch < epoch or (known.epoch == epoch and known.newest < seq):
            known.epoch, known.newest, known.newest_lsn = epoch, seq, lsn
            self.producers.touch(name)

    # ------------------------------------------------------------------------------------------ groups

    def _find(self, lease: int) -> Group | None:
        if lease < self.trimmed_lsn:
            return None  # it is in the sums
        group = self.groups.get(lease)
        if group is None:
            self.num_unresolved += 1
        return group

    def _find_all(self, leases: Iterable[int]) -> list[Group]:
        return [group for group in map(self._find, leases) if group is not None]

    def _place(self, group: Group) -> None:
        """Put the group where its members and its end say it belongs."""
        self.groups.touch(group.lease)
        if group.closed_at is not None:
            self._count_late(group, group.closed_at)
        if group.stage in (Stage.BATCHED, Stage.ENDED):
            return
        stage = group.unended_stage()
        if stage is not group.stage:
            self._move(group, stage)

    def _move(self, group: Group, stage: Stage) -> None:
        if group.stage is not Stage.ENDED:
            self.stages[group.stage].remove(group.lease)
        if stage is not Stage.ENDED:
            self.stages[stage].add(group.lease)
        group.stage = stage
        self.groups.touch(group.lease)

    def _end(self, group: Group, disposition: Disposition) -> None:
        if group.disposition is not None:
            self.ended[group.disposition] -= 1
        group.end(disposition)
        self.ended[disposition] += 1
        self._move(group, Stage.ENDED)
        self._finish(group)

    def _finish(self, group: Group) -> None:
        """A task whose newest lease has ended needs its position no more, unless it is to be handed out again."""
        position = group.task.position
        if self.positions.get(position, (-1, 0))[0] != group.lease:
            return
        if group.disposition in (Disposition.ABANDONED, Disposition.LATE):
            self.to_hand_again.add(position)
        else:
            del self.positions[position]

    def _count_late(self, group: Group, closed_at: int) -> None:
        """Count its late episodes; an abandoned lease that has no others is LATE."""
        late = [lsn for lsn in group.lsns.values() if lsn >= closed_at]
        num_late = len(late)
        if num_late != group.num_late:
            for lsn in late:
                self.late[lsn] = closed_at
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
            if group.stage in (Stage.BATCHED, Stage.ENDED):
                continue
            group.closed_at = closed.data_lsn
            self.num_replaced += closed.disposition is Disposition.ZERO_SPREAD
            self._end(group, closed.disposition)
            self._place(group)

    def _batch(self, lsn: int, batch: Batch) -> None:
        batch = part_of(batch, shard=0)  # the LSNs of this log; a copy in another shard's log has its own alone
        self.batch_lsns[batch.branch, batch.step] = lsn
        self.last_steps[batch.branch] = batch.step
        self.num_replaced = 0
        self.open_batches[lsn] = batch
        for group in self._find_all(leases_of(batch)):
            if group.stage is not Stage.ENDED:  # else another branch read it: it has its end
                self._move(group, Stage.BATCHED)
        for row in batch.remembered:
            for group in self._find_all((row.lease,)):
                known = self.successes.get(group.task.task_id) or ()
                self.successes[group.task.task_id] = (*known, (row.episode_lsn, row.reward_lsn))[-SUCCESSES_A_TASK:]
        for drop in batch.dropped:
            for group in self._find_all((drop.lease,)):
                group.closed_at = batch.data_lsn
                self._end(group, drop.disposition)
                self._place(group)

    def _settle_batch(self, batch_lsn: int, end: Callable[[int, Batch], Disposition]) -> Batch | None:
        """End the groups of an open batch; None where it is not open."""
        batch = self.open_batches.pop(batch_lsn, None)
        if batch is not None:
            for group in self._find_all(leases_of(batch)):
                if group.stage is Stage.BATCHED:
                    self._end(group, end(group.lease, batch))
        return batch

    def _version(self, lsn: int, version: Version) -> None:
        self.versions[version.version] = version
        self.newest_version = max(self.newest_version, version.version)
        self.heads[version.branch] = version.version
        self.version_lsns[version.branch, version.step, version.root_hash] = lsn
        batch = self._settle_batch(version.batch_lsn, _trained)
        if batch is not None:
            self.num_trained += len(batch.rows)

    def _skip(self, lsn: int, skip: Skip) -> None:
        self.skip_lsns[skip.batch_lsn] = lsn
        self._settle_batch(skip.batch_lsn, lambda _lease, _batch: Disposition.SKIPPED)

    def _served(self, lsn: int, served: Served) -> None:
        self.served = served.version
        self.settled[served.version] = lsn

    def _guard(self, lsn: int, guard: Guard) -> None:
        if guard.verdict == "refused":
            self.settled[guard.version] = lsn

    def _checkpoint(self, lsn: int, checkpoint: Checkpoint) -> None:
        self.checkpoints[checkpoint.branch] = (lsn, checkpoint)

    def _trim(self, _: int, trim: Trim) -> None:
        if trim.data_lsn > self.trimmed_lsn:
            self.trim = trim

    def _erased(self, _: int, erased: Erased) -> None:
        """What is empty is not replayed: neither as a stored success nor by a reader of the index."""
        gone = set(erased.lsns)
        for task_id, stored in self.successes.items():
            kept = tuple(row for row in stored if row[0] not in gone)
            if len(kept) < len(stored):
                self.successes[task_id] = kept
        for lsn in erased.lsns:
            self.late[lsn] = lsn

    def _followed(self, _: int, followed: Followed) -> None:
        self.followed = followed.control_lsn

    def _branch(self, _: int, branch: Branch) -> None:
        """Its batches say what is remembered on it: the first one also what was before it."""
        self.branches[branch.branch] = branch
        self.branch = branch.branch
        for task_id in sorted(self.successes):
            self.successes[task_id] = ()


def leases_of(batch: Batch) -> list[int]:
    """Leases of a batch's groups, each once, in row order; without those that it learns from once more."""
    return list(dict.fromkeys(row.lease for row in batch.rows if not row.replayed))


def _trained(lease: int, batch: Batch) -> Disposition:
    return Disposition.ZERO_SPREAD if lease in batch.zero_spread else Disposition.TRAINED


_RULES: dict[type[Record], Callable[..., None]] = {
    Task: Fold._task,
    Episode: Fold._episode,
    Feedback: Fold._feedback,
    Quarantined: Fold._quarantined,
    Hold: Fold._hold,
    Review: Fold._review,
    Priority: Fold._priority,
    Erased: Fold._erased,
    Followed: Fold._followed,
    Trim: Fold._trim,
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
