"""Who may call: tokens, TLS and mTLS from files, and what is refused before anything travels in plain text."""

from __future__ import annotations

import subprocess
from pathlib import Path

import grpc
import pytest
from pydantic import ValidationError

from configs.schema import SERVING_TOKEN, Serving
from contracts.errors import ConfigError, StoreError, StoreUnreachableError, UserError
from serving.access import Tls
from serving.client import connect
from serving.exposure import check_exposure, is_loopback, join_address
from tests.contract.stores import SERVING, TOKEN, open_remote, served, small_config
from tests.unit.serving.wire import OPENING, Line


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """authority.pem, and for `server` and `client` a key and a certificate that it signed."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *curve, "-keyout", "authority.key", "-out", "authority.pem", "-subj", "/CN=authority")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        words = ["-in", f"{name}.csr", "-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial"]
        openssl("x509", "-req", *words, "-extfile", "names", "-out", f"{name}.pem", "-days", "2")
    return folder


def secure(certificates: Path, *, mutual: bool = False, host: str = "127.0.0.1") -> Serving:
    return Serving(
        host=host,
        certificate=str(certificates / "server.pem"),
        key=str(certificates / "server.key"),
        client_authority=str(certificates / "authority.pem") if mutual else None,
    )


# ---------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("token", [None, "", "another", TOKEN + "s", TOKEN[:-1]])
def test_without_the_token_there_is_no_answer(tmp_path: Path, token: str | None) -> None:
    with served(tmp_path, small_config()) as (server, _):
        with open_remote(server, token=token) as store:
            with pytest.raises(UserError, match="no token, or a wrong one"):
                store.attach("stranger")
            with pytest.raises(UserError, match="no token, or a wrong one"):
                store.append([])
            with pytest.raises(UserError, match="no token, or a wrong one"):
                next(iter(store.tail()))
        with Line(server.address, "StreamExperience", token=token) as line:
            line.send(OPENING)
            assert line.fail()[0] is grpc.StatusCode.UNAUTHENTICATED
        refused = server.metrics.registry.get_sample_value("ratchet_serving_refusals_total", {"reason": "token"})
        assert refused is not None
        assert refused >= 4


def test_on_loopback_a_token_may_be_left_out(tmp_path: Path) -> None:
    with served(tmp_path, small_config(), token=None) as (server, owner), open_remote(server, token=None) as store:
        assert store.status()["uuid"] == str(owner.uuid)


def test_learners_from_outside_need_leave(tmp_path: Path) -> None:
    settings = SERVING.model_copy(update={"decisions": False})
    with served(tmp_path, small_config(), settings=settings) as (server, owner), open_remote(server) as store:
        (_, session) = owner.decisions()[0]
        with pytest.raises(StoreError, match="takes no decisions from outside"):
            store.open_session(session)
        with pytest.raises(StoreError, match="takes no decisions from outside"):
            store.decide(session, 0)
        assert len(owner.decisions()) == 1


# ---------------------------------------------------------------------------------------------- off loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "store.example"])
def test_nothing_is_served_in_plain_text_off_loopback(host: str) -> None:
    with pytest.raises(ConfigError, match="plain text"):
        check_exposure(Serving(host=host), token=TOKEN)


def test_nothing_is_served_to_everybody_off_loopback(certificates: Path) -> None:
    with pytest.raises(ConfigError, match=SERVING_TOKEN):
        check_exposure(secure(certificates, host="0.0.0.0"), token=None)
    check_exposure(secure(certificates, host="0.0.0.0"), token=TOKEN)
    check_exposure(secure(certificates, host="0.0.0.0", mutual=True), token=None)


def test_a_server_that_would_be_open_does_not_start(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="plain text"),
        served(tmp_path, small_config(), settings=Serving(host="0.0.0.0")),
    ):
        pass


@pytest.mark.parametrize("address", ["store.example:4711", "192.0.2.7:4711", "[2001:db8::1]:4711"])
@pytest.mark.parametrize("token", [TOKEN, None])
def test_no_client_talks_in_plain_text_to_another_machine(address: str, token: str | None) -> None:
    with pytest.raises(UserError, match="another machine"):
        connect(address, token=token)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost"])
def test_loopback_is_this_machine(host: str) -> None:
    assert is_loopback(host)
    check_exposure(Serving(host=host), token=None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "localhost.example", "10.0.0.1", "128.0.0.1", ""])
def test_everything_else_is_not(host: str) -> None:
    assert not is_loopback(host)


def test_an_address_keeps_its_parts_apart() -> None:
    assert (join_address("::1", 7), join_address("127.0.0.1", 7)) == ("[::1]:7", "127.0.0.1:7")


# ---------------------------------------------------------------------------------------------- TLS


def test_over_tls_with_a_token(tmp_path: Path, certificates: Path) -> None:
    tls = Tls(authority=certificates / "authority.pem")
    with served(tmp_path, small_config(), settings=secure(certificates)) as (server, owner):
        with connect(server.address, token=TOKEN, tls=tls, timeout_s=20) as store:
            assert store.status()["uuid"] == str(owner.uuid)
        with connect(server.address, token="wrong", tls=tls) as store, pytest.raises(UserError, match="wrong one"):
            store.ledger()
        with connect(server.address, token=TOKEN, timeout_s=0.5) as store, pytest.raises(StoreUnreachableError):
            store.ledger()


def test_over_tls_with_certificates_on_both_sides(tmp_path: Path, certificates: Path) -> None:
    authority = certificates / "authority.pem"
    mine = Tls(authority=authority, certificate=certificates / "client.pem", key=certificates / "client.key")
    settings = secure(certificates, mutual=True)
    with served(tmp_path, small_config(), settings=settings, token=None) as (server, owner):
        with connect(server.address, tls=mine, timeout_s=20) as store:
            assert store.status()["uuid"] == str(owner.uuid)
        nobody = connect(server.address, tls=Tls(authority=authority), timeout_s=0.5)
        with nobody, pytest.raises(StoreUnreachableError):
            nobody.ledger()


def test_a_server_that_another_authority_signed_is_not_believed(tmp_path: Path, certificates: Path) -> None:
    stranger = Tls(authority=certificates / "client.pem")
    with (
        served(tmp_path, small_config(), settings=secure(certificates)) as (server, _),
        connect(server.address, token=TOKEN, tls=stranger, timeout_s=0.5) as store,
        pytest.raises(StoreUnreachableError),
    ):
        store.ledger()


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    settings = Serving(certificate=str(tmp_path / "no.pem"), key=str(tmp_path / "no.key"))
    with (
        pytest.raises(ConfigError, match=r"serving.key: .*no.key"),
        served(tmp_path, small_config(), settings=settings),
    ):
        pass
    with pytest.raises(ConfigError, match="the authority"):
        connect("store.example:1", tls=Tls(authority=tmp_path / "no.pem"))


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with served(tmp_path / "one", small_config()) as (server, _):
        settings = SERVING.model_copy(update={"port": server.port})
        with (
            pytest.raises(ConfigError, match="the port is taken"),
            served(tmp_path / "two", small_config(), settings=settings),
        ):
            pass


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"certificate": "a.pem"}, "come together"),
        ({"key": "a.key"}, "come together"),
        ({"client_authority": "a.pem"}, "needs TLS"),
        ({"port": 70_000}, "less than or equal"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Serving.model_validate(settings)
