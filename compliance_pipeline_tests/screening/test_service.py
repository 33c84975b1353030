"""The engine's HTTP service over a real socket: real calls from a real media host, and what goes wrong on the way."""

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook

from compliance_pipeline.contracts.engine import StreamLine
from compliance_pipeline.contracts.verdict import Verdict
from compliance_pipeline.platforms.port import Refused
from compliance_pipeline.screening.service import Outbound
from compliance_pipeline_tests.intake.test_receiver import signed
from compliance_pipeline_tests.platforms.loopback import Asked, Reply, no
from compliance_pipeline_tests.screening.engine_server import (
    CALLBACK_SECRET,
    KEY,
    PATH,
    URL_CANARY,
    Site,
    call,
    policy,
    site,
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Site]:
    """For tests with recordings of their own that count nothing."""
    with site() as running:
        yield running


@pytest.fixture
def alone() -> Iterator[Site]:
    with site() as running:
        yield running


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


class Gate:
    """A media host's answer that waits until the gate opens."""

    def __init__(self, reply: Reply | None = None) -> None:
        self.asked, self.open = threading.Event(), threading.Event()
        self.reply = reply or Reply(200, call().media, {"Content-Type": "audio/wav"})

    def __call__(self, _asked: Asked) -> Reply:
        self.asked.set()
        assert self.open.wait(20)
        return self.reply


def test_a_call_that_is_asked_for_gets_the_verdict_of_the_guide(shared: Site) -> None:
    answer = shared.post(shared.asking("rec-true"))
    assert answer.status_code == 200
    verdict = Verdict.model_validate_json(answer.content, strict=True)
    assert (verdict.recording_id, verdict.correlation_id) == ("rec-true", "msg-1")
    assert (verdict.verdict, verdict.violation_type) == (call().truth.verdict, call().truth.violation_type)
    assert verdict.timestamp_offset_ms == pytest.approx(call().truth.offset_ms, abs=500)


def test_a_repeat_is_answered_from_memory_and_another_request_is_not(alone: Site) -> None:
    first = alone.post(alone.asking())
    assert alone.post(alone.asking(), message_id="msg-other").content == first.content
    assert alone.fetches == 1
    assert alone.post(alone.asking(correlationId="msg-2")).json() == first.json() | {"correlationId": "msg-2"}
    assert alone.fetches == 2
    assert 'compliance_engine_answers_total{source="cache"} 1.0' in alone.figures()


def test_two_identical_requests_at_once_are_screened_once(alone: Site) -> None:
    gate = Gate()
    alone.media.plan("GET", "/call.wav", gate)
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(alone.post, alone.asking()) for _ in range(6)]
        until(lambda: 'compliance_engine_answers_total{source="running"} 5.0' in alone.figures())
        gate.open.set()
        bodies = {answer.result().content for answer in answers}
    assert len(bodies) == 1
    assert alone.fetches == 1


def test_what_comes_when_all_is_busy_is_429_and_passes_later() -> None:
    with site(max_running=1) as busy, ThreadPoolExecutor(1) as pool:
        gate = Gate()
        busy.media.plan("GET", "/call.wav", gate)
        first = pool.submit(busy.post, busy.asking())
        assert gate.asked.wait(10)
        refused = busy.post(busy.asking("rec-2"))
        assert (refused.status_code, refused.json()["reason"]) == (429, "full")
        assert int(refused.headers["Retry-After"]) > 0
        gate.open.set()
        assert first.result().status_code == 200
        assert busy.post(busy.asking("rec-2")).status_code == 200


def test_findings_come_as_lines_before_the_verdict_and_without_the_number(shared: Site) -> None:
    body = shared.asking("rec-lines")
    for _ in ("fresh", "from memory"):
        answer = shared.post(body, {"Accept": "application/x-ndjson"})
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = [StreamLine.model_validate_json(line, strict=True) for line in answer.text.splitlines()]
        *findings, last = lines
        assert last.verdict == Verdict.model_validate_json(shared.post(body).content)
        assert findings
        assert all(line.finding for line in findings)
        settled = [line.finding.start_ms for line in findings if line.finding and line.finding.settled]
        assert last.verdict
        assert last.verdict.timestamp_offset_ms in settled
        for planted in call().planted:
            assert planted not in answer.text


