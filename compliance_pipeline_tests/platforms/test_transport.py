import json
import logging
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

import pybreaker
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from compliance_pipeline.breaker import PROBES, circuit_breaker
from compliance_pipeline.database import connect
from compliance_pipeline.platforms import transport as module
from compliance_pipeline.platforms.pacing import Budget
from compliance_pipeline.platforms.port import PlatformError, PlatformHeld, Refused, TransferBroken, Unavailable
from compliance_pipeline.platforms.profiles import CLOUD_REGION_HOSTS, transport_of
from compliance_pipeline.platforms.transport import Answer, MissingPermission, NotFound, Transport, parse
from compliance_pipeline.settings import Settings
from compliance_pipeline_tests.platforms.loopback import CLIENT, CONTEXT_ID, GuideServer, Reply, Server, no, ok

PATH = "/api/v2/recordings/rec-1"
RECORDS = "/api/v2/analytics/datadatasets/records"
BODY = {"record": {"key": "k", "summary": "canary-body 4111111111111111"}}
SENSITIVE = ("4111111111111111", "canary", "Bearer", "Basic", "signature")


def told(error: BaseException) -> str:
    """Everything that a log of the error would hold."""
    text = "".join(traceback.format_exception(error)) + repr(error) + str(error)
    # The source lines that a traceback quotes are ours, not data.
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


Host = TypeVar("Host", bound=Server)


@contextmanager
def running(host: Host) -> Iterator[Host]:
    yield host
    host.stop()


@pytest.fixture
def recording(server: GuideServer) -> dict[str, object]:
    server.recordings["rec-1"] = {"id": "rec-1", "status": "available"}
    return server.recordings["rec-1"]


def test_one_token_serves_eight_threads(
    server: GuideServer, transport: Transport, recording: dict[str, object]
) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: transport.request("GET", PATH), range(24)))
    assert answers == [recording] * 24
    assert len(server.tokens) == 1


def test_a_revoked_token_is_renewed_once_for_eight_threads(
    server: GuideServer, transport: Transport, recording: dict[str, object]
) -> None:
    transport.request("GET", PATH)
    server.tokens.append("revokes-the-first")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: transport.request("GET", PATH), range(8)))
    assert answers == [recording] * 8
    assert len(server.calls("POST", "/oauth/token")) == 2


def test_a_token_is_renewed_before_it_expires(
    server: GuideServer, transport: Transport, recording: dict[str, object]
) -> None:
    server.token_life = 0.2
    for _ in range(3):
        transport.request("GET", PATH)
        time.sleep(0.19)
    assert len(server.tokens) == 3
    assert all("authorization" in asked.headers for asked in server.calls("GET", PATH))
    assert len(server.calls("GET", PATH)) == 3, "no request went out with a token that the platform would refuse"


def test_a_second_401_is_final(server: GuideServer, transport: Transport) -> None:
    server.plan("GET", PATH, no(401), no(401))
    with pytest.raises(Refused, match="401"):
        transport.request("GET", PATH)
    assert len(server.calls("GET", PATH)) == 2
    assert len(server.tokens) == 2


def test_a_post_that_got_401_is_repeated_with_a_new_token(server: GuideServer, transport: Transport) -> None:
    server.plan("POST", RECORDS, no(401))
    assert transport.request("POST", RECORDS, json=BODY)["id"] == "records-1"
    assert len(server.stored["records"]) == 1


def test_wrong_client_secret_is_refused_and_says_what_to_check(server: GuideServer) -> None:
    transport = Transport(server.url, CLIENT[0], "wrong-canary", backoff_s=0.001)
    with pytest.raises(Refused, match="COMPLIANCE_CLIENT_SECRET") as caught:
        transport.request("GET", PATH)
    assert len(server.calls("POST", "/oauth/token")) == 1
    assert "canary" not in told(caught.value)


def test_a_token_endpoint_that_is_not_there_is_not_taken_for_a_missing_recording(
    server: GuideServer, transport: Transport
) -> None:
    server.plan("POST", "/oauth/token", no(404))
    with pytest.raises(Refused) as caught:
        transport.request("GET", PATH)
    assert not isinstance(caught.value, NotFound)


def test_a_failing_token_endpoint_is_tried_again(
    server: GuideServer, transport: Transport, recording: dict[str, object]
) -> None:
    server.plan("POST", "/oauth/token", no(503), no(429), Reply(drop=True))
    assert transport.request("GET", PATH) == recording


@pytest.mark.parametrize("token", ["", "two words", "line\r\nbreak", "tök"])
def test_a_malformed_token_is_not_used_and_not_shown(server: GuideServer, transport: Transport, token: str) -> None:
    server.plan("POST", "/oauth/token", ok({"access_token": token}))
    with pytest.raises(Unavailable, match="access_token") as caught:
        transport.request("GET", PATH)
    assert not token or token not in told(caught.value)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_error_is_tried_again_for_a_get(
    server: GuideServer, transport: Transport, recording: dict[str, object], status: int
) -> None:
    server.plan("GET", PATH, no(status), no(status))
    assert transport.request("GET", PATH) == recording


def test_lasting_server_errors_end_as_unavailable(server: GuideServer, transport: Transport) -> None:
    server.plan("GET", PATH, *[no(500)] * 20)
    with pytest.raises(Unavailable, match=rf"^GET {PATH}: 500 \(contextId {CONTEXT_ID}\)$"):
        transport.request("GET", PATH)
    assert len(server.calls("GET", PATH)) == module.TRIES


