"""What a kind of workload brings to the actors: its engine, learner, rollouts, guard probes, and base model.

    text      actors/text.py      a language model answers prompts, an environment judges the text
    control   actors/control.py   a small policy network acts in Gymnasium environments

The actors know this page alone. Heavy imports happen inside these calls: a process pays only for what it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from configs.schema import RunConfig
from contracts.protocols import InferenceEngine, Learner
from contracts.records import Batch, Episode, Evaluation
from loops.publish import Publisher
from loops.rollout import Player


class Stage(Protocol):
    """What a rollout worker plays on: its environments and how it acts. Thread-safe."""

    def player(self, slot: int) -> Player:
        """The player of one slot, for one thread."""
        ...

    def evaluate(self, version: int, step: int) -> Evaluation:
        """Scores of the version that the engine serves, on what is never trained on."""
        ...

    def measure(self, step: int) -> Mapping[str, NDArray[np.float64]]:
        """The same item by item, metric → [items]: two versions are asked the same items, under the same draws."""
        ...

    def status(self) -> Mapping[str, Any]: ...

    def close(self) -> None: ...


class Tenant(Protocol):
    """How the processes of one run are built. Cheap to make; raises UserError where the configuration cannot work."""

    def make_model(self, folder: Path) -> None:
        """Write the base model that the configuration describes into the new folder."""
        ...

    def build_engine(self, model_folder: Path) -> InferenceEngine[Any, Any]:
        """The configured engine, loaded with the base model's weights."""
        ...

    def build_learner(self, folder: Path, *, own_code: Path | None = None) -> Learner:
        """The configured learner on the run's base weights, with the threads that the configuration fixes.

        `own_code`: where a loss of the user's own is; None: in the run's copy of the user's folder.
        """
        ...

    def build_publisher(self, learner: Any, fleet: Any) -> Publisher[Any, Any]:
        """The one path for weights, with this tenant's probes. `learner`: what `build_learner` gave."""
        ...

    def prepare(self, learner: Any, folder: Path, on_progress: Callable[[int, float], None]) -> Mapping[str, float]:
        """Base weights to genesis weights: the warm start, where the configuration asks for one; its figures."""
        ...

    def influences(self, batch: Batch, episodes: Sequence[Episode]) -> NDArray[np.float64]:
        """How hard each row of a batch pulls at the weights, [rows], by the log alone. Raises LearnerError."""
        ...

    def open_stage(self, folder: Path, engine: Any, *, rank: int) -> Stage:
        """The environments of rollout worker `rank`, and the way to act in them through `engine`."""
        ...


def tenant(config: RunConfig) -> Tenant:
    """The tenant that the configuration is for."""
    if config.control.id is not None:
        from actors.control import ControlTenant

        return ControlTenant(config)
    from actors.text import TextTenant

    return TextTenant(config)
