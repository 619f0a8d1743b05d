"""What probes hear, without a token: SERVING while experience is taken, NOT_SERVING from then on."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contracts.errors import StoreStoppedError
from serving.health import NAMES
from tests.contract.stores import Driver, Opened, open_remote, served, small_config

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("name", NAMES)
def test_a_store_that_takes_nothing_more_is_not_healthy(tmp_path: Path, name: str) -> None:
    request = health_pb2.HealthCheckRequest(service=name)
    with served(tmp_path, small_config()) as (server, owner), grpc.insecure_channel(server.address) as channel:
        driver = Driver(Opened(owner, str(owner.uuid)))
        driver.serve(0)
        (lease, *_) = driver.lease()
        probe = health_pb2_grpc.HealthStub(channel)
        assert probe.Check(request, timeout=10).status == SERVING
        watch = probe.Watch(request, timeout=30)
        assert next(watch).status == SERVING
        owner.close()
        with open_remote(server) as store, pytest.raises(StoreStoppedError):
            store.append([driver.make(lease, 0)])
        assert next(watch).status == NOT_SERVING
        assert probe.Check(request, timeout=10).status == NOT_SERVING
        watch.cancel()


def test_a_service_that_is_none_is_not_known(tmp_path: Path) -> None:
    with served(tmp_path, small_config()) as (server, _), grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="another"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
