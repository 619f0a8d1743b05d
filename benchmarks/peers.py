"""Environments for the tools that benchmarks compare with: each peer's own, pinned by its lock, made on first use.

    python = peer_python("trl")        # installs deploy/locks/trl.txt the first time (pip as it is configured)

They lie in the user's cache folder, one folder per content of the lock, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

LOCKS = Path(__file__).resolve().parents[1] / "deploy" / "locks"


def peer_python(name: str) -> Path:
    """The interpreter of the environment that deploy/locks/NAME.txt pins. Raises SystemExit where pip fails."""
    lock = LOCKS / f"{name}.txt"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "ratchet" / "peers" / f"{name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    python, whole = folder / "bin" / "python", folder / "complete"
    if not whole.exists():
        print(f"installing {lock.name} into {folder} (some minutes, once)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", str(lock)]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(
                f"{lock} could not be installed; pip's words are above. On another platform than Linux "
                "on x86_64 its hashes do not fit."
            )
        whole.touch()
    return python
