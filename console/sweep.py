"""`ratchet sweep CONFIG --seeds N [--set key=a,b]`: every variant with every seed, one run after the other, compared.

    sweeps/quickstart-5d1c02/            the same CONFIG and single-valued settings find the same folder again
      learning_rate-1e-4-seed-0/         a run like any other: status, resume, report, trace
      ...
      report.json, report.md             rewritten after each run

A finished run is not run again, one that was stopped or died is resumed: after Ctrl-C or a crash the same command goes
on. More seeds or values may be added later.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from configs.loader import compare, load
from configs.schema import RunConfig
from console import comparison, preflight
from console.run_folder import create
from console.status import open_store, read_status, summarise
from contracts.errors import ConfigError, RunFolderError

ATTEMPTS = 3  # at one run, each resuming the one before
BAD_INPUT, INTERRUPTED = 2, 130
SLUG = re.compile(r"[^A-Za-z0-9.+-]+")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One choice of the settings that vary."""

    name: str  # "" where nothing varies
    settings: tuple[str, ...]  # "key=value"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a sweep."""

    variant: Variant
    config: RunConfig
    folder: Path

    @property
    def finished(self) -> bool:
        return read_status(self.folder).get("state") == "finished"


def sweep(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Seeds of each variant, from the configuration's on.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=A,B", help="Change one key; several values make variants. Repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a folder under sweeps/.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Run seeds and variants one after the other; compare them. The same command goes on after Ctrl-C."""
    folder = (out or default_folder(config, settings or [])).absolute()
    members = plan(config, seeds=seeds, settings=settings or [], folder=folder)
    for number, member in enumerate(members, start=1):
        head = f"run {number} of {len(members)}: {member.folder.name}"
        if member.finished:
            _note(f"{head} is finished")
        else:
            if not member.folder.exists():
                create(member.config, source=config.parent, name=member.folder.name)
            run_member(member, head=head)
        write_report(members, folder)
    report = write_report(members, folder)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        typer.echo(comparison.render_text(report))
        typer.echo(f"report: {folder / 'report.md'}, report.json")
    if not all(member.finished for member in members):
        raise typer.Exit(1)


# ---------------------------------------------------------------------------------------------- planning


def plan(config: Path, *, seeds: int, settings: Sequence[str], folder: Path) -> list[Member]:
    """All runs, seed by seed, so that every variant has some seeds early on.

    Raises ConfigError for a wrong setting of any of them, RunFolderError where `folder` holds runs of another sweep.
    """
    fixed = [setting for setting in settings if len(split_values(setting)) == 1]
    variants = make_variants(settings)
    members = []
    for number, variant in itertools.product(range(seeds), variants):
        first = load(config, [*fixed, *variant.settings])
        changes = {"seed": first.seed + number, "root": str(folder)}
        name = "-".join(part for part in (variant.name, f"seed-{first.seed + number}") if part)
        resolved = first.model_copy(update={**changes, "name": name})
        members.append(Member(variant=variant, config=resolved, folder=folder / name))
    for member in members[: len(variants)]:
        preflight.check(member.config, folder=config.parent)
    members = [Member(variant=m.variant, config=preflight.take_engine(m.config), folder=m.folder) for m in members]
    for member in members:
        _refuse_another(member)
    return members


def make_variants(settings: Sequence[str]) -> list[Variant]:
    """The product of all settings with several values. Raises ConfigError where a value is there twice."""
    varied = [values for setting in settings if len(values := split_values(setting)) > 1]
    keys = [values[0].partition("=")[0] for values in varied]
    for key, values in zip(keys, varied, strict=True):
        if key == "seed":
            raise ConfigError(f"--set {','.join(values)} was asked for.", "Seeds are counted.", "Use --seeds N.")
        if len(set(values)) < len(values) or keys.count(key) > 1:
            raise ConfigError(
                f"Variants of {key} were asked for.", "The same key or value is there twice.", "Name each once."
            )
    return [Variant(name=_name(chosen, keys), settings=chosen) for chosen in itertools.product(*varied)]


def split_values(setting: str) -> list[str]:
    """ "a=1,2" → ["a=1", "a=2"]; commas inside brackets, braces or quotes do not part."""
    key, equals, text = setting.partition("=")
    values, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in "[{") - (letter in "]}") if not quote else 0
        if letter == "," and not quote and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    return [f"{key}{equals}{value.strip()}" for value in values]


