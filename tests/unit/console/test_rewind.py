"""`ratchet rewind`: the query in one string, where the branch goes, and what people are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from buffers.query import Query
from configs.loader import dump
from configs.schema import RunConfig
from console.query import parse_query
from console.rewind import make_request, place, render
from contracts.errors import RunFolderError, UserError
from tests.unit.console.test_bad_input import assert_refused, ratchet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As much of a run as the request is made from."""
    run = tmp_path / "runs" / "quickstart-1"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump(RunConfig.model_validate({"replay": {"min_reward": 0.25}})))
    (run / "manifest.json").write_text('{"format": 1}')
    return run


def test_a_query_is_what_the_store_is_asked() -> None:
    assert parse_query("version=3:9 failure", min_reward=0.5) == Query(versions=(3, 9), success=False, min_reward=0.5)
    assert parse_query(
        "until=20  producer=rollout-1.0 task='two words' since=10 success environment=game", min_reward=0.1
    ) == Query(producer="rollout-1.0", task="two words", environment="game", success=True, since=10.0, until=20.0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "names no episodes"),
        ("success failure", "contradicts itself"),
        ("producer", "'producer' is no part"),
        ("producer=", "'producer=' is no part"),
        ("success=1", "'success=1' is no part"),
        ("version=1 version=2", "'version=2' is no part of one, or stands there twice"),
        ("colour=red", "'colour=red' is no part"),
        ("version=x", "no range of versions"),
        ("since=noon", "that is no time"),
    ],
)
def test_what_is_no_query_is_one_message(text: str, found: str) -> None:
    with pytest.raises(UserError, match=found):
        parse_query(text, min_reward=0.1)


def test_the_same_request_goes_to_the_same_place(folder: Path) -> None:
    one, again = (make_request(folder, [text], "drop") for text in ("version=3:9  success", "version=3:9 success"))
    assert one == again
    assert one.queries[0].min_reward == 0.25
    to = place(folder, one, None)
    assert to.parent == folder.parent
    assert to.name.startswith("quickstart-1-rewind-")
    others = [make_request(folder, ["version=3:9 success"], "keep"), make_request(folder, ["version=3:8"], "drop")]
    assert len({to, *(place(folder, other, None) for other in others)}) == 3
    assert place(folder, one, "mine") == folder.parent / "mine"
    with pytest.raises(RunFolderError, match="inside the run quickstart-1"):
        place(folder, one, str(folder / "mine"))
    snapshot = folder / "snapshots" / "evening"
    snapshot.mkdir(parents=True)
    (snapshot / "manifest.json").write_text('{"format": 1}')
    assert place(snapshot, one, None).parent == folder.parent
    with pytest.raises(UserError, match="it is keep or drop"):
        make_request(folder, ["version=1"], "some")


def test_bad_input_is_one_message(folder: Path) -> None:
    answer = ratchet("rewind", str(folder), "--exclude", "colour=red", cwd=folder.parent)
    assert_refused(answer, "the query 'colour=red'", "producer=…")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_report() -> None:
    scores = {"sampled_accuracy": 0.5, "sampled_accuracy_low": 0.45, "sampled_accuracy_high": 0.55}
    report = {
        "selected": {"groups": 4, "episodes": 32},
        "first_step": 3,
        "last_step": 9,
        "later": {"rows": 1000, "by_tainted": 250, "share": 0.25},
        "descendants": "keep",
        "ess": {"episodes": 64, "by_token": 0.9, "by_episode": 0.5},
        "steps": 6,
        "rows": 1040,
        "rows_kept": 1000,
        "skipped": [4],
        "ends_at_step": 9,
        "version": 15,
        "before_with_other_bits": 0,
        "metric": "sampled_accuracy",
        "recorded": {"version": 9, "step": 9, "scores": scores},
        "rewound": {"version": 15, "step": 9, "scores": {"sampled_accuracy": 0.6}},
        "difference": {"items": 512, "mean": 0.1, "low": 0.05, "high": 0.15},
        "folder": "somewhere",
    }
    left_out, made, ess, steps, recorded, rewound, difference, after = render(report)
    assert left_out == "left out: 32 episodes in 4 groups; first learned from at step 3 of 9"
    assert "1,000 other episodes" in made
    assert "250 (25.0%) were made by versions that had learned from it: keep" in made
    assert "90.0% by token, 50.0% by episode (of 64)" in ess
    assert "6 steps with 1,000 of 1,040 episodes, 1 skipped" in steps
    assert recorded.split() == ["as", "recorded", "step", "9", "sampled_accuracy", "0.5000", "[0.450,", "0.550]"]
    assert rewound.split() == ["rewound", "step", "9", "sampled_accuracy", "0.6000"]
    assert difference.split(maxsplit=1)[1] == "on the same 512 items: +0.1000 [+0.050, +0.150]"
    assert after == "go on with: ratchet resume somewhere"
    assert any("other bits" in line for line in render({**report, "before_with_other_bits": 2, "ess": {}}))
