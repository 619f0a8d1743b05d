"""`ratchet blame RUN [V]`: producers, tasks, environments, verifiers, rewards that went into a version, by weight."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from console.bars import bar
from console.run_folder import refuse_shards, resolve
from contracts.errors import UserError

if TYPE_CHECKING:
    from loops.blame import Blame, Source

HEAD = ("share", "before", "reward", "before", "shift", "suspicion", "episodes")


def blame(
    run: Annotated[str, typer.Argument(metavar="RUN|SNAPSHOT")],
    version: Annotated[int | None, typer.Argument(metavar="V", help="Default: the newest one.")] = None,
    last: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the last N steps of it, beside the N before.")
    ] = None,
    since: Annotated[
        int | None, typer.Option(metavar="V", help="Only what came after this version, beside as many steps before.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="producer, task, environment, verifier, reward. Repeatable."),
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="Lines of each kind.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, all lines.")] = False,
) -> None:
    """What went into a version, by weight; with --last or --since, beside what came before, the suspicious first."""
    from actors.offline import blame_version
    from loops.blame import KINDS

    if unknown := [kind for kind in by or () if kind not in KINDS]:
        raise UserError(f"--by {unknown[0]}", f"there is {', '.join(KINDS)}", "name one of those")
    if last is not None and since is not None:
        raise UserError(f"--last {last} and --since {since}", "both say where to begin", "give one of them")
    folder = resolve(run)
    refuse_shards(folder, asked="to weigh a version")
    with bar("weighing", quiet=as_json, unit="steps") as advance:
        found = blame_version(folder, version, last=last, since=since, on_step=advance)
    if as_json:
        typer.echo(json.dumps({"run": folder.name, **asdict(found)}))
        return
    for line in render(found, kinds=by or KINDS, top=top):
        typer.echo(line)


def render(found: Blame, *, kinds: Sequence[str], top: int) -> list[str]:
    """The tables, for a person."""
    steps = f"steps {found.first_step} to {found.last_step}" if found.last_step else "no step: it is the genesis"
    beside = f", beside the {found.steps_before} before" if found.steps_before else ""
    lines = [f"version {found.version}: {found.episodes:,} episodes in {steps}{beside}"]
    if found.steps_lost:
        lines.append(f"{found.steps_lost} steps are left out: episodes of them were erased or trimmed")
    for kind in kinds:
        sources = found.sources[kind]
        if not sources:
            continue
        width = max(len(kind), *(len(one.name) for one in sources[:top]))
        head = "  ".join(f"{name:>9}" for name in (HEAD if found.steps_before else (HEAD[0], HEAD[2], HEAD[-1])))
        lines += ["", f"{kind:<{width}}  {head}"]
        lines += [f"{one.name:<{width}}  {_cells(one)}" for one in sources[:top]]
        if len(sources) > top:
            lines.append(
                f"and {len(sources) - top:,} more, {sum(one.share for one in sources[top:]):.1%} of the weight"
            )
    return lines


def _cells(one: Source) -> str:
    cells = [f"{one.share:.1%}", f"{one.reward_mean:.3f}", f"{one.episodes:,}"]
    if one.share_before is not None and one.shift is not None and one.suspicion is not None:
        reward_before = "new" if one.reward_before is None else f"{one.reward_before:.3f}"
        cells[1:1] = [f"{one.share_before:.1%}"]
        cells[3:3] = [reward_before, f"{one.shift:+.3f}", f"{one.suspicion:.3f}"]
    return "  ".join(f"{cell:>9}" for cell in cells)
