"""What a step reads of a batch: checked, in order, with normalisers over all rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from contracts.errors import LearnerError
from contracts.records import Batch, Episode, Step
from learners.rows import Rows, read_rows, sample_of
from tests.unit.learners.builders import MAX_TOKENS, SETTINGS, make_batch


def read(batch: Batch, episodes: list[Episode], **settings: object) -> Rows:
    return read_rows(batch, episodes, settings=SETTINGS.model_copy(update=settings), max_tokens=MAX_TOKENS)


def flat(rows: Rows) -> list[float]:
    return [float(value) for advantages in rows.advantages for value in advantages]


def test_rows_without_advantage_are_left_out_and_still_counted() -> None:
    batch, episodes = make_batch([[1, 0], [0.5, 0.5], [0, 1]])
    rows, everything = read(batch, episodes), read(batch, episodes, skip_zero_spread=False)
    assert (len(rows.samples), len(everything.samples)) == (4, 6)
    assert rows.token_weights_M.tolist() == everything.token_weights_M[[0, 1, 4, 5]].tolist()
    assert not any(advantages.any() for advantages in everything.advantages[2:4])
    assert rows.stats == everything.stats
    assert (rows.stats["zero_spread_groups"], rows.stats["groups"], rows.stats["episodes"]) == (1, 3, 6)
    assert rows.stats["tokens"] == sum(len(episode.steps[0].action) for episode in episodes)


def test_with_a_kl_term_every_row_has_a_gradient() -> None:
    batch, episodes = make_batch([[1, 0], [0.5, 0.5]])
    assert len(read(batch, episodes, kl_coefficient=0.1).samples) == 4
    assert len(read(batch, episodes, loss="mine:loss").samples) == 4  # what it does there is not known
    assert len(read(batch, episodes, loss="rloo", kl_coefficient=0.1).samples) == 2  # in the reward: part of advantages


def test_under_dynamic_sampling_a_group_without_spread_counts_nowhere() -> None:
    batch, episodes = make_batch([[1, 0], [0.5, 0.5], [0, 1]])
    without = replace(batch, rows=batch.rows[:2] + batch.rows[4:])
    alone = read(without, episodes[:2] + episodes[4:])
    rows = read(batch, episodes, dynamic_sampling=True)
    assert (flat(rows), rows.token_weights_M.tolist()) == (flat(alone), alone.token_weights_M.tolist())
    assert len(read(batch, episodes, dynamic_sampling=True, kl_coefficient=0.1).samples) == 4
    nothing = read(*make_batch([[1, 1], [0.5, 0.5]]), dynamic_sampling=True)
    assert (nothing.samples, nothing.stats["zero_spread_groups"]) == ((), 2)


def test_the_batchs_mean_gives_groups_without_spread_an_advantage() -> None:
    batch, episodes = make_batch([[1, 1], [0, 0]])
    rows = read(batch, episodes, loss="reinforce_pp", aggregation=None)
    assert len(rows.samples) == 4
    assert rows.stats["zero_spread_groups"] == 2
    assert [bool(one[0] > 0) for one in rows.advantages] == [True, True, False, False]


def test_overlong_completions_lose_reward_and_so_gain_spread() -> None:
    batch, episodes = make_batch([[1, 1, 1, 1]], seed=3)
    lengths = [len(episode.steps[0].action) for episode in episodes]
    assert len(set(lengths)) > 1
    rows = read(batch, episodes, advantage="mean_only", overlong_tokens=MAX_TOKENS)
    shares = np.array(lengths) / MAX_TOKENS
    np.testing.assert_allclose([one[0] for one in rows.advantages], shares.mean() - shares)
    assert rows.stats["reward_mean"] == 1.0


def test_cuts_lose_the_rows_that_are_left_out() -> None:
    batch, episodes = make_batch([[1, 0], [0.5, 0.5], [0, 1]])
    assert read(replace(batch, micro_batches=(1, 2, 1, 2)), episodes).cuts == (1, 1, 2)
    with pytest.raises(LearnerError, match="do not make up 6 rows"):
        read(replace(batch, micro_batches=(1, 2)), episodes)


def test_shuffled_rewards_are_the_same_ones_elsewhere_fixed_by_the_batch_seed() -> None:
    batch, episodes = make_batch([[1, 0, 0, 0], [0.5, 0.25, 0, 0.75], [1, 0, 1, 1]], seed=5)
    straight = read(batch, episodes, advantage="mean_only", skip_zero_spread=False)
    shuffled = read(batch, episodes, advantage="mean_only", skip_zero_spread=False, shuffle_rewards=True)
    again = read(batch, episodes, advantage="mean_only", skip_zero_spread=False, shuffle_rewards=True)
    assert flat(shuffled) == flat(again) != flat(straight)
    assert shuffled.stats["reward_mean"] == pytest.approx(straight.stats["reward_mean"])
    other = read(replace(batch, seed=6), episodes, advantage="mean_only", skip_zero_spread=False, shuffle_rewards=True)
    assert flat(other) != flat(shuffled)


def test_a_row_weight_scales_its_tokens() -> None:
    batch, episodes = make_batch([[1, 0]])
    heavier = replace(batch, rows=(replace(batch.rows[0], weight=3.0), batch.rows[1]))
    plain, scaled = read(batch, episodes).token_weights_M, read(heavier, episodes).token_weights_M
    assert scaled.tolist() == [3 * plain[0], plain[1]]


def test_an_episode_of_several_steps_trains_on_what_the_policy_said() -> None:
    _, (episode, *_) = make_batch()
    ids = [np.array(part, dtype=np.int32) for part in ([1, 2], [3, 4], [5], [6, 7, 8])]
    scores = np.zeros(2, np.float32), np.ones(3, np.float32)
    steps = (
        Step(observation=ids[0], action=ids[1], log_probs=scores[0]),
        Step(observation=ids[2], action=ids[3], log_probs=scores[1]),
    )
    sample = sample_of(replace(episode, steps=steps))
    assert sample.prompt_ids.tolist() == [1, 2]
    assert sample.completion_ids.tolist() == [3, 4, 5, 6, 7, 8]
    assert sample.acted is not None
    assert sample.acted.tolist() == [True, True, False, True, True, True]
    assert sample_of(episode).acted is None


def damage(episode: Episode, kind: str) -> Episode:
    (step,) = episode.steps
    changes: dict[str, Episode] = {
        "no reward": replace(episode, reward=None),
        "reward nan": replace(episode, reward=float("nan")),
        "other group": replace(episode, lease=episode.lease + 1),
        "no prompt": replace(episode, steps=(replace(step, observation=np.zeros(0, np.int32)),)),
        "no step": replace(episode, steps=()),
        "no action": replace(
            episode, steps=(replace(step, action=np.zeros(0, np.int32), log_probs=np.zeros(0, np.float32)),)
        ),
        "log-probs missing": replace(episode, steps=(replace(step, log_probs=np.zeros(99, np.float32)),)),
    }
    return changes[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no reward", "its reward is None"),
        ("reward nan", "its reward is nan"),
        ("other group", "another group"),
        ("no prompt", "has no prompt"),
        ("no step", "has no prompt"),
        ("no action", "has no action"),
        ("log-probs missing", "another number of log-probs"),
    ],
)
def test_what_does_not_fit_is_named(kind: str, message: str) -> None:
    batch, episodes = make_batch()
    episodes[2] = damage(episodes[2], kind)
    with pytest.raises(LearnerError, match=f"episode 1-0-2: .*{message}"):
        read(batch, episodes)


def test_rows_and_episodes_must_pair_up() -> None:
    batch, episodes = make_batch()
    with pytest.raises(LearnerError, match="12 rows and 11 episodes"):
        read(batch, episodes[:-1])
    with pytest.raises(LearnerError, match="0 rows and 0 episodes"):
        read(replace(batch, rows=()), [])


def test_a_replayed_episode_counts_in_the_group_that_it_was_put_into() -> None:
    batch, episodes = make_batch([[1, 0], [0, 0]])
    success = episodes[0]
    rows = list(batch.rows)
    strange = replace(batch, rows=(*rows[:2], replace(rows[2], episode_lsn=rows[0].episode_lsn), rows[3]))
    mixed = [*episodes[:2], success, episodes[3]]
    with pytest.raises(LearnerError, match="another group"):
        read(strange, mixed)
    replayed = replace(strange, rows=(*rows[:2], replace(strange.rows[2], replayed=True), rows[3]))
    read_in = read(replayed, mixed)
    assert [bool(one[0] > 0) for one in read_in.advantages] == [True, False, True, False]
    assert read_in.stats["zero_spread_groups"] == 0
