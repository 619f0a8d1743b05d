"""`ratchet store`: what lies in a run's experience store, whether it is whole, and where else it is kept."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from configs.loader import load
from console.bars import bar
from console.query import query
from console.run_folder import name_new, occupied, read_manifest, refuse_shards, resolve
from console.status import describe_faults
from contracts.errors import UserError

if TYPE_CHECKING:
    from buffers.inspection import Contents, LogContents
    from contracts.records import Quarantined

app = typer.Typer(help="Look after a run's experience.", no_args_is_help=True, rich_markup_mode=None)
app.command()(query)

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
    refuse_shards(folder, asked="an inspection")
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

    folder = resolve(run)
    refuse_shards(folder, asked="a question")
    found = answer(Experience(folder / "store"), question)
    if as_json:
        rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
        typer.echo(json.dumps({"question": question, "rows": rows}, default=str))
        return
    lines = [found.columns, *([_show(value) for value in row] for row in found.rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(found.columns))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@app.command()
def verify(run: Run, as_json: AsJson = False) -> None:
    """Read every byte of the store and its snapshots; exit code 1 where something is not as it should be."""
    from buffers.verification import verify as look

    folder = resolve(run)
    with bar("verifying", quiet=as_json) as advance:
        found = look(folder, on_progress=advance)
    elsewhere = 0 if found.defects else load(folder / "config.yaml").store.shards - found.num_shards
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        for defect in found.defects:
            where = defect.place if defect.lsn is None else f"{defect.place} LSN {defect.lsn}"
            typer.echo(f"{where}: {defect.text}")
        verdict = f"{len(found.defects)} DEFECTS" if found.defects else "whole"
        typer.echo(
            f"{found.num_records:,} records in {found.num_bytes / 2**20:,.1f} MiB and {found.num_snapshots} snapshots: "
            f"{verdict}"
        )
        if elsewhere:
            typer.echo(f"{elsewhere} of its shards lie on other machines and were not looked at")
    if found.defects:
        raise typer.Exit(1)


@app.command()
def repair(
    run: Run,
    sources: Annotated[
        list[Path] | None, typer.Option("--from", metavar="FOLDER", help="Another copy of the run. Repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Mend damaged segments of a run that is not running from its snapshots; what was there is kept aside."""
    from buffers.repair import repair as mend

    folder = resolve(run)
    refuse_shards(folder, asked="a repair")
    with bar("repairing", quiet=as_json) as advance:
        done = mend(folder, sources=[source.absolute() for source in sources or []], on_progress=advance)
    if as_json:
        typer.echo(json.dumps(asdict(done), default=str))
        return
    for log, start, end in done.mended:
        typer.echo(f"mended: {log} LSN {start} to {end}")
    for path in done.kept:
        typer.echo(f"set aside: {path}")
    for log, start, end in done.lost:
        typer.echo(f"lost: {log} LSN {start} to {end}: no other copy has it; name one: --from FOLDER")
    if not done.kept and not done.lost:
        typer.echo("nothing is damaged")


@app.command()
def erase(
    run: Run,
    episodes: Annotated[list[str] | None, typer.Option("--episode", metavar="ID", help="Repeatable.")] = None,
    lsns: Annotated[list[int] | None, typer.Option("--lsn", help="Of an episode. Repeatable.")] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", metavar="ID", help="All that came of it. Repeatable.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Goes into the log.")] = "not given",
    as_json: AsJson = False,
) -> None:
    """Take the contents of episodes out of the store of a run that is not running, and of its snapshots, for good."""
    from buffers.erasure import Choice
    from buffers.erasure import erase as blank

    folder = resolve(run)
    refuse_shards(folder, asked="an erasure")
    choice = Choice(episodes=frozenset(episodes or ()), lsns=frozenset(lsns or ()), tasks=frozenset(tasks or ()))
    with bar("searching", quiet=as_json) as advance:
        done = blank(folder, choice, reason=reason, on_progress=advance)
    if (folder / "report.html").exists():  # it shows what some episodes said
        from console.web.report import write_report

        write_report(folder)
    if as_json:
        typer.echo(json.dumps(asdict(done)))
        return
    typer.echo(
        f"erased: {len(done.lsns)} records; "
        f"{done.num_segments} segments and {done.num_snapshots} snapshots were changed"
    )
    if done.versions:
        typer.echo(f"not rebuildable from now on: versions {', '.join(map(str, done.versions))}")
    for path in done.removed:
        typer.echo(f"removed, as it may have held some of it: {path}")
    for place in done.elsewhere:
        typer.echo(f"not reached: {place}")
    typer.echo("not reached: exports and copies that were taken elsewhere")