def test_a_stream_whose_media_is_gone_ends_with_the_fault(shared: Site) -> None:
    shared.media.plan("GET", "/gone.wav", no(404))
    body = shared.asking("rec-gone", mediaUrl=shared.media_url("gone.wav"))
    [line] = shared.post(body, {"Accept": "application/x-ndjson"}).text.splitlines()
    fault = StreamLine.model_validate_json(line, strict=True).fault
    assert fault
    assert fault.reason == "media_unavailable"


def test_an_asynchronous_verdict_is_called_back_signed_under_one_id_until_it_is_taken(alone: Site) -> None:
    alone.back.plan("POST", "/back", no(503), Reply(drop=True), no(429, Retry_After="0"))
    body = alone.asking(callbackUrl=alone.callback_url)
    answer = alone.post(body, {"Prefer": "respond-async"})
    assert answer.status_code == 202
    assert answer.json() == {"status": "accepted", "recordingId": "rec-1", "correlationId": "msg-1"}
    until(lambda: 'compliance_engine_callbacks_total{outcome="delivered"} 1.0' in alone.figures())
    calls = alone.back.calls("POST", "/back")
    assert len(calls) == 4
    assert len({(asked.headers["webhook-id"], asked.body) for asked in calls}) == 1
    for asked in calls:
        Webhook(CALLBACK_SECRET).verify(asked.body, asked.headers)
    assert asked.body == alone.post(body).content


def test_an_engine_that_was_started_anew_calls_back_under_the_same_id() -> None:
    messages = set()
    for _ in range(2):
        with site() as engine:
            body = engine.asking(callbackUrl=engine.callback_url)
            engine.post(body, {"Prefer": "respond-async"})
            until(lambda: engine.back.calls("POST", "/back"))
            messages |= {(asked.headers["webhook-id"], asked.body) for asked in engine.back.asked}
    assert len(messages) == 1


def test_what_takes_too_long_is_answered_202_if_somebody_can_be_called_back() -> None:
    with site(answer_within_s=0.1) as slow:
        gate = Gate()
        slow.media.plan("GET", "/call.wav", gate)
        assert slow.post(slow.asking(callbackUrl=slow.callback_url)).status_code == 202
        assert slow.post(slow.asking(callbackUrl=slow.callback_url)).status_code == 202
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(slow.post, slow.asking())
            time.sleep(0.3)
            assert not waiting.done()
            gate.open.set()
            verdict = waiting.result().content
        until(lambda: slow.back.calls("POST", "/back"))
        time.sleep(0.1)
        assert [asked.body for asked in slow.back.calls("POST", "/back")] == [verdict]


def test_a_callback_that_is_refused_is_not_sent_again(alone: Site) -> None:
    alone.back.plan("POST", "/back", no(404))
    alone.post(alone.asking(callbackUrl=alone.callback_url), {"Prefer": "respond-async"})
    until(lambda: 'compliance_engine_callbacks_total{outcome="refused"} 1.0' in alone.figures())
    time.sleep(0.1)
    assert len(alone.back.calls("POST", "/back")) == 1


def test_a_screening_that_fails_calls_nobody_back_and_is_tried_anew(alone: Site) -> None:
    gate = Gate(no(403))
    alone.media.plan("GET", "/call.wav", gate)
    body = alone.asking(callbackUrl=alone.callback_url)
    assert alone.post(body, {"Prefer": "respond-async"}).status_code == 202
    gate.open.set()
    until(lambda: 'compliance_engine_callbacks_total{outcome="failed"} 1.0' in alone.figures())
    assert alone.post(body).status_code == 200
    assert alone.back.calls("POST", "/back") == []


