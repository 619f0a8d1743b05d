"""`ratchet version`: the versions of a run as a tree, what went into one, how two differ, and which are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from configs.loader import load
from console.bars import bar
from console.run_folder import names, read_manifest, resolve
from contracts.records import Batch, Version

if TYPE_CHECKING:
    from loops.lineage import Lineage

app = typer.Typer(help="The versions of a run's model.", no_args_is_help=True, rich_markup_mode=None)

Run = Annotated[str, typer.Argument(metavar="RUN|SNAPSHOT")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a run's files say of its versions. `files`, `pins`: versions whose weights lie in a file."""

    folder: Path
    lineage: Lineage
    files: frozenset[int]
    pins: frozenset[int]

    def row(self, version: Version, acted: Mapping[int, Mapping[str, int]]) -> Row:
        """What `list` and `show` have in common."""
        fate = self.lineage.fates[version.version]
        metric, score = fate.metric or (None, None)
        return {
            "version": version.version,
            "parent": version.parent,
            "branch": version.branch,
            "step": version.step,
            "root_hash": version.root_hash,
            "time": version.wall_time,
            "stats": version.stats,
            "metric": metric,
            "score": score,
            "served": [{"time": one.wall_time, "gap": one.gap} for one in fate.served],
            "verdicts": [{"verdict": one.verdict, "reason": one.reason} for one in fate.guards],
            "acted": dict(acted.get(version.version, {})),
            "kept": self.kept(version),
        }

    def kept(self, version: Version) -> list[str]:
        """Where its weights are to be had without computing anything."""
        checkpoints = [one.folder for one in self.lineage.fates[version.version].checkpoints]
        found = {
            "checkpoint": any((self.folder / place).is_dir() for place in checkpoints),
            "file": version.version in self.files,
            "pinned": version.version in self.pins,
        }
        return [name for name, is_there in found.items() if is_there]

    def branches(self) -> list[dict[str, Any]]:
        """Runs beside this one that came out of it, and at which version."""
        from buffers.log.identity import read_identity

        ours = str(read_identity(self.folder / "store"))
        found = []
        for name in names(self.folder.parent):
            came_from = read_manifest(self.folder.parent / name).get("from", {})
            if came_from.get("store_uuid") == ours:
                made = [number for number, lsn in self.lineage.lsns.items() if lsn < came_from["control_lsn"]]
                found.append({"run": name, "version": max(made, default=-1)})
        return found


def look(folder: Path) -> Known:
    from actors.offline import list_pins
    from buffers.view import StoreView
    from loops.lineage import Lineage
    from models.versions import list_versions as list_files

    return Known(
        folder=folder,
        lineage=Lineage.of(StoreView.open(folder / "store").decisions()),
        files=frozenset(list_files(folder / "versions")),
        pins=frozenset(list_pins(folder)),
    )


def count(folder: Path, *, versions: tuple[int, int], quiet: bool) -> dict[int, dict[str, int]]:
    """Version → producer → episodes in which it acted; nothing of a run whose experience lies in several stores."""
    from buffers.query import count_acted

    if load(folder / "config.yaml").store.shards > 1:
        return {}
    with bar("reading", quiet=quiet) as advance:
        return count_acted(folder / "store", versions=versions, on_progress=advance)


@app.command("list")
def list_versions(
    run: Run,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="The newest ones.")] = 20,
    as_json: AsJson = False,
) -> None:
    """The versions as a tree, newest first: score, when it was served, in how many episodes it acted, what is kept."""
    from loops.lineage import draw

    folder = resolve(run)
    known = look(folder)
    shown = sorted(known.lineage.versions, reverse=True)[:limit]
    acted = count(folder, versions=(shown[-1], shown[0]), quiet=as_json) if shown else {}
    rows = {number: known.row(known.lineage.versions[number], acted) for number in shown}
    branches = known.branches()
    if as_json:
        typer.echo(json.dumps({"run": folder.name, "versions": list(rows.values()), "branches": branches}))
        return
    for edges, number in draw([known.lineage.versions[number] for number in shown]):
        typer.echo(edges.rstrip() if number is None else f"{edges}{describe(rows[number])}")
    if older := len(known.lineage.versions) - len(shown):
        typer.echo(f"and {older:,} older ones: --limit {len(known.lineage.versions)}")
    for branch in branches:
        typer.echo(f"{branch['run']} branched off at version {branch['version']}")


