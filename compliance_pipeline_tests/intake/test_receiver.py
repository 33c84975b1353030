import asyncio
import base64
import hashlib
import hmac
import json
import logging
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr
from starlette.applications import Starlette

from compliance_pipeline import tallies
from compliance_pipeline.contracts.event import EventType
from compliance_pipeline.intake.inbox import Inbox, State, Stored
from compliance_pipeline.intake.receiver import GroupCommit, create_app
from compliance_pipeline.intake.tokens import is_token
from compliance_pipeline.settings import Settings
from compliance_pipeline_tests.intake.samples import NOON, incoming

KEY = b"a webhook secret for the tests.."
SECRET = SecretStr("whsec_" + base64.b64encode(KEY).decode())
PATH = "/api/v1/ingest/recording"
GUIDE = {"Content-Type": "application/json", "X-Genesys-Event-Source": "recording-pipeline"}


def settings_in(folder: Path, **changes: Any) -> Settings:
    return Settings(_env_file=None, home=folder, webhook_secret=SECRET, token_key=SecretStr("key"), **changes)


def signed(body: bytes, message_id: str = "msg-1", at: float | None = None, key: bytes = KEY) -> dict[str, str]:
    """Headers by the Standard Webhooks specification, written apart from the library that the receiver uses."""
    stamp = str(int(time.time() if at is None else at))
    digest = hmac.digest(key, b".".join([message_id.encode(), stamp.encode(), body]), hashlib.sha256)
    signature = "v1," + base64.b64encode(digest).decode()
    return GUIDE | {"webhook-id": message_id, "webhook-timestamp": stamp, "webhook-signature": signature}


def body_of(recording_id: str = "rec-1", **fields: Any) -> bytes:
    return json.dumps({"recordingId": recording_id, "mediaUri": f"https://media.test/{recording_id}"} | fields).encode()


class Running:
    """A receiver that listens on a free port of the loopback, in a thread."""

    def __init__(self, app: Starlette, port: int = 0) -> None:
        config = uvicorn.Config(app, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=5)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def post(self, body: bytes, headers: dict[str, str] | None = None, **signing: Any) -> httpx.Response:
        return self.http.post(PATH, content=body, headers=signed(body, **signing) if headers is None else headers)

    def stop(self) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join()


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[Running] = []

    def make(settings: Settings, **arguments: Any) -> Running:
        running.append(Running(create_app(settings, **arguments)))
        return running[-1]

    yield make
    for receiver in running:
        receiver.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """For tests that store nothing, or recordings of their own."""
    receiver = Running(create_app(settings_in(tmp_path_factory.mktemp("shared"), max_body_bytes=4096)))
    yield receiver
    receiver.stop()


def stored(settings: Settings) -> Inbox:
    return Inbox(settings.inbox_database_url)


