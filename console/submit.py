"""`ratchet submit CONFIG --address URL`: the run as a job on a Ray cluster; this command only follows its log.

The configuration's own code and data travel with it, as console/task_folder.py says.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from configs.loader import load
from configs.schema import RunConfig
from console import task_folder


def submit(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    address: Annotated[str, typer.Option(help="The cluster's dashboard, as in http://head-node:8265.")],
    submission_id: Annotated[
        str | None, typer.Option("--id", help="The job's id; the same id again attaches. Default: from the settings.")
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key.")] = None,
    python: Annotated[str, typer.Option(help="Python on the cluster that has the requirements.")] = "python",
) -> None:
    """Submit a run and follow it; exits with the run's code. May be killed and called again."""
    resolved, source = settle(load(config, settings or [])), config.parent
    code = task_folder.digest(resolved, source)
    from actors import submit as jobs

    job = jobs.submit(
        resolved,
        address=address,
        submission_id=submission_id or jobs.derive_id(resolved, code=code),
        python=python,
        ship=lambda folder: task_folder.copy(resolved, source, folder),
    )
    again = f"ratchet submit {config} --address {address} --id {job.submission_id}"
    _note(f"{'attached to' if job.attached else 'submitted'} {job.submission_id}")
    try:
        ended = jobs.follow(job, write=_write)
    except KeyboardInterrupt:
        _note(f"the job goes on; follow it again with: {again}")
        raise
    raise typer.Exit(ended)


def settle(config: RunConfig) -> RunConfig:
    """The configuration as the cluster's driver needs it: paths that do not depend on a folder, and that cluster."""
    model = config.model
    if model.path is not None:
        model = model.model_copy(update={"path": str(Path(model.path).absolute())})
    return config.model_copy(
        update={
            "root": str(Path(config.root).absolute()),
            "model": model,
            "cluster": config.cluster.model_copy(update={"address": "auto"}),
        }
    )


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _note(text: str) -> None:
    typer.echo(f"[ratchet] {text}", err=True)
