"""`ratchet evaluate RUN [--samples N]`: a version's scores on the held-out items, sampled and greedy, and pass@k."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer

from configs.loader import load
from console.run_folder import resolve
from contracts.errors import ConfigError


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN")],
    version: Annotated[int | None, typer.Option(metavar="V", help="Default: the newest one served.")] = None,
    samples: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Sampled completions an item. Default: the run's own number.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Score a version on the held-out items, on an engine of its own; with several samples, pass@k too."""
    folder = resolve(run)
    control = load(folder / "config.yaml").control.id
    if samples is not None and control is not None:
        raise ConfigError(
            f"{samples} samples of each item of {folder.name}",
            f"it acts in {control}, where evaluation plays greedily: there are no samples",
            "leave --samples out",
        )
    from actors.offline import evaluate_version

    evaluation = evaluate_version(folder, version, samples=samples, on_progress=lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(json.dumps(asdict(evaluation)))
        return
    typer.echo(f"version {evaluation.version}, {evaluation.items} items, {evaluation.samples} samples each")
    for line in render(evaluation.scores):
        typer.echo(f"  {line}")


def render(scores: Mapping[str, float]) -> list[str]:
    """One line a score, with its interval where it has one."""
    lines = []
    for name, value in scores.items():
        low, high = scores.get(f"{name}_low"), scores.get(f"{name}_high")
        if low is not None and high is not None:
            lines.append(f"{name}: {value:.4f} [{low:.4f}, {high:.4f}]")
        elif not name.endswith(("_low", "_high")):
            lines.append(f"{name}: {value:.4f}")
    return lines
