"""The protocol keeps to buf's standard, and the stubs beside it are what the oldest supported tools make of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import grpc

from deploy.lock import LOCKS, read_lock
from serving.stubs import PROTO, ROOT, generate

STUBS = ("store_pb2.py", "store_pb2.pyi", "store_pb2_grpc.py")


def test_buf_finds_nothing(tmp_path: Path) -> None:
    words = [str(Path(sys.executable).with_name("buf")), "lint"]
    done = subprocess.run(
        words, cwd=ROOT, env={"BUF_CACHE_DIR": str(tmp_path), "PATH": ""}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_stubs_are_those_of_the_protocol(tmp_path: Path) -> None:
    generate(tmp_path)
    for name in STUBS:
        made, kept = ((folder / PROTO).with_name(name).read_text() for folder in (tmp_path, ROOT))
        assert made == kept, "run: .venv/bin/python -m serving.stubs"


def test_the_lower_bounds_are_the_generators() -> None:
    """What the stubs demand is what own.in allows: no older, and none newer than it need be."""
    grpc_stub, message_stub = (((ROOT / PROTO).with_name(name)).read_text() for name in STUBS[::-2])
    (wanted,) = re.findall(r"GRPC_GENERATED_VERSION = '([\d.]+)'", grpc_stub)
    (major, minor, _) = re.findall(r"Protobuf Python Version: (\d+)\.(\d+)\.(\d+)", message_stub)[0]
    lines = (LOCKS / "own.in").read_text().splitlines()
    assert f"grpcio>={wanted}" in lines
    assert f"protobuf>={major}.{minor}" in lines
    assert read_lock(LOCKS / "dev.txt")["grpcio-tools"][0] == f"grpcio-tools=={wanted}"
    assert grpc.__version__.split(".") >= wanted.split(".")
