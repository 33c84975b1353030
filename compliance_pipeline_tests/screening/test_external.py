"""The client of engines: our own service over a real socket, and hosts that answer slowly, wrongly or not at all."""

import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from compliance_pipeline.contracts.engine import UNMAPPED_RULE, Accepted, ScreeningRequest, seal
from compliance_pipeline.contracts.event import Channel, Direction, Participant, RecordingEvent
from compliance_pipeline.contracts.verdict import Verdict, VerdictValue
from compliance_pipeline.intake.callbacks import callback_url, verdict_for
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.intake.receiver import create_app
from compliance_pipeline.platforms.port import Media
from compliance_pipeline.screening.engine import EngineAnswerRefused, EngineError, EngineRefused, EngineUnavailable
from compliance_pipeline.screening.external import HttpEngine, external_hit
from compliance_pipeline_tests.intake.test_receiver import Running, body_of, settings_in
from compliance_pipeline_tests.platforms.loopback import Asked, Reply, Server, no, ok
from compliance_pipeline_tests.screening.engine_server import (
    CALLBACK_SECRET,
    PATH,
    SECRET,
    URL_CANARY,
    Site,
    call,
    policy,
    site,
)
from compliance_pipeline_tests.screening.test_service import Gate, until

POLICY = policy().policy_version
PHONE_TOKEN = "tok_phone_" + "a" * 26
CARD = "4111111111111111"


def event(recording_id: str = "rec-1", **changes: Any) -> RecordingEvent:
    given: dict[str, Any] = {
        "recording_id": recording_id,
        "media_uri": "https://media.test/rec-1",
        "participants": (
            Participant(id=PHONE_TOKEN, purpose="customer"),
            Participant(purpose="agent", queue="Billing"),
        ),
        "start_time": datetime(2026, 3, 1, 11, 50, tzinfo=UTC),
        "end_time": datetime(2026, 3, 1, 11, 55, tzinfo=UTC),
        "direction": Direction.INBOUND,
        "channel": Channel.VOICE,
    }
    return RecordingEvent(**given | changes)


MEDIA = Media(f"https://media.test/call.wav?token={URL_CANARY}", "audio/wav")
VERDICT = {
    "recordingId": "rec-1",
    "verdict": "VIOLATION_DETECTED",
    "violationType": "PCI_MID_CAPTURE",
    "confidenceScore": 0.94,
    "timestampOffsetMs": 124500,
    "evidenceSnippet": "masked_audio_segment_uri",
    "recommendedAction": "ROUTE_TO_COMPLIANCE_QUEUE",
    "correlationId": "msg-1",
}
ACCEPTED = {"status": "accepted", "recordingId": "rec-1", "correlationId": "msg-1"}


@pytest.fixture(scope="module")
def ours() -> Iterator[Site]:
    with site() as running:
        yield running


