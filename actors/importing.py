"""`ratchet store import`: experience from elsewhere into the store of a run that is not running."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from actors.offline import rebuild_version
from actors.text import TokenizerCodec
from buffers.foreign import hash_source, read_groups
from buffers.owner import StoreOwner
from buffers.view import StoreView
from configs.loader import load
from contracts.errors import RunFolderError, UserError
from contracts.protocols import Learner
from contracts.records import FloatArray, IntArray
from loops.importing import Imported, import_groups
from loops.lineage import Lineage
from loops.tasks import task_source


def import_into(
    folder: Path, source: Path, *, uuid: str, on_chunk: Callable[[Imported], None] = lambda done: None
) -> Imported:
    """Raises UserError where the source or the run is not fit for it, StoreBusyError where the run is running."""
    config = load(folder / "config.yaml")
    if config.control.id is not None:
        raise UserError(f"experience in {source} for {folder.name}", "it is a control run", "import into a text run")
    digest, learners = hash_source(source), list[Learner]()
    newest = _newest(folder)

    def score(pairs: Sequence[tuple[IntArray, IntArray]]) -> list[FloatArray]:
        if not learners:
            learners.append(rebuild_version(folder, newest)[0])
        learner = learners[0]
        assert hasattr(learner, "score")  # a text run's
        scored: list[FloatArray] = learner.score(pairs)
        return scored

    owner = StoreOwner.open(folder / "store", uuid=uuid, config=config, source=task_source(config))
    try:
        return import_groups(
            owner,
            read_groups(source),
            digest=digest,
            store_uuid=str(owner.uuid),
            environment=config.environment_label,
            version=newest,
            encode=TokenizerCodec(folder / "model", config),
            score=score,
            max_tokens=config.engine.context_tokens,
            on_chunk=on_chunk,
        )
    finally:
        owner.close()


def _newest(folder: Path) -> int:
    """The version that the learner goes on from."""
    view = StoreView.open(folder / "store")
    head = view.fold.head(view.fold.branch)
    if head is None:
        raise RunFolderError(
            f"experience for {folder.name}", "it has no version yet", "make one: ratchet run CONFIG --set steps=0"
        )
    return Lineage.of(view.decisions()).find(head).version