def test_a_dropped_get_and_a_short_answer_are_tried_again(
    server: GuideServer, transport: Transport, recording: dict[str, object]
) -> None:
    server.plan("GET", PATH, Reply(drop=True), Reply(200, b'{"id": "rec-1"}', cut=7))
    assert transport.request("GET", PATH) == recording
    assert len(server.calls("GET", PATH)) == 3


def test_a_dropped_patch_is_tried_again_with_the_same_body(
    server: GuideServer, transport: Transport, recording: dict[str, object]
) -> None:
    server.plan("PATCH", PATH, Reply(drop=True))
    transport.request("PATCH", PATH, json={"tags": [{"key": "a", "value": "b"}]})
    first, second = server.calls("PATCH", PATH)
    assert first.body == second.body
    assert recording["tags"] == [{"key": "a", "value": "b"}]


def test_retry_after_is_waited_out(server: GuideServer, transport: Transport, recording: dict[str, object]) -> None:
    server.plan("GET", PATH, no(429, Retry_After="1"))
    assert transport.request("GET", PATH) == recording
    first, second = server.calls("GET", PATH)
    assert 1.0 <= second.at - first.at < 3.0


def test_a_retry_after_of_an_hour_is_not_waited_out(
    server: GuideServer, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport.close()
    monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.2)
    transport = Transport(server.url, *CLIENT, backoff_s=0.001)
    server.plan("GET", PATH, *[no(429, Retry_After="3600")] * 20)
    began = time.monotonic()
    with pytest.raises(Unavailable, match="429"):
        transport.request("GET", PATH)
    assert time.monotonic() - began < 2
    assert len(server.calls("GET", PATH)) == 2, "one more try when the patience is spent, not one a wait"


def test_a_post_answered_429_is_sent_again(server: GuideServer, transport: Transport) -> None:
    server.plan("POST", RECORDS, no(429), no(429, Retry_After="0"))
    assert transport.request("POST", RECORDS, json=BODY)["id"] == "records-1"
    assert len(server.stored["records"]) == 1


@pytest.mark.parametrize("reply", [Reply(drop=True), no(500), no(503), Reply(201, b'{"id": "x"}', cut=3)])
def test_a_post_whose_answer_is_lost_is_sent_once_and_says_so(
    server: GuideServer, transport: Transport, reply: Reply
) -> None:
    server.plan("POST", RECORDS, reply)
    with pytest.raises(Unavailable, match="effect is unknown"):
        transport.request("POST", RECORDS, json=BODY)
    assert len(server.calls("POST", RECORDS)) == 1


