"""`ratchet export RUN --out FOLDER`: a run's experience as Parquet, for DuckDB, pandas and Hugging Face `datasets`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from console.bars import bar
from console.run_folder import read_manifest, refuse_shards, resolve


def export(
    run: Annotated[str, typer.Argument(metavar="RUN|SNAPSHOT")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A folder that does not exist or is empty.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """A run's experience as Parquet tables with a dataset card. For a model see `ratchet model export`."""
    from buffers.export import export as write

    folder = resolve(run)
    refuse_shards(folder, asked="an export")
    manifest = read_manifest(folder)
    with bar("writing", quiet=as_json) as advance:
        made = write(
            folder / "store",
            out.absolute(),
            run=manifest["run"],
            config_hash=manifest["config_hash"],
            on_progress=advance,
        )
    if as_json:
        typer.echo(json.dumps({"run": folder.name, "out": str(made.out), "uuid": str(made.uuid), "rows": made.rows}))
        return
    typer.echo(f"experience of {folder.name}: {made.out}")
    for table, rows in made.rows.items():
        typer.echo(f"  {table}: {rows:,} rows")
