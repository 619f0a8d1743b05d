"""What works on a run's folder alone, without Ray: replay it; rebuild, evaluate, export, pin or compare versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors.tenants import Stage, tenant
from buffers.view import StoreView
from configs.loader import load
from configs.schema import RunConfig
from contracts.errors import ReplayMismatchError, RunFolderError, UserError
from contracts.protocols import InFlight, Learner, WeightSet
from contracts.records import Evaluation, Kind, Served, Session, Version
from loops import replay as replaying
from loops.blame import Blame, blame
from loops.lineage import Lineage
from loops.replay import ReplayedStep
from models.versions import FILE_NAME, list_versions, version_folder

PINS = "pins"  # a folder of a run: weights that a person asked to keep


def replay_run(
    folder: Path, *, until: int | None = None, on_step: Callable[[ReplayedStep], None] = lambda step: None
) -> list[ReplayedStep]:
    """Every step of a run or snapshot computed again. Raises RunFolderError."""
    view = StoreView.open(folder / "store")
    return replaying.replay(
        view,
        folder=folder,
        learner=learner_on_its_base(view, folder, config=load(folder / "config.yaml")),
        until=until,
        on_step=on_step,
    )


def rebuild_version(folder: Path, version: int | None) -> tuple[Learner, Version]:
    """A learner that stands at `version` (None: the newest one served). Raises RunFolderError, ReplayMismatchError."""
    view = StoreView.open(folder / "store")
    if version is None:
        version = newest_served(view, folder)
    learner = learner_on_its_base(view, folder, config=load(folder / "config.yaml"))
    made = replaying.rebuild(view, folder=folder, learner=learner, version=version)
    return learner, made


def evaluate_version(
    folder: Path,
    version: int | None,
    *,
    samples: int | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Held-out scores of a version on an engine of its own. `samples` an item instead of the run's own number.

    Raises RunFolderError, ReplayMismatchError; ConfigError where the number is no number of samples.
    """
    config = load(folder / "config.yaml", [] if samples is None else [f"evaluate.samples={samples}"])
    on_progress("making the version's weights")
    learner, made = rebuild_version(folder, version)
    on_progress(f"version {made.version}: starting an engine, then asking it all held-out items")
    with opened_stage(folder, config) as (stage, serve):
        serve(learner.weights(made.version))
        return stage.evaluate(made.version, made.step)


def measure_version(folder: Path, version: int | None) -> Mapping[str, NDArray[np.float64]]:
    """Held-out scores item by item of a version (None: the newest), metric → [items]. Raises as `evaluate_version`."""
    made = Lineage.of(StoreView.open(folder / "store").decisions()).find(version)
    with opened_stage(folder, load(folder / "config.yaml")) as (stage, serve):
        serve(version_weights(folder, made.version))
        return stage.measure(made.step)


@contextmanager
def opened_stage(folder: Path, config: RunConfig) -> Iterator[tuple[Stage, Callable[[WeightSet], None]]]:
    """An engine of its own with what it is scored on; the second part gives the engine weights."""
    kind = tenant(config)
    engine = kind.build_engine(folder / "model")
    stage = kind.open_stage(folder, engine, rank=0)

    def serve(weights: WeightSet) -> None:
        engine.pause(InFlight.FINISH, timeout_s=config.engine.timeout_s)
        engine.push(weights)
        engine.resume()

    try:
        yield stage, serve
    finally:
        stage.close()
        engine.close()


def version_weights(folder: Path, version: int) -> WeightSet:
    """From its file or, where that was pruned, computed again. Raises what `rebuild_version` raises."""
    from models.registry import load_version

    kept = next((place for place in (folder / "versions", folder / PINS) if version in list_versions(place)), None)
    if kept is None:
        return rebuild_version(folder, version)[0].weights(version)
    config = load(folder / "config.yaml")
    if config.model.lora.rank:  # adapters, which mean nothing on another base
        learner_on_its_base(StoreView.open(folder / "store"), folder, config=config)
    return load_version(kept, version)


def list_pins(folder: Path) -> list[int]:
    """Versions whose weights a run never forgets, rising."""
    return list_versions(folder / PINS)


def pin_version(folder: Path, version: int) -> Path:
    """Keep a version's weights in a file of their own, which no run prunes and no trim concerns; the file.

    Raises what `rebuild_version` raises, and ReplayMismatchError where a file has other weights than the log says.
    """
    from models.registry import save_version

    if version in list_pins(folder):
        return version_folder(folder / PINS, version) / FILE_NAME
    records = StoreView.open(folder / "store").decisions(kinds=[Kind.VERSION])
    made = Lineage.of(records).find(version)
    weights = version_weights(folder, version)
    if weights.root_hash != made.root_hash:
        raise ReplayMismatchError(
            f"the file of version {version} has weights {weights.root_hash[:16]}, the log says {made.root_hash[:16]}"
        )
    return save_version(folder / PINS, weights)


def unpin_version(folder: Path, version: int) -> None:
    """Let go of a pin. Raises UserError where there is none."""
    from models.registry import prune

    pins = list_pins(folder)
    if version not in pins:
        there = ", ".join(map(str, pins)) or "none"
        raise UserError(f"to let go of version {version}", f"it is not pinned; pinned: {there}", "name one of those")
    prune(folder / PINS, keep=[pin for pin in pins if pin != version])


def compare_weights(folder: Path, one: int, other: int) -> dict[str, tuple[float, float]]:
    """Tensor → (norm of the difference, norm of `one`'s), Frobenius, float64. Raises what `rebuild_version` raises."""
    from models.registry import tensors_of

    before, after = (tensors_of(version_weights(folder, version)) for version in (one, other))
    return {
        name: (float((after[name].double() - tensor.double()).norm()), float(tensor.double().norm()))
        for name, tensor in before.items()
    }


def blame_version(
    folder: Path,
    version: int | None,
    *,
    last: int | None = None,
    since: int | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Blame:
    """What went into a version (None: the newest), in the `last` steps or since a version that it comes from.

    Raises UserError, LearnerError.
    """
    with StoreView.open(folder / "store") as view:
        lineage = Lineage.of(view.decisions())
        number = lineage.find(version).version
        if since is not None:
            last = len(lineage.path(since, number)) - 1
        weigh = tenant(load(folder / "config.yaml")).influences
        return blame(view, lineage, number, weigh=weigh, last=last, on_step=on_step)


def learner_on_its_base(view: StoreView, folder: Path, *, config: RunConfig, own_code: Path | None = None) -> Learner:
    """The run's learner. Adapters say nothing of the base that they belong to, so that is compared with the log's.

    `own_code` as in actors.tenants.Tenant. Raises RunFolderError.
    """
    learner = tenant(config).build_learner(folder, own_code=own_code)
    sessions = [one for _, one in view.decisions() if isinstance(one, Session) and one.role == "learner"]
    if config.model.lora.rank and sessions and sessions[-1].base_weights != learner.base_hash:
        raise RunFolderError(
            f"the versions of {folder.name}",
            f"they are adapters of the base {sessions[-1].base_weights[:16]}, and {folder / 'model'} is "
            f"{learner.base_hash[:16]}",
            f"put the old base back at {folder / 'model'}",
        )
    return learner


def newest_served(view: StoreView, folder: Path) -> int:
    served = [record.version for _, record in view.decisions() if isinstance(record, Served)]
    if not served:
        raise RunFolderError(
            f"a version of {folder.name}", "none was served yet", f"go on with `ratchet resume {folder.name}`"
        )
    return served[-1]
