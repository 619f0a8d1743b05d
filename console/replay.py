"""`ratchet replay RUN|SNAPSHOT`: computes the recorded batches again and compares every step's weights with the log.

With other settings (`--set`) or `--seeds` it trains a new branch of the learner on the same batches, beside the run;
with several values of a setting, one learner for each, and compares them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from configs.formulas import KEYS
from configs.loader import Change, compare, load
from configs.schema import RunConfig
from console.preflight import take_engine
from console.run import Settings
from console.run_folder import resolve
from console.sweep import Variant, make_variants, split_values
from contracts.errors import ConfigError, ReplayMismatchError, RunFolderError
from contracts.records import Kind, Session

if TYPE_CHECKING:
    from loops.replay import ReplayedStep
    from loops.retrain import BranchStep

# What a branch may change: the learner's rule, and the engine that its result is scored on. All else is recorded.
FREE = ("learner.", "ppo.", "evaluate.samples")
FREE_OF_ENGINE = ("backend", "device", "dtype", "eager", "gpu_memory_share", "max_sequences", "memory_gib", "threads")
RECORDED = ("learner.algorithm", "learner.groups_per_step", "learner.group_size")
COLUMNS = ("loss", "reward_mean", "importance_ess", "kl", "grad_norm")
LINES_A_SEED = 10  # progress
_SEED = re.compile(r"seed-\d+")


def replay(
    run: Annotated[str, typer.Argument(metavar="RUN|SNAPSHOT")],
    until: Annotated[int | None, typer.Option(metavar="STEP", help="Stop after this step.")] = None,
    settings: Settings = None,
    seeds: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Branches: 0 the log itself, others a bootstrap of its groups."),
    ] = None,
    compares: Annotated[
        bool, typer.Option("--compare", help="Score the run's own version too, beside the branches, on one engine.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For a branch. Default: beside the run, NAME-replay-TIME.")
    ] = None,
    points: Annotated[
        int, typer.Option(metavar="N", min=1, help="Of several learners: how often each is scored along the log.")
    ] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Compute a run's steps again, without generating anything: compare the weights' hashes, or train a branch."""
    folder = resolve(run)
    variants = make_variants(settings or [])
    if len(variants) > 1:
        asked = Contest(variants, settings or [], seeds=seeds or 1, until=until, points=points)
        _compare_learners(folder, asked, out=out, as_json=as_json)
        return
    config = change(folder, settings or [])
    if compares or seeds is not None or out is not None or compare(load(folder / "config.yaml"), config):
        config = take_engine(config)
        _branch(folder, config, seeds=seeds or 1, out=out, until=until, compares=compares, as_json=as_json)
        return
    from actors.offline import replay_run

    steps = replay_run(folder, until=until, on_step=_ignore if as_json else _show)
    unequal = [step for step in steps if not step.equal and not step.lost]
    lost = [step.step for step in steps if step.lost]
    if as_json:
        typer.echo(json.dumps(_report(folder, steps)))
    elif not unequal:
        rest = f"; {len(lost)} not rebuildable, since experience of them was erased or trimmed" if lost else ""
        typer.echo(f"{len(steps) - len(lost)} steps, every one equal{rest}")
    if unequal:
        raise ReplayMismatchError(f"{len(unequal)} of {len(steps)} steps differ: {_first(unequal[0])}{_reason(folder)}")


# ---------------------------------------------------------------------------------------------- a branch


def change(folder: Path, settings: list[str]) -> RunConfig:
    """The run's configuration with `settings`. Another loss brings its own values for the keys that a formula decides,
    unless they are set too. Raises ConfigError, also for what the recorded batches fix."""
    old = load(folder / "config.yaml")
    new = load(folder / "config.yaml", settings)
    if new.learner.loss != old.learner.loss:
        named = {setting.partition("=")[0].strip() for setting in settings}
        own = [f"learner.{key}=null" for key in KEYS if f"learner.{key}" not in named]
        new = load(folder / "config.yaml", [*own, *settings])
    fixed = [one.key for one in compare(old, new) if not _is_free(one.key)]
    if fixed:
        engine = ", ".join(f"engine.{name}" for name in FREE_OF_ENGINE)
        raise ConfigError(
            f"A branch of {folder.name} with another {', '.join(fixed)} was asked for.",
            "The recorded batches were made with the old one.",
            f"Change keys of learner (not {', '.join(RECORDED)}), ppo, evaluate.samples, {engine}; or start a new run.",
        )
    return new


