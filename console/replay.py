"""`ratchet replay RUN|SNAPSHOT`: computes the recorded batches again and compares every step's weights with the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.run_folder import resolve
from contracts.errors import ReplayMismatchError
from contracts.records import Kind, Session

if TYPE_CHECKING:
    from loops.replay import ReplayedStep


def replay(
    run: Annotated[str, typer.Argument(metavar="RUN|SNAPSHOT")],
    until: Annotated[int | None, typer.Option(metavar="STEP", help="Stop after this step.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Compute a run's steps again, without generating anything, and compare the weights' hashes."""
    folder = resolve(run)
    from actors.offline import replay_run

    steps = replay_run(folder, until=until, on_step=_ignore if as_json else _show)
    unequal = [step for step in steps if not step.equal]
    if as_json:
        typer.echo(json.dumps(_report(folder, steps)))
    elif not unequal:
        typer.echo(f"{len(steps)} steps, every one equal")
    if unequal:
        first = unequal[0]
        raise ReplayMismatchError(
            f"{len(unequal)} of {len(steps)} steps differ, the first is step {first.step}: "
            f"logged {first.logged[:16]}, computed {first.computed[:16]}{_reason(folder)}"
        )


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
