"""Makes serving/v1/*_pb2* from store.proto: `.venv/bin/python -m serving.stubs [FOLDER]`.

Stubs demand a grpcio and a protobuf at least as new as their generator, so it is the oldest that is supported
(grpcio-tools in deploy/locks/dev.in; the same lower bounds stand in own.in).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROTO = "serving/v1/store.proto"


def generate(folder: Path) -> None:
    """Write the stubs below `folder`. Raises CalledProcessError where the compiler finds a fault."""
    out = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", *out, PROTO], cwd=ROOT, check=True)


if __name__ == "__main__":
    generate(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)
