"""`ratchet status RUN`: how a run stands, from its files alone. Works on a running, a finished and a crashed one."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field

from configs.documents import STRICT, Count, DocumentError, Number, parse, read
from configs.loader import load
from console.run_folder import resolve
from contracts.errors import RunFolderError
from contracts.records import Evaluation, Kind, Ledger, Version
from telemetry.process import is_alive

if TYPE_CHECKING:
    from buffers.view import StoreView

LIVE_STATES = ("starting", "warm_start", "running", "draining")
_UPDATE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class _Idle:
    __pydantic_config__ = STRICT
    minute: Number
    run: Number


@dataclass(frozen=True, kw_only=True)
class _Status:
    """What is read of status.json; the driver writes more."""

    __pydantic_config__ = STRICT
    state: str
    host: str
    pid: Annotated[int, Field(gt=0, lt=1 << 31)]
    start_time: int | None
    steps: Count | None = None
    step: Count | None = None
    idle: dict[str, _Idle] | None = None
    lost_shards: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Serving:
    """serving.json."""

    __pydantic_config__ = STRICT
    address: str


def status(
    run: Annotated[str, typer.Argument(metavar="RUN")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    watch: Annotated[bool, typer.Option(help="Again each second until the run ends.")] = False,
) -> None:
    """How a run stands: state, step, ledger, held-out accuracy."""
    folder = resolve(run)
    view: StoreView | None = None
    while True:
        if view is None:
            view = open_store(folder)
        else:
            view.refresh()
        summary = summarise(folder, view)
        typer.echo(json.dumps(summary) if as_json else render(summary))
        if not watch or summary["state"] not in LIVE_STATES:
            return
        time.sleep(_UPDATE_S)


def read_status(folder: Path) -> dict[str, Any]:
    """What the driver wrote last, with `state` corrected: `crashed` where its process is gone. {} before it wrote."""
    try:
        data = (folder / "status.json").read_bytes()
        parse(data, _Status)
        written = parse(data, dict[str, Any])
    except FileNotFoundError:
        return {}
    except (OSError, DocumentError) as error:
        raise RunFolderError(
            f"the state of {folder.name}", f"its status.json does not read: {error}", "remove that file"
        ) from None
    if written["state"] in LIVE_STATES and not driver_is_alive(written):
        written["state"] = "crashed"
    return written


def driver_is_alive(written: Mapping[str, Any]) -> bool:
    """Whether the recorded driver still runs. A driver on another machine is believed."""
    if written["host"] != socket.gethostname():
        return True
    return is_alive(written["pid"], started=written["start_time"])


def open_store(folder: Path) -> StoreView | None:
    """The run's store to look at; None before it was made."""
    if not (folder / "store" / "store.json").exists():
        return None
    from buffers.view import StoreView

    return StoreView.open(folder / "store")


def summarise(folder: Path, view: StoreView | None) -> dict[str, Any]:
    """The object that `ratchet status --json` prints. Sums come from the log, rates from what the driver wrote last."""
    written = read_status(folder)
    newest = _newest_version(view)
    return {
        "run": folder.name,
        "state": written.get("state", "created"),
        "step": newest.step if newest else 0,
        "steps": written.get("steps"),
        "policy_version": newest.version if newest else None,
        "episodes": view.ledger().episodes if view else 0,
        "completions_per_s": written.get("completions_per_s"),
        "tokens_per_s": written.get("tokens_per_s"),
        "staleness": written.get("staleness"),
        "lag": written.get("lag"),
        "reward": written.get("reward"),
        "eta_s": written.get("eta_s"),
        "idle": written.get("idle"),
        "shards": _shards(folder, view, written),
        "updated": written.get("updated"),
        "serving": _serving_address(folder) if written.get("state") in LIVE_STATES else None,
        **_from_store(view),
        "folder": str(folder),
    }


def held_out(evaluations: list[Evaluation]) -> dict[str, Any] | None:
    """Scores over the run: `first` is step 0, the end of the warm start. None before the first evaluation."""
    if not evaluations:
        return None
    metric = evaluations[0].metric
    scores = [evaluation.scores[metric] for evaluation in evaluations]
    return {
        "metric": metric,
        "items": evaluations[0].items,
        "first": scores[0],
        "best": max(scores),
        "last": scores[-1],
        "first_scores": evaluations[0].scores,
        "last_scores": evaluations[-1].scores,
    }


