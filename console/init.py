"""`ratchet init NAME`: a folder with an example task of your own, its test, and its configuration, ready to run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from contracts.errors import UserError

EXAMPLE = Path(__file__).parent / "example"
FILES = ("task.py", "test_task.py", "run.yaml")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def init(name: Annotated[Path, typer.Argument(metavar="NAME", help="A new folder, or an empty one.")]) -> None:
    """Write a small task of your own to start from."""
    _check(name)
    try:
        name.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            (name / file).write_text((EXAMPLE / file).read_text().replace("NAME", name.name))
    except OSError as error:
        raise UserError(
            f"a new task in {name}", f"it cannot be written: {error.strerror}", "choose another folder"
        ) from None
    typer.echo(f"{name / 'task.py'}: where the questions come from, and what an answer is worth")
    typer.echo(f"{name / 'test_task.py'}: what it promises: python -m pytest {name}")
    typer.echo(f"{name / 'run.yaml'}: model, learner, engine: ratchet run {name / 'run.yaml'}")


def _check(folder: Path) -> None:
    """Raises UserError unless `folder` can become a new task."""
    asked = f"a new task in {folder}"
    if not _NAME.fullmatch(folder.name):
        todo = "name a folder with letters, digits, dots, dashes and underscores"
        raise UserError(asked, f"{folder.name!r} cannot be the name of a run", todo)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(asked, "there is something of that name already", "choose another name")
