"""An archive on an S3 server: a wiped run comes back on an empty machine and goes on to the same bits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.buffers.test_branching import STEPS, check_archive, play

# In a process of its own: moto's web framework leaves proxies in its modules that vLLM trips over in its process.
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), sep=":", flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture
def uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on a server on a port of its own, which goes when its standard input ends."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    command = [sys.executable, "-W", "ignore", "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        assert address, "the S3 server did not start"
        options = f"scheme=http&endpoint_override={address}&region=us-east-1&allow_bucket_creation=true"
        yield f"s3://ratchet/archive?{options}"


def test_an_s3_archive_brings_a_wiped_run_back_to_the_same_bits(tmp_path: Path, uri: str) -> None:
    check_archive(tmp_path, uri, play(tmp_path / "whole", steps=2 * STEPS))
