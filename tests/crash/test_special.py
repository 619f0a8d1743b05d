"""Deaths and revivals that random kills do not meet: rivals, stopped processes, a deadly batch, other bits, Ctrl-C.

Runs are copies of one small run that lost its power between two checkpoints, each in a folder of its own.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from buffers.groups import Group, Stage
from buffers.owner import StoreOwner
from buffers.view import StoreView
from console.status import read_status
from contracts.errors import StoreBusyError
from contracts.records import Batch, Checkpoint, Disposition, Failure, Kind, Skip, Version
from telemetry.logs import read_lines
from tests.crash.run import DRAIN_S, END_S, SMALL, Run
from tests.crash.store import Oracle, find_faults, make_run_folder
from tests.unit.buffers.bench import name_task, opened, small_config

CHECKPOINT_EVERY, GROUPS_PER_STEP = int(SMALL["checkpoint.every_steps"]), int(SMALL["learner.groups_per_step"])
CONTENDERS = 4

ray = pytest.mark.ray
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def powerless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run all of whose processes ended at once, some steps after a checkpoint, with a full queue."""
    # float32: with bfloat16 a model as small as this has the same bits on one thread and on two.
    with closing(Run(tmp_path_factory.mktemp("powerless"))) as run:
        run.launch(learner__precision="fp32", warm_start__steps=30)
        run.wait_for_step(CHECKPOINT_EVERY)
        run.freeze("update-0", when=is_between_checkpoints, what="some steps after a checkpoint")
        run.wait_for_view(lambda view: len(view.fold.stages[Stage.READY]) >= GROUPS_PER_STEP, what="a full queue")
        run.kill_all()
        yield run


@pytest.fixture
def run(powerless: Run, tmp_path: Path) -> Iterator[Run]:
    with closing(Run(tmp_path, base=powerless)) as copy:
        yield copy


def is_between_checkpoints(view: StoreView) -> bool:
    """And the newest version is served: engines that are paused for a push make nothing."""
    head = view.fold.head(0)
    return 5 <= newest_step(view) % CHECKPOINT_EVERY <= 8 and head is not None and head in view.fold.settled


def newest_step(view: StoreView) -> int:
    return max((version.step for version in view.fold.versions.values()), default=0)


def check(run: Run) -> StoreView:
    """Nothing that was heard is lost, nothing doubled, the sums are right."""
    heard, lost, doubled, balanced, _ = run.check_store()
    assert heard > 0
    assert (lost, doubled, balanced) == (0, 0, True)
    return run.view()


def end_by_hand(run: Run) -> None:
    run.interrupt()
    assert run.wait_end(timeout_s=DRAIN_S)[1] == 130, run.read_output()


def count_lines(run: Run, phase: str) -> int:
    return sum(line["phase"] == phase for line in read_lines(run.folder / "metrics.jsonl"))


# ------------------------------------------------------------------------------------------------ rivals


@pytest.mark.parametrize("rounds", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_of_owners_that_start_at_once_one_wins(tmp_path: Path, rounds: int) -> None:
    with opened(tmp_path / "store") as bench:
        epoch = bench.owner.epoch
    for _ in range(rounds):
        answers = contend(tmp_path / "store")
        winners = [answer for answer in answers if answer.startswith("owner")]
        epoch += 1
        assert winners == [f"owner {epoch}"]
        others = [answer for answer in answers if answer not in winners]
        assert all(answer.startswith("busy") and "is held by" in answer for answer in others), others


def contend(folder: Path) -> list[str]:
    """What CONTENDERS processes say that try to own the store at the same moment; all have ended."""
    command = [sys.executable, "-m", "tests.crash.contender", str(folder)]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            )
            for _ in range(CONTENDERS)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
        return [process.stdout.readline().strip() for process in processes if process.stdout]


def test_a_stopped_owner_cannot_come_back(tmp_path: Path) -> None:
    """A take-over kills the process that the lock names and no other; the stopped one's next write never happens."""
    command = [sys.executable, "-m", "tests.crash.store_life"]
    runs = [make_run_folder(tmp_path, number=number) for number in range(2)]
    folder = runs[0] / "store"
    with ExitStack() as stack:
        owner, bystander = (
            stack.enter_context(subprocess.Popen([*command, str(run), "0"], stdout=subprocess.PIPE, text=True))
            for run in runs
        )
        stack.callback(bystander.kill)
        stack.callback(owner.kill)
        assert owner.stdout is not None
        assert bystander.stdout is not None
        assert (owner.stdout.readline(), bystander.stdout.readline()) == ("open 1\n", "open 1\n")
        promised = [owner.stdout.readline() for _ in range(100)]
        owner.send_signal(signal.SIGSTOP)
        with pytest.raises(StoreBusyError, match="is held by process"):
            StoreOwner.open(folder, config=small_config(), source=name_task)
        taken = StoreOwner.open(folder, config=small_config(), source=name_task, take_over=True)
        stack.callback(taken.close)
        end = (str(taken.status()["data_lsn"]), str(taken.status()["control_lsn"]))
        owner.send_signal(signal.SIGCONT)
        assert owner.wait(timeout=END_S) == -signal.SIGKILL
        promised += owner.stdout.readlines()
        assert (str(taken.status()["data_lsn"]), str(taken.status()["control_lsn"])) == end
        oracle = Oracle()
        for line in promised:
            oracle.hear(line.rstrip("\n"))
        assert oracle.num_promises > 0
        assert find_faults(runs[0], oracle) == []
        assert taken.ledger().balanced
        assert bystander.poll() is None
        assert bystander.stdout.readline() != ""


