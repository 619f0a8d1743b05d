"""The standard health service: probes ask it, without a token, whether the store takes experience."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

NAMES = ("", "serving.v1.ExperienceStoreService")  # the server as a whole, and the one service


class Health:
    """SERVING until `stop`. Its watchers hold none of the server's threads."""

    def __init__(self, server: grpc.Server) -> None:
        self._servicer: Any = health.HealthServicer(experimental_non_blocking=True)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        for name in NAMES:
            self._servicer.set(name, health_pb2.HealthCheckResponse.SERVING)

    def stop(self) -> None:
        """NOT_SERVING from here on."""
        self._servicer.enter_graceful_shutdown()
