"""`ratchet rewind RUN --exclude QUERY`: the run computed again without some of its experience, as a run of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from configs.loader import load
from console.query import parse_query
from console.run_folder import refuse_shards, resolve
from contracts.errors import RunFolderError, UserError

if TYPE_CHECKING:
    from loops.exclusion import Request
    from loops.rewind import RewoundStep

NUM_LINES = 20  # progress
CHOICES = ("keep", "drop")


def rewind(
    run: Annotated[str, typer.Argument(metavar="RUN|SNAPSHOT")],
    exclude: Annotated[
        list[str],
        typer.Option(metavar="QUERY", help="Such as 'producer=rollout-1.0 version=3:9'. Repeatable: any of them."),
    ],
    descendants: Annotated[
        str, typer.Option(metavar="keep|drop", help="What versions made that had learned from it.")
    ] = "drop",
    from_first_use: Annotated[
        bool,
        typer.Option("--from-first-use", help="Begin at the newest checkpoint before its first use, not the oldest."),
    ] = False,
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Of the new run. Default: RUN-rewind-HASH, beside it.")
    ] = None,
    evaluates: Annotated[bool, typer.Option("--evaluate/--no-evaluate", help="Score both at the end.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Compute a run again without some of its experience. The run stays as it is; stopped, the same command goes on."""
    folder = resolve(run)
    refuse_shards(folder, asked="a rewind")
    request = make_request(folder, exclude, descendants)
    to = place(folder, request, name)
    from actors.rewind import rewind_run

    if not as_json:
        typer.echo(f"{folder.name} without {request.text}: {to}")
    report = rewind_run(
        folder,
        to=to,
        request=request,
        from_first_use=from_first_use,
        evaluates=evaluates,
        on_step=_ignore if as_json else _show,
        on_progress=_ignore if as_json else typer.echo,
    )
    if as_json:
        typer.echo(json.dumps(report))
        return
    for line in render(report):
        typer.echo(line)


def make_request(folder: Path, exclude: list[str], descendants: str) -> Request:
    """Raises UserError."""
    from loops.exclusion import Request

    if descendants not in CHOICES:
        raise UserError(f"--descendants {descendants}", "it is keep or drop", "--descendants keep")
    min_reward = load(folder / "config.yaml").replay.min_reward
    queries = tuple(parse_query(text, min_reward=min_reward) for text in exclude)
    text = " | ".join(" ".join(one.split()) for one in exclude)
    return Request(queries=queries, text=text, descendants="keep" if descendants == "keep" else "drop")


def place(folder: Path, request: Request, name: str | None) -> Path:
    """Where the branch goes: beside the run, never into it. Raises RunFolderError."""
    from loops.rewind import mark_of

    runs = [one for one in (folder, *folder.parents) if (one / "manifest.json").is_file()]  # a snapshot lies in its run
    beside = runs[-1].parent
    if name is None:
        return beside / f"{folder.name}-{mark_of(request)}"
    to = beside / name if name == Path(name).name else Path(name).absolute()
    if runs[-1] in (to, *to.parents):
        raise RunFolderError(f"a rewind at {to}", f"it is inside the run {runs[-1].name}", "name a folder beside it")
    return to


def render(report: dict[str, Any]) -> list[str]:
    """The report for people."""
    selected, later, ess = report["selected"], report["later"], report["ess"]
    what = f"{selected['episodes']:,} episodes in {selected['groups']:,} groups"
    made = f"{later['by_tainted']:,} ({later['share']:.1%}) were made by versions that had learned from it"
    lines = [
        f"left out: {what}; first learned from at step {report['first_step']} of {report['last_step']}",
        f"of the {later['rows']:,} other episodes learned from since then, {made}: {report['descendants']}",
    ]
    if ess:
        lines.append(
            f"their effective sample size under the rebuilt model: {ess['by_token']:.1%} by token, "
            f"{ess['by_episode']:.1%} by episode (of {ess['episodes']:,})"
        )
    lines.append(
        f"computed again: {report['steps']} steps with {report['rows_kept']:,} of {report['rows']:,} episodes, "
        f"{len(report['skipped'])} skipped with nothing left; it ends at step {report['ends_at_step']}, "
        f"version {report['version']}"
    )
    if report["before_with_other_bits"]:
        lines.append(
            f"warning: this machine computes other bits than the log has: {report['before_with_other_bits']} steps "
            "before the first use, too, have other weights"
        )
    if "metric" in report:
        lines += [_describe("as recorded", report["recorded"], report["metric"])]
        lines += [_describe("rewound", report["rewound"], report["metric"])]
        gap = report["difference"]
        interval = f"[{gap['low']:+.3f}, {gap['high']:+.3f}]"
        lines.append(f"{'difference':<12} on the same {gap['items']:,} items: {gap['mean']:+.4f} {interval}")
    lines.append(f"go on with: ratchet resume {report['folder']}")
    return lines


def _describe(name: str, scored: dict[str, Any], metric: str) -> str:
    scores = scored["scores"]
    interval = f" [{scores[f'{metric}_low']:.3f}, {scores[f'{metric}_high']:.3f}]" if f"{metric}_low" in scores else ""
    return f"{name:<12} step {scored['step']:<6} {metric} {scores[metric]:.4f}{interval}"


def _show(step: RewoundStep) -> None:
    every = max(1, step.last_step // NUM_LINES)
    if step.step % every and step.step != step.last_step:
        return
    what = f"{step.num_rows} episodes, {step.num_left_out} left out"
    if step.is_before:
        what = "as recorded" if step.is_logged else "OTHER BITS than recorded"
    typer.echo(f"step {step.step}/{step.last_step}  version {step.version}  {what}")


def _ignore(_: object) -> None:
    """Nobody watches."""
