"""`ratchet rewind` on a run's folder: a branch run without some of its experience, and both scored on one engine.

OUT/ a run's folder (store, checkpoints, versions, …), which `ratchet resume` goes on with, and rewind.json
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.offline import learner_on_its_base, opened_stage, version_weights
from buffers.log.files import write_durably
from buffers.owner import StoreOwner
from buffers.view import StoreView
from configs.loader import config_hash, load
from configs.schema import RunConfig
from contracts.protocols import WeightSet
from contracts.records import Evaluation, Session, Version
from evaluation.intervals import paired_difference
from loops.ancestry import Ancestry
from loops.exclusion import Request
from loops.rewind import Rewind, RewoundStep, cut_branch, mark_of, measure_ess, read_cut, summarise
from loops.tasks import task_source
from telemetry.logs import dump_line

REPORT = "rewind.json"


def rewind_run(
    run: Path,
    *,
    to: Path,
    request: Request,
    from_first_use: bool = False,
    evaluates: bool = True,
    on_step: Callable[[RewoundStep], None] = lambda step: None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The report, as in OUT/rewind.json. Done again after a kill it goes on, and is done when the report is there.

    Raises UserError, RunFolderError, LearnerError, StoreError.
    """
    if not cut_branch(run, to=to, request=request) and (to / REPORT).is_file():
        report: dict[str, Any] = json.loads((to / REPORT).read_text())
        return report
    config = load(to / "config.yaml")
    uuid = json.loads((to / "manifest.json").read_text())["store_uuid"]
    owner = StoreOwner.open(to / "store", uuid=uuid, config=config, source=task_source(config))
    try:
        work, found, weights = _compute(owner, to, config, request, from_first_use=from_first_use, on_step=on_step)
        if evaluates:
            on_progress("scoring the run and the branch on one engine")
            found |= _evaluate(owner, run, to, config, weights=weights, work=work)
    finally:
        owner.close()
    report = {
        "run": run.name,
        "branch": to.name,
        "folder": str(to),
        "request": mark_of(request),
        "exclude": request.text,
        "descendants": request.descendants,
        **found,
    }
    write_durably(to / REPORT, dump_line(report).encode() + b"\n")
    return report


def _compute(
    owner: StoreOwner,
    to: Path,
    config: RunConfig,
    request: Request,
    *,
    from_first_use: bool,
    on_step: Callable[[RewoundStep], None],
) -> tuple[Rewind, dict[str, Any], WeightSet]:
    from models.registry import save_version

    learner = learner_on_its_base(StoreView.open(to / "store"), to, config=config)
    work = Rewind(
        owner,
        learner,
        folder=to,
        request=request,
        from_first_use=from_first_use,
        checkpoint_every=config.checkpoint.every_steps,
        keep=config.checkpoint.keep,
        session=Session(
            role="learner",
            epoch=0,
            config_hash=config_hash(config),
            base_weights=learner.base_hash,
            fingerprint=dict(learner.fingerprint()),
            wall_time=time.time(),
        ),
        on_step=on_step,
    )
    work.run()
    weights = learner.weights(work.version)
    save_version(to / "versions", weights)
    found = summarise(work.plan, owner.decisions(), cut=read_cut(to))
    found["ess"] = measure_ess(work.plan, learner=learner, read=owner.read)
    found["version"] = work.version
    return work, found, weights


def _evaluate(
    owner: StoreOwner, run: Path, to: Path, config: RunConfig, *, weights: WeightSet, work: Rewind
) -> dict[str, Any]:
    """Held-out scores of the run's last version and of the branch's, the same items under the same draws; what the
    branch has more, item by item, as a difference of pairs."""
    last = _last_version(run)
    steps = {one.version: one.step for _, one in owner.decisions() if isinstance(one, Version)}
    pairs = [(version_weights(run, last.version), last.step), (weights, steps[weights.version])]
    scored, items = list[Evaluation](), list[NDArray[np.float64]]()
    with opened_stage(to, config) as (stage, serve):
        for one, step in pairs:
            serve(one)
            scored.append(stage.evaluate(one.version, step))
            items.append(stage.measure(step)[scored[0].metric])
    work.note(scored[1])
    return {
        "metric": scored[0].metric,
        "recorded": {"version": last.version, "step": last.step, "scores": dict(scored[0].scores)},
        "difference": {"items": len(items[0]), **asdict(paired_difference(*items))},
        "rewound": {"version": weights.version, "step": scored[1].step, "scores": dict(scored[1].scores)},
    }


def _last_version(run: Path) -> Version:
    """The newest one of the run's newest branch."""
    records = StoreView.open(run / "store").decisions()
    ancestry = Ancestry.of(records)
    return [one for _, one in records if isinstance(one, Version) and ancestry.has(one)][-1]
