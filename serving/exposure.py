"""Where a store may be served: on loopback as one likes, elsewhere only over TLS and to those it knows. No grpc."""

from __future__ import annotations

import ipaddress

from configs.schema import SERVING_TOKEN, Serving
from contracts.errors import ConfigError

LOOPBACK_NAMES = ("localhost", "ip6-localhost")


def is_loopback(host: str) -> bool:
    """Whether what is sent to `host` stays on this machine."""
    bare = host.strip("[]")
    if bare in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_exposure(settings: Serving, *, token: str | None) -> None:
    """Refuse to serve off loopback what anyone could call or read. Raises ConfigError."""
    if is_loopback(settings.host):
        return
    asked = f"serving.host: {settings.host}, which others can reach"
    if settings.certificate is None:
        raise ConfigError(
            asked, "there is no serving.certificate: all would travel in plain text", "name a certificate and its key"
        )
    if token is None and settings.client_authority is None:
        raise ConfigError(
            asked,
            f"neither {SERVING_TOKEN} nor serving.client_authority is set: anyone could write",
            f"set {SERVING_TOKEN} to a secret of your own, or name the authority of the clients' certificates",
        )
