"""Other settings on a run's recorded batches: one branch of the learner a seed, and its held-out scores.

    OUT/ config.yaml, steps.jsonl (one line a step), seed-0/v000060/model.safetensors, …, report.json

Everything goes to OUT; the run's own folder is only read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.offline import learner_on_its_base, opened_stage, version_weights
from buffers.log.files import write_durably
from buffers.view import StoreView
from configs.loader import compare, dump, load
from configs.schema import RunConfig
from contracts.protocols import WeightSet
from contracts.records import Evaluation, Scalar, Version
from loops import retrain as retraining
from loops.replay import computed_batches
from loops.retrain import BranchStep
from telemetry.logs import JsonLines, dump_line


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One seed's branch, or the run itself (seed -1). `summary`: means over all steps, and over the last tenth."""

    seed: int
    steps: int
    root_hash: str
    summary: dict[str, dict[str, float]]
    scores: dict[str, float]  # held out, of the last version; {} where the run was not evaluated
    fingerprint: dict[str, Scalar] = field(default_factory=dict)  # what the branch's bits depend on
    version: int = -1  # of the run itself, its last one


def retrain_run(
    folder: Path,
    *,
    config: RunConfig,
    seeds: Sequence[int],
    out: Path,
    until: int | None = None,
    compares: bool = False,
    on_step: Callable[[BranchStep], None] = lambda step: None,
) -> dict[str, Any]:
    """The report, as in OUT/report.json. `out` is a new or empty folder. Raises RunFolderError, LearnerError.

    `compares`: the run's own version of the last step is scored again, on the same engine; else its scores are those
    that the log has.
    """
    old, view = load(folder / "config.yaml"), StoreView.open(folder / "store")
    out.mkdir(parents=True, exist_ok=True)
    write_durably(out / "config.yaml", dump(config).encode())
    trained = [_train(view, folder, config=config, seed=seed, out=out, until=until, on_step=on_step) for seed in seeds]
    recorded = read_recorded(view, until=until)
    ours = [(version_weights(folder, recorded.version), recorded.steps)] if compares and recorded.version >= 0 else []
    theirs = [(_load(out, branch), branch.steps) for branch in trained]
    evaluations = list[Evaluation]()
    with opened_stage(folder, config) as (stage, serve):
        for weights, step in (*ours, *theirs):
            serve(weights)
            evaluations.append(stage.evaluate(weights.version, step))
    scores = [dict(one.scores) for one in evaluations]
    if ours:
        recorded = replace(recorded, scores=scores.pop(0))
    branches = [replace(branch, scores=scored) for branch, scored in zip(trained, scores, strict=True)]
    report = {
        "run": folder.name,
        "out": str(out),
        "changed": {change.key: [change.old, change.new] for change in compare(old, config)},
        "engine": config.engine.backend,
        "metric": evaluations[0].metric,
        "recorded": asdict(recorded),
        "branches": [asdict(branch) for branch in branches],
    }
    write_durably(out / "report.json", dump_line(report).encode() + b"\n")
    return report


def read_recorded(view: StoreView, *, until: int | None = None) -> Branch:
    """The run itself, as its log tells it."""
    records = view.decisions()
    lsns = {lsn for lsn, _ in computed_batches(records, until=until)}
    versions = [one for _, one in records if isinstance(one, Version) and one.batch_lsn in lsns]
    steps = [
        BranchStep(seed=-1, step=version.step, num_steps=len(versions), stats=version.stats)
        for version in {version.step: version for version in versions}.values()
    ]
    scores = [one.scores for _, one in records if isinstance(one, Evaluation) and steps and one.step == steps[-1].step]
    return Branch(
        seed=-1,
        steps=len(steps),
        root_hash=versions[-1].root_hash if versions else "",
        summary=retraining.summarise(steps) if steps else {},
        scores=dict(scores[-1]) if scores else {},
        version=versions[-1].version if versions else -1,
    )


def _train(
    view: StoreView,
    folder: Path,
    *,
    config: RunConfig,
    seed: int,
    out: Path,
    until: int | None,
    on_step: Callable[[BranchStep], None],
) -> Branch:
    from models.registry import save_version

    lines = JsonLines(out / "steps.jsonl")

    def note(step: BranchStep) -> None:
        lines.append({"seed": step.seed, "step": step.step, **step.stats})
        on_step(step)

    # A loss that the run does not have is in the folder that the branch was asked for from, not in the run's copy.
    is_new = config.learner.loss != load(folder / "config.yaml").learner.loss
    learner = learner_on_its_base(view, folder, config=config, own_code=Path.cwd() if is_new else None)
    try:
        steps = retraining.retrain(view, folder=folder, learner=learner, seed=seed, until=until, on_step=note)
    finally:
        lines.close()
    save_version(out / f"seed-{seed}", learner.weights(len(steps)))
    return Branch(
        seed=seed,
        steps=len(steps),
        root_hash=learner.root_hash(),
        summary=retraining.summarise(steps),
        scores={},
        fingerprint=dict(learner.fingerprint()),
    )


def _load(out: Path, branch: Branch) -> WeightSet:
    from models.registry import load_version

    return load_version(out / f"seed-{branch.seed}", branch.steps)