def test_a_signed_event_is_stored_before_it_is_answered(start: Start, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    receiver = start(settings, clock=lambda: NOON)
    answer = receiver.post(body_of(eventTime="2026-03-01T11:59:30Z", endTime="2026-03-01T11:58:00Z"), message_id="m-7")
    assert answer.status_code == 200
    assert answer.json() == {
        "recordingId": "rec-1",
        "status": "accepted",
        "correlationId": "m-7",
        "duplicate": False,
    }
    item = stored(settings).get("rec-1")
    assert item is not None
    assert (item.state, item.event, item.source, item.correlation_id) == (
        State.NEW,
        EventType.AVAILABLE,
        "guide",
        "m-7",
    )
    assert (item.available_at, item.received_at) == (NOON - timedelta(seconds=30), NOON)
    assert item.partition_hour == "2026-03-01-11:00"


def test_a_repeat_is_answered_200_with_the_first_correlation_id(start: Start, tmp_path: Path) -> None:
    receiver = start(settings_in(tmp_path))
    first = receiver.post(body_of(), message_id="m-1").json()
    repeat = receiver.post(body_of(), message_id="m-2")
    assert (repeat.status_code, repeat.json()) == (200, first | {"duplicate": True})
    assert sum(stored(settings_in(tmp_path)).counts().values()) == 1


def test_an_event_from_the_future_counts_from_now(start: Start, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    start(settings, clock=lambda: NOON).post(body_of(eventTime="2026-03-01T13:00:00Z"))
    item = stored(settings).get("rec-1")
    assert item is not None
    assert item.available_at == NOON


def test_the_lifecycle_goes_through_one_row(start: Start, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    receiver = start(settings)
    for event, state in zip(EventType, (State.DEFERRED, State.DEFERRED, State.NEW), strict=True):
        answer = receiver.post(body_of(event=event.value), message_id=event.name)
        assert answer.json()["duplicate"] is False
        item = stored(settings).get("rec-1")
        assert item is not None
        assert (item.state, item.event, item.correlation_id) == (state, event, event.name)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature", "X-Genesys-Event-Source"])
def test_a_missing_header_is_401(shared: Running, name: str) -> None:
    headers = signed(body_of())
    del headers[name]
    assert shared.post(body_of(), headers).status_code == 401


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook-signature", "v1,AAAA"),
        ("webhook-signature", "v1"),
        ("webhook-signature", "v1,=,="),
        ("webhook-signature", "v1,%%%"),
        ("webhook-signature", "v1,\xe9\xe9\xe9"),
        ("webhook-signature", "v2,AAAA"),
        ("webhook-id", "another"),
        ("webhook-timestamp", "yesterday"),
        ("webhook-timestamp", "nan"),
        ("webhook-timestamp", "1e400"),
        ("X-Genesys-Event-Source", "somebody-else"),
    ],
)
def test_a_wrong_or_malformed_header_is_401_and_never_500(shared: Running, name: str, value: str) -> None:
    headers = [(key.encode(), text.encode("latin-1")) for key, text in (signed(body_of()) | {name: value}).items()]
    answer = shared.http.post(PATH, content=body_of(), headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]


def test_a_signature_by_another_key_or_over_another_body_is_401(shared: Running) -> None:
    assert shared.post(body_of(), key=b"x" * 32).status_code == 401
    assert shared.post(body_of("rec-2"), signed(body_of("rec-1"))).status_code == 401


@pytest.mark.parametrize(("age", "word"), [(301, "old"), (-303, "new")])
def test_a_stale_signature_is_401_and_says_so(shared: Running, age: int, word: str) -> None:
    answer = shared.post(body_of(), at=time.time() - age)
    assert answer.status_code == 401
    assert f"too {word}" in answer.json()["error"]
    assert "5 minutes" in answer.json()["error"]


def test_a_signature_within_five_minutes_passes(shared: Running) -> None:
    assert shared.post(body_of("rec-late"), at=time.time() - 290).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b"\xff\xfe", b"[" * 4000])
def test_a_body_that_is_not_json_is_400(shared: Running, body: bytes) -> None:
    assert shared.post(body).status_code == 400


def test_a_webhook_id_that_could_forge_a_log_line_is_400(shared: Running) -> None:
    answer = shared.post(body_of(), message_id="x y")
    assert answer.status_code == 400
    assert "webhook-id" in answer.json()["error"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"recordingId": "4111 1111 1111 1111"}, ["recordingId"]),
        ({"recordingId": None}, ["recordingId"]),
        ({"mediaUri": None}, ["mediaUri"]),
        ({"mediaUri": "?sig=4111111111111111"}, ["mediaUri"]),
        ({"mediaUri": "http://[4111111111111111"}, ["mediaUri"]),
        ({"event": "4111111111111111"}, ["event"]),
        ({"startTime": "4111111111111111x", "channel": "4111111111111111"}, ["startTime", "channel"]),
        ({"startTime": "2026-03-01T12:00:00"}, ["startTime"]),
        ({"participants": [{"id": "ok"}, {"purpose": "4111111111111111"}]}, ["participants.1.purpose"]),
        ({"startTime": "2026-03-01T12:00:00Z", "endTime": "2026-03-01T11:00:00Z"}, ["endTime"]),
    ],
)
def test_a_broken_schema_is_422_naming_the_fields_without_their_values(
    shared: Running, fields: dict[str, Any], named: list[str]
) -> None:
    answer = shared.post(body_of(**fields))
    assert answer.status_code == 422
    for name in named:
        assert name in answer.json()["error"]
    assert len(answer.json()["fields"]) == len(named)
    assert "4111" not in answer.text


@pytest.mark.parametrize("body", [b"[]", b'"4111111111111111"', b"null"])
def test_json_that_is_not_an_object_is_422(shared: Running, body: bytes) -> None:
    answer = shared.post(body)
    assert answer.status_code == 422
    assert "4111" not in answer.text


def test_a_large_body_is_413_whether_announced_or_streamed(shared: Running) -> None:
    body = body_of("rec-large", padding="x" * 5000)
    assert shared.post(body).status_code == 413
    chunks = (body[start : start + 500] for start in range(0, len(body), 500))
    assert shared.http.post(PATH, content=chunks, headers=signed(body)).status_code == 413
    assert shared.post(body_of("rec-small", padding="x" * 3000)).status_code == 200


def test_a_slow_body_is_408_and_does_not_hold_the_connection(start: Start, tmp_path: Path) -> None:
    receiver = start(settings_in(tmp_path), body_seconds=0.3)
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=5) as connection:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
        connection.sendall((head + "X-Genesys-Event-Source: recording-pipeline\r\n\r\n{").encode())
        began = time.monotonic()
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 408")
        assert 0.2 < time.monotonic() - began < 3


