"""What a learner's bits depend on besides its inputs: set once for the process, and told by the fingerprint."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.utils.deterministic

from contracts.errors import UserError
from contracts.records import Scalar


def settle(*, threads: int, device: str, folder: Path) -> None:
    """Set what torch's numbers depend on for the whole process. Raises UserError where the device is missing."""
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
        if not torch.cuda.is_available():
            raise UserError(
                f"to train the model in {folder} with learner.device cuda",
                "torch sees no GPU",
                "set learner.device to cpu, or install a CUDA build (`ratchet doctor` says which is there)",
            )
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # With determinism on, torch fills every new tensor with NaN first: a guard for debugging that costs time.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (a property of the module)


def fingerprint(*, device: str) -> dict[str, Scalar]:
    """The machine, the libraries, and our own code, as far as every learner depends on them."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "vector_width": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "ranks": 1,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "code": _code_hash(),
    }


@cache
def _processor() -> str:
    """The processor's model: the numeric libraries choose their kernels by it."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    first = info.read_text().split("\n\n", 1)[0]
    facts = dict(line.replace("\t", "").split(":", 1) for line in first.splitlines() if ":" in line)
    return " ".join(facts.get(key, "").strip() for key in ("model name", "cpu family", "model", "stepping")).strip()


@cache
def _code_hash() -> str:
    """sha256 over the source files of learners/ and models/."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted([*root.glob("learners/**/*.py"), *root.glob("models/**/*.py")]):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()