def test_a_platform_that_is_down_is_unavailable(transport: Transport, server: GuideServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        down = Transport(f"http://127.0.0.1:{taken.getsockname()[1]}", *CLIENT, backoff_s=0.001)
        with pytest.raises(Unavailable, match="ConnectError"):
            down.request("POST", RECORDS, json=BODY)


@pytest.mark.parametrize(
    ("status", "error"), [(400, Refused), (403, Refused), (404, NotFound), (409, Unavailable), (413, Refused)]
)
def test_client_errors_are_asked_once(
    server: GuideServer, transport: Transport, status: int, error: type[PlatformError]
) -> None:
    server.plan("GET", PATH, no(status))
    with pytest.raises(error, match=str(status)):
        transport.request("GET", PATH)
    assert len(server.calls("GET", PATH)) == 1


def test_redirects_are_refused(server: GuideServer, transport: Transport, media_host: Server) -> None:
    elsewhere = f"{media_host.url}/x"
    server.plan("GET", PATH, no(302, Location=elsewhere))
    with pytest.raises(Refused, match="redirect"):
        transport.request("GET", PATH)
    server.plan("GET", "/m", no(307, Location=elsewhere))
    with pytest.raises(Refused, match="redirect"), transport.open_media(f"{server.url}/m"):
        pass
    assert media_host.asked == []


def test_an_answer_above_the_limit_is_refused(server: GuideServer, transport: Transport) -> None:
    server.plan("GET", PATH, Reply(200, b'"' + b"x" * module.JSON_LIMIT_BYTES + b'"'))
    with pytest.raises(Refused, match="larger"):
        transport.request("GET", PATH)


def test_an_answer_that_is_not_json_is_unavailable(server: GuideServer, transport: Transport) -> None:
    server.plan("GET", PATH, Reply(200, b"<html>canary</html>"))
    with pytest.raises(Unavailable, match="not JSON") as caught:
        transport.request("GET", PATH)
    assert "canary" not in told(caught.value)


def test_an_empty_answer_is_none(server: GuideServer, transport: Transport) -> None:
    server.plan("GET", PATH, Reply(202))
    assert transport.request("GET", PATH) is None


def test_a_request_that_names_another_host_gets_no_token(transport: Transport, media_host: Server) -> None:
    with pytest.raises(Refused, match="no token"):
        transport.request("GET", f"{media_host.url}/next-page")
    assert media_host.asked == []


def test_a_post_that_only_asks_is_repeated_like_a_get(server: GuideServer, transport: Transport) -> None:
    server.plan("POST", "/query", Reply(drop=True), no(503), ok({"results": []}))
    assert transport.request("POST", "/query", json={}, repeatable=True) == {"results": []}
    server.plan("POST", "/query", *[no(503)] * 5)
    with pytest.raises(Unavailable) as caught:
        transport.request("POST", "/query", json={}, repeatable=True)
    assert "effect" not in str(caught.value)


def test_an_answer_has_status_body_and_when_to_ask_again(server: GuideServer, transport: Transport) -> None:
    at = (datetime.now(UTC) + timedelta(seconds=60)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    server.plan(
        "GET",
        PATH,
        Reply(202, headers={"Retry-After": "3"}),
        Reply(202, headers={"Retry-After": at}),
        Reply(202, b"[]", headers={"Retry-After": "soon"}),
        Reply(202, headers={"Retry-After": "9" * 15}),
        Reply(202, headers={"Retry-After": "9" * 5000}),
        ok({"id": "4111111111111111"}),
    )
    assert transport.ask("GET", PATH) == Answer(202, None, 3.0)
    later = transport.ask("GET", PATH).retry_after_s
    assert later is not None
    assert 50 < later <= 60
    assert transport.ask("GET", PATH) == Answer(202, [], None)
    assert transport.ask("GET", PATH) == Answer(202, None, 86_400.0)
    assert transport.ask("GET", PATH) == Answer(202, None, None)
    answer = transport.ask("GET", PATH)
    assert (answer.status, answer.body) == (200, {"id": "4111111111111111"})
    assert "4111" not in repr(answer)


def test_a_lasting_429_is_no_fault_of_the_recording(server: GuideServer, transport: Transport) -> None:
    server.plan("GET", PATH, *[no(429)] * 5)
    with pytest.raises(PlatformHeld, match="429") as held:
        transport.request("GET", PATH)
    assert held.value.for_s > 0


@pytest.mark.parametrize(
    ("body", "permissions"),
    [
        (
            {
                "code": "missing.permissions",
                "message": "Unable to perform the requested action. You are missing the following permission(s): "
                "recording:recording:view, recording:recordingSegment:view.",
            },
            ("recording:recording:view", "recording:recordingSegment:view"),
        ),
        (
            {
                "code": "missing.any.permissions",
                "message": "one of {permissions}",
                "messageParams": {"permissions": "[workitems:workitem:add]", "n": 1},
            },
            ("workitems:workitem:add",),
        ),
        ({"code": "missing.permissions", "message": "4111:1111:1111 a:b:c one:two:three:four x@y:z:w canary"}, ()),
        ({"code": "missing.permissions"}, ()),
    ],
)
def test_a_missing_permission_is_named_and_nothing_else_is(
    server: GuideServer, transport: Transport, body: dict[str, Any], permissions: tuple[str, ...]
) -> None:
    server.plan("GET", PATH, ok(body, 403))
    with pytest.raises(MissingPermission, match="grant it") as caught:
        transport.request("GET", PATH)
    assert caught.value.permissions == permissions
    assert all(name in str(caught.value) for name in permissions)
    assert not [word for word in ("4111", "canary", "three", "Unable") if word in told(caught.value)]


@pytest.mark.parametrize("body", [b"", b"[]", b"no", b'{"code": "other"}', b'{"code": ["missing.permissions"]}'])
def test_another_403_names_no_permission(server: GuideServer, transport: Transport, body: bytes) -> None:
    server.plan("GET", PATH, Reply(403, body))
    with pytest.raises(Refused) as caught:
        transport.request("GET", PATH)
    assert not isinstance(caught.value, MissingPermission)


def test_the_token_comes_from_the_login_host(server: GuideServer, recording: dict[str, object]) -> None:
    with running(Server()) as api_host:
        transport = Transport(api_host.url, *CLIENT, login_url=server.url + "/", backoff_s=0.001)
        api_host.plan("GET", PATH, ok(recording))
        assert transport.request("GET", PATH) == recording
        transport.close()
        assert [asked.path for asked in server.asked] == ["/oauth/token"]
        assert api_host.asked[0].headers["authorization"] == f"Bearer {server.tokens[-1]}"


@pytest.mark.parametrize(
    ("api", "login"),
    [
        ("https://api.mypurecloud.com", "https://login.mypurecloud.com"),
        ("https://api.usw2.pure.cloud:8443", "https://login.usw2.pure.cloud:8443"),
        ("https://platform.example.com/base", "https://platform.example.com/base"),
    ],
)
def test_genesys_cloud_signs_in_on_its_login_host(api: str, login: str) -> None:
    with closing(Transport(api, *CLIENT)) as transport:
        assert str(transport._login) == login


def test_an_invalid_client_is_refused_at_once(server: GuideServer, transport: Transport) -> None:
    server.plan("POST", "/oauth/token", ok({"error": "invalid_client"}, 400))
    with pytest.raises(Refused, match="COMPLIANCE_CLIENT_ID"):
        transport.request("GET", PATH)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("api", "login", "setting"),
    [
        ("http://api.mypurecloud.com", None, "COMPLIANCE_PLATFORM_URL"),
        ("http://10.0.0.7:8090", None, "COMPLIANCE_PLATFORM_URL"),
        ("http://127.0.0.1.evil.example", None, "COMPLIANCE_PLATFORM_URL"),
        ("http://localhost.evil.example", None, "COMPLIANCE_PLATFORM_URL"),
        ("http://[::ffff:10.0.0.7]", None, "COMPLIANCE_PLATFORM_URL"),
        ("https://api.mypurecloud.com", "http://login.mypurecloud.com", "COMPLIANCE_LOGIN_URL"),
        ("https://api.mypurecloud.com", "http://127.0.0.1:8090", "COMPLIANCE_LOGIN_URL"),
        ("http://127.0.0.1:8090", "http://login.example", "COMPLIANCE_LOGIN_URL"),
    ],
)
def test_credentials_never_travel_in_plain_text(api: str, login: str | None, setting: str) -> None:
    with pytest.raises(Refused, match=rf"{setting}.*https"):
        Transport(api, *CLIENT, login_url=login)


@pytest.mark.parametrize("host", ["127.0.0.1:8090", "127.9.9.9", "[::1]:8090", "localhost:8090", "LOCALHOST"])
def test_plain_http_is_for_this_machine(host: str) -> None:
    Transport(f"http://{host}", *CLIENT, login_url=f"http://{host}").close()
    Transport(f"http://{host}", *CLIENT, login_url="https://login.example").close()


def test_who_waits_for_a_token_shares_the_failure_to_get_one(
    server: GuideServer, transport: Transport, recording: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(_asked: object) -> Reply:
        time.sleep(0.05)
        return no(503)

    server.plan("POST", "/oauth/token", *[slow] * module.TRIES)

    def fails(_: int) -> Unavailable:
        with pytest.raises(Unavailable, match=r"POST /oauth/token: 503") as caught:
            transport.request("GET", PATH)
        return caught.value

    with ThreadPoolExecutor(8) as pool:
        failures = list(pool.map(fails, range(8)))
    assert len(server.asked) == module.TRIES, "one thread asked, seven share what it was told"
    told_when = [failure.after_s for failure in failures if failure.after_s is not None]
    assert len(told_when) == 7
    assert all(0 < after_s <= module.NO_TOKEN_S for after_s in told_when)
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + module.NO_TOKEN_S)
    assert transport.request("GET", PATH) == recording, "and then somebody tries again"


def test_wrong_credentials_are_sent_once_a_minute_and_not_once_a_recording(
    server: GuideServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Transport(server.url, CLIENT[0], "wrong-canary", backoff_s=0.001)) as transport:
        for _ in range(5):
            with pytest.raises(Refused, match="COMPLIANCE_CLIENT_SECRET"):
                transport.request("GET", PATH)
        assert len(server.asked) == 1
        now = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: now() + module.TOKEN_REFUSED_S)
        with pytest.raises(Refused, match="COMPLIANCE_CLIENT_SECRET"):
            transport.request("GET", PATH)
        assert len(server.asked) == 2


