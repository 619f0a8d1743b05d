"""`ratchet store`: what lies in a run's experience store, and whether it is whole."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from console.bars import bar
from console.run_folder import resolve
from console.status import describe_faults

if TYPE_CHECKING:
    from buffers.inspection import Contents, LogContents
    from contracts.records import Quarantined

app = typer.Typer(help="Look after a run's experience.", no_args_is_help=True, rich_markup_mode=None)

Run = Annotated[str, typer.Argument(metavar="RUN|SNAPSHOT")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command()
def inspect(
    run: Run,
    newest: Annotated[int, typer.Option(metavar="N", min=0, help="Quarantined episodes to name.")] = 20,
    as_json: AsJson = False,
) -> None:
    """What lies in the store: files, records, what became of every task, and what is quarantined and why."""
    from buffers.inspection import inspect as look

    folder = resolve(run)
    with bar("reading", quiet=as_json) as advance:
        contents = look(folder / "store", newest=newest, on_progress=advance)
    if as_json:
        typer.echo(json.dumps(to_json(contents)))
        return
    for line in render(contents):
        typer.echo(line)


@app.command()
def ask(
    run: Run,
    question: Annotated[
        str,
        typer.Argument(
            metavar="QUESTION", help="reward-by-version, staleness, quarantine, most-replayed, tokens-a-day"
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Ask the run's experience one of five questions."""
    from buffers.questions import ask as answer
    from buffers.tables import Experience

    found = answer(Experience(resolve(run) / "store"), question)
    if as_json:
        rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
        typer.echo(json.dumps({"question": question, "rows": rows}, default=str))
        return
    lines = [found.columns, *([_show(value) for value in row] for row in found.rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(found.columns))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _show(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def to_json(contents: Contents) -> dict[str, Any]:
    """What `ratchet store inspect --json` prints."""
    return {
        "uuid": contents.uuid,
        "data": asdict(contents.data),
        "control": asdict(contents.control),
        "ledger": asdict(contents.ledger) | {"balanced": contents.ledger.balanced},
        "quarantined": [{"lsn": lsn} | _plain(record) for lsn, record in contents.quarantined],
    }


def render(contents: Contents) -> list[str]:
    """A few lines for a person."""
    ledger = contents.ledger
    lines = [f"store {contents.uuid}", *_render_log("data", contents.data), *_render_log("control", contents.control)]
    lines.append(
        f"episodes: {ledger.episodes:,} kept, {ledger.episodes_trained:,} trained on, {ledger.episodes_late:,} late"
    )
    if not ledger.quarantined:
        return [*lines, "quarantined: none"]
    lines.append(f"quarantined: {describe_faults(ledger.quarantined)}")
    lines += [
        f"  LSN {lsn}  {record.fault.value}  {record.task_id}, member {record.member}, of {record.producer}: "
        f"{record.detail}"
        for lsn, record in contents.quarantined
    ]
    return lines


def _render_log(name: str, log: LogContents) -> list[str]:
    records = ", ".join(f"{count:,} {kind}" for kind, count in log.records.items())
    head = (
        f"{name}: LSN {log.start_lsn:,} to {log.end_lsn:,} in {log.num_segments} segments of "
        f"{log.num_bytes / 2**20:,.1f} MiB: {records or 'no records'}"
    )
    return [head] + [f"  {torn}: the unfinished end of a crash, kept aside" for torn in log.torn]


def _plain(record: Quarantined) -> dict[str, Any]:
    fields = asdict(record)
    del fields["payload"]
    return fields | {"fault": record.fault.value}
