"""A rewind: what goes, what it ends with, that the run stays as it was, and every point at which it can be stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from buffers.owner import StoreOwner
from buffers.query import Query
from buffers.verification import verify
from buffers.view import StoreView
from configs.schema import RunConfig
from contracts.errors import RunFolderError, UserError
from contracts.records import Batch, Branch, Evaluation, Kind, Session, Skip, Version
from loops.ancestry import Ancestry
from loops.exclusion import Descendants, Plan, Request, make_plan
from loops.refold import checkpoint_before, refold
from loops.replay import computed_batches, replay
from loops.rewind import Rewind, cut_branch, read_cut
from loops.tasks import PermutedSource
from tests.crash.plain import NumpyLearner, PlainRun, plain_config
from tests.unit.loops.test_protocol import Crash, Tripwire, Watched

STEPS = 8
WATCHED = {"store": {"open_session", "append_chosen", "decide", "review"}, "learner": {"save", "load"}}


def make_run(root: Path, *, mode: str = "sync", steps: int = STEPS, base: str = "") -> Path:
    config = plain_config(mode=mode, steps=steps)
    folder = root / "run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}\n")
    (folder / "manifest.json").write_text('{"run": "run"}\n')
    run = PlainRun(folder, config=config, base=base)
    run.go()
    run.close()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("rewind"))


@pytest.fixture(scope="module")
def live_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`async`: a batch holds what older versions made."""
    return make_run(tmp_path_factory.mktemp("rewind-async"), mode="async")


def batches_of(folder: Path, *, branch: int | None = None) -> list[Batch]:
    return [batch for _, batch in computed_batches(StoreView.open(folder / "store").decisions(), branch=branch)]


def task_of(folder: Path, step: int) -> str:
    """A task that was learned from at `step`."""
    (batch,) = [one for one in batches_of(folder, branch=0) if one.step == step]
    (episode,) = StoreView.open(folder / "store").episodes([batch.rows[0].episode_lsn])
    return episode.task_id


def ask_for(folder: Path, step: int, *, descendants: Descendants = "keep") -> Request:
    """Leaves out one group that was learned from at `step` (and again, where its task came back)."""
    task = task_of(folder, step)
    return Request(queries=(Query(task=task),), text=f"task={task}", descendants=descendants)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock.mdb")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rewind(
    run: Path, to: Path, request: Request, *, wire: Tripwire | None = None, config: RunConfig | None = None, **more: Any
) -> tuple[Plan, str]:
    """The plan, and the hash of the weights that it ends with. `wire` stops it."""
    wire = wire or Tripwire(0)
    cut_branch(run, to=to, request=request)
    wire.pass_by()
    learner, config = NumpyLearner(), config or plain_config(steps=STEPS)
    uuid = json.loads((to / "manifest.json").read_text())["store_uuid"]
    source = PermutedSource("guess", num_items=50, seed=1)
    owner = StoreOwner.open(to / "store", uuid=uuid, config=config, source=source)
    try:
        work = Rewind(
            Watched(owner, WATCHED["store"], wire),
            Watched(learner, WATCHED["learner"], wire),
            folder=to,
            request=request,
            checkpoint_every=2,
            keep=2,
            session=Session(role="learner", epoch=0),
            **more,
        )
        work.run()
        return work.plan, learner.root_hash()
    finally:
        owner.close()


def by_hand(folder: Path, plan: Plan, *, descendants: Descendants) -> str:
    """The same by folding again what the run has."""
    view, learner = StoreView.open(folder / "store"), NumpyLearner()
    start = checkpoint_before(view.decisions(), folder=folder, step=1)
    excluded = plan.selected | plan.descendants if descendants == "drop" else plan.selected
    refold(view, folder=folder, learner=learner, start=start, excludes=excluded)
    return learner.root_hash()


