"""Draws rows in proportion to integer priorities: a tree of exact sums (Schaul et al. 2016, "Prioritized experience
replay", section 3.3), 16 children a node, and one line of sums at the top that is searched whole.

Priorities are integers, so a sum is the same in whatever order it was made, and a draw is a function of the priorities
and the seed alone. 8 bytes a row and half a byte for the sums above.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
_FAN_OUT = 16
_WIDEST_TOP = 4096  # sums: to add them up costs no more than one level of children
_MANY = 64  # fewer nodes are added up sooner twice than sorted
_MOST_EXACT = 1 << 53  # integers up to here are floats, each


class SumTree:
    """Priorities of rows 0, 1, …; a row that was never set has 0. Sums stay below 2^63."""

    def __init__(self, num_rows: int = 0) -> None:
        self._levels: list[IntArray] = [np.zeros(0, dtype=np.int64)]  # leaves first, a multiple of 64 each
        self._grow(max(num_rows, 1))

    @property
    def total(self) -> int:
        return int(self._levels[-1].sum())

    @property
    def num_bytes(self) -> int:
        """Memory that the sums take."""
        return sum(level.nbytes for level in self._levels)

    def priorities(self, rows: IntArray) -> IntArray:
        """[N] of `rows` [N], all below the largest that was set."""
        return self._levels[0][rows]

    def set(self, rows: IntArray, priorities: IntArray) -> None:
        """Give `rows` [N] their `priorities` [N], none negative; the last one counts where a row is named twice."""
        if not len(rows):
            return
        if priorities.min() < 0:
            raise ValueError(f"a priority is {priorities.min()}: they are not negative")
        self._grow(int(rows.max()) + 1)
        level, nodes = self._levels[0], np.asarray(rows)
        level[nodes] = priorities
        for above in self._levels[1:]:
            nodes = nodes // _FAN_OUT
            if len(nodes) > _MANY:
                nodes = np.unique(nodes)
            above[nodes] = level.reshape(-1, _FAN_OUT).take(nodes, axis=0).sum(axis=1)
            level = above

    def find(self, points: IntArray) -> IntArray:
        """The rows [N] in which `points` [N], each in [0, total), fall on the line of all priorities end to end."""
        top = self._levels[-1]
        ends = top.cumsum()
        nodes = ends.searchsorted(points, side="right")
        rest = points - (ends[nodes] - top[nodes])
        lanes = np.arange(len(points))
        leaves = self._levels[0]
        for level in self._levels[-2::-1]:
            children = level.reshape(-1, _FAN_OUT).take(nodes, axis=0)
            ends = children.cumsum(axis=1)
            place = (ends > rest[:, None]).argmax(axis=1)
            if level is not leaves:
                rest -= ends[lanes, place] - children[lanes, place]
            nodes = nodes * _FAN_OUT + place
        return nodes

    def sample(self, num: int, *, rng: np.random.Generator) -> IntArray:
        """`num` rows [num], one from each of as many equal stretches of the line (stratified, as the paper has it).

        Raises ValueError where every priority is 0.
        """
        total = self.total
        if total == 0:
            raise ValueError("every priority is 0: there is nothing to draw")
        if total < (1 << 63) // num:
            bounds = total * np.arange(num + 1) // num
        else:
            bounds = np.array([total * place // num for place in range(num + 1)])
        low = bounds[:-1]
        widths = np.maximum(bounds[1:] - low, 1)
        if total < _MOST_EXACT:  # a third of what drawing integers from many ranges takes
            points = low + np.minimum((rng.random(num) * widths).astype(np.int64), widths - 1)
        else:
            points = rng.integers(low, low + widths)
        return self.find(np.minimum(points, total - 1))

    def _grow(self, num_rows: int) -> None:
        if num_rows <= len(self._levels[0]):
            return
        size = _round_up(max(num_rows, 2 * len(self._levels[0])))
        leaves = np.zeros(size, dtype=np.int64)
        leaves[: len(self._levels[0])] = self._levels[0]
        self._levels = [leaves]
        while len(self._levels[-1]) > _WIDEST_TOP:
            sums = self._levels[-1].reshape(-1, _FAN_OUT).sum(axis=1)
            above = np.zeros(_round_up(len(sums)), dtype=np.int64)
            above[: len(sums)] = sums
            self._levels.append(above)


def importance_weights(priorities: IntArray, *, total: int, num_rows: int, beta: float) -> NDArray[np.float64]:
    """(N · P(i))^-β over their largest, [N] (Schaul et al. 2016, section 3.4). `priorities` [N] are above 0."""
    weights = (num_rows * (priorities / total)) ** -beta
    largest: NDArray[np.float64] = weights / weights.max()
    return largest


def _round_up(num: int) -> int:
    return -(-num // _FAN_OUT) * _FAN_OUT
