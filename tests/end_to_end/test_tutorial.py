"""The teaching loop at full length, as its first lines say to run it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.end_to_end.commands import ROOT


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_teaching_loop_learns() -> None:
    words = [sys.executable, "docs/tutorial/loop.py"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    before, after = map(float, re.findall(r"after \w+: ([\d.]+)%", said))
    assert after > before + 15, said