@pytest.mark.parametrize("descendants", ["keep", "drop"])
def test_a_rewind_ends_where_folding_again_without_it_does(
    live_run: Path, tmp_path: Path, descendants: Descendants
) -> None:
    before = contents(live_run)
    request = ask_for(live_run, 4, descendants=descendants)
    plan, found = rewind(live_run, tmp_path / "other", request)
    assert plan.first.step == 4
    assert found == by_hand(live_run, plan, descendants=descendants)
    original = [one.root_hash for one in all_versions(live_run)][-1]
    assert found != original
    assert contents(live_run) == before
    rows, tainted = plan.count_later()
    assert 0 < tainted < rows
    check_branch(tmp_path / "other", plan, excluded=plan.selected.episode_lsns)
    last = batches_of(tmp_path / "other")[-1].step
    assert last == STEPS if descendants == "keep" else 4 <= last < STEPS


def all_versions(folder: Path) -> list[Version]:
    records = StoreView.open(folder / "store").decisions(kinds=[Kind.VERSION])
    return [one for _, one in records if isinstance(one, Version)]


def check_branch(folder: Path, plan: Plan, *, excluded: frozenset[int]) -> None:
    """Its own log says what it is; nothing in it was learned from twice on one branch, nor what is excluded at all."""
    view = StoreView.open(folder / "store")
    records = view.decisions()
    (branch,) = [one for _, one in records if isinstance(one, Branch)]
    assert (branch.branch, branch.parent_branch, branch.from_version) == (1, 0, plan.fork_version)
    assert "task=" in json.loads(branch.exclude)["exclude"]
    batches = [one for _, one in computed_batches(records)]
    rows = [row.episode_lsn for one in batches for row in one.rows]
    assert len(set(rows)) == len(rows)
    assert not excluded & set(rows)
    groups: dict[int, int] = {}
    for one in batches:
        for row in one.rows:
            groups[row.lease] = groups.get(row.lease, 0) + 1
    assert set(groups.values()) == {2}
    assert view.ledger().balanced
    steps = replay(view, folder=folder, learner=NumpyLearner())
    assert [one.step for one in steps] == [one.step for one in batches]
    assert all(one.equal for one in steps)
    assert verify(folder).defects == []


def test_what_is_left_out_goes_by_whole_groups_and_an_empty_batch_is_skipped(run: Path, tmp_path: Path) -> None:
    third = batches_of(run)[2]
    tasks = {one.task_id for one in StoreView.open(run / "store").episodes([row.episode_lsn for row in third.rows])}
    queries = tuple(Query(task=task) for task in sorted(tasks))
    request = Request(queries=queries, text="the third batch", descendants="keep")
    plan, found = rewind(run, tmp_path / "other", request)
    assert found == by_hand(run, plan, descendants="keep")
    records = StoreView.open(tmp_path / "other" / "store").decisions()
    skips = [one for _, one in records if isinstance(one, Skip)]
    assert [(one.step, one.branch) for one in skips] == [(3, 1)]
    assert [one.step for one in batches_of(tmp_path / "other")] == [1, 2, 4, 5, 6, 7, 8]
    assert StoreView.open(tmp_path / "other" / "store").ledger().balanced
    assert all(
        one.equal
        for one in replay(
            StoreView.open(tmp_path / "other" / "store"), folder=tmp_path / "other", learner=NumpyLearner()
        )
    )


def test_nothing_that_was_learned_from_fits(run: Path, tmp_path: Path) -> None:
    request = Request(queries=(Query(producer="nobody"),), text="producer=nobody")
    with pytest.raises(UserError, match="learned from none of them"):
        cut_branch(run, to=tmp_path / "other", request=request)
    assert list(tmp_path.iterdir()) == []