@pytest.fixture
def other() -> Iterator[Server]:
    """An engine that somebody else wrote, with bugs."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def engine(other: Server) -> Iterator[HttpEngine]:
    engine = HttpEngine(other.url, SECRET, answer_s=0.5, backoff_s=0.001)
    yield engine
    engine.close()


def ask(engine: HttpEngine, callback: str | None = None) -> Verdict | Accepted:
    return engine.request(event(), "msg-1", MEDIA, POLICY, callback)


def test_our_own_engine_gives_its_verdict_over_the_wire(ours: Site) -> None:
    engine = HttpEngine(ours.url, SECRET)
    verdict = engine.request(event("rec-ours"), "msg-1", Media(ours.media_url()), POLICY)
    assert isinstance(verdict, Verdict)
    assert (verdict.verdict, verdict.violation_type) == (call().truth.verdict, call().truth.violation_type)
    engine.close()


def test_what_is_sent_is_signed_and_tokenised_and_nothing_more(other: Server, engine: HttpEngine) -> None:
    other.plan("POST", PATH, ok(VERDICT))
    ask(engine, "https://here.test/back")
    [asked] = other.asked
    Webhook(SECRET).verify(asked.body, asked.headers)
    assert ScreeningRequest.model_validate_json(asked.body, strict=True)
    assert asked.json == {
        "schemaVersion": "1",
        "correlationId": "msg-1",
        "recordingId": "rec-1",
        "channel": "voice",
        "mediaUrl": MEDIA.url,
        "contentType": "audio/wav",
        "metadata": {
            "direction": "inbound",
            "queue": "Billing",
            "participants": [PHONE_TOKEN],
            "startTime": "2026-03-01T11:50:00Z",
            "endTime": "2026-03-01T11:55:00Z",
        },
        "callbackUrl": "https://here.test/back",
        "speakers": [],
        "policyVersion": POLICY,
    }


@pytest.mark.parametrize("raw", [{"id": "+15551234567"}, {"id": "ann@example.com"}, {"queue": f"for {CARD}"}])
def test_what_is_not_tokenised_is_not_sent(other: Server, engine: HttpEngine, raw: dict[str, str]) -> None:
    with pytest.raises(EngineRefused, match=r"recording rec-1: not sent to the engine, wrong at (participants|queue)"):
        engine.request(event(participants=(Participant(**raw),)), "msg-1", MEDIA, POLICY)
    assert other.asked == []


def test_the_guides_verdict_comes_in_as_it_is_printed(other: Server, engine: HttpEngine) -> None:
    other.plan("POST", PATH, ok(VERDICT))
    assert ask(engine) == Verdict.model_validate(VERDICT)


def test_the_signature_of_an_evidence_url_is_not_kept(other: Server, engine: HttpEngine) -> None:
    other.plan("POST", PATH, ok(VERDICT | {"evidenceSnippet": "https://e.test/clip?signature=x"}))
    verdict = ask(engine)
    assert isinstance(verdict, Verdict)
    assert verdict.evidence_snippet == "https://e.test/clip"


def test_a_promise_is_taken_where_there_is_an_address_for_the_verdict(other: Server, engine: HttpEngine) -> None:
    other.plan("POST", PATH, ok(ACCEPTED, 202), ok(ACCEPTED, 202))
    assert ask(engine, "https://here.test/back") == Accepted(recording_id="rec-1", correlation_id="msg-1")
    with pytest.raises(EngineAnswerRefused, match="202"):
        ask(engine)


HALF = Reply(200, json.dumps(VERDICT).encode(), {"Content-Type": "application/json"}, cut=40)


@pytest.mark.parametrize("fault", [no(500), no(503), Reply(drop=True), HALF], ids=["500", "503", "dropped", "half"])
def test_a_passing_fault_is_tried_again_with_the_same_request(other: Server, engine: HttpEngine, fault: Reply) -> None:
    other.plan("POST", PATH, fault, fault, ok(VERDICT))
    assert ask(engine) == Verdict.model_validate(VERDICT)
    assert len({(asked.body, asked.headers["webhook-id"]) for asked in other.asked}) == 1
    assert len(other.asked) == 3


@pytest.mark.parametrize("fault", [no(502), Reply(drop=True), HALF], ids=["502", "dropped", "half"])
def test_a_fault_that_stays_is_unavailable(other: Server, engine: HttpEngine, fault: Reply) -> None:
    other.plan("POST", PATH, *[fault] * 9)
    with pytest.raises(EngineUnavailable, match="rec-1"):
        ask(engine)
    assert len(other.asked) == 3


def test_an_engine_that_is_not_there_or_too_slow_is_unavailable(other: Server, engine: HttpEngine) -> None:
    def slow(_asked: Asked) -> Reply:
        time.sleep(1)
        return ok(VERDICT)

    other.plan("POST", PATH, slow, slow, slow)
    with pytest.raises(EngineUnavailable, match="ReadTimeout"):
        ask(engine)
    other.stop()
    with pytest.raises(EngineUnavailable, match=r"Connect|Read"):
        ask(engine)


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7), ("Wed, 01 Jan 2020 00:00:00 GMT", 0), ("soon", None), ("-1", None)]
)
def test_a_full_engine_says_when_to_ask_again_and_is_not_pressed(
    other: Server, engine: HttpEngine, header: str, seconds: float | None
) -> None:
    other.plan("POST", PATH, no(429, Retry_After=header))
    with pytest.raises(EngineUnavailable) as raised:
        ask(engine)
    assert raised.value.retry_after == seconds
    assert len(other.asked) == 1


def test_media_that_the_engine_can_not_fetch_is_to_be_asked_again_with_a_fresh_url(ours: Site) -> None:
    engine = HttpEngine(ours.url, SECRET)
    ours.media.plan("GET", "/expired.wav", no(403))
    with pytest.raises(EngineUnavailable) as raised:
        engine.request(event("rec-2"), "msg-1", Media(ours.media_url("expired.wav")), POLICY)
    assert raised.value.retry_after == 5
    fresh = engine.request(event("rec-2"), "msg-1", Media(ours.media_url()), POLICY)
    assert isinstance(fresh, Verdict)
    engine.close()


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "COMPLIANCE_ENGINE_SECRET"), (404, "URL"), (409, "pack"), (302, "")]
)
def test_a_no_for_good_says_what_to_do(other: Server, engine: HttpEngine, status: int, hint: str) -> None:
    other.plan("POST", PATH, no(status, Location="http://127.0.0.1:1/"))
    with pytest.raises(EngineRefused, match=f"rec-1: the engine answered {status}.*{hint}"):
        ask(engine)
    assert len(other.asked) == 1


def test_another_secret_or_policy_than_our_engines_is_refused(ours: Site) -> None:
    for secret, version in ((CALLBACK_SECRET, POLICY), (SECRET, "other@1.0.0")):
        engine = HttpEngine(ours.url, secret)
        with pytest.raises(EngineRefused):
            engine.request(event(), "msg-1", Media(ours.media_url()), version)
        engine.close()


@pytest.mark.parametrize(
    "answer",
    [
        ok(VERDICT | {"verdict": "CLEAN"}),
        ok(VERDICT | {"recordingId": None}),
        ok({key: value for key, value in VERDICT.items() if key != "recordingId"}),
        ok(VERDICT | {"confidenceScore": "0.94"}),
        ok(VERDICT | {"transcript": CARD}),
        ok(VERDICT | {CARD: CARD}),
        ok(VERDICT | {"recordingId": "rec-2"}),
        ok(VERDICT | {"correlationId": "msg-2"}),
        ok([VERDICT]),
        Reply(200, b"<html>" + CARD.encode()),
        Reply(200, b""),
        Reply(204),
        ok(VERDICT, 201),
        ok(ACCEPTED | {"recordingId": "rec-2"}, 202),
        ok(VERDICT, 202),
        Reply(200, b'"' + b"x" * 2_000_000 + b'"'),
    ],
)
def test_an_answer_outside_the_contract_is_refused_by_name_and_not_quoted(
    other: Server, engine: HttpEngine, answer: Reply
) -> None:
    other.plan("POST", PATH, answer)
    with pytest.raises(EngineAnswerRefused, match="rec-1") as raised:
        ask(engine, "https://here.test/back")
    assert CARD not in str(raised.value)
    assert len(other.asked) == 1


def test_only_an_http_address_can_be_an_engines() -> None:
    for url in ("", "engine.test", "ftp://engine.test", "http://[", f"file:///{CARD}"):
        with pytest.raises(ValueError, match="COMPLIANCE_ENGINE_URL") as raised:
            HttpEngine(url, SECRET)
        assert CARD not in str(raised.value)


def test_neither_address_nor_body_nor_secret_reaches_the_log_or_an_error(
    ours: Site, other: Server, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (None, "httpx", "httpcore", "httpx_retries"):
        caplog.set_level(logging.DEBUG, name)
    engine = HttpEngine(other.url, SECRET, answer_s=0.5, backoff_s=0.001)
    other.plan("POST", PATH, no(503), no(503), ok(VERDICT), no(422), ok(VERDICT | {"transcript": CARD}), *[HALF] * 3)
    said = [repr(ask(engine))]
    for _ in range(3):
        with pytest.raises(EngineError) as raised:
            ask(engine)
        said.append(repr(raised.value) + repr(raised.value.__cause__))
    engine.close()
    ours_too = HttpEngine(ours.url, SECRET)
    ours_too.request(event("rec-log"), "msg-1", Media(ours.media_url()), POLICY)
    ours_too.close()
    assert "rec-log" in caplog.text
    assert not [record for record in caplog.records if record.name.startswith(("httpx", "httpcore"))]
    for canary in (URL_CANARY, CARD, SECRET, PHONE_TOKEN, *call().planted):
        assert canary not in caplog.text
        assert canary not in "".join(said)


def test_a_verdict_that_takes_long_comes_back_through_the_receiver(tmp_path: Path) -> None:
    """The whole way: asked, promised, screened, called back, stored; and a second asking is answered at once."""
    settings = settings_in(tmp_path, engine_url="http://127.0.0.1:1", callback_secret=CALLBACK_SECRET)
    receiver = Running(create_app(settings))
    inbox = Inbox(settings.inbox_database_url)
    with site(answer_within_s=0.05) as slow:
        engine = HttpEngine(slow.url, SECRET)
        gate = Gate()
        slow.media.plan("GET", "/call.wav", gate)
        assert receiver.post(body_of("rec-1")).status_code == 200
        back = callback_url(f"http://127.0.0.1:{receiver.port}", POLICY)
        asked = (event("rec-1"), "msg-1", Media(slow.media_url()), POLICY, back)
        assert isinstance(engine.request(*asked), Accepted)
        assert verdict_for(inbox.engine, "rec-1", "msg-1", POLICY) is None
        gate.open.set()
        until(lambda: verdict_for(inbox.engine, "rec-1", "msg-1", POLICY))
        kept = verdict_for(inbox.engine, "rec-1", "msg-1", POLICY)
        assert kept
        assert kept.verdict == engine.request(*asked)
        assert kept.verdict.verdict == call().truth.verdict
        assert slow.fetches == 1
        engine.close()
    receiver.stop()
    inbox.close()


def test_sealed_media_are_screened_without_any_address() -> None:
    pytest.importorskip("cryptography")
    key = b"k" * 32
    with site(keys={"kek-1": key}) as keyed:
        engine = HttpEngine(keyed.url, SECRET)
        verdict = engine.request(event(), "msg-1", seal(call().media, "kek-1", key, "rec-1", "msg-1"), POLICY)
        assert isinstance(verdict, Verdict)
        assert verdict.violation_type == call().truth.violation_type
        for sealed in (seal(call().media, "kek-1", b"x" * 32, "r", "c"), seal(b"", "kek-2", key, "r", "c")):
            with pytest.raises(EngineRefused, match="422"):
                engine.request(event("rec-2"), "msg-1", sealed, POLICY)
        assert keyed.media.asked == []
        engine.close()


def found(violation_type: str, value: VerdictValue = VerdictValue.VIOLATION_DETECTED) -> Verdict:
    return Verdict.model_validate(VERDICT | {"violationType": violation_type, "verdict": value})


def test_an_engines_violation_is_the_gravest_rule_of_its_type() -> None:
    for rule in policy().rules:
        hit = external_hit(found(rule.violation_type), policy())
        assert hit
        same = {one.id: one for one in policy().rules if one.violation_type == rule.violation_type}
        mine = same[hit.rule_id]
        assert hit.severity.rank == mine.severity.rank == max(one.severity.rank for one in same.values())
        assert (hit.verdict, hit.start_ms) == (mine.verdict, 124500)


def test_a_type_that_no_rule_has_is_for_a_person_to_review() -> None:
    hit = external_hit(found("SOMETHING_ELSE"), policy())
    assert hit
    assert (hit.rule_id, hit.verdict) == (UNMAPPED_RULE, VerdictValue.REVIEW_REQUIRED)


def test_what_an_engine_would_have_reviewed_is_no_violation_here() -> None:
    hit = external_hit(found("PCI_MID_CAPTURE", VerdictValue.REVIEW_REQUIRED), policy())
    assert hit
    assert hit.verdict is VerdictValue.REVIEW_REQUIRED


def test_a_verdict_without_violation_hits_nothing() -> None:
    clean = {"recordingId": "rec-1", "verdict": "NO_VIOLATION", "recommendedAction": "NONE", "correlationId": "msg-1"}
    assert external_hit(Verdict.model_validate(clean), policy()) is None