@pytest.mark.parametrize(
    ("replies", "status", "reason"),
    [
        ([no(404)], 424, "media_unavailable"),
        ([no(503)] * 3, 424, "media_unavailable"),
        ([Reply(drop=True)] * 3, 424, "media_unavailable"),
        ([no(302, Location="http://127.0.0.1:1/elsewhere")], 422, "media_refused"),
        ([no(400)], 422, "media_refused"),
    ],
)
def test_media_that_can_not_be_fetched_is_named_and_nothing_is_remembered(
    shared: Site, replies: list[Reply], status: int, reason: str
) -> None:
    name = f"/{reason}-{len(replies)}-{replies[0].status}-{replies[0].drop}.wav"
    shared.media.plan("GET", name, *replies)
    body = shared.asking(f"rec{name.replace('/', '-')}", mediaUrl=shared.media_url(name[1:]))
    answer = shared.post(body)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert len(shared.media.calls("GET", name)) == len(replies)
    assert URL_CANARY not in answer.text
    assert name not in answer.text
    assert shared.post(body).status_code == 200


def test_a_transfer_that_breaks_off_is_tried_again_and_never_remembered_as_clean(shared: Site) -> None:
    half = Reply(200, call().media, {"Content-Type": "audio/wav"}, cut=400)
    shared.media.plan("GET", "/half.wav", half, half, half)
    body = shared.asking("rec-half", mediaUrl=shared.media_url("half.wav"))
    assert shared.post(body).json()["verdict"] == "UNSCREENABLE"
    assert len(shared.media.calls("GET", "/half.wav")) == 3
    assert shared.post(body).json()["verdict"] == call().truth.verdict


def test_a_caller_that_is_killed_costs_nothing_but_its_answer(alone: Site) -> None:
    gate = Gate()
    alone.media.plan("GET", "/call.wav", gate)
    body = alone.asking()
    headers = "".join(f"{name}: {value}\r\n" for name, value in signed(body, key=KEY).items())
    with socket.create_connection(("127.0.0.1", alone.engine.port), timeout=5) as caller:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nAccept: application/x-ndjson\r\n"
        caller.sendall(f"{head}{headers}\r\n".encode() + body)
        assert gate.asked.wait(10)
    gate.open.set()
    assert alone.post(body).json()["verdict"] == call().truth.verdict
    assert alone.fetches == 1


@pytest.mark.parametrize(
    ("signing", "reason"),
    [
        ({"key": b"x" * 32}, "signature"),
        ({"at": time.time() - 3600}, "stale"),
        ({"at": time.time() + 3600}, "stale"),
        ({"headers": {"webhook-signature": "v1"}}, "signature"),
        ({"headers": {"webhook-id": ""}}, "signature"),
    ],
)
def test_a_request_that_is_not_signed_well_and_now_is_401(shared: Site, signing: dict[str, Any], reason: str) -> None:
    answer = shared.post(shared.asking("rec-unsigned"), **signing)
    assert (answer.status_code, answer.json()["reason"]) == (401, reason)


def test_a_body_changed_after_signing_is_401(shared: Site) -> None:
    headers = signed(shared.asking("rec-a"), key=KEY)
    assert shared.engine.http.post(PATH, content=shared.asking("rec-b"), headers=headers).status_code == 401


CARD = "4111111111111111"


@pytest.mark.parametrize(
    "change",
    [
        {"schemaVersion": "2"},
        {"schemaVersion": 1},
        {"recordingId": None},
        {"channel": "fax"},
        {CARD: CARD},
        {"metadata": {"participants": [CARD]}},
        {"metadata": {"participants": ["ann@example.com"]}},
        {"metadata": {"queue": f"for {CARD}"}},
        {"metadata": {"transcript": CARD}},
        {"mediaUrl": f"ftp://media.test/{CARD}"},
        {"mediaUrl": f"file:///{CARD}"},
        {"mediaUrl": f"http://user:{CARD}@media.test/"},
        {"mediaUrl": "http://[/"},
        {"callbackUrl": "nowhere"},
    ],
)
def test_a_request_outside_the_schema_is_422_and_nothing_of_it_comes_back(shared: Site, change: dict[str, Any]) -> None:
    answer = shared.post(shared.asking(**change))
    assert (answer.status_code, answer.json()["reason"]) == (422, "schema")
    assert CARD not in answer.text
    assert "ann@" not in answer.text


@pytest.mark.parametrize("url", ["http://xn--/", "http://a\n/", f"http://{CARD}/", f"http://{CARD} /x"])
@pytest.mark.parametrize("name", ["mediaUrl", "callbackUrl"])
def test_an_address_that_is_none_or_not_allowed_is_422_and_not_repeated(shared: Site, name: str, url: str) -> None:
    answer = shared.post(shared.asking(**{name: url}))
    assert answer.status_code == 422
    assert CARD not in answer.text