def test_beyond_the_horizon_it_is_refused_with_its_date(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    for step in (0, 2):
        (kept,) = (copied / "checkpoints").glob(f"step-{step:06d}-*")
        shutil.rmtree(kept)
    with pytest.raises(RunFolderError, match=r"its horizon is step 4, of 20\d\d-\d\d-\d\dT") as caught:
        cut_branch(copied, to=tmp_path / "other", request=ask_for(copied, 4))
    assert "since=20" in caught.value.todo
    for folder in (copied / "checkpoints").iterdir():
        shutil.rmtree(folder)
    with pytest.raises(RunFolderError, match="nothing is left to begin at"):
        cut_branch(copied, to=tmp_path / "other", request=ask_for(copied, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_it_begins_at_the_oldest_checkpoint_or_just_before_the_first_use(run: Path, tmp_path: Path) -> None:
    request, ends = ask_for(run, 8), []
    for name, short in (("long", False), ("short", True)):
        seen: list[tuple[int, bool, bool]] = []
        plan, found = rewind(
            run,
            tmp_path / name,
            request,
            from_first_use=short,
            on_step=lambda one, seen=seen: seen.append((one.step, one.is_before, one.is_logged)),
        )
        ends.append(found)
        assert plan.base.step == (6 if short else 0)
        assert seen == [*((step, True, True) for step in range(plan.base.step + 1, 8)), (8, False, False)]
    assert ends[0] == ends[1]


def test_groups_that_wait_are_not_learned_from_after_all_and_the_branch_goes_on(live_run: Path, tmp_path: Path) -> None:
    """What the run had ready and open at its end is of versions that the branch does not come from."""
    to = tmp_path / "other"
    request = Request(queries=(Query(versions=(4, 4)),), text="version=4", descendants="drop")
    plan, found = rewind(live_run, to, request)
    (to / "uuid").write_text(json.loads((to / "manifest.json").read_text())["store_uuid"])
    forked = [one for _, one in computed_batches(StoreView.open(to / "store").decisions())]
    config = plain_config(mode="async", steps=STEPS + 4)
    on = PlainRun(to, config=config)
    on.go()
    ledger = on.owner.ledger()
    on.close()
    assert ledger.balanced
    batches = batches_of(to)
    assert [one.step for one in batches] == list(range(1, STEPS + 5))
    assert batches[: len(forked)] == forked
    assert all(one.branch == 1 for one in batches[len(forked) :])
    read = {row.episode_lsn for one in batches for row in one.rows}
    assert not read & plan.selected.episode_lsns
    view = StoreView.open(to / "store")
    made = {one.version: one for one in all_versions(to)}
    ancestry = Ancestry.of(view.decisions())
    fresh = view.episodes([row.reward_lsn for one in batches[len(forked) :] for row in one.rows])
    assert all(ancestry.has(made[span.version]) for one in fresh for span in one.spans)
    assert all(one.equal for one in replay(view, folder=to, learner=NumpyLearner()))
    assert found in {one.root_hash for one in made.values()}


def test_an_evaluation_is_noted_once_and_the_branch_resumes_on_its_base(tmp_path: Path) -> None:
    run, base = make_run(tmp_path, base="a" * 64), "a" * 64
    request, to = ask_for(run, 4), tmp_path / "other"
    cut_branch(run, to=to, request=request)
    uuid = json.loads((to / "manifest.json").read_text())["store_uuid"]
    config, source = plain_config(steps=STEPS), PermutedSource("guess", num_items=50, seed=1)
    noted: list[object] = []
    for _ in range(2):
        with closing(StoreOwner.open(to / "store", uuid=uuid, config=config, source=source)) as owner:
            session = Session(role="learner", epoch=0, base_weights=base)
            work = Rewind(
                owner, NumpyLearner(), folder=to, request=request, checkpoint_every=2, keep=2, session=session
            )
            work.run()
            work.note(
                Evaluation(version=work.version, step=work.step, metric="mass", scores={"mass": 1}, items=1, samples=1)
            )
            noted = [one for _, one in owner.decisions(start=read_cut(to), kinds=[Kind.EVALUATION])]
    assert len(noted) == 1
    (to / "uuid").write_text(uuid)
    on = PlainRun(to, config=plain_config(steps=STEPS + 1), base=base)
    on.go()
    on.close()
    assert batches_of(to)[-1].step == STEPS + 1


def test_a_stored_success_that_is_left_out_is_forgotten(tmp_path: Path) -> None:
    config = plain_config(steps=12, replay={"enabled": True})
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("{}\n")
    (folder / "manifest.json").write_text('{"run": "run"}\n')
    played = PlainRun(folder, config=config, num_items=4)
    played.go()
    stored = dict(played.owner._state.fold.successes.items())
    played.close()
    task = next(task for task, rows in sorted(stored.items()) if rows)
    plan, _ = rewind(
        folder,
        tmp_path / "other",
        Request(queries=(Query(task=task, versions=(0, 3)),), text="task=", descendants="keep"),
        config=config,
    )
    left = dict(StoreView.open(tmp_path / "other" / "store").fold.successes.items())
    remembered = {row for rows in left.values() for row in rows}
    assert remembered
    assert not {lsn for lsn, _ in remembered} & plan.selected.episode_lsns
    others = {row for name, rows in stored.items() if name != task for row in rows}
    assert others <= remembered


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("descendants", ["keep", "drop"])
def test_every_point_at_which_it_is_stopped_ends_in_the_same_bits(
    live_run: Path, tmp_path: Path, descendants: Descendants, stride: int
) -> None:
    request = ask_for(live_run, 3, descendants=descendants)
    before = contents(live_run)
    plan, whole = rewind(live_run, tmp_path / "whole", request)
    expected = shape(tmp_path / "whole")
    for point, to in stop_at_each(live_run, tmp_path, request, stride=stride):
        again, found = rewind(live_run, to, request)
        assert (again, found) == (plan, whole), f"point {point}"
        assert shape(to) == expected, f"point {point}"
        check_branch(to, plan, excluded=plan.selected.episode_lsns)
    assert contents(live_run) == before


def stop_at_each(run: Path, root: Path, request: Request, *, stride: int) -> Iterator[tuple[int, Path]]:
    for point in range(1, 400, stride):
        to = root / f"point-{point}"
        try:
            rewind(run, to, request, wire=Tripwire(point))
        except Crash:
            yield point, to
        else:
            assert point > 20, "the tripwire did not see the work"
            return
    raise AssertionError("still stopped")


def shape(folder: Path) -> list[tuple[Any, ...]]:
    """What its log comes to, whatever was begun in between: batches, versions and skips of the branch, in order."""
    records = [one for _, one in StoreView.open(folder / "store").decisions()]
    found: list[tuple[Any, ...]] = []
    for one in records:
        if isinstance(one, Batch) and one.branch:
            found.append(("batch", one.step, one.parent_version, one.rows))
        elif isinstance(one, Version):
            found.append(("version", one.version, one.parent, one.branch, one.step, one.root_hash))
        elif isinstance(one, Skip):
            found.append(("skip", one.step, one.branch))
        elif isinstance(one, Branch):
            found.append(("branch", one))
    return found


def test_what_is_there_already_is_not_taken_for_ours(run: Path, tmp_path: Path) -> None:
    request = ask_for(run, 4)
    rewind(run, tmp_path / "other", request)
    with pytest.raises(RunFolderError, match="something else already"):
        cut_branch(run, to=tmp_path / "other", request=ask_for(run, 5))
    (tmp_path / "file").mkdir()
    with pytest.raises(RunFolderError, match="something else already"):
        cut_branch(run, to=tmp_path / "file", request=request)


def test_a_rewind_of_a_rewind(run: Path, tmp_path: Path) -> None:
    first = ask_for(run, 3)
    rewind(run, tmp_path / "one", first)
    second = ask_for(run, 6)
    plan, found = rewind(tmp_path / "one", tmp_path / "two", second)
    both = plan.selected | make_plan(StoreView.open(run / "store").decisions(), folder=run, request=first).selected
    learner, view = NumpyLearner(), StoreView.open(run / "store")
    refold(
        view, folder=run, learner=learner, start=checkpoint_before(view.decisions(), folder=run, step=1), excludes=both
    )
    assert found == learner.root_hash()
    branches = [one for _, one in StoreView.open(tmp_path / "two" / "store").decisions(kinds=[Kind.BRANCH])]
    assert [(one.branch, one.parent_branch) for one in branches if isinstance(one, Branch)] == [(1, 0), (2, 1)]
