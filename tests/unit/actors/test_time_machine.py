"""Versions kept, blamed and bisected on a run of a real learner: no engine but torch's, no Ray."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.bisect import bisect_run
from actors.offline import compare_weights, list_pins, measure_version, pin_version, unpin_version, version_weights
from benchmarks import sites
from buffers.view import StoreView
from contracts.errors import RunFolderError, UserError
from loops.lineage import Lineage
from models.registry import load_version
from tests.unit.console.test_bad_input import assert_refused, ratchet
from tests.unit.house.guard import ROOT

STEPS = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run under runs/, to be read only: checkpoints of genesis and the steps 8 and 12 are kept."""
    root = tmp_path_factory.mktemp("time") / "runs"
    config = sites.configure(steps=STEPS, seed=0, root=root, held_out=60, checkpoint_every=4)
    return sites.play(config, name="sites", flips_from=9)


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file but the index's lock file, in which LMDB notes who reads."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock.mdb"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def lineage_of(run: Path) -> Lineage:
    return Lineage.of(StoreView.open(run / "store").decisions())


def find(run: Path, out: Path, say: Callable[[str], None] = lambda text: None, **more: Any) -> dict[str, Any]:
    """The rise of what is learned, looked for as if it were a fall."""
    words = {"metric": sites.METRIC, "good": 0, "bad": STEPS, "share": 0.5, "samples": None, "with_episodes": True}
    return bisect_run(run, out=out, say=say, **{**words, **more})


def test_a_pinned_version_stays(run: Path) -> None:
    path = pin_version(run, 3)  # neither file nor checkpoint has it
    try:
        assert load_version(run / "pins", 3).root_hash == lineage_of(run).versions[3].root_hash
        assert pin_version(run, 3) == path
        assert list_pins(run) == [3]
        assert version_weights(run, 3).root_hash == lineage_of(run).versions[3].root_hash
    finally:
        unpin_version(run, 3)
    assert list_pins(run) == []
    with pytest.raises(UserError, match="pinned: none"):
        unpin_version(run, 3)


def test_how_far_weights_moved(run: Path) -> None:
    near, far = compare_weights(run, 0, 1), compare_weights(run, 0, STEPS)
    assert near.keys() == far.keys()
    assert 0 < sum(moved for moved, _ in near.values()) < sum(moved for moved, _ in far.values())
    assert [norm for _, norm in near.values()] == [norm for _, norm in far.values()]


def test_scores_item_by_item(run: Path) -> None:
    scores = measure_version(run, STEPS)[sites.METRIC]
    assert len(scores) == 60
    assert lineage_of(run).fates[STEPS].metric == (sites.METRIC, float(scores.mean()))


def test_a_bisection_asks_little_and_touches_nothing(run: Path, tmp_path: Path) -> None:
    before = contents(run)
    found = find(run, tmp_path / "out")
    assert found["refolds"] <= math.ceil(math.log2(STEPS)) + 2
    assert found["steps"] <= 2 * STEPS
    assert found["unequal"] == []
    verdicts = {one["version"]: one["is_bad"] for one in found["looked_at"]}
    assert (verdicts[found["last_good"]], verdicts[found["first_bad"]]) == (False, True)
    assert found["first_bad"] == found["last_good"] + 1
    assert verdicts[8] is not None  # a checkpoint: it costs nothing
    assert found["batch"]["sources"]["producer"][0]["name"].startswith("site-")
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == found
    assert find(run, tmp_path / "out") == found  # out of the notes
    assert contents(run) == before


def test_a_bisection_goes_on_wherever_it_was_stopped(run: Path, tmp_path: Path) -> None:
    whole = find(run, tmp_path / "whole")
    stops = 0

    def stop_at(number: int) -> Callable[[str], None]:
        left = [number]

        def say(_: str) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        return say

    found: dict[str, Any] = {}
    while not found:  # each start is let go on for longer than the one before
        try:
            found = find(run, tmp_path / "out", say=stop_at(3 * stops + 2))
        except KeyboardInterrupt:
            stops += 1
    assert stops > 3
    varies = ("out", "refolds", "steps")  # what a stop lost is done again
    assert {key: value for key, value in found.items() if key not in varies} == {
        key: value for key, value in whole.items() if key not in varies
    }


def test_a_training_metric_needs_no_fold(run: Path, tmp_path: Path) -> None:
    found = find(run, tmp_path, metric="reward_mean", good=2)
    assert (found["how"], found["refolds"], found["versions"]) == ("log", 0, STEPS - 2)
    assert found["step"] == found["first_bad"] == found["last_good"] + 1


def test_what_cannot_be_bisected(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="held-out scores are greedy_return; training metrics: clip_fraction_high"):
        find(run, tmp_path / "a", metric="nonsense")
    with pytest.raises(UserError, match="5 is no ancestor of 3"):
        find(run, tmp_path / "b", good=5, bad=3)
    with pytest.raises(UserError, match="nothing"):
        find(run, tmp_path / "c", good=5, bad=5)
    find(run, tmp_path / "d", metric=sites.METRIC)
    with pytest.raises(RunFolderError, match="another question"):
        find(run, tmp_path / "d", good=1)
    said = ratchet(
        "bisect", str(run), "--metric", "loss", "--good", "0", "--bad", "9", "--out", str(run / "x"), cwd=tmp_path
    )
    assert_refused(said, f"findings in {run / 'x'}", "inside the run sites")


def test_blame_counts_what_the_log_has(run: Path) -> None:
    said = ratchet("blame", str(run), str(STEPS), "--since", "8", "--json", cwd=run.parent)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert (found["first_step"], found["last_step"], found["steps_before"]) == (9, STEPS, 4)
    shares = {one["name"]: one["share"] for one in found["sources"]["producer"]}
    assert shares.keys() == {f"site-{site}" for site in range(sites.NUM_SITES)}
    assert sum(shares.values()) == pytest.approx(1.0)
    both = ratchet("blame", str(run), "--last", "2", "--since", "8", cwd=run.parent)
    assert_refused(both, "--last 2 and --since 8", "both say where to begin")
    assert_refused(ratchet("blame", str(run), "--by", "moon", cwd=run.parent), "--by moon", "producer, task")


def test_the_documents_commands_run(run: Path) -> None:
    text = (ROOT / "docs" / "time_machine.md").read_text()
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]
    ours = [words[1:] for words in lines if words[1] in ("version", "blame", "bisect") or "learners" in words]
    assert len(ours) >= 9
    for words in ours:
        said = ratchet(*words, cwd=run.parent.parent)
        assert said.returncode == 0, f"{words}\n{said.stderr}"
        assert said.stdout
