"""What works on a run's folder alone, without Ray: replay it, rebuild a version, evaluate or export one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from actors.tenants import tenant
from buffers.view import StoreView
from configs.loader import load
from configs.schema import RunConfig
from contracts.errors import RunFolderError
from contracts.protocols import InFlight, Learner, WeightSet
from contracts.records import Evaluation, Served, Session, Version
from loops import replay as replaying
from loops.replay import ReplayedStep


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
    kind = tenant(config)
    engine = kind.build_engine(folder / "model")
    stage = kind.open_stage(folder, engine, rank=0)
    try:
        engine.pause(InFlight.FINISH, timeout_s=config.engine.timeout_s)
        engine.push(learner.weights(made.version))
        engine.resume()
        return stage.evaluate(made.version, made.step)
    finally:
        stage.close()
        engine.close()


def version_weights(folder: Path, version: int) -> WeightSet:
    """From its file or, where that was pruned, computed again. Raises what `rebuild_version` raises."""
    from models.registry import list_versions, load_version

    if version not in list_versions(folder / "versions"):
        return rebuild_version(folder, version)[0].weights(version)
    config = load(folder / "config.yaml")
    if config.model.lora.rank:  # adapters, which mean nothing on another base
        learner_on_its_base(StoreView.open(folder / "store"), folder, config=config)
    return load_version(folder / "versions", version)


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
