"""The lock files, and the script that writes them run for real on a folder of tiny wheels."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.lock import BUILDS, LOCKS, Pins, normalise, read_lock
from tests.unit.house.wheels import environment, write_wheel


def direct_needs(build: str) -> set[str]:
    """Normalised names in a lock's input."""
    text = (LOCKS / f"{build}.in").read_text().replace("-r own.in", (LOCKS / "own.in").read_text())
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {normalise(re.split(r"[\[=<>]", line)[0]) for line in lines if line}


@pytest.mark.parametrize("build", BUILDS)
def test_every_line_is_a_pin_with_a_hash_and_none_names_a_host(build: str) -> None:
    text = (LOCKS / f"{build}.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert "://" not in text
    assert len(lines) == 2 * len(read_lock(LOCKS / f"{build}.txt"))


@pytest.mark.parametrize("build", BUILDS)
def test_every_direct_need_is_pinned(build: str) -> None:
    assert direct_needs(build) - read_lock(LOCKS / f"{build}.txt").keys() == set()


def test_the_cpu_lock_has_the_cpu_build_and_no_cuda_companions() -> None:
    pins = read_lock(LOCKS / "cpu.txt")
    assert pins["torch"][0] == "torch==2.13.0+cpu"
    assert pins.keys() & {"torchvision", "torchaudio", "torchcodec"} == set()
    assert not [name for name in pins if name.startswith("nvidia-")]


def test_the_cuda_lock_has_no_cpu_build() -> None:
    pins = read_lock(LOCKS / "cuda.txt")
    assert pins["torch"][0] == "torch===2.13.0"
    assert not [pin for pin, _ in pins.values() if "+" in pin]


def test_both_builds_pin_what_we_import_alike() -> None:
    cpu, cuda = (read_lock(LOCKS / f"{build}.txt") for build in ("cpu", "cuda"))
    assert {name: (cpu[name], cuda[name]) for name in direct_needs("own") if cpu[name] != cuda[name]} == {}


def test_dev_repeats_nothing_of_cpu() -> None:
    assert read_lock(LOCKS / "dev.txt").keys() & read_lock(LOCKS / "cpu.txt").keys() == set()


def lock(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run lock.py on the inputs in `folder`/locks, pip seeing the wheels in `folder`."""
    command = [sys.executable, str(folder / "lock.py"), *arguments]
    return subprocess.run(command, env=environment(folder), capture_output=True, text=True, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with lock.py, inputs that name two packages, and wheels for them."""
    shutil.copy(LOCKS.parent / "lock.py", tmp_path)
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "own.in").write_text("leaf\n")
    (tmp_path / "locks" / "cpu.in").write_text("-r own.in\nengine==1.0  # without: bad_companion\n")
    write_wheel(tmp_path, "leaf", "1.0")
    write_wheel(tmp_path, "gear", "1.0")
    write_wheel(tmp_path, "engine", "1.0", requires=["gear>=1", "bad-companion"])
    return tmp_path


def pins(project: Path) -> Pins:
    return read_lock(project / "locks" / "cpu.txt")


def test_lock_pins_what_pip_resolves_and_leaves_out_what_the_input_says(project: Path) -> None:
    done = lock(project, "cpu")
    assert done.returncode == 0, done.stderr
    assert [pin for pin, _ in pins(project).values()] == ["engine==1.0", "gear==1.0", "leaf==1.0"]
    assert pins(project)["leaf"][1] == hashlib.sha256((project / "leaf-1.0-py3-none-any.whl").read_bytes()).hexdigest()


def test_lock_keeps_versions_until_told_to_upgrade(project: Path) -> None:
    lock(project, "cpu")
    write_wheel(project, "leaf", "2.0")
    lock(project, "cpu")
    assert pins(project)["leaf"][0] == "leaf==1.0"
    lock(project, "cpu", "--upgrade")
    assert pins(project)["leaf"][0] == "leaf==2.0"


def test_lock_says_what_to_do_when_pip_finds_no_versions(project: Path) -> None:
    (project / "locks" / "own.in").write_text("absent\n")
    done = lock(project, "cpu")
    assert done.returncode == 1
    assert "--upgrade" in done.stderr
    assert not (project / "locks" / "cpu.txt").exists()
