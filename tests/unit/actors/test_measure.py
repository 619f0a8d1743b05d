"""When an engine and an update worker count as idle."""

from __future__ import annotations

from collections import Counter

import pytest

from actors.measure import engine_works, learner_works


@pytest.mark.parametrize(
    ("open_spans", "works"),
    [
        ([], False),
        (["generate"], True),
        (["generate", "generate", "pause"], True),  # sequences in flight end before a push
        (["generate", "paused"], False),  # it holds requests and may not answer them
        (["generate", "paused", "push"], True),
        (["paused", "probe"], True),
        (["generate", "asleep"], False),
        (["asleep", "wake"], False),
    ],
)
def test_an_engine(open_spans: list[str], works: bool) -> None:
    assert engine_works(Counter(open_spans)) is works


@pytest.mark.parametrize(
    ("open_spans", "works"),
    [
        ([], False),
        (["warm_start"], True),
        (["wait"], False),
        (["update"], True),
        (["publish", "pause"], False),
        (["publish", "push"], True),
        (["publish", "probe"], False),
        (["publish", "score"], True),
        (["sleep"], False),
        (["evaluate"], False),
        (["checkpoint"], True),
        (["update", "publish", "probe"], True),  # the next step is computed meanwhile
        (["update", "settle", "publish", "probe"], False),
        (["update", "settle", "publish", "score"], True),
    ],
)
def test_an_update_worker(open_spans: list[str], works: bool) -> None:
    assert learner_works(Counter(open_spans)) is works
