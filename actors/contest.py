"""Several learners on one log: each variant's settings trained on a run's recorded batches, and scored along the way.

    OUT/ contest.json, scores.json, report.json, VARIANT/seed-0/{ config.yaml, steps.jsonl, v000060/…, trained.json }

Variants are trained one after the other and then scored on the same held-out items under the same draws, all on one
engine where their engines' settings are the same. A member that is trained is not trained again, a version that is
scored is not scored again: the same command goes on. The run's own folder is only read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.offline import learner_on_its_base, opened_stage
from buffers.log.files import make_folder, write_durably
from buffers.view import StoreView
from configs.loader import compare, dump, load
from configs.schema import RunConfig
from contracts.errors import RunFolderError
from contracts.records import Evaluation, Kind
from evaluation.intervals import Interval, bootstrap, bootstrap_seeds
from loops import retrain as retraining
from loops.replay import computed_batches
from loops.retrain import BranchStep
from telemetry.logs import JsonLines, dump_line

TRAINED, SCORES, REPORT = "trained.json", "scores.json", "report.json"
MARK = "contest.json"  # a folder of ours: the same command may go on in it
Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One learner: a variant under one seed."""

    variant: str
    seed: int
    config: RunConfig
    folder: Path


def compare_learners(
    folder: Path,
    *,
    variants: Mapping[str, RunConfig],
    seeds: Sequence[int],
    out: Path,
    until: int | None = None,
    points: int = 5,
    on_step: Callable[[BranchStep], None] = lambda step: None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The report, as in OUT/report.json. Raises RunFolderError, LearnerError."""
    view = StoreView.open(folder / "store")
    steps = [batch.step for _, batch in computed_batches(view.decisions(), until=until)]
    if not steps:
        raise RunFolderError(f"learners on the batches of {folder.name}", "its log has no finished step", "go on first")
    places = np.unique(np.linspace(0, len(steps), points + 1).round().astype(int))[1:]
    scored = [steps[place - 1] for place in places]
    make_folder(out)
    write_durably(out / MARK, json.dumps({"run": folder.name, "variants": list(variants)}).encode())
    members = [
        Member(variant=name, seed=seed, config=config, folder=out / name / f"seed-{seed}")
        for name, config in variants.items()
        for seed in seeds
    ]
    for number, member in enumerate(members, start=1):
        say(f"learner {number} of {len(members)}: {member.variant}, seed {member.seed}")
        _train(view, folder, member, scored=scored, until=until, on_step=on_step)
    metric, scores = _score(folder, members, steps=scored, out=out, say=say)
    report = {
        "run": folder.name,
        "out": str(out),
        "metric": metric,
        "seeds": list(seeds),
        "recorded": _read_recorded(view),
        "variants": _summarise(folder, members, scores, steps=scored),
    }
    write_durably(out / REPORT, dump_line(report).encode() + b"\n")
    return report


def _train(
    view: StoreView,
    folder: Path,
    member: Member,
    *,
    scored: Sequence[int],
    until: int | None,
    on_step: Callable[[BranchStep], None],
) -> None:
    from models.registry import save_version

    asked = {"config": dump(member.config), "scored": list(scored), "until": until}
    done = member.folder / TRAINED
    if done.is_file() and json.loads(done.read_text())["asked"] == asked:
        return
    shutil.rmtree(member.folder, ignore_errors=True)  # of a call that was broken off, or asked otherwise
    make_folder(member.folder)
    write_durably(member.folder / "config.yaml", dump(member.config).encode())
    is_new = member.config.learner.loss != load(folder / "config.yaml").learner.loss
    learner = learner_on_its_base(view, folder, config=member.config, own_code=Path.cwd() if is_new else None)
    lines = JsonLines(member.folder / "steps.jsonl")

    hashes: dict[int, str] = {}

    def note(step: BranchStep) -> None:
        lines.append({"step": step.step, **step.stats})
        if step.step in scored:
            weights = learner.weights(step.step)
            save_version(member.folder, weights)
            hashes[step.step] = weights.root_hash
        on_step(step)

    try:
        steps = retraining.retrain(view, folder=folder, learner=learner, seed=member.seed, until=until, on_step=note)
    finally:
        lines.close()
    report = {"asked": asked, "hashes": hashes, "summary": retraining.summarise(steps)}
    write_durably(done, json.dumps(report).encode())


def _score(
    folder: Path, members: Sequence[Member], *, steps: Sequence[int], out: Path, say: Callable[[str], None]
) -> tuple[str, dict[tuple[str, int, int], Scores]]:
    """(metric, (variant, seed, step) → of each item). Kept in a file, by the hash of the weights."""
    from models.registry import load_version

    path = out / SCORES
    known: dict[str, dict[str, list[float]]] = json.loads(path.read_text()) if path.is_file() else {}
    found: dict[tuple[str, int, int], Scores] = {}
    metric = ""
    engines = {repr((one.config.engine, one.config.evaluate)): one.config for one in members}
    for key, config in engines.items():
        ours = [one for one in members if repr((one.config.engine, one.config.evaluate)) == key]
        work = {
            (one.folder, step): f"{config.evaluate.samples}:{config.engine.backend}:{hashes[str(step)]}"
            for one in ours
            for hashes in [json.loads((one.folder / TRAINED).read_text())["hashes"]]
            for step in steps
        }
        if not known.keys() >= set(work.values()):
            say(f"scoring {len(work)} versions on one engine")
            with opened_stage(folder, config) as (stage, serve):
                for (place, step), name in work.items():
                    if name not in known:
                        serve(load_version(place, step))
                        known[name] = {metric: values.tolist() for metric, values in stage.measure(step).items()}
                        write_durably(path, json.dumps(known).encode())
        for one in ours:
            for step in steps:
                metric, values = next(iter(known[work[one.folder, step]].items()))
                found[one.variant, one.seed, step] = np.array(values)
    return metric, found


def _summarise(
    folder: Path, members: Sequence[Member], scores: Mapping[tuple[str, int, int], Scores], *, steps: Sequence[int]
) -> list[dict[str, Any]]:
    """Each variant's curve, its last score, and how that differs from the first variant's, pair by pair."""
    names = list(dict.fromkeys(one.variant for one in members))
    old = load(folder / "config.yaml")
    rows = []
    for name in names:
        ours = [one for one in members if one.variant == name]
        by_step = {step: [scores[name, one.seed, step] for one in ours] for step in steps}
        last = steps[-1]
        against = [scores[name, one.seed, last] - scores[names[0], one.seed, last] for one in ours]
        summaries = [json.loads((one.folder / TRAINED).read_text())["summary"]["end"] for one in ours]
        rows.append(
            {
                "name": name,
                "changed": {change.key: [change.old, change.new] for change in compare(old, ours[0].config)},
                "curve": [{"step": step, **asdict(estimate(values))} for step, values in by_step.items()],
                "last": asdict(estimate(by_step[steps[-1]])),
                "against_first": asdict(estimate(against)),
                "end": {
                    key: float(np.mean([one[key] for one in summaries]))
                    for key in summaries[0]
                    if all(key in one for one in summaries)
                },
            }
        )
    return rows


def estimate(seeds: Sequence[Scores]) -> Interval:
    """Mean over seeds and items, and its interval: over items for one seed, else over seeds with the items' error."""
    if len(seeds) == 1:
        return bootstrap(seeds[0])
    items = np.nanmean(np.stack(seeds), axis=0)
    error = float(np.nanstd(items) / np.sqrt(np.count_nonzero(~np.isnan(items))))
    return bootstrap_seeds(np.array([float(np.nanmean(one)) for one in seeds]), item_error=error)


def _read_recorded(view: StoreView) -> list[dict[str, float]]:
    """The run's own evaluations."""
    records = [one for _, one in view.decisions(kinds=[Kind.EVALUATION]) if isinstance(one, Evaluation)]
    return [{"step": float(one.step), "score": one.scores[one.metric]} for one in records]
