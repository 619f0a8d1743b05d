"""The whole store against a model of a page, rule by rule: `python -m tests.unit.buffers.machine --seconds 600`.

Hypothesis draws what happens: leases, episodes (valid, failed, waiting for a reward, sent twice, too late), rewards,
batches, versions, skips, leases that time out, owners that end and come back, an index that is deleted. After each rule
the store's sums are those of the model, and at the end its log reads as the model remembers it.
Not covered: several branches, staleness, `sync` mode, groups without spread (tests/unit/buffers/test_owner.py).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from buffers.owner import StoreOwner
from buffers.view import StoreView
from contracts.records import Batch, Feedback, Lease, Ledger, Served, Skip, StopReason
from tests.crash.disk import unsynced
from tests.unit.buffers.bench import GROUP_SIZE, GROUPS_PER_STEP, Bench, Clock, name_task, small_config

FAR_S = 1e12  # a deadline that never comes
FAR_STALENESS = 9_999
EXAMPLES, STEPS = 20, 60  # of one round of the command
FATES = ("valid", "valid", "valid", "pending", "failed")


@dataclass
class Member:
    """An episode as the model remembers it."""

    lsn: int
    failed: bool
    late: bool
    reward_lsn: int | None  # None: there is no reward yet
    ready_lsn: int


@dataclass
class Group:
    lease: Lease
    members: dict[int, Member] = field(default_factory=dict)
    end: str = ""  # its disposition; "batched" in between
    held: bool = True
    expired: bool = False

    @property
    def stage(self) -> str:
        if self.end:
            return self.end
        if len(self.members) < GROUP_SIZE:
            return "open"
        if any(member.failed for member in self.members.values()):
            return "faulty"
        pending = any(member.reward_lsn is None for member in self.members.values())
        return "pending" if pending else "ready"

    @property
    def ready_lsn(self) -> int:
        return max(member.ready_lsn for member in self.members.values())


class StoreMachine(RuleBasedStateMachine):
    """`self.groups` is the model; `self.bench` drives the real store."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ratchet-model-"))
        self.clock = Clock()
        self.groups: dict[int, Group] = {}
        self.bench: Bench
        self.again: set[int] = set()  # positions to be handed out again
        self.next_position = 0
        self.version, self.step = 0, 0
        self.open_batch: tuple[int, Batch] | None = None
        self.serving = False
        self.last_lsn = -1
        self.trained = 0

    @initialize()
    def make(self) -> None:
        self._open(create=True)
        self.bench.decide_version(0)
        self.serve()

    # ------------------------------------------------------------------------------------------ life

    def _open(self, *, create: bool = False) -> None:
        owner = StoreOwner.open(
            self.folder / "store",
            config=small_config(max_staleness=FAR_STALENESS, steps=10_000),
            source=name_task,
            create=create,
            clock=self.clock,
        )
        self.bench = Bench(owner)

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self._check_log()
            self.bench.owner.close()
        shutil.rmtree(self.folder)

    # ------------------------------------------------------------------------------------------ rules

    @rule()
    def serve(self) -> None:
        self.bench.owner.decide(Served(version=self.version, gap=0.0), self.bench.session)
        self.serving = True

    @rule(num=st.integers(1, 3))
    def lease(self, num: int) -> None:
        got = self.bench.lease(num)
        self._sweep()
        if not self.serving:
            assert got == []
            return
        orphans = [lsn for lsn, group in sorted(self.groups.items()) if group.stage == "open" and not group.held]
        resumed = orphans[:num]
        num_fresh = max(0, num - len(resumed) - len(self.again))
        wanted = sorted(self.again)[: num - len(resumed)]
        wanted += range(self.next_position, self.next_position + num_fresh)
        assert [lease.lsn for lease in got[: len(resumed)]] == resumed
        assert [lease.task.position for lease in got[len(resumed) :]] == wanted
        for lease in got[: len(resumed)]:
            group = self.groups[lease.lsn]
            assert lease.missing == tuple(sorted(set(range(GROUP_SIZE)) - group.members.keys()))
            group.held = True
        for lease in got[len(resumed) :]:
            self._note(lease.lsn)
            self.groups[lease.lsn] = Group(lease)
        self.again -= set(wanted)
        self.next_position += num_fresh

    @precondition(lambda self: self.groups)
    @rule(data=st.data(), fate=st.sampled_from(FATES))
    def append(self, data: st.DataObject, fate: str) -> None:
        """A member of any lease that there ever was: new, again, or too late."""
        group = self.groups[data.draw(st.sampled_from(sorted(self.groups)), label="lease")]
        number = data.draw(st.integers(0, GROUP_SIZE - 1), label="member")
        changes: dict[str, Any] = {}
        if fate == "failed":
            changes = {"stop_reason": StopReason.ENV_ERROR, "reward": None}
        elif fate == "pending":
            changes = {"reward": None, "reward_deadline": FAR_S}
        (ack,) = self.bench.owner.append([self.bench.make(group.lease, number, **changes)])
        self._sweep()
        known = group.members.get(number)
        if known is None:
            self._note(ack.lsn)
            late = group.end in ("abandoned", "late")
            reward_lsn = ack.lsn if fate == "valid" else None
            group.members[number] = Member(ack.lsn, fate == "failed", late, reward_lsn, ack.lsn)
            if group.end == "abandoned" and all(member.late for member in group.members.values()):
                group.end = "late"
        member = group.members[number]
        assert (ack.lsn, ack.duplicate, ack.late) == (member.lsn, known is not None, member.late)

    @precondition(lambda self: any(group.members for group in self.groups.values()))
    @rule(data=st.data())
    def reward(self, data: st.DataObject) -> None:
        """For any episode that there ever was: it counts until the group's end."""
        members = [(lsn, number) for lsn, group in sorted(self.groups.items()) for number in sorted(group.members)]
        lsn, number = data.draw(st.sampled_from(members), label="episode")
        group, member = self.groups[lsn], self.groups[lsn].members[number]
        episode_id = self.bench.make(group.lease, number).episode_id
        feedback = Feedback(episode_id=episode_id, episode_lsn=member.lsn, reward=10.0 + number)
        got = self.bench.owner.append_feedback(feedback)
        self._note(got)
        if group.stage in ("open", "pending", "ready", "faulty"):
            member.ready_lsn = got if member.reward_lsn is None else member.ready_lsn
            member.reward_lsn = got

    @rule()
    def time_out(self) -> None:
        self.clock.now_s += 100.0
        for group in self.groups.values():
            group.expired = group.held and group.stage == "open"

    @precondition(lambda self: self.open_batch is None)
    @rule()
    def cut(self) -> None:
        """First come, first served; asked twice, the same."""
        request = self.bench.request(self.step + 1, parent_version=self.version, max_staleness=FAR_STALENESS)
        cut = self.bench.owner.append_batch(request)
        self._sweep()
        ready = sorted(
            (group for group in self.groups.values() if group.stage == "ready"), key=lambda one: one.ready_lsn
        )
        if len(ready) < GROUPS_PER_STEP:
            assert cut is None
            return
        assert cut is not None
        chosen = sorted(ready[:GROUPS_PER_STEP], key=lambda group: group.lease.task.position)
        expected = [member for group in chosen for _, member in sorted(group.members.items())]
        assert [(row.episode_lsn, row.reward_lsn) for row in cut[1].rows] == [
            (member.lsn, member.reward_lsn) for member in expected
        ]
        assert self.bench.owner.append_batch(request) == cut
        self.open_batch, self.step = cut, self.step + 1
        for group in chosen:
            group.end = "batched"

    @precondition(lambda self: self.open_batch is not None)
    @rule(skipped=st.booleans())
    def settle(self, skipped: bool) -> None:
        assert self.open_batch is not None
        lsn, batch = self.open_batch
        if skipped:
            self.bench.owner.decide(
                Skip(batch_lsn=lsn, step=self.step, branch=0, reason="it fails"), self.bench.session
            )
        else:
            self.version += 1
            self.bench.decide_version(self.version, step=self.step, batch_lsn=lsn)
            self.trained += len(batch.rows)
        for group in self.groups.values():
            if group.end == "batched":
                group.end = "skipped" if skipped else "trained"
        self.open_batch = None

    @rule(index=st.sampled_from(("kept", "kept", "deleted", "damaged")))
    def come_back(self, index: str) -> None:
        """Another owner, with or without the index."""
        self.bench.owner.close()
        folder = self.folder / "store" / "index"
        if index == "deleted":
            shutil.rmtree(folder)
        elif index == "damaged":
            (folder / "data.mdb").write_bytes(b"rubbish" * 999)
        self._open()
        self.serving = False
        for group in self.groups.values():
            group.held = group.expired = False
        self._sweep()

    # ------------------------------------------------------------------------------------------ the model

    def _note(self, lsn: int) -> None:
        """LSNs of the data log rise, and none comes twice."""
        assert lsn > self.last_lsn
        self.last_lsn = lsn

    def _sweep(self) -> None:
        """What ends by itself, whenever the store is asked for something."""
        for group in self.groups.values():
            if group.stage == "faulty":
                group.end = "quarantined"
            elif group.stage == "open" and group.expired:
                group.end = "abandoned"
                self.again.add(group.lease.task.position)

    @invariant()
    def sums(self) -> None:
        if hasattr(self, "bench"):
            self._compare(self.bench.owner.ledger())

    def _compare(self, ledger: Ledger) -> None:
        stages = Counter(group.stage for group in self.groups.values())
        members = [member for group in self.groups.values() for member in group.members.values()]
        assert ledger.balanced
        assert (ledger.handed, ledger.episodes) == (len(self.groups), len(members))
        assert (ledger.ready, ledger.episodes_trained) == (stages["ready"], self.trained)
        assert ledger.episodes_late == sum(member.late for member in members)
        assert {how: num for how, num in ledger.ended.items() if num} == {
            how: num for how, num in stages.items() if how in ledger.ended
        }

    def _check_log(self) -> None:
        """Another process reads the same."""
        with StoreView.open(self.folder / "store") as view:
            self._compare(view.ledger())
            lsns = [member.lsn for group in self.groups.values() for member in group.members.values()]
            assert len({episode.episode_id for episode in view.episodes(lsns)}) == len(lsns)


def run(*, number: int, examples: int, steps: int) -> None:
    """Try `examples` histories of up to `steps` rules."""
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    with unsynced():  # nothing here loses power
        run_state_machine_as_test(seed(number)(StoreMachine), settings=chosen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    end_s, rounds = time.monotonic() + options.seconds, 0
    while time.monotonic() < end_s:
        run(number=options.seed + rounds, examples=EXAMPLES, steps=STEPS)
        rounds += 1
    print(f"{rounds * EXAMPLES} histories of up to {STEPS} rules, seeds {options.seed} to {options.seed + rounds - 1}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
