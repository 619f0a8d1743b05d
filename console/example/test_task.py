"""What the task promises: run it with `python -m pytest`."""

from itertools import islice

from task import items, verify


def test_every_item_is_answered_by_its_own_answer() -> None:
    for item in islice(items("train", seed=0), 1_000):
        assert sorted(item["question"].rstrip(">")) == list(item["answer"])
        assert verify(item["answer"], item) == 1.0


def test_a_better_answer_earns_more_and_only_the_right_one_earns_1() -> None:
    item = {"question": "5203>", "answer": "0235"}
    rewards = [verify(answer, item) for answer in ("", "5", "0532", "0253", "0235")]
    assert rewards == sorted(rewards)
    assert rewards[0] == 0.0
    assert max(rewards[:-1]) <= 0.5
