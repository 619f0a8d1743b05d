"""`ratchet run`, `resume` and `stop`: a run begins, goes on, and ends."""

from __future__ import annotations

import json
import select
import signal
import sys
from collections.abc import Mapping
from os import pidfd_open
from pathlib import Path
from typing import Annotated, Any

import typer

from configs.loader import Change, check_resume, compare, dump, load
from configs.objects import own_folder
from configs.schema import RunConfig
from console import preflight
from console.progress import Progress
from console.run_folder import check_store, create, discard, occupied, resolve
from console.status import LIVE_STATES, driver_is_alive, open_store, read_status, summarise
from contracts.errors import RunFolderError, UserError

Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key. Repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the final status as one JSON object.")]


def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    settings: Settings = None,
    name: Annotated[str | None, typer.Option(help="Name of the run, instead of the configuration's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start a run and follow it to its end."""
    overrides = [*(settings or []), *([f"name={json.dumps(name)}"] if name else [])]
    resolved = preflight.take_engine(load(config, overrides))
    preflight.check(resolved, folder=config.parent)
    folder = create(resolved, source=config.parent)
    try:
        with occupied(folder):
            code = _drive(resolved, folder, as_json=as_json)
    except UserError:
        if read_status(folder).get("phase", "starting") == "starting":  # nothing was handed out or learned
            discard(folder)
        raise
    raise typer.Exit(code)


def resume(
    run: Annotated[str, typer.Argument(metavar="RUN")], settings: Settings = None, as_json: AsJson = False
) -> None:
    """Go on with a run that stopped, failed, or crashed."""
    from buffers.log.files import write_durably

    folder = resolve(run)
    _refuse_live(folder)
    with occupied(folder):
        check_store(folder)
        old = load(folder / "config.yaml")
        new = load(folder / "config.yaml", settings or [])
        check_resume(old, new)
        preflight.check(new, folder=own_folder(folder))
        announce(compare(old, new))
        if new != old:
            write_durably(folder / "config.yaml", dump(new).encode())
        code = _drive(new, folder, as_json=as_json)
    raise typer.Exit(code)


def stop(
    run: Annotated[str, typer.Argument(metavar="RUN")],
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait for the end.")] = 120.0,
) -> None:
    """End a run as Ctrl-C does: it drains, keeps a checkpoint, and can be resumed."""
    folder = resolve(run)
    written = read_status(folder)
    if written.get("state") not in LIVE_STATES:
        typer.echo(f"{folder.name} is not running: it is {written.get('state', 'not started')}")
        return
    try:
        driver = pidfd_open(written["pid"])
    except ProcessLookupError:
        typer.echo(f"{folder.name} ended by itself just now")
        return
    # The descriptor holds this very process: only now is it sure that the number was not used again.
    if not driver_is_alive(written):
        typer.echo(f"{folder.name} ended by itself just now")
        return
    signal.pidfd_send_signal(driver, signal.SIGINT)
    typer.echo(f"asked process {written['pid']} to stop; it drains first")
    ended, _, _ = select.select([driver], [], [], wait_s)
    if not ended:
        raise RunFolderError(
            f"stop {folder.name}",
            f"process {written['pid']} still drains after {wait_s:g} s",
            f"wait longer, or run `ratchet stop {run}` again: the second time it stops at once, also safely",
        )
    typer.echo(f"{folder.name} is {read_status(folder)['state']}; go on with: ratchet resume {folder.name}")


def announce(changes: list[Change]) -> None:
    """Say what is another than it was, and what that does to the weights' bits."""
    for change in changes:
        typer.echo(f"{change.key}: {change.old} before, {change.new} now", err=True)
        if change.key == "learner.threads":
            typer.echo(
                "warning: another number of threads computes other bits: steps after the last checkpoint that are "
                "computed again get new version numbers",
                err=True,
            )


def _drive(config: RunConfig, folder: Path, *, as_json: bool) -> int:
    from actors.run import run as drive

    print(f"run folder: {folder}", file=sys.stderr, flush=True)
    with Progress(folder):
        code = drive(config, folder=folder)
    if (folder / "store" / "store.json").exists():
        from console.web.report import write_report

        report = write_report(folder)
        if as_json:
            typer.echo(json.dumps(summarise(folder, open_store(folder)) | {"report": str(report)}))
        else:
            typer.echo(describe_items(read_status(folder)))
            typer.echo(f"report: {report}")
    return code


def describe_items(written: Mapping[str, Any]) -> str:
    """What held-out scores were measured on; the environment compares the questions of both splits before it starts."""
    items = written.get("items")
    if not items:
        return "held-out items: not known"
    train, held_out, shared = items["train"], items["held_out"], items["shared"]
    return f"held-out items: {held_out:,}; training items: {train:,}; question texts in both: {shared}"


def _refuse_live(folder: Path) -> None:
    written = read_status(folder)
    if written.get("state") in LIVE_STATES:
        raise RunFolderError(
            f"resume {folder.name}",
            f"it is {written['state']} (process {written['pid']})",
            f"look at it with `ratchet status {folder.name}`, or end it first with `ratchet stop {folder.name}`",
        )