@app.command()
def show(
    run: Run,
    version: Annotated[int | None, typer.Argument(metavar="V", help="Default: the newest one.")] = None,
    as_json: AsJson = False,
) -> None:
    """One version: what it was learned from, its scores, who acted with it, and what is kept of it."""
    folder = resolve(run)
    known = look(folder)
    made = known.lineage.find(version)
    number = made.version
    acted = count(folder, versions=(number, number), quiet=as_json)
    batch, session = known.lineage.batch_of(made), known.lineage.sessions.get(number)
    row = known.row(made, acted) | {
        "depth": len(known.lineage.ancestry(number)) - 1,
        "children": [child.version for child in known.lineage.children(number)],
        "batch": None if batch is None else describe_batch(made.batch_lsn, batch),
        "evaluations": [
            {"metric": one.metric, "items": one.items, "samples": one.samples, "scores": one.scores}
            for one in known.lineage.fates[number].evaluations
        ],
        "fingerprint": dict(session.fingerprint) if session else {},
        "branches": [one["run"] for one in known.branches() if one["version"] == number],
    }
    if as_json:
        typer.echo(json.dumps({"run": folder.name} | row))
        return
    for line in render(row):
        typer.echo(line)


@app.command()
def diff(
    run: Run,
    one: Annotated[int, typer.Argument(metavar="A")],
    other: Annotated[int, typer.Argument(metavar="B")],
    weights: Annotated[
        bool, typer.Option("--weights", help="Also how far each tensor moved; weights that were pruned are computed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """From version A to version B: steps and episodes on either side of their common ancestor, scores, settings."""
    folder = resolve(run)
    known = look(folder)
    before, after = known.lineage.find(one), known.lineage.find(other)
    found: dict[str, Any] = {
        "from": before.version,
        "to": after.version,
        **_sides(known.lineage, before, after),
        "stats": _pairs(before.stats, after.stats),
        "scores": _pairs(*(_scores(known.lineage, version) for version in (before, after))),
        "fingerprint": _changes(known.lineage, before, after),
    }
    if weights:
        from actors.offline import compare_weights

        moved = compare_weights(folder, one, other)
        found["weights"] = {name: {"moved": difference, "norm": norm} for name, (difference, norm) in moved.items()}
    if as_json:
        typer.echo(json.dumps({"run": folder.name} | found))
        return
    for line in render_diff(found):
        typer.echo(line)


@app.command()
def pin(
    run: Annotated[str, typer.Argument(metavar="RUN")],
    version: Annotated[int, typer.Argument(metavar="V")],
    remove: Annotated[bool, typer.Option("--remove", help="Let go of it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Keep a version's weights whatever the run prunes or trims, in RUN/pins. The run may live."""
    from actors.offline import list_pins, pin_version, unpin_version

    folder = resolve(run)
    path = None
    if remove:
        unpin_version(folder, version)
    else:
        path = pin_version(folder, version)
    if as_json:
        typer.echo(json.dumps({"run": folder.name, "file": str(path) if path else None, "pinned": list_pins(folder)}))
    elif path is None:
        typer.echo(f"version {version} is not pinned any more")
    else:
        typer.echo(f"version {version} is kept: {path}")


# ---------------------------------------------------------------------------------------------- what is said


def describe(row: Row) -> str:
    """A version in one line."""
    parts = [f"{row['version']}", f"step {row['step']}", row["root_hash"][:12], show_time(row["time"])]
    if "reward_mean" in row["stats"]:
        parts.append(f"reward {row['stats']['reward_mean']:.3f}")
    if row["score"] is not None:
        parts.append(f"{row['metric']} {row['score']:.3f}")
    if row["served"]:
        parts.append("served")
    parts += [one["verdict"] for one in row["verdicts"]]
    if row["acted"]:
        parts.append(f"acted in {sum(row['acted'].values()):,}")
    if row["kept"]:
        parts.append(f"[{', '.join(row['kept'])}]")
    return "  ".join(parts)


def describe_batch(lsn: int, batch: Batch) -> dict[str, Any]:
    return {
        "lsn": lsn,
        "episodes": len(batch.rows),
        "groups": len({row.lease for row in batch.rows}),
        "replayed": sum(row.replayed for row in batch.rows),
        "zero_spread": len(batch.zero_spread),
        "dropped": {
            reason: sum(one.disposition.value == reason for one in batch.dropped)
            for reason in sorted({one.disposition.value for one in batch.dropped})
        },
    }


def render(row: Row) -> list[str]:
    """`ratchet version show`, for a person."""
    lines = [
        f"version {row['version']}, step {row['step']}, made {show_time(row['time'])}",
        f"  weights {row['root_hash']}",
        f"  {row['depth']} updates from genesis; "
        + (f"parent {row['parent']}" if row["parent"] >= 0 else "it is the genesis")
        + (f"; children {', '.join(map(str, row['children']))}" if row["children"] else ""),
    ]
    if batch := row["batch"]:
        dropped = "".join(f", {count} groups {reason}" for reason, count in batch["dropped"].items())
        lines.append(
            f"  learned from {batch['episodes']} episodes in {batch['groups']} groups "
            f"({batch['zero_spread']} without spread, {batch['replayed']} rows replayed{dropped})"
        )
    if row["stats"]:
        lines.append("  " + "  ".join(f"{name} {value:.4g}" for name, value in sorted(row["stats"].items())))
    for one in row["evaluations"]:
        scores = "  ".join(f"{name} {value:.4f}" for name, value in one["scores"].items())
        lines.append(f"  held out, {one['items']} items, {one['samples']} samples each: {scores}")
    lines += [f"  served {show_time(one['time'])}, gap {one['gap']:.4f}" for one in row["served"]]
    lines += [f"  {one['verdict']}: {one['reason']}" for one in row["verdicts"]]
    acted = ", ".join(f"{producer} {count:,}" for producer, count in sorted(row["acted"].items()))
    lines.append(f"  acted in episodes of: {acted or 'nobody'}")
    lines.append(f"  kept: {', '.join(row['kept']) or 'nothing; it can be computed again from an older checkpoint'}")
    if row["branches"]:
        lines.append(f"  branched off here: {', '.join(row['branches'])}")
    return lines


def render_diff(found: Mapping[str, Any]) -> list[str]:
    """`ratchet version diff`, for a person."""
    lines = [f"from version {found['from']} to version {found['to']}"]
    if found["ancestor"] is None:
        lines.append("  they have no ancestor in common")
    for number, side in ((found["from"], found["behind"]), (found["to"], found["ahead"])):
        if side["steps"]:
            lines.append(
                f"  only {number} has learned from steps {side['first_step']} to {side['last_step']}: "
                f"{side['steps']:,} batches of {side['episodes']:,} episodes"
            )
    lines += _render_pairs("score", found["scores"]) + _render_pairs("last step's", found["stats"])
    lines += [f"  {name} was {was} and is {now}" for name, (was, now) in found["fingerprint"].items()]
    moved = found.get("weights", {})
    for name, one in sorted(moved.items(), key=lambda pair: -pair[1]["moved"] / (pair[1]["norm"] or 1.0)):
        share = f" ({one['moved'] / one['norm']:.2%} of its norm)" if one["norm"] else ""
        lines.append(f"  {name} moved by {one['moved']:.4g}{share}")
    return lines


def show_time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}" if seconds else "-"


def _sides(lineage: Lineage, before: Version, after: Version) -> dict[str, Any]:
    """What each of the two learned from since their common ancestor."""
    ancestor = lineage.common(before.version, after.version)
    sides: dict[str, Any] = {"ancestor": None if ancestor is None else ancestor.version}
    for name, version in (("behind", before), ("ahead", after)):
        path = lineage.ancestry(version.version)
        own = path if ancestor is None else path[[one.version for one in path].index(ancestor.version) + 1 :]
        batches = [batch for one in own if (batch := lineage.batch_of(one)) is not None]
        sides[name] = {
            "steps": len(own),
            "first_step": own[0].step if own else None,
            "last_step": own[-1].step if own else None,
            "episodes": sum(len(batch.rows) for batch in batches),
            "groups": sum(len({row.lease for row in batch.rows}) for batch in batches),
        }
    return sides


def _scores(lineage: Lineage, version: Version) -> Mapping[str, float]:
    evaluations = lineage.fates[version.version].evaluations
    return evaluations[-1].scores if evaluations else {}


def _pairs(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    return {name: (before[name], after[name]) for name in before if name in after}


def _changes(lineage: Lineage, before: Version, after: Version) -> dict[str, tuple[Any, Any]]:
    """What the bits depend on and was another when the two were made."""
    was, now = (
        dict(session.fingerprint) if (session := lineage.sessions.get(one.version)) is not None else {}
        for one in (before, after)
    )
    return {name: (was.get(name), now.get(name)) for name in was | now if was.get(name) != now.get(name)}


def _render_pairs(head: str, pairs: Mapping[str, tuple[float, float]]) -> list[str]:
    return [f"  {head} {name}: {was:.4f} → {now:.4f} ({now - was:+.4f})" for name, (was, now) in pairs.items()]