@ray
def test_a_stopped_rollout_worker_comes_back_late(run: Run) -> None:
    """Its tasks are tried again under new leases; what it brings is kept, marked late, and never trained on.

    On the way: a live run cannot be resumed.
    """
    run.launch(rollout__workers=2, rollout__lease_timeout_s=3)
    run.wait_to_go_on()
    refused = run.ratchet("resume", str(run.folder))
    assert refused.returncode == 2
    assert "(process" in refused.stderr
    assert "ratchet stop" in refused.stderr

    view = run.freeze("rollout-1", when=lambda view: bool(held_by(view, "rollout-1.")), what="leases of rollout-1")
    stopped = held_by(view, "rollout-1.")
    at = run.step()

    def were_tried_again(view: StoreView) -> bool:
        groups = [view.fold.groups[lease] for lease in stopped]
        by_attempt = sorted(view.fold.groups.values(), key=lambda group: group.task.attempt)
        newest = {group.task.position: group for group in by_attempt}
        newer = [newest[group.task.position] for group in groups]
        ended = (Disposition.TRAINED, Disposition.ZERO_SPREAD)
        return all(
            group.disposition is Disposition.ABANDONED and again.lease not in stopped and again.disposition in ended
            for group, again in zip(groups, newer, strict=True)
        )

    run.wait_for_view(were_tried_again, what="the tasks of rollout-1 trained under new leases")
    assert run.step() > at, "the run goes on without it"
    run.thaw("rollout-1")
    view = run.wait_for_view(
        lambda view: all(view.fold.groups[lease].disposition is Disposition.LATE for lease in stopped),
        what="late episodes",
    )
    late = {lsn for lease in stopped for lsn in view.fold.groups[lease].lsns.values()}
    assert all(view.fold.groups[lease].num_late == view.fold.groups[lease].task.group_size for lease in stopped)
    run.wait_until(lambda: late <= {lsn for _, lsn in run.oracle.heard()}, what="late episodes are acknowledged")
    run.wait_for_step(run.step())
    end_by_hand(run)
    view = check(run)
    assert view.ledger().episodes_late >= len(late)
    batches = [record for _, record in view.decisions(kinds=[Kind.BATCH]) if isinstance(record, Batch)]
    assert not late & {row.episode_lsn for batch in batches for row in batch.rows}


def held_by(view: StoreView, producer: str) -> set[int]:
    """Open leases that were handed to slots of this worker."""
    groups: list[Group] = [view.fold.groups[lease] for lease in view.fold.stages[Stage.OPEN]]
    return {group.lease for group in groups if group.task.producer.startswith(producer)}


# ------------------------------------------------------------------------------------------------ the learner


@ray
@pytest.mark.slow
def test_a_batch_that_kills_the_learner_twice_is_skipped(run: Run) -> None:
    run.launch()
    known = newest_step(run.view())

    def is_computing(view: StoreView) -> bool:
        return any(batch.step > known + 1 for batch in view.fold.open_batches.values())

    view = run.freeze("update-0", when=is_computing, what="an open batch")
    ((lsn, batch),) = view.fold.open_batches.items()
    die_of(run)
    session = view.fold.sessions["learner"]

    run.launch()
    run.freeze("update-0", when=lambda view: view.fold.sessions["learner"] > session, what="a new learner")
    assert lsn in run.view().fold.open_batches, "the learner was stopped too late"
    die_of(run)
    failures = [record for _, record in run.view().decisions(kinds=[Kind.FAILURE])]
    assert [one.batch_lsn for one in failures if isinstance(one, Failure)] == [lsn, lsn]

    run.launch()
    run.wait_for_step(batch.step)
    alerts = [line for line in read_lines(run.folder / "logs" / "update-0.jsonl") if line["level"] == "error"]
    assert [(line["message"], line["step"]) for line in alerts] == [("batch skipped", batch.step)]
    end_by_hand(run)
    view = check(run)
    skips = [record for _, record in view.decisions(kinds=[Kind.SKIP]) if isinstance(record, Skip)]
    assert [(skip.batch_lsn, skip.step) for skip in skips] == [(lsn, batch.step)]
    leases = {row.lease for row in batch.rows}
    assert {view.fold.groups[lease].disposition for lease in leases} == {Disposition.SKIPPED}
    assert view.ledger().ended["skipped"] == len(leases)
    versions = {version.step: version for version in view.fold.versions.values()}
    assert batch.step not in versions
    assert versions[batch.step + 1].parent == versions[batch.step - 1].version
    replayed = json.loads(run.ratchet("replay", str(run.folder), "--json").stdout)
    assert replayed["equal"] == replayed["steps"] == newest_step(view) - 1


