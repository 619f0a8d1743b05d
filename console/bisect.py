"""`ratchet bisect RUN --metric NAME --bad V --good V`: the first batch after which a metric fell, and its episodes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from console.run_folder import refuse_shards, resolve
from contracts.errors import RunFolderError

SHOWN = 20  # episodes


def bisect(
    run: Annotated[str, typer.Argument(metavar="RUN|SNAPSHOT")],
    metric: Annotated[
        str,
        typer.Option(metavar="NAME", help="A held-out score (greedy_accuracy, …), or a training metric of the log."),
    ],
    bad: Annotated[int, typer.Option(metavar="V", help="A version with the bad score.")],
    good: Annotated[int, typer.Option(metavar="V", help="One that it comes from, with the good score.")],
    share: Annotated[
        float, typer.Option(metavar="SHARE", min=0.01, max=0.99, help="Of the way from good to bad that is bad.")
    ] = 0.5,
    samples: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Sampled completions an item. Default: the run's own number.")
    ] = None,
    episodes: Annotated[
        bool, typer.Option("--episodes/--no-episodes", help="Also look for the guilty groups of the batch.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For findings. Default: beside the run, NAME-bisect-HASH.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Find the batch that broke a metric. The same command goes on where it was broken off; the run is only read."""
    folder = resolve(run)
    refuse_shards(folder, asked="to bisect the versions")
    place = place_findings(folder, out, question=[folder.name, metric, good, bad, samples])
    from actors.bisect import bisect_run

    found = bisect_run(
        folder,
        metric=metric,
        good=good,
        bad=bad,
        share=share,
        samples=samples,
        with_episodes=episodes,
        out=place,
        say=lambda text: typer.echo(text, err=True),
    )
    if as_json:
        typer.echo(json.dumps(found))
        return
    for line in render(found):
        typer.echo(line)


def place_findings(folder: Path, out: Path | None, *, question: Sequence[object]) -> Path:
    """Where findings go: never into a run's folder; the same question finds them again. Raises RunFolderError."""
    runs = [one for one in (folder, *folder.parents) if (one / "manifest.json").is_file()]  # a snapshot lies in its run
    if out is None:
        digest = hashlib.sha256(json.dumps(question).encode()).hexdigest()[:8]
        return runs[-1].parent / f"{runs[-1].name}-bisect-{digest}"
    place = out.absolute().resolve()
    if runs[-1] in (place, *place.parents):
        raise RunFolderError(f"findings in {out}", f"it is inside the run {runs[-1].name}", "name a folder beside it")
    return place


def render(found: Mapping[str, Any]) -> list[str]:
    """The report, for a person."""
    batch, versions = found["batch"], found["versions"]
    scores = f"from {found['good_score']:.4f} to {found['bad_score']:.4f}"
    first = f"version {found['first_bad']}, step {found['step']} (batch at control LSN {batch['lsn']})"
    lines = [
        f"{found['metric']} went {scores} between version {found['good']} and {found['bad']}",
        f"first bad: {first}; last good: version {found['last_good']}; {found['sure']:.1%} sure",
    ]
    if found["how"] == "log":
        lines.append(f"by the metric of {versions:,} steps in the log: nothing was folded again")
    else:
        looked_at = len(found["looked_at"])
        lines.append(
            f"threshold {found['threshold']:.4f}; {looked_at} of {versions + 1:,} versions evaluated, "
            f"{found['refolds']} folded again, {found['steps']:,} steps in all"
        )
        if found["unequal"]:
            unequal = ", ".join(map(str, found["unequal"]))
            lines.append(f"this machine computes otherwise than the run's: versions {unequal} came out with other bits")
    lines += _render_sources(batch) + _render_culprits(found)
    lines.append(f"written to {found['out']}")
    return lines


def _render_sources(batch: Mapping[str, Any]) -> list[str]:
    producers = batch["sources"]["producer"]
    lines = ["", f"producers in that batch, beside the {batch['steps_before']} steps before it:"]
    for one in producers:
        before = "" if one["share_before"] is None else f" (before {one['share_before']:.1%})"
        shift = "" if one["shift"] is None else f", reward {one['shift']:+.3f} beside the others"
        lines.append(f"  {one['name']}: {one['share']:.1%} of the weight{before}, {one['episodes']} episodes{shift}")
    return lines


def _render_culprits(found: Mapping[str, Any]) -> list[str]:
    if "culprits" not in found:
        return []
    culprits = found["culprits"]
    if culprits is None:
        return ["", "no producer and no half of the batch alone made the step fall"]
    lines = [
        "",
        f"{culprits['restored']:.0%} of the step's fall is undone without {len(culprits['leases'])} of its groups:",
    ]
    lines += [
        f"  LSN {one['lsn']}  {one['id']}  {one['producer']}  {one['task']}  reward {one['reward']:.4f}"
        for one in culprits["episodes"][:SHOWN]
    ]
    if len(culprits["episodes"]) > SHOWN:
        lines.append(f"  and {len(culprits['episodes']) - SHOWN} more: report.json")
    return lines