def render(summary: Mapping[str, Any]) -> str:
    """A few lines for a person."""
    lines = [f"{summary['run']}: {summary['state']}, step {summary['step']} of {summary['steps'] or '?'}"]
    scores = summary["held_out"]
    if scores:
        lines.append(
            f"  {scores['metric']}: {scores['first']:.3f} at the start, {scores['last']:.3f} now, "
            f"{scores['best']:.3f} at best ({scores['items']} items)"
        )
    ledger = summary["ledger"]
    if ledger:
        ended = ", ".join(f"{count} {name}" for name, count in ledger["ended"].items() if count)
        lines.append(f"  tasks: {ledger['handed']} handed out = {ended or '0 ended'} + {ledger['in_flight']} in flight")
        if ledger["quarantined"]:
            lines.append(
                f"  quarantined: {describe_faults(ledger['quarantined'])}; see: ratchet store inspect {summary['run']}"
            )
        lines.append(f"  ledger: {'balanced' if ledger['balanced'] else 'DOES NOT BALANCE'}")
    if shards := summary["shards"]:
        elsewhere = shards["of"] - len(shards["here"])
        text = f"  {shards['of']} shards: {elsewhere} on other machines, and not in these sums; "
        lines.append(text + (f"lost: {', '.join(shards['lost'])}" if shards["lost"] else "none lost"))
    if summary["idle"]:
        shares = ", ".join(
            f"{role} {idle['minute']:.0%} ({idle['run']:.0%})" for role, idle in sorted(summary["idle"].items())
        )
        lines.append(f"  idle in the last minute (since its first work): {shares}")
    if summary["serving"]:
        lines.append(f"  serves its store over gRPC at {summary['serving']}")
    if summary["state"] in ("crashed", "failed", "stopped"):
        lines.append(f"  go on with: ratchet resume {summary['run']}")
    return "\n".join(lines)


def describe_faults(quarantined: Mapping[str, int]) -> str:
    """How many episodes are quarantined, and why."""
    why = ", ".join(f"{count} {fault}" for fault, count in sorted(quarantined.items(), key=lambda pair: -pair[1]))
    return f"{sum(quarantined.values())} episodes ({why})"


def _serving_address(folder: Path) -> str | None:
    """host:port at which the run serves its store over gRPC."""
    try:
        return read(folder / "serving.json", _Serving).address
    except FileNotFoundError:
        return None
    except DocumentError as error:
        raise RunFolderError(
            f"where {folder.name} serves its store", f"its serving.json does not read: {error}", "remove that file"
        ) from None


def _shards(folder: Path, view: StoreView | None, written: Mapping[str, Any]) -> dict[str, Any] | None:
    """Which shards the sums are of, and which are lost at this moment; None for a run of one."""
    shards = load(folder / "config.yaml").store.shards
    if shards == 1:
        return None
    return {"of": shards, "here": view.shards if view else [], "lost": written.get("lost_shards", [])}


def _newest_version(view: StoreView | None) -> Version | None:
    records = view.decisions(kinds=[Kind.VERSION]) if view else []
    versions = [record for _, record in records if isinstance(record, Version)]
    return versions[-1] if versions else None


def _from_store(view: StoreView | None) -> dict[str, Any]:
    if view is None:
        return {"ledger": None, "held_out": None}
    records = [record for _, record in view.decisions(kinds=[Kind.EVALUATION])]
    evaluations = [record for record in records if isinstance(record, Evaluation)]
    return {"ledger": _plain(view.ledger()), "held_out": held_out(evaluations)}


def _plain(ledger: Ledger) -> dict[str, Any]:
    return {
        "handed": ledger.handed,
        "ended": ledger.ended,
        "in_flight": ledger.in_flight,
        "ready": ledger.ready,
        "episodes": ledger.episodes,
        "episodes_late": ledger.episodes_late,
        "episodes_trained": ledger.episodes_trained,
        "quarantined": ledger.quarantined,
        "balanced": ledger.balanced,
    }
