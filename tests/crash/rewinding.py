"""One rewind of a plain run, in a process that may be killed: python -m tests.crash.rewinding RUN TO TASK keep|drop

Prints the hash of the weights that it ends with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from buffers.owner import StoreOwner
from buffers.query import Query
from contracts.records import Session
from loops.exclusion import Request
from loops.rewind import Rewind, cut_branch
from loops.tasks import PermutedSource
from tests.crash.plain import NumpyLearner, plain_config


def make_request(task: str, descendants: str) -> Request:
    return Request(
        queries=(Query(task=task),), text=f"task={task}", descendants="keep" if descendants == "keep" else "drop"
    )


def rewind(run: Path, to: Path, request: Request) -> str:
    cut_branch(run, to=to, request=request)
    uuid = json.loads((to / "manifest.json").read_text())["store_uuid"]
    source = PermutedSource("guess", num_items=50, seed=1)
    owner = StoreOwner.open(to / "store", uuid=uuid, config=plain_config(), source=source)
    learner = NumpyLearner()
    try:
        session = Session(role="learner", epoch=0)
        Rewind(owner, learner, folder=to, request=request, checkpoint_every=5, keep=2, session=session).run()
    finally:
        owner.close()
    return learner.root_hash()


if __name__ == "__main__":
    run, to, task, descendants = sys.argv[1:]
    print(rewind(Path(run), Path(to), make_request(task, descendants)))