def die_of(run: Run) -> None:
    """Kill the stopped learner; the driver says so and ends."""
    run.kill("update-0")
    assert run.wait_end()[1] == 1
    assert "update-0" in run.read_output()
    assert "ratchet resume" in run.read_output()


@ray
@pytest.mark.slow
def test_other_bits_make_new_versions(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run.view()
    old = dict(before.fold.versions)
    checkpoints = [record for _, record in before.decisions(kinds=[Kind.CHECKPOINT]) if isinstance(record, Checkpoint)]
    base = checkpoints[-1]
    assert newest_step(before) > base.step > 0
    # An engine and a learner of two threads need three cores, which this machine may not have: say that it has.
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", json.dumps({"CPU": 4}))
    run.launch(learner__threads=2, checkpoint__keep=100)
    run.wait_for_step(newest_step(before) + 3)
    end_by_hand(run)

    said = run.read_output()
    assert "learner.threads: 1 before, 2 now" in said
    assert said.index("new version numbers") < said.index("step "), "warned before anything was computed"
    log = [line["message"] for line in read_lines(run.folder / "logs" / "update-0.jsonl")]
    (warned,) = [place for place, message in enumerate(log) if message.startswith("the learner may compute other bits")]
    assert warned < log.index("checkpoint loaded")

    view = check(run)
    new = {number: version for number, version in view.fold.versions.items() if number not in old}
    assert min(new) > max(old), "no number is used again"
    again = [version for version in new.values() if version.step <= newest_step(before)]
    assert again, "two threads computed the same bits as one"
    old_hashes = {(version.step, version.root_hash) for version in old.values()}
    assert not {(version.step, version.root_hash) for version in again} & old_hashes
    check_branch(view, first=again[0], since=view.fold.sessions["learner"])

    replayed = run.ratchet("replay", str(run.folder), "--json")
    outcome = json.loads(replayed.stdout)
    assert outcome["steps"] == newest_step(view)
    assert set(outcome["unequal"]) <= set(range(1, base.step + 1)), "the steps of two threads are equal"
    assert replayed.returncode == (1 if outcome["unequal"] else 0)
    assert not outcome["unequal"] or "threads was 1 then 2 and is 2" in replayed.stderr


def check_branch(view: StoreView, *, first: Version, since: int) -> None:
    """What versions off the new ancestry made is not trained on by batches that were cut since."""
    fold = view.fold
    off = {number for number in fold.versions if number < first.version and fold.versions[number].step >= first.step}
    assert off
    batches = [(lsn, batch) for lsn, batch in view.decisions(kinds=[Kind.BATCH]) if isinstance(batch, Batch)]
    for _, batch in (pair for pair in batches if pair[0] > since):
        for episode in view.episodes([row.episode_lsn for row in batch.rows]):
            assert fold.staleness(batch.parent_version, episode.oldest_version) in (0, 1)
    assert view.ledger().ended["off_branch"] > 0


# ------------------------------------------------------------------------------------------------ Ctrl-C


@ray
@pytest.mark.parametrize("goes_on", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_interrupted_once_it_drains_and_twice_it_stops_at_once(run: Run, goes_on: bool) -> None:
    run.launch()
    run.wait_to_go_on()
    again = count_lines(run, "recover")
    assert again >= 5, "the steps since the checkpoint were computed again"
    end_by_hand(run)
    assert "draining" in run.read_output()
    assert read_status(run.folder)["state"] == "stopped"
    view = check(run)
    (*_, checkpoint) = (record for _, record in view.decisions(kinds=[Kind.CHECKPOINT]))
    assert isinstance(checkpoint, Checkpoint)
    assert checkpoint.step == newest_step(view)

    run.launch()
    run.wait_to_go_on()
    assert count_lines(run, "recover") == again, "nothing was computed again"
    run.interrupt()
    run.wait_until(lambda: "draining" in run.read_output(), what="the first Ctrl-C is answered")
    run.interrupt()
    assert run.wait_end()[1] == 130
    assert read_status(run.folder)["state"] == "stopped"
    check(run)
    if goes_on:
        run.launch()
        run.wait_to_go_on()
        end_by_hand(run)
    *_, one_hash_a_step = run.check_store()
    assert one_hash_a_step


# ------------------------------------------------------------------------------------------------ the store is lost


@ray
@pytest.mark.parametrize("replaced", [False, True], ids=["gone", "replaced"])
def test_resume_refuses_a_lost_store(run: Run, tmp_path: Path, replaced: bool) -> None:
    shutil.move(run.folder / "store", tmp_path / "elsewhere")
    if replaced:
        with opened(run.folder / "store"):
            pass
    before = listing(run.folder)
    refused = run.ratchet("resume", str(run.folder), "--set", "steps=50")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 3, refused.stderr
    assert ("holds another store" if replaced else "store.json is missing") in refused.stderr
    assert listing(run.folder) == before
    shutil.rmtree(run.folder / "store", ignore_errors=True)
    shutil.move(tmp_path / "elsewhere", run.folder / "store")
    assert run.view().ledger().balanced


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything under `folder`."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}