def default_folder(config: Path, settings: Sequence[str]) -> Path:
    """sweeps/NAME-HASH: of the file's content and the settings that do not vary."""
    fixed = sorted(setting for setting in settings if len(split_values(setting)) == 1)
    content = config.read_bytes() if config.is_file() else b""  # `load` says what is wrong with it
    digest = hashlib.sha256(b"\n".join([content, *(setting.encode() for setting in fixed)])).hexdigest()
    return Path("sweeps") / f"{config.stem}-{digest[:6]}"


def _name(chosen: Sequence[str], keys: Sequence[str]) -> str:
    """ "learning_rate-1e-4_threads-2": for folders and tables."""
    leaves = [key.rpartition(".")[2] for key in keys]
    parts = []
    for setting in chosen:
        key, _, value = setting.partition("=")
        leaf = key.rpartition(".")[2]
        slug = SLUG.sub("_", value)[:40]
        mark = "" if slug == value else "-" + hashlib.sha256(value.encode()).hexdigest()[:4]
        parts.append(f"{leaf if leaves.count(leaf) == 1 else key}-{slug}{mark}")
    return "_".join(parts)


def _refuse_another(member: Member) -> None:
    file = member.folder / "config.yaml"
    if not member.folder.exists():
        return
    changed = [change.key for change in compare(load(file), member.config)] if file.exists() else ["everything"]
    if changed:
        raise RunFolderError(
            f"the run {member.folder.name} in {member.folder.parent}",
            f"a run of that name is there with another configuration: {', '.join(changed)}",
            "choose another folder: --out FOLDER",
        )


# ---------------------------------------------------------------------------------------------- running


def run_member(member: Member, *, head: str) -> None:
    """Run or resume until it is finished, at most ATTEMPTS times. A process of its own: nothing of it stays behind.

    Raises typer.Exit where the run was refused or stopped by hand.
    """
    words = [sys.executable, "-m", "console.main", "resume", str(member.folder), "--json"]
    for attempt in range(1, ATTEMPTS + 1):
        _note(head if attempt == 1 else f"{head}, attempt {attempt} of {ATTEMPTS}")
        # A process group of its own: Ctrl-C reaches this process alone, which passes it on once.
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, process_group=0)
        with passing_on_signals(process) as interrupted:
            code = process.wait()
        if code == BAD_INPUT:
            raise typer.Exit(BAD_INPUT)
        if code == INTERRUPTED or interrupted:
            _note("stopped; the same command goes on")
            raise typer.Exit(INTERRUPTED)
        if member.finished:
            return
        _note(f"{member.folder.name} ended with code {code}")
    _note(f"{member.folder.name} is given up: see its logs; the others go on")


@contextmanager
def passing_on_signals(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Ctrl-C or a request to end goes to the run, which drains; a second one stops it at once. Yields those seen."""
    seen: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        seen.append(number)
        process.send_signal(signal.SIGINT)
        _note("asked the run to stop; it drains first" if len(seen) == 1 else "asked the run to stop at once")

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_report(members: Sequence[Member], folder: Path) -> comparison.Report:
    """report.json and report.md from what is finished by now."""
    outcomes = []
    for member in members:
        view = open_store(member.folder) if member.finished else None
        scores = summarise(member.folder, view)["held_out"] if view is not None else None
        outcomes.append(
            comparison.Outcome(
                variant=member.variant.name,
                seed=member.config.seed,
                run=member.folder.name,
                state=read_status(member.folder).get("state", "not started"),
                scores=scores,
            )
        )
    report = comparison.compare(outcomes)
    comparison.write(report, folder)
    return report


def _note(text: str) -> None:
    typer.echo(f"[sweep] {text}", err=True)
