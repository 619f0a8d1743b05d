"""Importing the engines is cheap: what is heavy is imported where it is used."""

from __future__ import annotations

import subprocess
import sys


def test_naming_the_vllm_engine_imports_no_vllm_and_no_transformers() -> None:
    code = (
        "import sys, inference.vllm_engine; print([name for name in ('vllm', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