def test_a_sender_that_hangs_up_in_the_middle_harms_nobody(shared: Running, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_connection(("127.0.0.1", shared.port), timeout=5) as connection:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
        connection.sendall((head + "X-Genesys-Event-Source: recording-pipeline\r\n\r\n{").encode())
        time.sleep(0.1)
    time.sleep(0.2)
    assert 'compliance_rejected_total{reason="disconnected"} 1.0' in shared.http.get("/metrics").text
    assert "Traceback" not in caplog.text


def test_other_methods_and_paths_are_refused(shared: Running) -> None:
    assert shared.http.get(PATH).status_code == 405
    assert shared.http.post("/").status_code == 404


def test_storage_that_is_down_is_503_until_it_is_back(start: Start, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder must be")
    receiver = start(settings_in(tmp_path, inbox_url=f"sqlite:///{blocked}/inbox.db"))
    assert receiver.http.get("/healthz").status_code == 200
    assert receiver.http.get("/readyz").status_code == 503
    assert receiver.http.get("/metrics").status_code == 200
    answer = receiver.post(body_of())
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    blocked.unlink()
    assert receiver.post(body_of()).json()["duplicate"] is False
    assert receiver.http.get("/readyz").status_code == 200


def test_a_database_that_breaks_while_running_is_503(start: Start, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    receiver = start(settings)
    receiver.post(body_of("rec-1"))
    with sqlite3.connect(tmp_path / "inbox.db") as other:
        other.execute("ALTER TABLE inbox RENAME TO hidden")
    assert receiver.post(body_of("rec-2")).status_code == 503
    assert receiver.http.get("/readyz").status_code == 503
    with sqlite3.connect(tmp_path / "inbox.db") as other:
        other.execute("ALTER TABLE hidden RENAME TO inbox")
    assert receiver.post(body_of("rec-2")).status_code == 200


def test_metrics_count_events_repeats_rejections_and_rows(start: Start, tmp_path: Path) -> None:
    receiver = start(settings_in(tmp_path))
    for _ in range(3):
        receiver.post(body_of())
    receiver.post(b"{")
    lines = receiver.http.get("/metrics").text.splitlines()
    event = 'event="recording:recordingAvailable"'
    for line in (
        f'compliance_events_total{{{event},outcome="accepted"}} 1.0',
        f'compliance_events_total{{{event},outcome="duplicate"}} 2.0',
        "compliance_duplicates_total 2.0",
        'compliance_rejected_total{reason="json"} 1.0',
        'compliance_inbox_rows{state="new"} 1.0',
        'compliance_inbox_rows{state="dead"} 0.0',
        "compliance_store_seconds_count 3.0",
    ):
        assert line in lines


def test_many_senders_at_once_share_commits_and_each_recording_is_new_once(start: Start, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    receiver = start(settings)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: receiver.post(body_of(f"rec-{number % 100}")), range(300)))
    assert {answer.status_code for answer in answers} == {200}
    assert sum(not answer.json()["duplicate"] for answer in answers) == 100
    assert stored(settings).counts()[State.NEW] == 100
    lines = receiver.http.get("/metrics").text.splitlines()
    [commits] = [float(line.split()[1]) for line in lines if line.startswith("compliance_store_seconds_count")]
    assert commits < 300


def test_a_stopped_receiver_answers_what_it_has_begun(start: Start, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    receiver = start(settings)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(receiver.post, body_of(f"rec-{number}")) for number in range(40)]
        time.sleep(0.05)
        receiver.server.should_exit = True
    acknowledged = {answer.result().json()["recordingId"] for answer in answers if answer.exception() is None}
    assert acknowledged <= {item.recording_id for state in [stored(settings)] for item in _all(state)}


def _all(inbox: Inbox) -> list[Any]:
    return [
        item
        for work in inbox.pending(datetime.now(UTC) + timedelta(days=1))
        for item in inbox.items(work.partition_hour)
    ]


def test_a_row_that_the_database_refuses_does_not_take_its_neighbours_with_it(tmp_path: Path) -> None:
    inbox = Inbox(f"sqlite:///{tmp_path / 'inbox.db'}")
    inbox.create()

    async def commit() -> list[Stored | BaseException]:
        commits = GroupCommit(slow_first)
        first = commits.put(incoming("rec-0"))
        await asyncio.sleep(0.1)
        events = [incoming("rec-1"), incoming("rec-2", correlation_id="\ud800"), incoming("rec-3")]
        results = await asyncio.gather(first, *map(commits.put, events), return_exceptions=True)
        await asyncio.to_thread(commits.close)
        return results

    batches: list[int] = []

    def slow_first(events: Any) -> list[Stored]:
        batches.append(len(events))
        if len(batches) == 1:
            time.sleep(0.3)  # so that the others gather in one batch
        return inbox.store(events, NOON)

    results = asyncio.run(commit())
    assert batches == [1, 3, 1, 1, 1]
    assert [isinstance(result, Stored) for result in results] == [True, True, False, True]
    assert inbox.counts()[State.NEW] == 3


CARD, PHONE, MAIL, SSN, NAME = "4111111111111111", "+15551234567", "Ann.Canary@example.com", "078-05-1120", "Canary Ann"


def canary_body(recording_id: str) -> bytes:
    return body_of(
        recording_id,
        mediaUri=f"https://user:{CARD}@media.test/{MAIL}/{PHONE}/{recording_id}.wav?signature={CARD}&phone={PHONE}#{SSN}",
        tags={"card": CARD},
        transcript=f"my card is {CARD}",
        participants=[
            {"id": PHONE, "purpose": "customer", "externalCallerId": PHONE, "name": NAME, "extension": "99887766"},
            {"id": MAIL, "purpose": "agent", "email": MAIL, "queue": f"{NAME} {SSN}"},
            {"id": f"tel:{PHONE}", "queue": "Billing"},
        ],
    )


def test_nothing_raw_of_an_event_reaches_the_disk_or_the_log(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = settings_in(tmp_path)
    receiver = start(settings)
    assert receiver.post(canary_body("rec-1")).status_code == 200
    assert receiver.post(canary_body("rec-1")).status_code == 200
    assert receiver.post(canary_body(CARD + "!")).status_code == 422
    assert receiver.post(canary_body("rec-2"), key=b"x" * 32).status_code == 401
    with sqlite3.connect(tmp_path / "inbox.db") as other:
        other.execute("ALTER TABLE inbox RENAME TO hidden")
    assert receiver.post(canary_body("rec-3")).status_code == 503
    with sqlite3.connect(tmp_path / "inbox.db") as other:
        other.execute("ALTER TABLE hidden RENAME TO inbox")
    item = stored(settings).get("rec-1")
    assert item is not None
    customer, agent, again = item.recording_event.participants
    assert customer.id == again.id
    assert all(is_token(value or "") for value in (customer.id, agent.id, agent.queue))
    assert (customer.purpose, again.queue) == ("customer", "Billing")
    uri = item.recording_event.media_uri
    assert uri is not None
    assert uri.startswith("https://media.test/tok_")
    assert uri.endswith("/rec-1.wav")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    texts = {path.name: path.read_bytes() for path in files} | {"log": caplog.text.encode()}
    assert b"rec-1" in texts["log"]
    assert any(b"rec-1" in texts[name] for name in texts if name.startswith("inbox.db"))
    for canary in (CARD, PHONE, PHONE[1:], MAIL, MAIL.lower(), SSN, NAME, "99887766"):
        assert [name for name, text in texts.items() if canary.encode() in text] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELD_NAMES = st.sampled_from(
    ["recordingId", "event", "mediaUri", "participants", "startTime", "endTime", "eventTime", "direction", "channel"]
)


@given(
    st.binary(max_size=200) | st.dictionaries(FIELD_NAMES, JSON, max_size=9).map(lambda raw: json.dumps(raw).encode())
)
@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_signed_body_is_answered_and_never_500(shared: Running, body: bytes) -> None:
    assert shared.post(body).status_code in (200, 400, 413, 422)


@given(st.dictionaries(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]), st.text(max_size=40)))
@hypothesis_settings(max_examples=100, deadline=None)
def test_any_unsigned_header_is_401_and_never_500(shared: Running, headers: dict[str, str]) -> None:
    sent = [(name.encode(), value.encode("latin-1", "ignore")) for name, value in (GUIDE | headers).items()]
    printable = [(name, value.translate(None, bytes(range(32)) + b"\x7f").strip()) for name, value in sent]
    answer = shared.http.post(PATH, content=body_of(), headers=printable)
    assert answer.status_code == 401


def test_what_was_taken_and_refused_is_tallied_where_the_checks_can_read_it(start: Start, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    receiver = start(settings)
    for body in (body_of("rec-1"), body_of("rec-1"), body_of("rec-2")):
        assert receiver.post(body).status_code == 200
    assert receiver.post(body_of("rec-3"), key=b"somebody else's secret, as long.").status_code == 401
    receiver.stop()
    inbox = Inbox(settings.inbox_database_url)
    since = datetime.now(UTC) - timedelta(hours=1)
    assert tallies.counted(inbox.engine, "", since) == {
        "received:accepted": 2,
        "received:duplicate": 1,
        "rejected:signature": 1,
    }
    inbox.close()