@app.command("import")
def import_experience(
    run: Annotated[str, typer.Argument(metavar="RUN")],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder of `ratchet export`, JSONL or Parquet.")],
    as_json: AsJson = False,
) -> None:
    """Experience made elsewhere into the store of a run that is not running; the same bytes are taken once."""
    from actors.importing import import_into

    folder = resolve(run)
    refuse_shards(folder, asked="to import into the store")
    config = load(folder / "config.yaml")
    uuid = str(read_manifest(folder)["store_uuid"])
    with occupied(folder):
        done = import_into(folder, source.absolute(), uuid=uuid)
    fitting = (config.max_staleness + 1) * config.learner.groups_per_step
    if as_json:
        typer.echo(json.dumps(asdict(done) | {"run": folder.name, "fitting": fitting}))
        return
    typer.echo(
        f"{done.groups:,} groups of {done.episodes:,} episodes, {done.quarantined:,} of them quarantined, "
        f"{done.scored:,} scored by the newest version; {done.known:,} groups were there already"
    )
    typer.echo(f"producer import:{done.digest[:12]}; go on with: ratchet resume {folder.name}")
    if done.groups > fitting:
        typer.echo(f"about {fitting:,} groups are learned from before the rest is too old (max_staleness of the run)")


@app.command()
def archive(
    run: Run,
    to: Annotated[
        str | None, typer.Option(metavar="URI", help="s3://…, gs://…, or a folder; default: archive.uri of the run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send what a run's archive lacks: sealed segments, checkpoints, the base model. The run may live."""
    from buffers.archive import archive as send

    folder = resolve(run)
    refuse_shards(folder, asked="an archive")
    uri = to or load(folder / "config.yaml").archive.uri
    if uri is None:
        raise UserError(f"archive {folder.name}", "no place is named", "--to URI, or archive.uri in the configuration")
    with bar("sending", quiet=as_json) as advance:
        done = send(folder, uri, on_progress=advance)
    if as_json:
        typer.echo(json.dumps(asdict(done)))
        return
    typer.echo(
        f"{uri}: {done.num_sent} objects of {done.num_bytes / 2**20:,.1f} MiB sent; "
        f"whole up to data LSN {done.data_lsn:,}, control LSN {done.control_lsn:,}"
    )


@app.command()
def restore(
    uri: Annotated[str, typer.Argument(metavar="URI")],
    new: Annotated[str, typer.Option("--as", metavar="RUN", help="Name of a new run under runs/, or a path.")],
    store: Annotated[str | None, typer.Option(metavar="UUID", help="Where the archive has several.")] = None,
    as_json: AsJson = False,
) -> None:
    """A new run from an archive, on a machine that has nothing of it."""
    from buffers.archive import restore as fetch

    place = name_new(new, beside=Path("runs"))
    try:
        wanted = None if store is None else UUID(store)
    except ValueError:
        raise UserError(f"the store {store}", "that is no UUID", "name a folder of the archive") from None
    with bar("fetching", quiet=as_json) as advance:
        uuid = fetch(uri, place, uuid=wanted, on_progress=advance)
    if as_json:
        typer.echo(json.dumps({"run": place.name, "folder": str(place), "store_uuid": str(uuid)}))
        return
    typer.echo(f"run {place.name}: {place}")
    typer.echo(f"go on with: ratchet resume {place}")


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
