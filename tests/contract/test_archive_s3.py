"""An archive on an S3 server: a wiped run comes back on an empty machine and goes on to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract import s3
from tests.unit.buffers.test_branching import STEPS, check_archive, play


@pytest.mark.timeout(300)
def test_an_s3_archive_brings_a_wiped_run_back_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with s3.served() as uri:
        check_archive(tmp_path, uri, play(tmp_path / "whole", steps=2 * STEPS))
