"""Serves a store over gRPC, as configured: address, TLS, token, limits, health."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from buffers.reading import Records
from configs.schema import Serving
from contracts.errors import ConfigError
from serving.access import TokenGuard, server_credentials
from serving.columns import read_batch, write_batch
from serving.exposure import check_exposure, join_address
from serving.health import Health
from serving.meter import TOKEN, Meter
from serving.service import ExperienceStoreService, ServedStore
from serving.v1 import store_pb2_grpc
from telemetry.exporter import Exporter

NUM_CALLERS = 16  # short calls at once, beside the streams
GRACE_S = 2.0  # how long calls may go on when the server closes
KEEPALIVE_MS = 20_000  # after which a silent client is asked whether it is there


class StoreServer:
    """Serves `store` from construction to `close`. `address` is host:port, with the port that the system chose.

    Raises ConfigError: off loopback without TLS or without a token; files that cannot be read; a port that is taken.
    """

    def __init__(
        self, store: ServedStore, *, records: Records, settings: Serving, token: str | None, metrics: Exporter
    ) -> None:
        check_exposure(settings, token=token)
        self.metrics = metrics
        meter = Meter(metrics)
        guards = [TokenGuard(token, on_refusal=lambda: meter.refused_for(TOKEN))] if token else []
        num_calls = settings.max_streams + NUM_CALLERS
        self._service = ExperienceStoreService(store, records=records, settings=settings, meter=meter)
        self._threads = ThreadPoolExecutor(num_calls, thread_name_prefix="serving")
        self._server = grpc.server(self._threads, interceptors=guards, options=_options(settings))
        store_pb2_grpc.add_ExperienceStoreServiceServicer_to_server(self._service, self._server)  # type: ignore[no-untyped-call]
        self._health = Health(self._server)
        meter.on_stopped = self._health.stop
        port = self._bind(settings)
        self.is_secure = settings.certificate is not None
        self.host, self.port = settings.host, port
        read_batch(write_batch([]))  # pyarrow imports pandas, where there is one, at the first array: not in a call
        self._server.start()

    @property
    def address(self) -> str:
        return join_address(self.host, self.port)

    def close(self) -> None:
        """End every call and stop serving. Idempotent."""
        self._health.stop()
        self._service.end()
        self._server.stop(GRACE_S).wait()
        self._threads.shutdown(wait=False)

    def _bind(self, settings: Serving) -> int:
        asked = join_address(settings.host, settings.port)
        credentials = server_credentials(settings)
        try:
            if credentials is None:
                return int(self._server.add_insecure_port(asked))
            return int(self._server.add_secure_port(asked, credentials))
        except RuntimeError as error:
            raise ConfigError(
                f"serving.host and serving.port: {asked}",
                "nothing can be served there: the port is taken, or the host is not this machine's",
                "set serving.port to 0 for a free one",
            ) from error


def _options(settings: Serving) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_mib << 20),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MS // 4),
    ]
