"""One path for weights: pause, push, check parity, and serve, or put the old version back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from contracts.errors import PushRefusedError
from contracts.protocols import Fleet, InFlight, WeightSet
from contracts.records import Guard, Served
from telemetry.spans import span

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")


class Publisher(Generic[Ask, Answer]):
    """Pushes versions to all engines and refuses those that the engines do not reproduce.

    The guard has every engine answer `probes` (for a language model: after prompts that the prefix cache already
    holds); `gap` takes each engine's answers and gives the mean |engine log-prob - learner log-prob| of the engine
    that is furthest off, at most `parity_gap`. `patience`: refusals in a row that the run can stand, which is its
    staleness bound: beyond it everything generated is stale.
    """

    def __init__(
        self,
        fleet: Fleet[Ask, Answer],
        *,
        probes: Sequence[Ask],
        gap: Callable[[Sequence[Sequence[Answer]]], float],
        parity_gap: float,
        in_flight: InFlight,
        patience: int,
    ) -> None:
        self._fleet, self._probes, self._gap = fleet, probes, gap
        self._parity_gap, self._in_flight = parity_gap, in_flight
        self._patience = patience
        self._serving: WeightSet | None = None
        self._refused_in_a_row = 0
        self._warm = False
        self.last_push_s = 0.0

    def publish(self, weights: WeightSet) -> Served | Guard:
        """SERVED when every engine runs `weights`; GUARD(refused) when the old ones were put back.

        Raises PushRefusedError when patience is over, or there is no older version to put back.
        """
        start = time.monotonic()
        with span("pause"):
            self._fleet.pause(self._in_flight)
        try:
            if not self._warm:  # so that the first check, too, follows cached prompts
                self._fleet.probe(self._probes)
                self._warm = True
            off = self._push(weights)
            if off > self._parity_gap:
                off = self._push(weights)
            if off <= self._parity_gap:
                self._serving, self._refused_in_a_row = weights, 0
                return Served(version=weights.version, gap=off, wall_time=time.time())
            return self._refuse(weights, off)
        finally:
            with span("resume"):
                self._fleet.resume()
            self.last_push_s = time.monotonic() - start

    def _push(self, weights: WeightSet) -> float:
        with span("push"):
            self._fleet.push(weights)
        with span("probe"):
            answers = self._fleet.probe(self._probes)
        with span("score"):
            return self._gap(answers)

    def _refuse(self, weights: WeightSet, off: float) -> Guard:
        self._refused_in_a_row += 1
        reason = f"the engine's log-probs are {off:.3f} off the learner's on average (limit {self._parity_gap})"
        if self._serving is None or self._refused_in_a_row > self._patience:
            raise PushRefusedError(f"version {weights.version}: {reason}; refused {self._refused_in_a_row} in a row")
        self._fleet.push(self._serving)
        return Guard(version=weights.version, verdict="refused", reason=reason, scores={"gap": off})