def test_a_login_host_that_is_busy_holds_all_who_wait_for_its_token(
    server: GuideServer, recording: dict[str, object]
) -> None:
    with (
        running(Server()) as api_host,
        closing(Transport(api_host.url, *CLIENT, login_url=server.url, backoff_s=0.001)) as transport,
    ):
        server.plan("POST", "/oauth/token", no(429, Retry_After="0"), *[no(429, Retry_After="0")] * 4)
        for _ in range(3):
            with pytest.raises(PlatformHeld, match="429") as held:
                transport.request("GET", PATH)
            assert held.value.for_s >= 1
        assert len(server.asked) == module.TRIES


class Counted(Server):
    """Counts its connections."""

    def __init__(self) -> None:
        self.connections = 0
        super().__init__()
        accept = self._http.get_request

        def counting() -> Any:
            self.connections += 1
            return accept()

        self._http.get_request = counting  # type: ignore[method-assign]

    def answer(self, asked: object) -> Reply:
        return ok({"access_token": "t"})


def test_twenty_requests_share_one_connection_and_so_do_twenty_media() -> None:
    with running(Counted()) as host, closing(Transport(host.url, *CLIENT)) as transport:
        for _ in range(20):
            transport.request("GET", PATH)
        assert host.connections == 1
        for _ in range(20):
            with transport.open_media(f"{host.url}/m") as stream:
                list(stream)
        assert host.connections == 2


# --- HTTP/2


