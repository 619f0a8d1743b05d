"""Several versions scored on one engine, one after the other, on the same held-out items under the same draws."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from actors.tenants import tenant
from configs.schema import RunConfig
from contracts.protocols import InFlight, WeightSet
from contracts.records import Evaluation


def score_versions(folder: Path, versions: Iterable[tuple[WeightSet, int]], *, config: RunConfig) -> list[Evaluation]:
    """Of (weights, step)s; the base model and the environment are those of the run in `folder`. Raises EngineError."""
    kind = tenant(config)
    engine = kind.build_engine(folder / "model")
    stage = kind.open_stage(folder, engine, rank=0)
    evaluations = []
    try:
        for weights, step in versions:
            engine.pause(InFlight.FINISH, timeout_s=config.engine.timeout_s)
            engine.push(weights)
            engine.resume()
            evaluations.append(stage.evaluate(weights.version, step))
        return evaluations
    finally:
        stage.close()
        engine.close()
