"""`ratchet replay RUN|SNAPSHOT`: computes the recorded batches again and compares every step's weights with the log."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from configs.loader import load
from console.run_folder import resolve
from contracts.errors import ReplayMismatchError
from contracts.records import Kind, Scalar, Session

if TYPE_CHECKING:
    from buffers.view import StoreView
    from loops.replay import ReplayedStep


def replay(
    run: Annotated[str, typer.Argument(metavar="RUN|SNAPSHOT")],
    until: Annotated[int | None, typer.Option(metavar="STEP", help="Stop after this step.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Compute a run's steps again, without generating anything, and compare the weights' hashes."""
    folder = resolve(run)
    config = load(folder / "config.yaml")
    os.environ["OMP_NUM_THREADS"] = str(config.learner.threads)  # as in the update worker, before torch is loaded
    from learners.grpo import GrpoLearner

    from buffers.view import StoreView
    from loops.replay import replay as fold

    learner = GrpoLearner(folder / "model", config.learner, seed=config.seed, temperature=config.engine.temperature)
    view = StoreView.open(folder / "store")
    for name, (was, here) in _differences(_recorded(view), learner.fingerprint()).items():
        typer.echo(f"warning: {name} was {was} and is {here}: other bits are to be expected", err=True)
    show = _ignore if as_json else _show
    steps = fold(view, folder=folder, learner=learner, until=until, on_step=show)
    unequal = [step for step in steps if not step.equal]
    if as_json:
        typer.echo(json.dumps(_report(folder, steps)))
    elif not unequal:
        typer.echo(f"{len(steps)} steps, every one equal")
    if unequal:
        first = unequal[0]
        raise ReplayMismatchError(
            f"{len(unequal)} of {len(steps)} steps differ, the first is step {first.step}: "
            f"logged {first.logged[:16]}, computed {first.computed[:16]}"
        )


def _recorded(view: StoreView) -> Mapping[str, Scalar]:
    """The fingerprint of the learner's newest session; {} if it never opened one."""
    sessions = [one for _, one in view.decisions(kinds=[Kind.SESSION]) if isinstance(one, Session)]
    prints = [session.fingerprint for session in sessions if session.role == "learner"]
    return prints[-1] if prints else {}


def _differences(was: Mapping[str, Scalar], here: Mapping[str, Scalar]) -> dict[str, tuple[Scalar, Scalar]]:
    return {name: (was.get(name), here.get(name)) for name in was if was.get(name) != here.get(name)}


def _report(folder: Path, steps: list[ReplayedStep]) -> dict[str, object]:
    return {
        "run": folder.name,
        "steps": len(steps),
        "equal": sum(step.equal for step in steps),
        "unequal": [step.step for step in steps if not step.equal],
        "hashes": {step.step: step.computed for step in steps},
    }


def _show(step: ReplayedStep) -> None:
    verdict = "equal" if step.equal else f"DIFFERS: logged {step.logged[:16]}"
    typer.echo(f"step {step.step}  version {step.version}  {step.computed[:16]}  {verdict}")


def _ignore(step: ReplayedStep) -> None:
    del step
