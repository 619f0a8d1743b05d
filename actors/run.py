"""The driver of a run, from a folder with a configuration to the report: reads as the run happens."""

from __future__ import annotations

import json
import logging
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from actors.base_model import BaseModel
from actors.cluster import joined
from actors.crew import Crew
from actors.watch import StatusFile, Watch
from buffers.log.files import write_durably
from buffers.owner import StoreOwner
from configs.schema import RunConfig
from loops.tasks import task_source
from telemetry import logs

log = logging.getLogger(__name__)


def run(config: RunConfig, *, folder: Path) -> int:
    """Run to the last step; the exit code: 0 finished, 130 stopped by hand (`ratchet resume` goes on).

    Raises ActorDiedError when a process died, PlacementError, ClusterError, StoreIdentityError, or what a loop raised.
    """
    logs.configure("driver", run=folder.name, folder=folder / "logs")
    status = StatusFile(folder, config)
    status.write()
    try:
        uuid = identify(config, folder)
        with BaseModel(config, folder) as model, joined(config), interrupts() as stopped:
            log.info("cluster joined")
            model.wait()
            crew = Crew.hire(config, folder=folder, uuid=str(uuid))
            log.info("crew hired")
            try:
                watch = Watch(crew, config=config, folder=folder, file=status)
                step, draining = None, False
                while step is None:
                    step = watch.look()
                    if stopped() and not draining:
                        crew.drain()
                        draining = True
                finished = step >= config.steps
                watch.write(state="finished" if finished else "stopped", step=step)
                return 0 if finished else 130
            finally:
                crew.dismiss()
    except KeyboardInterrupt:
        status.write(state="stopped", reason="stopped at once by hand")
        raise
    except BaseException as error:
        log.error("the run failed", extra={"detail": repr(error)})
        status.write(state="failed", reason=str(error))
        raise


def identify(config: RunConfig, folder: Path) -> UUID:
    """The store that this run's manifest names; a first start makes it. Raises StoreIdentityError."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    if manifest["store_uuid"] is None:
        # A store that no manifest names never acknowledged anything: no process starts before the name is on the disk.
        shutil.rmtree(folder / "store", ignore_errors=True)
        owner = StoreOwner.open(folder / "store", config=config, source=task_source(config), create=True)
        owner.close()
        manifest["store_uuid"] = str(owner.uuid)
        write_durably(path, (json.dumps(manifest, indent=1) + "\n").encode())
    return UUID(manifest["store_uuid"])


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C once: drain. Twice: Python's own KeyboardInterrupt, which stops at once; the log makes that safe too."""
    seen: list[int] = []

    def note(number: int, frame: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        print("draining: the step in hand is finished and a checkpoint written; Ctrl-C again stops at once", flush=True)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
