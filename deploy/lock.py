"""Resolve deploy/locks/*.in into *.txt: every version pinned, every file hashed, no registry named.

    .venv/bin/python deploy/lock.py                 lock all again, keeping the versions that are pinned now
    .venv/bin/python deploy/lock.py cpu --upgrade   lock one, with the newest versions that fit

pip, as configured, resolves (`install --dry-run --report`) and reads only the metadata of wheels. Its report holds the
hash of the one file it chose, so a lock's hashes are those of Linux, x86_64, CPython 3.11. Elsewhere deploy/setup.py
takes the versions without the hashes. In an input `NAME==VERSION  # without: A B` leaves out requirements A and B, and
`NAME===VERSION` stays as it is: `==2.13.0` would also take a local 2.13.0+cpu, the wrong build.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LOCKS = Path(__file__).resolve().parent / "locks"
BUILDS = ("build", "cpu", "cuda", "dev", "trl", "replay", "reverb")  # in this order: dev leaves out what cpu pins
Pins = dict[str, tuple[str, str]]  # normalised name -> (NAME==VERSION, sha256)

_WITHOUT = re.compile(r"^(?P<pin>\S+==\S+)\s+# without: (?P<names>.+)$", re.MULTILINE)
_ENTRY = re.compile(
    r"^(?P<pin>(?P<name>[A-Za-z0-9_.-]+)={2,3}\S+) \\\n    --hash=sha256:(?P<hash>[0-9a-f]{64})$", re.MULTILINE
)


def normalise(name: str) -> str:
    """A package's name as registries compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(file: Path) -> Pins:
    return {normalise(m["name"]): (m["pin"], m["hash"]) for m in _ENTRY.finditer(file.read_text())}


def write_lock(file: Path, pins: Pins) -> None:
    head = f"# Made by deploy/lock.py from {file.stem}.in: Linux, x86_64, CPython 3.11. Do not edit.\n"
    entries = (f"{pin} \\\n    --hash=sha256:{digest}\n" for _, (pin, digest) in sorted(pins.items()))
    file.write_text(head + "".join(entries))


def resolve(requirements: str, *, constraints: str = "", no_deps: bool = False) -> list[dict[str, object]]:
    """What pip would install into an empty environment. Raises SystemExit with pip's words where it finds no answer."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, limits, report = (Path(folder, name) for name in ("wanted.in", "limits.txt", "report.json"))
        wanted.write_text(requirements)
        limits.write_text(constraints)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--use-feature=fast-deps", "--report", str(report), "-r", str(wanted), "-c", str(limits)]
        done = subprocess.run(command + ["--no-deps"] * no_deps, check=False)
        if done.returncode:
            raise SystemExit(
                "pip found no set of versions. If a pinned version is in the way, lock again with --upgrade."
            )
        installs: list[dict[str, object]] = json.loads(report.read_text())["install"]
        return installs


def pins_of(installs: list[dict[str, object]]) -> Pins:
    pins: Pins = {}
    for install in installs:
        metadata, download = install["metadata"], install["download_info"]
        assert isinstance(metadata, dict)
        assert isinstance(download, dict)
        name, version = metadata["name"], metadata["version"]
        pins[normalise(name)] = (f"{name}=={version}", download["archive_info"]["hashes"]["sha256"])
    return pins


def expand(text: str) -> tuple[str, Pins]:
    """Replace each `PIN  # without: NAMES` line by the pin's other requirements; also the pins so taken out."""
    alone: Pins = {}
    for match in _WITHOUT.finditer(text):
        installs = resolve(match["pin"], no_deps=True)
        alone |= pins_of(installs)
        metadata = installs[0]["metadata"]
        assert isinstance(metadata, dict)
        left_out = {normalise(name) for name in match["names"].split()}
        needs = [
            need
            for need in metadata["requires_dist"]
            if "extra ==" not in need and normalise(re.split(r"[^A-Za-z0-9_.-]", need)[0]) not in left_out
        ]
        text = text.replace(match[0], "\n".join(needs))
    return text, alone


def lock(build: str, *, upgrade: bool) -> int:
    """Write one lock; the number of its packages."""
    source, target = LOCKS / f"{build}.in", LOCKS / f"{build}.txt"
    text = source.read_text().replace("-r own.in", (LOCKS / "own.in").read_text())
    text, alone = expand(text)
    base = read_lock(LOCKS / "cpu.txt") if build == "dev" else {}
    kept = base | (read_lock(target) if target.exists() and not upgrade else {})
    pins = pins_of(resolve(text, constraints="\n".join(pin for pin, _ in kept.values()))) | alone
    for name in re.findall(r"^([\w.-]+)===", text, re.MULTILINE):
        pin, digest = pins[normalise(name)]
        pins[normalise(name)] = (pin.replace("==", "==="), digest)
    shared = pins.keys() & base.keys()
    if lacking := shared - read_lock(LOCKS / "cuda.txt").keys() if build == "dev" else set():
        raise SystemExit(
            f"dev.txt would leave out {sorted(lacking)}, which cpu.txt has and cuda.txt has not: add to own.in."
        )
    write_lock(target, {name: pin for name, pin in pins.items() if name not in base})
    return len(pins) - len(shared)


def main() -> None:
    parser = argparse.ArgumentParser(description="Resolve deploy/locks/*.in into *.txt.")
    parser.add_argument("builds", nargs="*", metavar="|".join(BUILDS), help="which locks (all)")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions, not those pinned now")
    arguments = parser.parse_args()
    if unknown := set(arguments.builds) - set(BUILDS):
        parser.error(f"no such lock: {', '.join(sorted(unknown))}; there is {', '.join(BUILDS)}")
    for build in BUILDS:
        if build in (arguments.builds or BUILDS):
            print(f"deploy/locks/{build}.txt: {lock(build, upgrade=arguments.upgrade)} packages", flush=True)


if __name__ == "__main__":
    main()
