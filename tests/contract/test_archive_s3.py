"""An archive on an S3 server: a wiped run comes back on an empty machine and goes on to the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from tests.unit.buffers.test_branching import STEPS, check_archive, play


@pytest.fixture
def uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on a server of this process, on a port of its own."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = f"scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
        yield f"s3://ratchet/archive?{options}"
    finally:
        server.stop()


def test_an_s3_archive_brings_a_wiped_run_back_to_the_same_bits(tmp_path: Path, uri: str) -> None:
    check_archive(tmp_path, uri, play(tmp_path / "whole", steps=2 * STEPS))