@pytest.fixture
def h2_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[tuple[str, str, int]]]]:
    """A server on loopback that speaks HTTP/2 over TLS only; what it was asked: method, path, number of connection."""
    certificate = tmp_path / "server.pem"
    certificate.write_bytes(self_signed("localhost"))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2"])
    listening = socket.create_server(("127.0.0.1", 0))
    asked: list[tuple[str, str, int]] = []

    def accept() -> None:
        for number in range(100):
            try:
                plain, _ = listening.accept()
                speaks = context.wrap_socket(plain, server_side=True)
            except OSError:
                return
            threading.Thread(target=speak_h2, args=(speaks, number, asked), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"https://localhost:{listening.getsockname()[1]}", asked
    listening.close()


def self_signed(host: str) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    names = [x509.DNSName(host), x509.IPAddress(IPv4Address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private + certificate.public_bytes(pem)


def speak_h2(sock: ssl.SSLSocket, number: int, asked: list[tuple[str, str, int]]) -> None:
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.events import RequestReceived

    spoken = H2Connection(H2Configuration(client_side=False))
    spoken.initiate_connection()
    sock.sendall(spoken.data_to_send())
    body = json.dumps({"access_token": "token-canary"}).encode()
    while data := sock.recv(65536):
        for event in spoken.receive_data(data):
            if isinstance(event, RequestReceived):
                headers = dict(event.headers or ())
                asked.append((headers[b":method"].decode(), headers[b":path"].decode(), number))
                spoken.send_headers(event.stream_id, [(":status", "200"), ("content-length", str(len(body)))])
                spoken.send_data(event.stream_id, body, end_stream=True)
        sock.sendall(spoken.data_to_send())


def test_http2_is_spoken_where_it_is_offered_on_one_connection_for_eight_threads(
    h2_server: tuple[str, list[tuple[str, str, int]]],
) -> None:
    url, asked = h2_server
    with closing(Transport(url, *CLIENT)) as transport, ThreadPoolExecutor(8) as pool:
        assert transport.request("GET", PATH) == {"access_token": "token-canary"}
        answers = list(pool.map(lambda _: transport.request("GET", PATH), range(40)))
    assert answers == [{"access_token": "token-canary"}] * 40
    assert asked.count(("GET", PATH, 0)) == 41
    assert {number for _, _, number in asked} == {0}


# --- circuit breakers


Breakers = Callable[[str], pybreaker.CircuitBreaker]


@pytest.fixture
def breakers(tmp_path: Path) -> Iterator[Breakers]:
    engine = connect(f"sqlite:///{tmp_path / 'operational.db'}")
    yield lambda name: circuit_breaker(engine, name, fail_max=3, reset_timeout=0.5)
    engine.dispose()


def test_traffic_to_a_failing_host_drops_to_the_probes_and_recovers(
    server: GuideServer, breakers: Breakers, recording: dict[str, object]
) -> None:
    one, other = (Transport(server.url, *CLIENT, breakers=breakers, backoff_s=0.001) for _ in range(2))
    one.request("GET", PATH)
    other.request("GET", PATH)
    server.recordings["rec-1"] = recording
    server.plan("GET", PATH, *[no(503)] * 25)
    for transport in (one, other, one, other):
        with pytest.raises(Unavailable, match="503"):
            transport.request("GET", PATH)
    tried = len(server.asked)
    for transport in (one, other) * 5:
        with pytest.raises(PlatformHeld, match="not asked") as held:
            transport.request("GET", PATH)
        assert 0 < held.value.for_s <= 1
    assert len(server.asked) == tried
    time.sleep(0.5)
    with pytest.raises(Unavailable, match="503"):
        other.request("GET", PATH)
    assert len(server.asked) == tried + module.TRIES, "one probe"
    with pytest.raises(PlatformHeld):
        one.request("GET", PATH)
    time.sleep(0.5)
    assert one.request("GET", PATH) == recording
    assert other.request("GET", PATH) == recording
    one.close()
    other.close()


def test_only_what_the_host_fails_at_counts_against_it(
    server: GuideServer, breakers: Breakers, recording: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = Transport(server.url, *CLIENT, breakers=breakers, backoff_s=0.001)
    transport.request("GET", PATH)
    for reply in [no(400), no(404), no(403), no(409), no(302), *[no(429)] * 5]:
        server.plan("GET", PATH, reply)
    for _ in range(6):
        with pytest.raises(PlatformError):
            transport.request("GET", PATH)
    server.plan("GET", "/m", no(403), no(410), no(404), *[Reply(200, b"x" * 9, cut=3)] * 5)
    for _ in range(8):
        with pytest.raises(Unavailable) as caught, transport.open_media(f"{server.url}/m") as stream:
            list(stream)
        assert not isinstance(caught.value, PlatformHeld)
    monkeypatch.setattr(module, "JSON_LIMIT_BYTES", 10)
    for _ in range(4):
        with pytest.raises(Refused, match="larger"):
            transport.request("GET", PATH)
    monkeypatch.undo()
    assert breakers("platform:127.0.0.1").fail_counter == 0
    assert breakers("media:127.0.0.1").fail_counter == 0
    assert transport.request("GET", PATH) == recording
    transport.close()


def test_a_failing_media_host_is_held_apart_from_the_api(
    server: GuideServer, media_host: Server, breakers: Breakers, recording: dict[str, object]
) -> None:
    transport = Transport(server.url, *CLIENT, breakers=breakers, backoff_s=0.001)
    media_host.plan("GET", "/m", *[no(503)] * 15)
    for _ in range(3):
        with pytest.raises(Unavailable, match="503"), transport.open_media(f"{media_host.url}/m"):
            pass
    with pytest.raises(PlatformHeld, match="not asked"), transport.open_media(f"{media_host.url}/m"):
        pass
    assert len(media_host.asked) == 15
    assert transport.request("GET", PATH) == recording
    transport.close()


def test_a_post_that_trips_the_breaker_still_says_that_its_effect_is_unknown(
    server: GuideServer, breakers: Breakers
) -> None:
    transport = Transport(server.url, *CLIENT, breakers=breakers, backoff_s=0.001)
    server.plan("POST", RECORDS, no(500), Reply(drop=True), no(500))
    for _ in range(3):
        with pytest.raises(Unavailable, match="effect is unknown"):
            transport.request("POST", RECORDS, json=BODY)
    with pytest.raises(PlatformHeld) as held:
        transport.request("POST", RECORDS, json=BODY)
    assert "effect" not in str(held.value)
    transport.close()


def test_eight_threads_are_not_let_through_one_by_one_by_the_breaker(server: GuideServer, breakers: Breakers) -> None:
    transport = Transport(server.url, *CLIENT, breakers=breakers, backoff_s=0.001)
    together = threading.Barrier(8, timeout=5)

    def meet(_asked: object) -> Reply:
        together.wait()
        return ok({})

    server.plan("GET", PATH, *[meet] * 8)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: transport.request("GET", PATH), range(8))) == [{}] * 8
    transport.close()


def opened(breakers: Breakers, name: str) -> pybreaker.CircuitBreaker:
    breaker = breakers(name)
    breaker.open()
    return breaker


def is_closed(breaker: pybreaker.CircuitBreaker) -> bool:
    return bool(breaker.current_state == pybreaker.STATE_CLOSED)


@pytest.fixture
def spent(tmp_path: Path) -> Iterator[Budget]:
    """A budget of which nothing is left for the next minute but one request."""
    engine = connect(f"sqlite:///{tmp_path / 'budget.db'}")
    yield Budget(engine, "b", 1, burst=1)
    engine.dispose()


def test_a_request_that_the_budget_holds_back_closes_no_breaker(
    server: GuideServer, breakers: Breakers, spent: Budget
) -> None:
    breaker = opened(breakers, "platform:127.0.0.1")
    spent.take()
    transport = Transport(server.url, *CLIENT, breakers=breakers, budget=spent, backoff_s=0.001)
    time.sleep(0.5)
    transport._token = module._HeldToken("t", time.monotonic() + 60)
    for _ in range(PROBES + 1):
        with pytest.raises(PlatformHeld, match="budget"):
            transport.request("GET", PATH)
    assert not is_closed(breaker)
    assert server.asked == []
    transport.close()


def test_a_request_that_the_budget_holds_back_resets_no_count(
    server: GuideServer, breakers: Breakers, tmp_path: Path
) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'budget.db'}")
    budget = Budget(engine, "b", 600)
    transport = Transport(server.url, *CLIENT, breakers=breakers, budget=budget, backoff_s=0.001)
    server.plan("GET", PATH, *[no(503)] * 25)
    for _ in range(2):
        with pytest.raises(Unavailable, match="503"):
            transport.request("GET", PATH)
    budget.hold(60)
    with pytest.raises(PlatformHeld, match="budget"):
        transport.request("GET", PATH)
    assert breakers("platform:127.0.0.1").fail_counter == 2
    transport.close()
    engine.dispose()


def test_a_host_that_failed_until_the_budget_was_spent_has_failed(breakers: Breakers, spent: Budget) -> None:
    with running(Server()) as host, running(GuideServer()) as login:
        transport = Transport(host.url, *CLIENT, login_url=login.url, breakers=breakers, budget=spent, backoff_s=0.001)
        # The login's host has the same name here, so its requests would spend this budget too.
        transport._token = module._HeldToken("t", time.monotonic() + 60)
        host.plan("GET", PATH, no(503))
        with pytest.raises(PlatformHeld, match="budget"):
            transport.request("GET", PATH)
        assert len(host.asked) == 1
        assert breakers("platform:127.0.0.1").fail_counter == 1
        transport.close()


def test_an_answer_or_an_address_that_we_refuse_closes_no_breaker(
    server: GuideServer, breakers: Breakers, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = Transport(server.url, *CLIENT, breakers=breakers, backoff_s=0.001, media_hosts=["*.test"])
    api, media = opened(breakers, "platform:127.0.0.1"), opened(breakers, "media:x.test")
    monkeypatch.setattr(module, "JSON_LIMIT_BYTES", 10)
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args, **more: resolve(str(host).replace("x.test", "10.0.0.1"), *args, **more),
    )
    time.sleep(0.5)
    with pytest.raises(Refused, match="larger"):
        transport.request("GET", PATH)
    with pytest.raises(Refused, match="not public"), transport.open_media("http://x.test/m"):
        pass
    assert not is_closed(api)
    assert not is_closed(media)
    transport.close()


def test_trouble_of_an_optional_endpoint_does_not_hold_the_platform(
    server: GuideServer, breakers: Breakers, recording: dict[str, object]
) -> None:
    transport = Transport(
        server.url, *CLIENT, breakers=breakers, backoff_s=0.001, optional_paths=["/api/v2/speechandtextanalytics"]
    )
    path = "/api/v2/speechandtextanalytics/conversations/c-1"
    server.plan("GET", path, *[no(503)] * 50)
    transport.request("GET", PATH)
    for _ in range(3):
        with pytest.raises(Unavailable, match="503"):
            transport.request("GET", path)
    with pytest.raises(PlatformHeld, match="not asked"):
        transport.request("GET", path)
    assert not is_closed(breakers("platform:127.0.0.1/speechandtextanalytics"))
    assert breakers("platform:127.0.0.1").fail_counter == 0
    assert transport.request("GET", PATH) == recording
    with pytest.raises(NotFound):
        transport.request("GET", "/api/v2/speechandtextanalyticsandmore/x")
    transport.close()


# --- the operational database


def broken(engine: sa.Engine, table: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP TABLE {table}")


def test_a_budget_that_cannot_be_read_is_the_platforms_trouble(
    server: GuideServer, tmp_path: Path, recording: dict[str, object]
) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'operational.db'}")
    budget = Budget(engine, "b", 600)
    transport = Transport(server.url, *CLIENT, breakers=lambda name: circuit_breaker(engine, name), budget=budget)
    transport.request("GET", PATH)
    before = len(server.asked)
    broken(engine, "pacing")
    with pytest.raises(Unavailable, match=r"the operational database failed \(OperationalError\)") as caught:
        transport.request("GET", PATH)
    assert "SELECT" not in told(caught.value)
    assert len(server.asked) == before
    assert circuit_breaker(engine, "platform:127.0.0.1").fail_counter == 0
    transport.close()
    engine.dispose()


def test_a_breaker_that_cannot_be_read_is_the_platforms_trouble_and_one_that_cannot_be_told_loses_no_answer(
    server: GuideServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'operational.db'}")
    transport = Transport(server.url, *CLIENT, breakers=lambda name: circuit_breaker(engine, name))

    def breaks(_asked: object) -> Reply:
        broken(engine, "breaker")
        return ok({"id": "records-1"}, 201)

    server.plan("POST", RECORDS, breaks)
    assert transport.request("POST", RECORDS, json=BODY) == {"id": "records-1"}
    assert "outcome not counted (OperationalError)" in caplog.text
    before = len(server.asked)
    with pytest.raises(Unavailable, match="the operational database failed"):
        transport.request("GET", PATH)
    with pytest.raises(Unavailable, match="the operational database failed"), transport.open_media(f"{server.url}/m"):
        pass
    assert len(server.asked) == before
    transport.close()
    engine.dispose()


# --- by the settings


def test_background_work_leaves_part_of_the_budget_to_recordings_that_come_in(
    server: GuideServer, tmp_path: Path, recording: dict[str, object]
) -> None:
    settings = Settings(
        home=tmp_path,
        _env_file=None,
        platform_url=server.url,
        requests_per_minute=20,
        client_id=CLIENT[0],
        platform_client_secret=CLIENT[1],
    )
    engine = connect(settings.inbox_database_url)
    live, behind = transport_of(settings, engine), transport_of(settings, engine, background=True)
    for transport in (live, behind):
        transport._token = module._HeldToken("t", time.monotonic() + 600)
    server.tokens.append("t")
    budget = behind._api._transport._sync_transport._budget  # type: ignore[attr-defined]
    for _ in range(20):
        with suppress(PlatformHeld):
            budget.take(0)
    with pytest.raises(PlatformHeld, match="budget"):
        budget.take(0)
    assert live.request("GET", PATH) == recording
    live.close()
    behind.close()
    engine.dispose()


def test_the_optional_endpoints_of_genesys_cloud_have_breakers_of_their_own(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path, _env_file=None, platform_profile="cloud", platform_url="https://api.mypurecloud.de"
    )
    engine = connect(settings.inbox_database_url)
    with closing(transport_of(settings, engine)) as transport:
        names = {
            transport._breaker_name(f"/api/v2/{path}")
            for path in ("speechandtextanalytics/conversations/c", "recording/batchrequests", "conversations/c")
        }
    assert names == {
        "platform:api.mypurecloud.de/speechandtextanalytics",
        "platform:api.mypurecloud.de/batchrequests",
        "platform:api.mypurecloud.de",
    }
    engine.dispose()


@pytest.mark.parametrize("host", sorted(CLOUD_REGION_HOSTS))
def test_every_region_of_genesys_cloud_signs_in_beside_its_api(host: str) -> None:
    with closing(Transport(f"https://{host}", *CLIENT)) as transport:
        assert transport._login.host == f"login.{host.removeprefix('api.')}"


# --- uploads


def test_an_upload_is_put_without_the_token_and_again_when_it_is_lost(
    server: GuideServer, transport: Transport, media_host: Server, recording: dict[str, object]
) -> None:
    transport.request("GET", PATH)
    media_host.plan("PUT", "/flow", Reply(drop=True), no(503), Reply(200))
    transport.upload(f"{media_host.url}/flow?signature=canary", {"Content-Type": "application/yaml"}, b"flow: 1")
    assert [asked.body for asked in media_host.asked] == [b"flow: 1"] * 3
    assert "authorization" not in media_host.asked[-1].headers
    assert media_host.asked[-1].headers["content-type"] == "application/yaml"


@pytest.mark.parametrize(("status", "error"), [(403, Unavailable), (400, Refused), (302, Refused), (500, Unavailable)])
def test_a_failed_upload_says_so_without_its_url(
    transport: Transport, media_host: Server, status: int, error: type[PlatformError]
) -> None:
    media_host.plan("PUT", "/canary", *[no(status)] * 5)
    with pytest.raises(error, match=str(status)) as caught:
        transport.upload(f"{media_host.url}/canary?signature=canary", {}, b"canary")
    assert not [secret for secret in SENSITIVE if secret in told(caught.value)]


# --- media


def test_media_streams_whole_with_its_metadata_and_without_the_token(
    server: GuideServer, transport: Transport, media_host: Server, recording: dict[str, object]
) -> None:
    transport.request("GET", PATH)
    data = bytes(range(256)) * 1024
    headers = {"Content-Type": "audio/WAV; x=1", "Last-Modified": "Tue, 02 Jan 2024 03:04:05 GMT"}
    media_host.plan("GET", "/m.wav", Reply(200, data, headers))
    with transport.open_media(f"{media_host.url}/m.wav?signature=canary") as stream:
        chunks = list(stream)
    assert b"".join(chunks) == data
    assert max(map(len, chunks)) <= 64 * 1024
    assert stream.content_length == len(data)
    assert stream.content_type == "audio/wav"
    assert stream.last_modified == datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    (asked,) = media_host.asked
    assert "authorization" not in asked.headers
    assert asked.query == {"signature": "canary"}


def test_media_on_the_api_host_gets_no_token_either(server: GuideServer, transport: Transport) -> None:
    server.plan("GET", "/m.wav", Reply(200, b"data"))
    with transport.open_media(f"{server.url}/m.wav") as stream:
        assert b"".join(stream) == b"data"
    (asked,) = server.calls("GET", "/m.wav")
    assert "authorization" not in asked.headers


def test_media_metadata_that_makes_no_sense_is_none(transport: Transport, media_host: Server) -> None:
    media_host.plan("GET", "/m", Reply(200, b"x", {"Last-Modified": "yesterday", "Content-Type": ""}))
    with transport.open_media(f"{media_host.url}/m") as stream:
        assert (stream.last_modified, stream.content_type) == (None, None)


@pytest.mark.parametrize("cut", [0, 1, 100_000, 199_999])
def test_a_short_body_is_a_broken_transfer(transport: Transport, media_host: Server, cut: int) -> None:
    media_host.plan("GET", "/m", Reply(200, b"x" * 200_000, cut=cut))
    with transport.open_media(f"{media_host.url}/m") as stream, pytest.raises(TransferBroken, match="of 200000 bytes"):
        list(stream)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_an_expired_media_url_asks_for_a_new_one(transport: Transport, media_host: Server, status: int) -> None:
    media_host.plan("GET", "/m", no(status))
    with pytest.raises(Unavailable, match="ask for a new URL"), transport.open_media(f"{media_host.url}/m"):
        pass
    assert len(media_host.asked) == 1


def test_a_busy_media_host_is_tried_again(transport: Transport, media_host: Server) -> None:
    media_host.plan("GET", "/m", no(503), Reply(drop=True), Reply(200, b"data"))
    with transport.open_media(f"{media_host.url}/m") as stream:
        assert b"".join(stream) == b"data"


def test_media_above_the_limit_is_refused_announced_or_not(
    transport: Transport, media_host: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    media_host.plan("GET", "/m", Reply(200, b"", {"Content-Length": str(3 * 1024**3)}, cut=0))
    with pytest.raises(Refused, match="larger"), transport.open_media(f"{media_host.url}/m"):
        pass
    monkeypatch.setattr(module, "MEDIA_LIMIT_BYTES", 10)
    media_host.plan("GET", "/m", Reply(200, b"b\r\nhello world\r\n0\r\n\r\n", {"Transfer-Encoding": "chunked"}))
    with pytest.raises(Refused, match="larger"), transport.open_media(f"{media_host.url}/m") as stream:
        list(stream)


def test_a_dripping_media_host_is_given_up(
    transport: Transport, media_host: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.MEDIA_LIMIT_BYTES * 8 / 20e6 < module.MEDIA_DEADLINE_S, "the largest takes so long at 20 Mbit/s"
    monkeypatch.setattr(module, "MEDIA_DEADLINE_S", 0.0)
    media_host.plan("GET", "/m", Reply(200, b"x" * 100))
    with pytest.raises(TransferBroken, match="not done after"), transport.open_media(f"{media_host.url}/m") as stream:
        list(stream)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "//127.0.0.1/x", "", "http://", "http://[::"]
)
def test_only_http_media_urls_are_opened(transport: Transport, url: str) -> None:
    with pytest.raises(Refused, match="media URL"), transport.open_media(url):
        pass


# --- nothing sensitive in errors or logs

REPLIES = st.sampled_from([no(s) for s in (302, 400, 401, 403, 404, 409, 418, 429, 500, 503)] + [Reply(drop=True)])
STRANGE = st.builds(
    Reply, st.just(200), st.binary(max_size=40).map(lambda b: b'{"canary": 4111111111111111' + b), cut=st.integers(0, 9)
)

SHORT = st.builds(Reply, st.just(200), st.just(b"canary 4111111111111111"), cut=st.integers(0, 22))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reply=REPLIES | STRANGE, method=st.sampled_from(["GET", "PATCH", "POST"]))
def test_no_error_tells_bodies_queries_headers_or_tokens(
    server: GuideServer, transport: Transport, reply: Reply, method: str
) -> None:
    server.next_up.clear()
    server.plan(method, PATH, *[reply] * 20)
    with pytest.raises(PlatformError) as caught:
        transport.request(method, PATH, params={"q": "canary"}, json=BODY, headers={"Idempotency-Key": "canary"})
    assert not [secret for secret in SENSITIVE if secret in told(caught.value)]
    assert f"{method} {PATH}" in str(caught.value)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reply=REPLIES | SHORT)