def test_another_policy_than_the_engines_is_409(shared: Site) -> None:
    answer = shared.post(shared.asking(policyVersion="other@1.0.0"))
    assert (answer.status_code, answer.json()["reason"]) == (409, "policy")
    assert policy().policy_version in answer.json()["error"]


LOCAL = [
    "127.0.0.1",
    "localhost",
    "10.0.0.8",
    "192.168.1.1",
    "172.16.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "[::1]",
    "[fd00::1]",
    "[fe80::1]",
    "[::ffff:127.0.0.1]",
    "[2002:7f00:1::]",
    "[64:ff9b::7f00:1]",
]


@pytest.mark.parametrize("field", ["mediaUrl", "callbackUrl"])
@pytest.mark.parametrize("host", [*LOCAL, "2130706433", "127.1", "0x7f000001"])
def test_an_engine_for_the_world_asks_nobody_at_home(host: str, field: str, world: Site) -> None:
    """The last three are 127.0.0.1 too, which only the resolver says."""
    changes = {"mediaUrl": f"http://93.184.216.34/{host}"} | {field: f"http://{host}:{world.media.url[-5:]}/call.wav"}
    if field == "callbackUrl" and host not in LOCAL:
        with pytest.raises(Refused, match="not public"):
            Outbound().post(changes[field], {}, b"")
        return
    answer = world.post(world.asking(f"rec-{len(host)}-{host[:3].strip('[:')}", **changes))
    assert answer.status_code == 422
    assert answer.json()["reason"] in ("address", "media_refused")
    assert world.media.asked == []


@pytest.fixture(scope="module")
def world() -> Iterator[Site]:
    with site(hosts=()) as running:
        yield running


def test_an_engine_with_a_list_of_hosts_asks_no_other(shared: Site) -> None:
    answer = shared.post(shared.asking("rec-far", mediaUrl="http://media.example.com/call.wav"))
    assert (answer.status_code, answer.json()["reason"]) == (422, "address")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["schemaVersion", "correlationId", "channel", "mediaUrl", "contentType", "metadata", "callbackUrl", "policyVersion"]
)


@given(st.binary(max_size=200) | st.dictionaries(NAMES, JSON, min_size=1, max_size=8))
@hypothesis_settings(max_examples=80, deadline=None)
def test_any_signed_body_is_answered_and_never_500(world: Site, body: bytes | dict[str, Any]) -> None:
    sent = body if isinstance(body, bytes) else world.asking(**body)
    assert world.post(sent).status_code in (400, 409, 413, 422)


def test_a_large_request_is_413(shared: Site) -> None:
    assert shared.post(shared.asking(padding="x" * 70_000)).status_code == 413


def test_health_and_figures_need_no_signature(shared: Site) -> None:
    assert shared.engine.http.get("/healthz").status_code == 200
    ready = shared.engine.http.get("/readyz").json()
    assert ready["policy"] == policy().policy_version
    assert "compliance_engine_running 0.0" in shared.figures()


def test_neither_media_nor_address_nor_number_reaches_the_log(alone: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    alone.back.plan("POST", "/back", no(503))
    alone.post(alone.asking(callbackUrl=alone.callback_url), {"Prefer": "respond-async"})
    until(lambda: alone.back.calls("POST", "/back")[1:])
    alone.media.plan("GET", "/call.wav", no(403), Reply(200, call().media, cut=300))
    alone.post(alone.asking("rec-2"))
    alone.post(alone.asking("rec-2"))
    alone.post(alone.asking(**{CARD: CARD}))
    alone.post(alone.asking(mediaUrl=f"http://media.test/{URL_CANARY}"))
    answers = alone.post(alone.asking()).text
    assert "rec-1" in caplog.text
    assert '"reason": "schema"' in caplog.text
    for canary in (*call().planted, CARD, URL_CANARY, SECRET_PART, "/back", "call.wav"):
        assert canary not in caplog.text
        assert canary not in answers
    assert json.loads(answers)["recordingId"] == "rec-1"


SECRET_PART = KEY.decode()[:20]
