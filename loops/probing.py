"""Scores of versions along one ancestry, each measured once: from weights at hand, or folded again from a state below.

    OUT/{ notes.json, states/v000123/ }

The notes are rewritten whole after each measurement: whoever is killed goes on from the last one. Of states that were
computed on the way, the newest one that may still be needed is kept. Nothing is written into the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shutil import rmtree

import numpy as np

from buffers.log.files import write_durably
from contracts.errors import RunFolderError
from contracts.protocols import Learner, WeightSet
from contracts.records import Version
from loops.bisect import Float64Array
from loops.lineage import Lineage
from loops.refold import Exclusion, fold_on, leave_out
from loops.replay import Gone, History

NOTES = "notes.json"
Measure = Callable[[WeightSet, Version], Float64Array]  # weights of a version → scores of the items


@dataclass
class Notes:
    """What was found so far. Keys of JSON are texts: versions are."""

    question: Mapping[str, object]
    scores: dict[str, list[float | None]] = field(default_factory=dict)  # version → of each item
    trials: dict[str, list[float | None]] = field(default_factory=dict)  # leases left out → of each item
    states: dict[str, str] = field(default_factory=dict)  # version → hash of the state in states/
    unequal: list[int] = field(default_factory=list)  # versions that came out with other bits than the log has
    refolds: int = 0
    steps: int = 0  # folded in them

    @classmethod
    def read(cls, folder: Path, *, question: Mapping[str, object]) -> Notes:
        """Those in `folder`, or empty ones. Raises RunFolderError where they answer another question."""
        try:
            notes = cls(**json.loads((folder / NOTES).read_text()))
        except FileNotFoundError:
            return cls(question=question)
        if dict(notes.question) != json.loads(json.dumps(question)):
            raise RunFolderError(f"notes in {folder}", "they answer another question", "name another folder: --out")
        return notes

    def write(self, folder: Path) -> None:
        write_durably(folder / NOTES, json.dumps(asdict(self)).encode())


class Prober:
    """Measures versions of `lineage` that `version` comes from. Places count from genesis, 0."""

    def __init__(
        self,
        history: History,
        lineage: Lineage,
        version: int,
        *,
        folder: Path,
        out: Path,
        learner: Learner,
        at_hand: Mapping[int, Callable[[], WeightSet]],
        measure: Measure,
        notes: Notes,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`folder`: the run's; `out` is ours. `at_hand`: versions whose weights lie in a file, and how to read it."""
        self.path: Sequence[Version] = lineage.ancestry(version)
        self._history, self._lineage, self._folder, self._out = history, lineage, folder, out
        self._learner, self._at_hand, self._measure = learner, at_hand, measure
        self.notes, self._say = notes, say
        self._gone = Gone.of(history.decisions())
        self._stands_at: int | None = None  # the place whose state the learner has

    def is_cheap(self, place: int) -> bool:
        """Whether its score needs no step to be computed. What was folded before does not count: a search that goes on
        asks the same as one that was never broken off."""
        return place in self._kept() or self.path[place].version in self._at_hand

    def scores(self, place: int) -> Float64Array:
        """Of each item, NaN where it got none. Raises RunFolderError where nothing is left to compute it from."""
        version = self.path[place]
        known = self.notes.scores.get(str(version.version))
        if known is None:
            weights = self._weights(place)
            self._say(f"version {version.version}: evaluating")
            known = self.notes.scores[str(version.version)] = _listed(self._measure(weights, version))
            self.notes.write(self._out)
        return _array(known)

    def _weights(self, place: int) -> WeightSet:
        version = self.path[place].version
        if version in self._at_hand:
            return self._at_hand[version]()
        self.go_to(place)
        return self._learner.weights(version)

    def scores_without(self, place: int, leases: Collection[int]) -> Float64Array:
        """Of the version at `place` if its own batch had not had these groups."""
        version = self.path[place]
        key = f"{version.version}:{','.join(map(str, sorted(leases)))}"
        known = self.notes.trials.get(key)
        if known is None:
            self.go_to(place - 1)
            batch = leave_out(self._lineage.batches[version.batch_lsn], Exclusion(leases=frozenset(leases)))
            self._say(f"version {version.version} without {len(leases)} of its groups: evaluating")
            if batch.rows:
                self._learner.step(batch, self._history.episodes([row.reward_lsn for row in batch.rows]))
                self._stands_at = None
            known = _listed(self._measure(self._learner.weights(version.version), version))
            self.notes.trials[key] = known
            self.notes.write(self._out)
        return _array(known)

    def go_to(self, place: int) -> None:
        """Bring the learner to the state at `place`, and keep that where steps had to be computed for it."""
        if self._stands_at == place:
            return
        sources = {**self._kept(), **self._saved()}
        below = [one for one in sources if one <= place]
        if not below:
            raise RunFolderError(
                f"version {self.path[place].version} of {self._folder.name}",
                "no checkpoint at or before it is left",
                "restore the folder's checkpoints, or take a snapshot of the run that has one",
            )
        start = max(below)
        self._learner.load(*sources[start])
        if start < place:
            self._fold(start, place)
        self._stands_at = place

    def forget(self, *, low: int, high: int) -> None:
        """Remove saved states that a search between two places needs no more."""
        saved = self._saved()
        useful = max((place for place in saved if place <= low), default=None)
        for place in saved:
            if place >= high or (place <= low and place != useful):
                self._drop(self.path[place].version)
        self.notes.write(self._out)

    def _fold(self, start: int, end: int) -> None:
        lsns = [version.batch_lsn for version in self.path[start + 1 : end + 1]]
        version, done = self.path[end], 0

        def note(_: object) -> None:
            nonlocal done
            done += 1
            if done % max(1, len(lsns) // 10) == 0:
                self._say(f"version {version.version}: {done} of {len(lsns)} steps folded again")

        batches = [(lsn, self._lineage.batches[lsn]) for lsn in lsns]
        fold_on(self._history, self._learner, batches, gone=self._gone, folder=self._folder, on_step=note)
        self.notes.refolds += 1
        self.notes.steps += len(lsns)
        if self._learner.root_hash() != version.root_hash and version.version not in self.notes.unequal:
            self.notes.unequal.append(version.version)
        place = self._state(version.version)
        rmtree(place, ignore_errors=True)
        self.notes.states[str(version.version)] = self._learner.save(str(place))
        self.notes.write(self._out)

    def _kept(self) -> dict[int, tuple[str, str]]:
        """Place → (folder, state hash) of the run's own checkpoints."""
        return {
            place: (str(self._folder / one.folder), one.state_hash)
            for place, version in enumerate(self.path)
            for one in self._lineage.fates[version.version].checkpoints
            if (self._folder / one.folder).is_dir()
        }

    def _saved(self) -> dict[int, tuple[str, str]]:
        places = {str(version.version): place for place, version in enumerate(self.path)}
        return {
            places[version]: (str(self._state(int(version))), state_hash)
            for version, state_hash in self.notes.states.items()
            if version in places
        }

    def _state(self, version: int) -> Path:
        return self._out / "states" / f"v{version:06d}"

    def _drop(self, version: int) -> None:
        del self.notes.states[str(version)]
        with suppress(FileNotFoundError):
            rmtree(self._state(version))


def _listed(scores: Float64Array) -> list[float | None]:
    return [None if np.isnan(score) else float(score) for score in scores]


def _array(scores: Sequence[float | None]) -> Float64Array:
    return np.array([np.nan if score is None else score for score in scores])
