"""`ratchet evaluate RUN`: a version's scores on the held-out items, sampled and greedy."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from console.run_folder import resolve


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN")],
    version: Annotated[int | None, typer.Option(metavar="V", help="Default: the newest version.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Score a version on the held-out items."""
    folder = resolve(run)
    from actors.run import evaluate as score

    scores = score(folder, version)
    if as_json:
        typer.echo(json.dumps(scores))
    else:
        for name, value in scores.items():
            typer.echo(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