def test_no_media_error_tells_the_url(transport: Transport, media_host: Server, reply: Reply) -> None:
    media_host.next_up.clear()
    media_host.plan("GET", "/canary-4111111111111111.wav", *[reply] * 20)
    url = f"{media_host.url}/canary-4111111111111111.wav?signature=canary"
    with pytest.raises(PlatformError) as caught, transport.open_media(url) as stream:
        list(stream)
    assert not [secret for secret in SENSITIVE if secret in told(caught.value)]


def test_a_context_id_that_is_no_uuid_is_not_repeated(server: GuideServer, transport: Transport) -> None:
    server.plan("GET", PATH, ok({"contextId": "4111111111111111"}, 400))
    with pytest.raises(Refused) as caught:
        transport.request("GET", PATH)
    assert "4111" not in told(caught.value)


def test_signed_urls_and_tokens_are_not_logged(
    server: GuideServer,
    transport: Transport,
    media_host: Server,
    recording: dict[str, object],
    tmp_path: Path,
) -> None:
    log = tmp_path / "everything.log"
    handler = logging.FileHandler(log)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        root.debug("the log works")
        media_host.plan("GET", "/m", no(503), Reply(200, b"data", {"Retry-After": "canary"}))
        transport.request("GET", PATH, params={"q": "canary"})
        with transport.open_media(f"{media_host.url}/m?signature=canary") as stream:
            list(stream)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    text = log.read_text()
    assert "the log works" in text
    assert not [secret for secret in SENSITIVE if secret in text]


def test_a_malformed_answer_names_its_fields_and_not_their_values() -> None:
    class Shape(BaseModel):
        id: str
        size: int

    with pytest.raises(Unavailable, match=r"GET /x: the answer is malformed at id, size") as caught:
        parse(Shape, {"size": "canary"}, "GET /x")
    assert "canary" not in told(caught.value)
    with pytest.raises(Unavailable, match="at the whole"):
        parse(Shape, None, "GET /x")
