"""Which batch broke a metric, without Ray: a run's versions measured, and folded again where they are not kept.

    OUT/ { notes.json, states/, report.json }

Everything goes to OUT; the run's own folder is only read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from actors.offline import PINS, learner_on_its_base, opened_stage
from actors.tenants import Stage, tenant
from buffers.log.files import make_folder, write_durably
from buffers.view import StoreView
from configs.loader import load
from configs.schema import RunConfig
from contracts.errors import UserError
from contracts.protocols import WeightSet
from contracts.records import Batch, Version
from loops.bisect import Culprits, Float64Array, Judge, find_change, find_culprits, search
from loops.blame import Account, compare
from loops.lineage import Lineage
from loops.probing import Measure, Notes, Prober
from loops.replay import Gone
from models.versions import list_versions
from telemetry.logs import dump_line

STEPS_BESIDE = 32  # steps before the first bad one that its batch is compared with
Say = Callable[[str], None]


def bisect_run(
    folder: Path,
    *,
    metric: str,
    good: int,
    bad: int,
    share: float,
    samples: int | None,
    with_episodes: bool,
    out: Path,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """The report, as in OUT/report.json. A training metric is read off the log; another one is measured on the held-out
    items. Raises UserError, RunFolderError, LearnerError."""
    config = load(folder / "config.yaml", [] if samples is None else [f"evaluate.samples={samples}"])
    with StoreView.open(folder / "store") as view, ExitStack() as resources:
        lineage = Lineage.of(view.decisions())
        path = lineage.path(good, bad)
        if len(path) < 2:
            raise UserError(f"what came between version {good} and {bad}", "nothing", "name two versions")
        make_folder(out)
        if any(metric in version.stats for version in path[1:]):
            found = _find_in_log(path, metric=metric)
        else:
            question = {"store": str(view.uuid), "metric": metric, "good": good, "bad": bad, "samples": samples}
            prober = Prober(
                view,
                lineage,
                bad,
                folder=folder,
                out=out,
                learner=learner_on_its_base(view, folder, config=config),
                at_hand=_list_weights(folder),
                measure=_open_measure(folder, config, metric=metric, path=path, resources=resources),
                notes=Notes.read(out, question=question),
                say=say,
            )
            found = _find_by_folding(prober, len(path) - 1, share=share, say=say)
            if with_episodes:
                found["culprits"] = _find_episodes(prober, lineage, found, view=view, say=say)
            found |= {name: getattr(prober.notes, name) for name in ("refolds", "steps", "unequal")}
        first = lineage.versions[found["first_bad"]]
        found["batch"] = _account(view, lineage, first, config=config)
        report = {"run": folder.name, "metric": metric, "good": good, "bad": bad, "out": str(out), **found}
        write_durably(out / "report.json", dump_line(report).encode() + b"\n")
        return report


def _find_in_log(path: Sequence[Version], *, metric: str) -> dict[str, Any]:
    """By the metric of each step between the two versions."""
    made = [version for version in path[1:] if metric in version.stats]
    change = find_change(np.array([version.stats[metric] for version in made]))
    first, last_good = made[change.place], made[change.place - 1]
    return {
        "how": "log",
        "good_score": change.before,
        "bad_score": change.after,
        "first_bad": first.version,
        "step": first.step,
        "last_good": last_good.version,
        "sure": change.sure,
        "versions": len(made),
        "refolds": 0,
        "steps": 0,
    }


def _find_by_folding(prober: Prober, num: int, *, share: float, say: Say) -> dict[str, Any]:
    """By held-out scores. Places of the search count from the good version, 0, to the bad one, `num`."""
    offset = len(prober.path) - 1 - num
    judge = Judge(prober.scores(offset), prober.scores(offset + num), share=share)
    say(f"the score changed by {judge.difference.mean:+.4f}; bad is what is past {judge.threshold:.4f}")
    verdicts = {place: judge.judge(prober.scores(offset + place)) for place in (0, num)}
    bounds = [0, num]

    def is_bad(place: int) -> bool:
        verdict = verdicts[place] = judge.judge(prober.scores(offset + place))
        bounds[verdict.is_bad] = place
        version = prober.path[offset + place].version
        left = math.ceil(math.log2(max(1, bounds[1] - bounds[0])))
        said = "bad" if verdict.is_bad else "good"
        say(f"version {version}: {verdict.score:.4f}, {said} ({verdict.sure:.1%} sure); about {left} more to look at")
        prober.forget(low=offset + bounds[0], high=offset + bounds[1])
        return verdict.is_bad

    at_hand = [place for place in range(1, num) if prober.is_cheap(offset + place)]
    place = search(num, at_hand=at_hand, is_bad=is_bad)
    first, last_good = prober.path[offset + place], prober.path[offset + place - 1]
    doubt = (1.0 - verdicts[place].sure) + (1.0 - verdicts[place - 1].sure)
    return {
        "how": "held out",
        "good_score": verdicts[0].score,
        "bad_score": verdicts[num].score,
        "threshold": judge.threshold,
        "difference": asdict(judge.difference),
        "first_bad": first.version,
        "step": first.step,
        "last_good": last_good.version,
        "sure": max(0.0, 1.0 - doubt),
        "versions": num,
        "looked_at": [
            {"version": prober.path[offset + one].version, **asdict(verdict)}
            for one, verdict in sorted(verdicts.items())
        ],
    }


def _find_episodes(
    prober: Prober, lineage: Lineage, found: Mapping[str, Any], *, view: StoreView, say: Say
) -> dict[str, Any] | None:
    """Which groups of the first bad batch made the step fall; None where the step's own fall may be nothing."""
    place = [version.version for version in prober.path].index(found["first_bad"])
    batch = lineage.batches[prober.path[place].batch_lsn]
    before, after = prober.scores(place - 1), prober.scores(place)
    try:
        fall = Judge(before, after).difference.mean
    except UserError:
        return None
    episodes = view.episodes([row.reward_lsn for row in batch.rows])
    by_producer: dict[str, dict[int, None]] = {}
    for row, episode in zip(batch.rows, episodes, strict=True):
        by_producer.setdefault(episode.producer, {})[row.lease] = None

    def restored(leases: Collection[int]) -> float:
        back = float(np.nanmean(prober.scores_without(place, leases) - after)) / -fall
        groups = {row.lease for row in batch.rows}
        say(f"without {len(leases)} of {len(groups)} groups: {back:.0%} of the step's fall undone")
        return back

    culprits = find_culprits([list(leases) for leases in by_producer.values()], restored=restored)
    return None if culprits is None else {"fall": fall, **_describe(culprits, batch, episodes)}


