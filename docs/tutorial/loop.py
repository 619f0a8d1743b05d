"""Reinforcement fine-tuning in one file: a small language model learns to spell words backward from its own attempts.

    python docs/tutorial/loop.py            # about a minute on one core, no GPU

This is the mathematics of Ratchet's text runs without anything around it: no log, no processes, no recovery. What a run
spreads over engines, environments and an update worker stands here in the order in which it happens: make a group of
attempts at each word, reward them, compare each with its group, make the better ones likelier, and again.
tests/unit/learners/test_tutorial.py shows that its loss, gradient and step are those of the real learner.

Shapes: B rows (attempts; those of a group stand together), T tokens of a row (prompt, answer, padding), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import reasoning_gym
import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

PAD, END = 256, 257  # a token is a byte; these two are the others
LONGEST = 12  # tokens of a row: a word of 5 letters, "=", the word again, END
GROUP = 8  # attempts at each word
CLIP_LOW, CLIP_HIGH, IMPORTANCE_CAP = 0.2, 0.28, 2.0


# ------------------------------------------------------------------------------------------------- the task


def find_words() -> tuple[list[str], list[str]]:
    """Words to learn from, and 200 others to be examined on."""
    items = reasoning_gym.create_dataset("spell_backward", seed=0, size=6000, min_word_len=3, max_word_len=5)
    words = list(dict.fromkeys(item["metadata"]["word"] for item in items))
    return words[200:], words[:200]


def reward(word: str, answer: str) -> float:
    """1 for the word backward; else the share of right letters, at most 0.8: a right answer is always worth more."""
    right = sum(given == wanted for given, wanted in zip(answer, word[::-1], strict=False))
    return 1.0 if answer == word[::-1] else min(0.8, right / len(word))


def write(words: Sequence[str], *, answered: bool) -> tuple[Tensor, Tensor]:
    """Token ids [B, T] of "word=" or "word=drow", padded on the right, and which of them are the answer's."""
    rows = [[*f"{word}=".encode(), *([*word[::-1].encode(), END] if answered else [])] for word in words]
    tokens_BT = torch.tensor([row + [PAD] * (LONGEST - len(row)) for row in rows])
    starts_B1 = torch.tensor([[len(word) + 1] for word in words])
    return tokens_BT, (torch.arange(LONGEST) >= starts_B1) & (tokens_BT != PAD)


def read(tokens: Tensor) -> str:
    return bytes(token for token in tokens.tolist() if token < PAD).decode(errors="replace")


# ------------------------------------------------------------------------------------------------- the policy


