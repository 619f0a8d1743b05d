"""Who may call, and over what: tokens, TLS from files. Nothing travels in plain text off loopback."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from configs.schema import Serving
from contracts.errors import ConfigError, UserError
from serving.exposure import is_loopback
from serving.wire import abort

AUTHORIZATION = "authorization"
HEALTH = "/grpc.health.v1.Health/"  # probes have no token; all they learn is whether the store is served


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Files in PEM format. `authority`: who signed the other side; `certificate` and `key`: who we are (mTLS)."""

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


def server_credentials(settings: Serving) -> grpc.ServerCredentials | None:
    """TLS as configured; None: plain text. Raises ConfigError where a file cannot be read."""
    if settings.certificate is None or settings.key is None:
        return None
    authority = settings.client_authority
    pair = (_read_file("serving.key", settings.key), _read_file("serving.certificate", settings.certificate))
    return grpc.ssl_server_credentials(
        [pair],
        root_certificates=None if authority is None else _read_file("serving.client_authority", authority),
        require_client_auth=authority is not None,
    )


def open_channel(address: str, *, token: str | None, tls: Tls | None, options: list[tuple[str, Any]]) -> grpc.Channel:
    """A channel to a store. Raises UserError rather than send a token in plain text to another machine."""
    if tls is not None:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=_read_optional("the authority", tls.authority),
            private_key=_read_optional("the key", tls.key),
            certificate_chain=_read_optional("the certificate", tls.certificate),
        )
        return grpc.secure_channel(address, credentials, options=options)
    host = address.rpartition(":")[0]
    if not is_loopback(host):
        what = "its token and every episode" if token else "every episode"
        raise UserError(
            f"a plain-text connection to the store at {address}",
            f"{host} is another machine: {what} could be read on the way",
            "give the certificate of the authority that signed the server's, as tls=Tls(authority=...)",
        )
    return grpc.insecure_channel(address, options=options)


class TokenGuard(grpc.ServerInterceptor):  # type: ignore[misc] # grpc ships no types
    """Ends every call without the token, but for health."""

    def __init__(self, token: str, *, on_refusal: Callable[[], None]) -> None:
        self._expected = f"Bearer {token}".encode()
        self._on_refusal = on_refusal
        self._refusal = grpc.unary_unary_rpc_method_handler(self._refuse)

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        if details.method.startswith(HEALTH):
            return continuation(details)
        given = next((value for key, value in details.invocation_metadata if key == AUTHORIZATION), "")
        found = given if isinstance(given, bytes) else given.encode()
        return continuation(details) if hmac.compare_digest(found, self._expected) else self._refusal

    def _refuse(self, _request: Any, context: grpc.ServicerContext) -> None:
        self._on_refusal()
        abort(context, grpc.StatusCode.UNAUTHENTICATED, "the call has no token, or a wrong one")


def authorize(token: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata of a call."""
    return () if token is None else ((AUTHORIZATION, f"Bearer {token}"),)


def _read_optional(what: str, path: Path | None) -> bytes | None:
    return None if path is None else _read_file(what, path)


def _read_file(what: str, path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{what}: {path}", f"it cannot be read: {error.strerror}", "name a PEM file") from error