def _describe(culprits: Culprits, batch: Batch, episodes: Sequence[Any]) -> dict[str, Any]:
    named = [
        {
            "lsn": row.episode_lsn,
            "id": one.episode_id,
            "producer": one.producer,
            "task": one.task_id,
            "reward": one.reward,
        }
        for row, one in zip(batch.rows, episodes, strict=True)
        if row.lease in culprits.leases
    ]
    return {**asdict(culprits), "leases": list(culprits.leases), "episodes": named}


def _account(view: StoreView, lineage: Lineage, first: Version, *, config: RunConfig) -> dict[str, Any]:
    """Who brought what into the first bad batch, beside the steps before it."""
    weigh, gone = tenant(config).influences, Gone.of(view.decisions())
    before = [one for one in lineage.ancestry(first.version)[:-1] if one.batch_lsn in lineage.batches][-STEPS_BESIDE:]
    then, now = Account(), Account()
    for account, versions in ((then, before), (now, [first])):
        for version in versions:
            account.count(view, lineage.batches[version.batch_lsn], version, weigh=weigh, gone=gone)
    return {
        "lsn": first.batch_lsn,
        "steps_before": then.steps,
        "sources": {kind: [asdict(one) for one in compare(kind, now, then)[:20]] for kind in now.sources},
    }


def _list_weights(folder: Path) -> dict[int, Callable[[], WeightSet]]:
    """Versions whose weights lie in files, and how to read them."""
    from models.registry import load_version

    return {
        version: partial(load_version, place, version)
        for place in (folder / PINS, folder / "versions")
        for version in list_versions(place)
    }


def _open_measure(
    folder: Path, config: RunConfig, *, metric: str, path: Sequence[Version], resources: ExitStack
) -> Measure:
    """One engine and one stage for all versions, made when the first one is measured."""
    opened: list[tuple[Stage, Callable[[WeightSet], None]]] = []

    def measure(weights: WeightSet, version: Version) -> Float64Array:
        if not opened:
            opened.append(resources.enter_context(opened_stage(folder, config)))
        [(stage, serve)] = opened
        serve(weights)
        scores = stage.measure(version.step)
        if metric not in scores:
            logged = sorted({name for one in path for name in one.stats})
            raise UserError(
                f"--metric {metric}",
                f"held-out scores are {', '.join(scores)}; training metrics: {', '.join(logged)}",
                "name one of those",
            )
        return scores[metric]

    return measure
