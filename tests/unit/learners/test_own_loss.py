"""A policy loss of the user's own folder: the learner computes it, and refuses what is no loss in plain words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from contracts.errors import UserError
from learners.own_loss import OwnLoss
from tests.unit.learners.builders import first_gradient, make_batch, make_learner, make_model

PLAIN = """
import torch

def plain(log_probs, behaviour, advantages, owners):
    ratios = (log_probs - log_probs.detach()).exp() * (log_probs.detach() - behaviour).exp().clamp(max=2.0)
    return torch.maximum(-advantages * ratios, -advantages * ratios.clamp(0.8, 1.28))
"""

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Puts a module of the test's own name into a folder that is the working directory; the module's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = "".join(letter if letter.isalnum() else "_" for letter in f"mine_{request.node.name}")

    def write(text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_the_same_formula_gives_the_same_gradient(write: Write, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    batch, episodes = make_batch()
    own = make_learner(folder, loss=f"{write(PLAIN)}:plain")
    expected = first_gradient(make_learner(folder, importance_cap=2.0), tmp_path / "a", batch, episodes)
    for name, gradient in first_gradient(own, tmp_path / "b", batch, episodes).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-7, rtol=1e-5)


def test_it_sees_whole_completions_with_their_owners(write: Write, tmp_path: Path) -> None:
    name = write(
        "SEEN = []\ndef see(log_probs, _, __, owners):\n    SEEN.append(owners.tolist())\n    return -log_probs\n"
    )
    learner = make_learner(make_model(tmp_path / "model"), loss=f"{name}:see", skip_zero_spread=False)
    batch, episodes = make_batch([[1, 0, 1]])
    learner.step(batch, episodes)
    seen = __import__(name).SEEN[-1]
    lengths = [len(episode.steps[0].action) for episode in episodes]
    assert sorted(seen.count(owner) for owner in range(3)) == sorted(lengths)
    assert seen == sorted(seen)


def test_its_code_is_part_of_the_fingerprint(write: Write, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    loss = f"{write(PLAIN)}:plain"
    before = make_learner(folder, loss=loss).fingerprint()["loss"]
    assert str(before).startswith(f"{loss} ")
    write(PLAIN + "# changed\n")
    assert make_learner(folder, loss=loss).fingerprint()["loss"] != before
    assert make_learner(folder).fingerprint()["loss"] == "grpo"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("return 0.5", "It returned a float, not a tensor."),
        ("return (-log_probs * advantages).mean()", "of shape []; float32 of shape [5] was due"),
        ("return (log_probs > 0)", "It returned torch.bool of shape [5]"),
        ("return -advantages", "does not depend on log_probs"),
        ("return -log_probs.detach() * advantages", "does not depend on log_probs"),
        ("return log_probs / (advantages - advantages)", "It returned 5 losses of 5 that are not finite"),
        ("return (log_probs - log_probs).abs().sqrt()", "Its gradient to log_probs is tensor([nan"),
        ("return log_probs[:3] * advantages", "It raised RuntimeError: The size of tensor"),
        ("return log_prob", "It raised NameError: name 'log_prob' is not defined"),
        ("behaviour.zero_()\n    return -log_probs", "It wrote into its arguments: it must be pure."),
        ("COUNT.append(1)\n    return -log_probs * len(COUNT)", "other losses for the same arguments"),
    ],
)
def test_what_is_no_loss_is_refused_before_training(write: Write, body: str, found: str) -> None:
    name = write(f"COUNT = []\ndef wrong(log_probs, behaviour, advantages, owners):\n    {body}\n")
    with pytest.raises(UserError) as caught:
        OwnLoss(f"{name}:wrong")
    assert caught.value.asked == f"The policy loss {name}:wrong was asked for (learner.loss)."
    assert found in caught.value.found
    assert "learners/own_loss.py" in caught.value.todo


def test_what_fails_only_in_training_ends_it_and_changes_nothing(write: Write, tmp_path: Path) -> None:
    name = write("def late(log_probs, *_):\n    return -log_probs / (len(log_probs) == 5)\n")
    learner = make_learner(make_model(tmp_path / "model"), loss=f"{name}:late")
    before = learner.root_hash()
    with pytest.raises(UserError, match="not finite, from finite numbers"):
        learner.step(*make_batch())
    learner.model.changed()
    assert learner.root_hash() == before


def test_a_name_that_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No module named 'nowhere_to_be_found'"):
        OwnLoss("nowhere_to_be_found:loss", folder=tmp_path)
