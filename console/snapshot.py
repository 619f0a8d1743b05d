"""`ratchet snapshot`: a run kept at a moment, restorable on an empty machine, and the runs that branch off it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from console.bars import bar
from console.run_folder import name_new, refuse_shards, resolve

app = typer.Typer(help="Keep a run at a moment.", no_args_is_help=True, rich_markup_mode=None)

Run = Annotated[str, typer.Argument(metavar="RUN")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the snapshot.")]
NewName = Annotated[str, typer.Option("--as", metavar="RUN", help="Name of the new run, a folder beside the old one.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


@app.command()
def create(
    run: Run,
    name: Annotated[str, typer.Option(help="Letters, digits, dots, dashes and underscores.")],
    as_json: AsJson = False,
) -> None:
    """Keep a run as it is now, whether it runs or not."""
    folder = resolve(run)
    refuse_shards(folder, asked="a snapshot")
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


@app.command()
def verify(run: Run, name: Name, as_json: AsJson = False) -> None:
    """Compare every file of a snapshot with its manifest."""
    folder = resolve(run)
    from buffers import snapshots

    found = snapshots.verify(snapshots.find(folder, name))
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        typer.echo(f"snapshot {found.name} of {found.run} is whole: {found.num_files} files")


@app.command()
def restore(run: Run, name: Name, new: NewName, as_json: AsJson = False) -> None:
    """A new run that goes on from a snapshot, every byte of it a copy."""
    _make(run, name, new, share=False, as_json=as_json)


@app.command()
def branch(run: Run, name: Name, new: NewName, as_json: AsJson = False) -> None:
    """A new run that goes on from a snapshot and shares with it what never changes, at no cost in space."""
    _make(run, name, new, share=True, as_json=as_json)


@app.command()
def delete(run: Run, name: Name) -> None:
    """Remove a snapshot. Runs that branched off it stay whole."""
    folder = resolve(run)
    from buffers import snapshots

    snapshots.delete(folder, name)
    typer.echo(f"snapshot {name} of {folder.name} is gone")


def _make(run: str, name: str, new: str, *, share: bool, as_json: bool) -> None:
    folder = resolve(run)
    from buffers import branching, snapshots

    place = name_new(new, beside=folder.parent)
    with bar("restoring", quiet=as_json) as advance:
        uuid = branching.restore(snapshots.find(folder, name), place, share=share, on_progress=advance)
    if as_json:
        typer.echo(json.dumps({"run": place.name, "folder": str(place), "store_uuid": str(uuid)}))
    else:
        typer.echo(f"run {place.name}: {place}")
        typer.echo(f"go on with: ratchet resume {place}")
