"""The teaching loop computes what the real learner computes, on the same attempts; and it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from contracts.records import Batch, Episode, Purpose, Row, Span, Step, StopReason
from docs.tutorial import loop
from models.causal_lm import load_model, named_weights
from tests.unit.learners.builders import first_gradient, make_learner, make_model

GROUP = 4
# Of three words: with spread, without, and with spread again; a policy that knows nothing would earn nothing.
REWARDS = torch.tensor([1.0, 0.0, 0.0, 0.5, 0.2, 0.2, 0.2, 0.2, 0.0, 0.8, 1.0, 0.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tutorial") / "model")


def make_attempts(model: torch.nn.Module) -> loop.Attempts:
    """Attempts of the model, with behaviour log-probs moved beyond both clips and the importance cap."""
    torch.manual_seed(3)
    attempts = loop.attempt(model, ["cat", "horse", "bird"], group=GROUP)
    moved_BT = attempts.behaviour_BT + 0.5 * torch.randn(attempts.behaviour_BT.shape)
    return loop.Attempts(attempts.tokens_BT, attempts.acted_BT, moved_BT * attempts.acted_BT, REWARDS)


def recorded(attempts: loop.Attempts) -> tuple[Batch, list[Episode]]:
    """The same attempts as a run has them in its log."""
    episodes = []
    for b, acted_T in enumerate(attempts.acted_BT):
        tokens_T = attempts.tokens_BT[b].numpy().astype(np.int32)
        first = int(acted_T.int().argmax())
        episodes.append(
            Episode(
                episode_id=str(b),
                lease=b // GROUP,
                member=b % GROUP,
                task_id=str(b // GROUP),
                environment="spell_backward",
                environment_version="1",
                purpose=Purpose.TRAIN,
                steps=(
                    Step(
                        observation=tokens_T[:first],
                        action=tokens_T[acted_T.numpy()],
                        log_probs=attempts.behaviour_BT[b][acted_T].numpy(),
                    ),
                ),
                spans=(Span(start=0, version=0),),
                stop_reason=StopReason.TERMINATED,
                reward=float(attempts.rewards_B[b]),
            )
        )
    rows = tuple(Row(episode_lsn=b, reward_lsn=b, lease=one.lease) for b, one in enumerate(episodes))
    return Batch(branch=0, step=1, parent_version=0, rows=rows), episodes


def test_the_loss_and_its_gradient_are_the_learners(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder, attention="eager", dtype=torch.float32)
    attempts = make_attempts(model)
    batch, episodes = recorded(attempts)
    ratios = (loop.token_log_probs(model, attempts.tokens_BT) - attempts.behaviour_BT)[attempts.acted_BT].exp()
    assert all(bool(one.any()) for one in (ratios < 1 - loop.CLIP_LOW, ratios > loop.IMPORTANCE_CAP))
    loss = loop.policy_loss(model, attempts, group=GROUP)
    torch.autograd.backward(loss)
    gradient = first_gradient(make_learner(folder), tmp_path, batch, episodes)
    for name, weight in named_weights(model).items():
        assert weight.grad is not None
        torch.testing.assert_close(gradient[name], weight.grad, atol=1e-7, rtol=1e-4)
    assert make_learner(folder).step(batch, episodes).stats["loss"] == pytest.approx(loss.item(), abs=1e-6)


def test_the_step_is_the_learners(folder: Path) -> None:
    model = load_model(folder, attention="eager", dtype=torch.float32)
    before = {name: weight.detach().clone() for name, weight in named_weights(model).items()}
    attempts = make_attempts(model)
    learner = make_learner(folder, gradient_clip=1.0, learning_rate=3e-4)
    learner.step(*recorded(attempts))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.99), weight_decay=0.0)
    loop.update(model, optimizer, loop.policy_loss(model, attempts, group=GROUP))
    for name, weight in named_weights(model).items():
        assert weight.grad is not None
        clear = weight.grad.abs() > 1e-5  # Adam's first step is the gradient's sign: where it is noise, so is the step
        torch.testing.assert_close(learner.model.tensors()[name][clear], weight.detach()[clear], atol=1e-7, rtol=1e-3)
        assert not clear.any() or float((weight.detach() - before[name]).abs().max()) > 1e-4


def test_attempts_are_what_they_say(folder: Path) -> None:
    model = load_model(folder, attention="eager", dtype=torch.float32)
    torch.manual_seed(0)
    attempts = loop.attempt(model, ["cat", "horse"], group=2)
    again_BT = loop.token_log_probs(model, attempts.tokens_BT) * attempts.acted_BT
    torch.testing.assert_close(again_BT, attempts.behaviour_BT, atol=1e-5, rtol=1e-5)
    for word, row_T, acted_T in zip(
        ["cat", "cat", "horse", "horse"], attempts.tokens_BT, attempts.acted_BT, strict=True
    ):
        assert loop.read(row_T[: len(word) + 1]) == f"{word}="
        answer = row_T[acted_T].tolist()
        assert loop.END not in answer[:-1]
        assert answer[-1] == loop.END or len(word) + 1 + len(answer) == loop.LONGEST


def test_rewards() -> None:
    assert loop.reward("cat", "tac") == 1.0
    assert [loop.reward("cat", answer) for answer in ("tacs", "tab", "", "cat")] == pytest.approx(
        [0.8, 2 / 3, 0, 1 / 3]
    )
    tokens_BT, answer_BT = loop.write(["cat"], answered=True)
    assert (loop.read(tokens_BT[0]), loop.read(tokens_BT[answer_BT])) == ("cat=tac", "tac")
    words, held_out = loop.find_words()
    assert not set(words) & set(held_out)
    assert max(map(len, words + held_out)) * 2 + 2 <= loop.LONGEST


def test_a_few_steps_help() -> None:
    torch.manual_seed(0)
    words, held_out = ([word for word in part if len(word) == 3] for part in loop.find_words())
    model = loop.make_model()
    loop.imitate(model, words, steps=50)
    before = loop.accuracy(model, held_out)
    rewards = list(loop.reinforce(model, words, steps=20))
    assert sum(rewards[-5:]) > sum(rewards[:5])
    assert loop.accuracy(model, held_out) > before + 0.05
