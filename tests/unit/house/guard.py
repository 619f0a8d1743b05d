"""The import guard: top-level package names are common words, so another distribution could take one of them over.

`foreign_packages` needs nothing but the project on the path, so a test may send it to a Ray worker as it is.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def packages() -> list[str]:
    """Names of the project's top-level packages, tests included."""
    return sorted(init.parent.name for init in ROOT.glob("*/__init__.py"))


def foreign_packages() -> dict[str, str]:
    """Top-level package names that resolve outside the project, and where to; {} is good."""
    found = {}
    for name in packages():
        spec = importlib.util.find_spec(name)
        origin = spec.origin if spec and spec.origin else ""
        if not Path(origin).is_relative_to(ROOT):
            found[name] = origin
    return found
