"""Where a metric fell: a search that asks little, verdicts that say how sure they are, a change in noise."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import pytest

from contracts.errors import UserError
from loops.bisect import Judge, find_change, find_culprits, search


@pytest.mark.parametrize("num", [1, 2, 3, 8, 100, 2000])
def test_every_place_is_found_in_few_questions(num: int) -> None:
    for first_bad in {1, 2, num // 3 + 1, num // 2 + 1, num - 1, num} & set(range(1, num + 1)):
        asked: list[int] = []

        def is_bad(place: int, first_bad: int = first_bad, asked: list[int] = asked) -> bool:
            asked.append(place)
            return place >= first_bad

        assert search(num, at_hand=(), is_bad=is_bad) == first_bad
        assert len(asked) <= math.ceil(math.log2(num))
        assert len(set(asked)) == len(asked)


def test_what_is_at_hand_is_asked_first_and_costs_no_other_question() -> None:
    at_hand, asked = set(range(100, 2000, 100)), list[int]()

    def is_bad(place: int) -> bool:
        asked.append(place)
        return place >= 1234

    assert search(2000, at_hand=at_hand, is_bad=is_bad) == 1234
    cheap = [place in at_hand for place in asked]
    assert cheap == sorted(cheap, reverse=True)
    assert sum(not one for one in cheap) <= math.ceil(math.log2(100))
    assert sum(cheap) <= math.ceil(math.log2(20)) + 1


def draw(mean: float, *, seed: int, num: int = 1000) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.random.default_rng(seed).binomial(1, mean, num).astype(np.float64)


def test_a_verdict_on_paired_items() -> None:
    good, bad = draw(0.9, seed=1), draw(0.6, seed=2)
    judge = Judge(good, bad)
    assert judge.threshold == pytest.approx((good.mean() + bad.mean()) / 2)
    assert judge.difference.high < 0
    for scores, is_bad in ((good, False), (bad, True), (draw(0.88, seed=3), False), (draw(0.62, seed=4), True)):
        verdict = judge.judge(scores)
        assert verdict.is_bad is is_bad
        assert verdict.sure > 0.999
        assert verdict.score == scores.mean()
    assert judge.judge(draw(0.755, seed=5)).sure < 0.95


def test_a_metric_may_also_rise_into_the_bad() -> None:
    judge = Judge(draw(0.1, seed=1), draw(0.5, seed=2))
    assert judge.judge(draw(0.45, seed=3)).is_bad
    assert not judge.judge(draw(0.12, seed=3)).is_bad


def test_a_smaller_share_finds_the_beginning_of_a_fall() -> None:
    good, bad, some = draw(0.9, seed=1), draw(0.5, seed=2), draw(0.8, seed=3)
    assert not Judge(good, bad).judge(some).is_bad
    assert Judge(good, bad, share=0.1).judge(some).is_bad


def test_items_without_a_score_are_left_out() -> None:
    good, bad = draw(0.9, seed=1), draw(0.5, seed=2)
    good[:50] = np.nan
    verdict = Judge(good, bad).judge(bad)
    assert verdict.is_bad
    assert verdict.sure > 0.999


def test_two_versions_that_differ_by_chance_alone_are_refused() -> None:
    with pytest.raises(UserError, match="that may be nothing"):
        Judge(draw(0.9, seed=1), draw(0.9, seed=2))


def test_a_change_in_noise() -> None:
    rng = np.random.default_rng(3)
    for place in (3, 40, 97):
        values = rng.normal(0.9, 0.02, 100)
        values[place:] -= 0.2
        change = find_change(values)
        assert change.place == place
        assert change.sure > 0.95
        assert change.before - change.after == pytest.approx(0.2, abs=0.03)
    assert find_change(rng.normal(0.9, 0.02, 100)).sure < 0.5
    assert find_change(np.array([1.0, 1.0, 1.0, 0.0, 0.0])).place == 3
    assert math.isfinite(find_change(np.ones(10)).sure)
    with pytest.raises(UserError, match="4 steps apart"):
        find_change(np.ones(3))


def test_the_guilty_groups_are_narrowed_down() -> None:
    guilty = {21, 22}
    asked: list[Collection[int]] = []

    def restored(leases: Collection[int]) -> float:
        asked.append(leases)
        return len(guilty & set(leases)) / len(guilty)

    sources = [list(range(10)), list(range(10, 20)), list(range(20, 28))]
    found = find_culprits(sources, restored=restored)
    assert found is not None
    assert set(found.leases) <= guilty
    assert found.restored >= 0.5
    assert found.trials == len(asked) <= len(sources) + 2 * math.ceil(math.log2(8))
    assert find_culprits(sources, restored=lambda _: 0.1) is None
    both = find_culprits(sources, restored=restored, share=0.9)
    assert both is not None
    assert guilty < set(both.leases) == {20, 21, 22, 23}  # no half of it alone restores as much
