"""What every environment keeps to: Gymnasium's interface, and the same words from the child process as from here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gymnasium.utils.env_checker import check_env

from configs.schema import Environment
from contracts.records import StopReason
from environments.host import EnvironmentHost
from environments.text.env import TextEnv

ENVIRONMENTS = {
    "words": Environment(dataset="spell_backward", prompt="{word}=", verifier="positions"),
    "sums": Environment(dataset="chain_sum", parameters={"min_digits": 3, "max_digits": 4}),
    "letters": Environment(dataset="letter_counting", answer="It is {answer}."),
}
SEED = 3


@pytest.fixture(scope="module", params=sorted(ENVIRONMENTS))
def settings(request: pytest.FixtureRequest) -> Environment:
    return ENVIRONMENTS[request.param].model_copy(update={"train_items": 60, "held_out_items": 30})


@pytest.fixture(scope="module")
def environment(settings: Environment) -> TextEnv:
    return TextEnv(settings, seed=SEED)


@pytest.fixture(scope="module")
def host(settings: Environment) -> Iterator[EnvironmentHost]:
    with EnvironmentHost(settings, seed=SEED) as one:
        yield one


def test_gymnasium_accepts_it(environment: TextEnv) -> None:
    check_env(environment, skip_render_check=True)  # warnings are errors here


def test_an_item_is_named_by_split_and_index(environment: TextEnv) -> None:
    for split in ("train", "held_out"):
        prompt, info = environment.reset(options={"split": split, "index": 7})
        assert prompt == environment.tasks.split(split)[7].prompt
        assert (info["split"], info["index"]) == (split, 7)
        assert info["task_id"].endswith(f"{split}/7")
        assert environment.observation_space.contains(prompt)


def test_without_an_index_the_seed_decides(environment: TextEnv) -> None:
    drawn = [environment.reset(seed=seed)[1]["index"] for seed in (1, 2, 3, 1, 2, 3)]
    assert drawn[:3] == drawn[3:]
    assert len(set(drawn)) > 1


def test_one_answer_ends_the_episode(environment: TextEnv, settings: Environment) -> None:
    environment.reset(options={"split": "train", "index": 0})
    answer = environment.tasks.train[0].entry["answer"]
    _, reward, terminated, truncated, info = environment.step(f" {answer}\n")
    assert (reward, terminated, truncated, info["parts"]) == (1.0, True, False, {"exact": 1.0})
    with pytest.raises(AssertionError, match="reset"):
        environment.step("again")


def test_the_child_says_what_we_say(environment: TextEnv, host: EnvironmentHost) -> None:
    answers = [str(environment.tasks.train[i].entry["answer"]) for i in range(20)]
    items = [("train", i, [answer]) for i, answer in enumerate([*answers[:10], *answers[:10]])]
    verdicts = host.score(items)
    for (split, index, [completion]), verdict in zip(items, verdicts, strict=True):
        prompt, _ = environment.reset(options={"split": split, "index": index})
        _, reward, _, _, info = environment.step(completion)
        assert (verdict.reward, verdict.parts) == (reward, info["parts"])
        assert verdict.stop_reason is StopReason.TERMINATED
        assert host.prompts(split, [index])[0].text == prompt
    assert [verdict.reward for verdict in verdicts[:10]] == [1.0] * 10
    assert host.reward_code == environment.reward_code


def test_splits_share_no_question(environment: TextEnv, host: EnvironmentHost) -> None:
    assert environment.tasks.prove_disjoint() == host.disjoint
