"""`ratchet evaluate RUN`: a version's scores on the held-out items, sampled and greedy."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from console.run_folder import resolve


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN")],
    version: Annotated[int | None, typer.Option(metavar="V", help="Default: the newest one served.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Score a version on the held-out items, on an engine of its own."""
    folder = resolve(run)
    from actors.offline import evaluate_version

    evaluation = evaluate_version(folder, version)
    if as_json:
        typer.echo(json.dumps(asdict(evaluation)))
        return
    typer.echo(f"version {evaluation.version}, {evaluation.items} items, {evaluation.samples} samples each")
    for name, value in evaluation.scores.items():
        typer.echo(f"  {name}: {value:.4f}")
