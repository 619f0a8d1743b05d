"""Make a run's base model folder: `python -m actors.base_model RUN_FOLDER`, a child of the driver while Ray starts.

The driver itself never loads torch. The folder appears whole: it is made under another name first.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Self

from actors.tenants import tenant
from configs.loader import load
from configs.schema import RunConfig
from contracts.errors import LearnerError

MAKE_S = 300.0


class BaseModel:
    """RUN_FOLDER/model: a link to the configured folder, or a model made from nothing by a child process.

    The child lives at most as long as the `with` block. Ctrl-C does not reach it: the driver decides what that means.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._target = folder / "model"
        self._child: subprocess.Popen[bytes] | None = None
        if self._target.exists():
            return
        if config.model.path is not None:
            self._target.symlink_to(Path(config.model.path).absolute())
        else:
            words = [sys.executable, "-m", "actors.base_model", str(folder)]
            self._child = subprocess.Popen(words, start_new_session=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def wait(self) -> None:
        """Until the folder is there. Raises LearnerError."""
        if self._child is not None and self._child.wait(timeout=MAKE_S) != 0:
            raise LearnerError(f"the base model could not be made in {self._target}; the lines above say why")


def main(folder: Path) -> None:
    config = load(folder / "config.yaml")
    draft = folder / ".model"
    shutil.rmtree(draft, ignore_errors=True)
    tenant(config).make_model(draft)
    draft.rename(folder / "model")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
