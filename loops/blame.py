"""What went into a version, by weight: whose episodes, which tasks, environments, verifiers and rewards.

Weight. An episode i of step k weighs w = η_k · Σ_t c_t · |A_t|: the step's learning rate, and over the episode's tokens
what one token counts in the loss times its absolute advantage. A source's share is the sum over its episodes divided by
the sum over all. It is TracIn (Pruthi et al. 2020, eq. 1) with what only the model knows left out: length and direction
of each token's gradient, importance weights, clips.

Suspicion (our own definition) asks which share of the weight came in another way than before. Of the steps just before
the window it takes what each source brought then, and adds two parts, each less two standard errors: the share that the
source gained, and its share times how far its rewards moved, in deviations, beside the median source of its kind:

    shift = (mean - mean before) - median over the sources of the same
    suspicion = max(0, share - share before - 2 · error) + share · max(0, |shift| - 2 · error) / deviation

Groups, not episodes, are counted as independent. What all sources do alike, such as a policy that gets better or worse,
moves none of them. It does not say what a source did to the policy: that takes a rewind without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from contracts.records import Batch, Episode, Version
from loops.lineage import Lineage
from loops.replay import Gone, History

KINDS = ("producer", "task", "environment", "verifier", "reward")
Weigh = Callable[[Batch, Sequence[Episode]], NDArray[np.float64]]


@dataclass
class Tally:
    """What one source brought in some steps."""

    weight: float = 0.0
    episodes: int = 0
    groups: int = 0
    reward_sum: float = 0.0
    square_sum: float = 0.0

    def add(self, other: Tally) -> Tally:
        return Tally(
            weight=self.weight + other.weight,
            episodes=self.episodes + other.episodes,
            groups=self.groups + other.groups,
            reward_sum=self.reward_sum + other.reward_sum,
            square_sum=self.square_sum + other.square_sum,
        )

    @property
    def mean(self) -> float:
        return self.reward_sum / self.episodes

    @property
    def deviation(self) -> float:
        return math.sqrt(max(0.0, self.square_sum / self.episodes - self.mean**2))


@dataclass
class Account:
    """Tallies of some steps, of all and by source."""

    total: Tally = field(default_factory=Tally)
    sources: dict[str, dict[str, Tally]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    steps: int = 0
    lost: int = 0  # steps whose episodes were erased or trimmed in part: in no sum

    def count(self, history: History, batch: Batch, version: Version, *, weigh: Weigh, gone: Gone) -> None:
        """Take in the batch that `version` was learned from."""
        if gone.count(batch):
            self.lost += 1
            return
        episodes = history.episodes([row.reward_lsn for row in batch.rows])
        rate = version.stats.get("learning_rate", 1.0) * (not version.stats.get("skipped", 0.0))
        self._take(batch, episodes, weigh(batch, episodes) * rate)

    def _take(self, batch: Batch, episodes: Sequence[Episode], weights: NDArray[np.float64]) -> None:
        self.steps += 1
        seen: set[tuple[str, str, int]] = set()
        for row, episode, weight in zip(batch.rows, episodes, weights, strict=True):
            for kind, name in (("", ""), *sources_of(episode).items()):
                tally = self.total if not kind else self.sources[kind].setdefault(name, Tally())
                tally.weight += float(weight)
                tally.episodes += 1
                reward = episode.reward or 0.0
                tally.reward_sum += reward
                tally.square_sum += reward * reward
                if (kind, name, row.lease) not in seen:
                    seen.add((kind, name, row.lease))
                    tally.groups += 1


@dataclass(frozen=True, kw_only=True)
class Source:
    """One line of the answer. What is `before` is None where no steps came before."""

    kind: str
    name: str
    share: float  # of the weight
    episodes: int
    reward_mean: float
    share_before: float | None = None
    reward_before: float | None = None  # None also where it brought nothing then
    shift: float | None = None
    suspicion: float | None = None

    @property
    def rank(self) -> tuple[float, float]:
        """What sources are ordered by, the largest first."""
        return (self.suspicion or 0.0, self.share)


@dataclass(frozen=True, kw_only=True)
class Blame:
    """The answer: of each kind the sources, the most suspicious first; without steps before, the heaviest."""

    version: int
    first_step: int
    last_step: int
    steps_before: int
    steps_lost: int
    episodes: int
    sources: Mapping[str, Sequence[Source]]


def sources_of(episode: Episode) -> dict[str, str]:
    """Whose, of what, from where, judged by whom, worth what."""
    return {
        "producer": episode.producer or "unnamed",
        "task": episode.task_id,
        "environment": episode.environment,
        "verifier": episode.reward_code or "unnamed",
        "reward": f"{episode.reward or 0.0:.2g}",
    }


def blame(
    history: History,
    lineage: Lineage,
    version: int,
    *,
    weigh: Weigh,
    last: int | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Blame:
    """What went into `version` in the `last` steps of its ancestry (None: in all of them), beside as many before them.

    Raises UserError where the log has no such version, LearnerError where a batch does not fit its episodes.
    """
    path = [one for one in lineage.ancestry(version) if one.batch_lsn in lineage.batches]
    cut = max(0, len(path) - (len(path) if last is None else last))
    window, before = path[cut:], path[max(0, 2 * cut - len(path)) : cut]
    gone = Gone.of(history.decisions())
    accounts = []
    for part in (before, window):
        account = Account()
        for one in part:
            account.count(history, lineage.batches[one.batch_lsn], one, weigh=weigh, gone=gone)
            done = account.steps + account.lost + (len(before) if part is window else 0)
            on_step(done, len(before) + len(window))
        accounts.append(account)
    then, now = accounts
    return Blame(
        version=version,
        first_step=window[0].step if window else 0,
        last_step=window[-1].step if window else 0,
        steps_before=then.steps,
        steps_lost=then.lost + now.lost,
        episodes=now.total.episodes,
        sources={kind: compare(kind, now, then) for kind in KINDS},
    )


def compare(kind: str, now: Account, then: Account) -> list[Source]:
    """The sources of one kind, the most suspicious first."""
    pairs = [
        (tally, then.sources[kind][name]) for name, tally in now.sources[kind].items() if name in then.sources[kind]
    ]
    moves = np.array([mine.mean - old.mean for mine, old in pairs])
    common = _weighted_median(moves, np.array([mine.groups for mine, _ in pairs])) if pairs else 0.0
    found = [_source(kind, name, now, then, common=common) for name in now.sources[kind]]
    return sorted(found, key=lambda one: one.rank, reverse=True)


def _source(kind: str, name: str, now: Account, then: Account, *, common: float) -> Source:
    mine, total = now.sources[kind][name], now.total
    share = mine.weight / total.weight if total.weight else 0.0
    plain = Source(kind=kind, name=name, share=share, episodes=mine.episodes, reward_mean=mine.mean)
    if not then.total.episodes:
        return plain
    old = then.sources[kind].get(name, Tally())
    share_before = old.weight / then.total.weight if then.total.weight else 0.0
    pooled = (share * total.groups + share_before * then.total.groups) / (total.groups + then.total.groups)
    error = math.sqrt(max(0.0, pooled * (1.0 - pooled)) * (1.0 / total.groups + 1.0 / then.total.groups))
    gained = max(0.0, share - share_before - 2.0 * error)
    was = old if old.episodes else then.total  # a source that is new is compared with what there was
    shift = mine.mean - was.mean - common
    return replace(
        plain,
        share_before=share_before,
        reward_before=old.mean if old.episodes else None,
        shift=shift,
        suspicion=gained + share * _exceed(shift, mine, was),
    )


def _exceed(shift: float, mine: Tally, was: Tally) -> float:
    """How far a shift is beyond chance, in deviations of the rewards."""
    deviation = mine.add(was).deviation
    if deviation <= 0.0:
        return 0.0
    error = deviation * math.sqrt(1.0 / mine.groups + 1.0 / was.groups)
    return max(0.0, abs(shift) - 2.0 * error) / deviation


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """The middle of the values that half of the weight lies on either side of."""
    order = np.argsort(values)
    shares = np.cumsum(weights[order]) / weights.sum()
    low, high = values[order[np.searchsorted(shares, 0.5 - 1e-9)]], values[order[np.searchsorted(shares, 0.5 + 1e-9)]]
    return float(low + high) / 2.0