def _is_free(key: str) -> bool:
    section, _, name = key.partition(".")
    return key not in RECORDED and (key.startswith(FREE) or (section == "engine" and name in FREE_OF_ENGINE))


def _branch(
    folder: Path,
    config: RunConfig,
    *,
    seeds: int,
    out: Path | None,
    until: int | None,
    compares: bool,
    as_json: bool,
) -> None:
    from actors.retrain import retrain_run
    from telemetry.logs import dump_line

    place = place_branch(folder, out)
    if not as_json:
        changes = compare(load(folder / "config.yaml"), config)
        typer.echo(f"{folder.name} again with {', '.join(map(_describe, changes)) or 'the same settings'}")
    report = retrain_run(
        folder,
        config=config,
        seeds=range(seeds),
        out=place,
        until=until,
        compares=compares,
        on_step=_ignore if as_json else _show_step,
    )
    if as_json:
        typer.echo(dump_line(report))
        return
    for line in render(report):
        typer.echo(line)


@dataclass(frozen=True)
class Contest:
    """Several learners that were asked for."""

    variants: Sequence[Variant]
    settings: Sequence[str]  # those of all included
    _: KW_ONLY
    seeds: int
    until: int | None
    points: int


def _compare_learners(folder: Path, asked: Contest, *, out: Path | None, as_json: bool) -> None:
    """The same command with the same `out` goes on where it was broken off."""
    from actors.contest import MARK, compare_learners
    from console import contest

    fixed = [setting for setting in asked.settings if len(split_values(setting)) == 1]
    configs = {one.name: take_engine(change(folder, [*fixed, *one.settings])) for one in asked.variants}
    report = compare_learners(
        folder,
        variants=configs,
        seeds=range(asked.seeds),
        out=place_branch(folder, out, goes_on=MARK),
        until=asked.until,
        points=asked.points,
        on_step=_ignore if as_json else _show_step,
        say=lambda text: typer.echo(text, err=True),
    )
    contest.write_page(report)
    if as_json:
        typer.echo(json.dumps(report))
        return
    for line in contest.render_text(report):
        typer.echo(line)


def place_branch(folder: Path, out: Path | None, *, goes_on: str | None = None) -> Path:
    """Where a branch goes: never into a run's folder, nor into one with something in it, unless that has the file
    `goes_on`. Raises RunFolderError."""
    runs = [one for one in (folder, *folder.parents) if (one / "manifest.json").is_file()]  # a snapshot lies in its run
    if out is None:
        return runs[-1].parent / f"{folder.name}-replay-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    place = out.absolute().resolve()
    if runs[-1] in (place, *place.parents):
        raise RunFolderError(f"a branch in {out}", f"it is inside the run {runs[-1].name}", "name a folder beside it")
    if goes_on is not None and (place / goes_on).is_file():
        return place
    if place.is_dir() and _was_killed(place):
        shutil.rmtree(place)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise RunFolderError(f"a branch in {out}", "there is something already", "name a new folder")
    return place


def _was_killed(place: Path) -> bool:
    """Whether the folder holds what a branch writes, and nothing else, and not yet its report."""
    names = {path.name for path in place.iterdir()}
    ours = {name for name in names if name in ("config.yaml", "steps.jsonl") or _SEED.fullmatch(name)}
    return bool(names) and names == ours


