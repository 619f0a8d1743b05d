"""`ratchet snapshot create` and `ratchet snapshot list`: a run kept at a moment, restorable on an empty machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from console.run_folder import resolve

app = typer.Typer(help="Keep a run at a moment.", no_args_is_help=True, rich_markup_mode=None)

Run = Annotated[str, typer.Argument(metavar="RUN")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


@app.command()
def create(
    run: Run,
    name: Annotated[str, typer.Option(help="Letters, digits, dots, dashes and underscores.")],
    as_json: AsJson = False,
) -> None:
    """Keep a run as it is now, whether it runs or not."""
    folder = resolve(run)
    from buffers import snapshots

    path = snapshots.create(folder, name)
    made = snapshots.read(path)
    if as_json:
        typer.echo(json.dumps(asdict(made) | {"folder": str(path)}))
    else:
        typer.echo(f"snapshot {made.name} of {made.run} at version {made.version}, {made.num_files} files: {path}")


@app.command("list")
def list_snapshots(run: Run, as_json: AsJson = False) -> None:
    """The snapshots of a run, oldest first."""
    folder = resolve(run)
    from buffers import snapshots

    found = snapshots.list_all(folder)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found]))
    elif not found:
        typer.echo(f"{folder.name} has none; make one: ratchet snapshot create {run} --name NAME")
    else:
        for one in found:
            typer.echo(f"{one.name}  version {one.version}  {one.created}  {one.num_files} files")