def make_model() -> nn.Module:
    """Two layers with random weights: 270,000 numbers."""
    config = Qwen2Config(
        vocab_size=258,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return Qwen2ForCausalLM(config)


def token_log_probs(model: nn.Module, tokens_BT: Tensor) -> Tensor:
    """[B, T]: log-probability of each token after those before it, 0 for a row's first. Padding stands on the right,
    where a causal model does not look."""
    log_probs_BTV = model(input_ids=tokens_BT[:, :-1]).logits.log_softmax(-1)
    chosen_BT = log_probs_BTV.gather(-1, tokens_BT[:, 1:, None])[:, :, 0]
    return nn.functional.pad(chosen_BT, (1, 0))


# ------------------------------------------------------------------------------------------------- attempts


@dataclass
class Attempts:
    """Answers of a policy, with the log-probabilities that it gave its tokens when it drew them: its behaviour."""

    tokens_BT: Tensor
    acted_BT: Tensor  # bool: which tokens the policy chose
    behaviour_BT: Tensor
    rewards_B: Tensor


@torch.no_grad()
def attempt(model: nn.Module, words: Sequence[str], *, group: int) -> Attempts:
    """`group` attempts at each word, drawn at temperature 1, one token at a time for all rows at once."""
    asked = [word for word in words for _ in range(group)]
    tokens_BT, acted_BT = write(asked, answered=False)
    behaviour_BT = torch.zeros(tokens_BT.shape)
    at_B = (tokens_BT != PAD).sum(1)  # where each row goes on
    rows = torch.arange(len(asked))  # those that are still being written
    while len(rows):
        logits_BV = model(input_ids=tokens_BT[rows]).logits[torch.arange(len(rows)), at_B[rows] - 1]
        log_probs_BV = logits_BV.log_softmax(-1)
        drawn_B = torch.multinomial(log_probs_BV.exp(), 1)[:, 0]
        tokens_BT[rows, at_B[rows]] = drawn_B
        acted_BT[rows, at_B[rows]] = True
        behaviour_BT[rows, at_B[rows]] = log_probs_BV.gather(1, drawn_B[:, None])[:, 0]
        at_B[rows] += 1
        rows = rows[(drawn_B != END) & (at_B[rows] < LONGEST)]
    answers = [read(row[acted]) for row, acted in zip(tokens_BT, acted_BT, strict=True)]
    rewards = [reward(word, answer) for word, answer in zip(asked, answers, strict=True)]
    return Attempts(tokens_BT, acted_BT, behaviour_BT, torch.tensor(rewards))


# ------------------------------------------------------------------------------------------------- learning


def group_advantages(rewards_B: Tensor, *, group: int) -> Tensor:
    """How much better than its group an attempt was, in deviations; 0 where all are alike (GRPO, Shao et al. 2024)."""
    rewards = rewards_B.view(-1, group)
    alike = rewards.min(1, keepdim=True).values == rewards.max(1, keepdim=True).values
    scores = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
    return scores.masked_fill(alike, 0.0).flatten()


def policy_loss(model: nn.Module, attempts: Attempts, *, group: int) -> Tensor:
    """Mean over all tokens that the policy chose of -min(ratio A, clip(ratio) A) (PPO, Schulman et al. 2017, eq. 7).

    The ratio is that of the policy now to the policy that made the attempts. Its first factor is 1 and carries the
    gradient; the second, truncated, is 1 as well while the policy has not changed, as in this file.
    """
    now_BT = token_log_probs(model, attempts.tokens_BT)
    importance_BT = (now_BT.detach() - attempts.behaviour_BT).exp().clamp(max=IMPORTANCE_CAP)
    ratios_BT = (now_BT - now_BT.detach()).exp() * importance_BT
    advantages_B1 = group_advantages(attempts.rewards_B, group=group)[:, None]
    clipped_BT = ratios_BT.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
    losses_BT = -torch.minimum(ratios_BT * advantages_B1, clipped_BT * advantages_B1)
    return losses_BT[attempts.acted_BT].mean()


def update(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the gradient, whose norm is clipped at 1."""
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def imitate(model: nn.Module, words: Sequence[str], *, steps: int) -> None:
    """A little supervised fine-tuning first: of random letters nothing is ever rewarded."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        shown = [words[i] for i in torch.randint(len(words), (64,)).tolist()]
        tokens_BT, answer_BT = write(shown, answered=True)
        update(model, optimizer, -token_log_probs(model, tokens_BT)[answer_BT].mean())


def reinforce(model: nn.Module, words: Sequence[str], *, steps: int) -> Iterator[float]:
    """Attempts at 16 words, rewards, one update, and again; the mean reward of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(steps):
        chosen = [words[i] for i in torch.randint(len(words), (16,)).tolist()]
        attempts = attempt(model, chosen, group=GROUP)
        update(model, optimizer, policy_loss(model, attempts, group=GROUP))
        yield attempts.rewards_B.mean().item()


def accuracy(model: nn.Module, words: Sequence[str]) -> float:
    """Share of sampled answers that are right, on words that were never learned from."""
    return (attempt(model, words, group=4).rewards_B == 1.0).float().mean().item()


if __name__ == "__main__":
    torch.manual_seed(0)
    words, held_out = find_words()
    model = make_model()
    imitate(model, words, steps=80)
    print(f"after imitation: {accuracy(model, held_out):.1%} of the answers to held-out words are right")
    for step, mean in enumerate(reinforce(model, words, steps=200), start=1):
        if step % 20 == 0:
            print(f"step {step}: reward {mean:.3f}")
    print(f"after reinforcement: {accuracy(model, held_out):.1%}")
