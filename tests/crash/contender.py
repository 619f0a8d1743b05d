"""One of several that want to own a store: `python -m tests.crash.contender FOLDER`.

Says `ready`, waits for a line, tries, says `owner EPOCH` or `busy MESSAGE`, and lets go when its input ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

from buffers.owner import StoreOwner
from contracts.errors import StoreBusyError
from tests.unit.buffers.bench import name_task, small_config


def main(folder: Path) -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        owner = StoreOwner.open(folder, config=small_config(), source=name_task)
    except StoreBusyError as error:
        print("busy", error, flush=True)
    else:
        print("owner", owner.epoch, flush=True)
        sys.stdin.read()
        owner.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