def render(report: dict[str, Any]) -> list[str]:
    """The table of a branch's report: the run as recorded, then each seed; means over the last tenth of the steps."""
    head = ["", *(f"{name:>16}" for name in COLUMNS), f"{'sampled':>24}", f"{'greedy':>8}"]
    lines = [f"{'':<12}" + "".join(head)]
    for row in (report["recorded"], *report["branches"]):
        end, scores = row["summary"].get("end", {}), row["scores"]
        name = "as recorded" if row["seed"] < 0 else f"seed {row['seed']}"
        cells = [f"{end[column]:>16.4f}" if column in end else f"{'':>16}" for column in COLUMNS]
        lines.append(f"{name:<12}" + "".join(cells) + _describe_scores(scores, report["metric"]))
    values = [row["scores"][report["metric"]] for row in report["branches"]]
    lines.append(f"{report['metric']}: mean {sum(values) / len(values):.4f}, {min(values):.4f} to {max(values):.4f}")
    lines.append(f"written to {report['out']}")
    return lines


def _describe_scores(scores: dict[str, float], metric: str) -> str:
    if metric not in scores:
        return f"{'not evaluated':>24}"
    interval = ""
    if f"{metric}_low" in scores:
        interval = f" [{scores[f'{metric}_low']:.3f}, {scores[f'{metric}_high']:.3f}]"
    greedy = f"{scores['greedy_accuracy']:>8.4f}" if "greedy_accuracy" in scores else ""
    return f"{scores[metric]:.4f}{interval}".rjust(24) + greedy


def _describe(change: Change) -> str:
    return f"{change.key} {change.new} (was {change.old})"


def _show_step(step: BranchStep) -> None:
    every = max(1, step.num_steps // LINES_A_SEED)
    if step.step % every == 0:
        facts = "  ".join(f"{name} {step.stats[name]:.4f}" for name in COLUMNS if name in step.stats)
        typer.echo(f"seed {step.seed}  step {step.step}  {facts}")


# ---------------------------------------------------------------------------------------------- the same settings


def _reason(folder: Path) -> str:
    """What the bits depend on and was another in one of the learner's sessions than it is here."""
    from actors.tenants import tenant
    from buffers.view import StoreView
    from configs.loader import load

    decisions = StoreView.open(folder / "store").decisions(kinds=[Kind.SESSION])
    sessions = [one.fingerprint for _, one in decisions if isinstance(one, Session) and one.role == "learner"]
    here = tenant(load(folder / "config.yaml")).build_learner(folder).fingerprint()
    were = {name: list(dict.fromkeys(session.get(name) for session in sessions)) for name in here}
    changed = [
        f"{name} was {' then '.join(map(str, values))} and is {here[name]}"
        for name, values in were.items()
        if values != [here[name]]
    ]
    return "; to be expected, since " + ", ".join(changed) if changed else "; the fingerprint is the same"


def _first(step: ReplayedStep) -> str:
    """Where they part: step, records, tensor."""
    tensors = "the log does not say which tensors"
    if step.tensors:
        tensors = f"the first tensor is {step.tensors[0]}, of {len(step.tensors)} that differ"
    return (
        f"the first is step {step.step}, VERSION {step.version} at LSN {step.version_lsn} of the control log, made "
        f"from the BATCH at LSN {step.batch_lsn}; logged {step.logged[:16]}, computed {step.computed[:16]}; {tensors}"
    )


def _report(folder: Path, steps: list[ReplayedStep]) -> dict[str, object]:
    return {
        "run": folder.name,
        "steps": len(steps),
        "equal": sum(step.equal for step in steps),
        "unequal": [step.step for step in steps if not step.equal and not step.lost],
        "lost": [step.step for step in steps if step.lost],
        "hashes": {step.step: step.computed for step in steps},
        "first": next(
            (
                {
                    "step": step.step,
                    "version": step.version,
                    "version_lsn": step.version_lsn,
                    "batch_lsn": step.batch_lsn,
                    "tensors": list(step.tensors),
                }
                for step in steps
                if not step.equal and not step.lost
            ),
            None,
        ),
    }


def _show(step: ReplayedStep) -> None:
    if step.lost:
        typer.echo(f"step {step.step}  version {step.version}  not rebuildable: its experience was erased or trimmed")
        return
    verdict = "equal" if step.equal else f"DIFFERS: logged {step.logged[:16]}"
    typer.echo(f"step {step.step}  version {step.version}  {step.computed[:16]}  {verdict}")


def _ignore(step: ReplayedStep | BranchStep) -> None:
    del step
