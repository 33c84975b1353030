import logging
import socket
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from compliance_pipeline.platforms import transport as module
from compliance_pipeline.platforms.port import PlatformError, Refused, TransferBroken, Unavailable
from compliance_pipeline.platforms.transport import NotFound, Transport, parse
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
