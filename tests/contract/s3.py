"""An S3 server of our own on this machine, for as long as a test needs one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# In a process of its own: moto's web framework leaves proxies in its modules that vLLM trips over in its process.
_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), sep=":", flush=True)
sys.stdin.read()
server.stop()
"""
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def served() -> Iterator[str]:
    """The URI of a bucket on a server with a port of its own. Whoever uses it has CREDENTIALS in the environment."""
    command = [sys.executable, "-W", "ignore", "-c", _SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        assert address, "the S3 server did not start"
        options = f"scheme=http&endpoint_override={address}&region=us-east-1&allow_bucket_creation=true"
        yield f"s3://ratchet/archive?{options}"
