"""The engine's wire: versioned, strict, tokens only; and an address that may be signed is never shown."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from compliance_pipeline.contracts.engine import (
    Accepted,
    PartialFinding,
    ScreeningRequest,
    SealBroken,
    StreamLine,
    TokenisedMetadata,
    seal,
    stored_form,
    unseal,
)
from compliance_pipeline.contracts.event import Channel, Direction
from compliance_pipeline.contracts.policy import Detector, FindingKind
from compliance_pipeline.contracts.verdict import RecommendedAction, Verdict, VerdictValue

TOKEN = "tok_email_" + "b" * 26
REQUEST: dict[str, Any] = {
    "schemaVersion": "1",
    "correlationId": "msg-1",
    "recordingId": "rec-1",
    "channel": "voice",
    "mediaUrl": "https://media.test/rec-1?signature=canary",
    "contentType": "audio/wav",
    "metadata": {"direction": "inbound", "queue": "Billing", "participants": [TOKEN]},
    "callbackUrl": "https://here.test/back?secret=canary",
    "policyVersion": "pack@1.0.0+abcd",
}


def parsed(**changes: Any) -> ScreeningRequest:
    return ScreeningRequest.model_validate_json(json.dumps(REQUEST | changes), strict=True)


def test_an_address_is_never_shown() -> None:
    assert "canary" not in repr(parsed())
    assert "canary" not in str(parsed())


@pytest.mark.parametrize("missing", ["correlationId", "recordingId", "channel", "policyVersion"])
def test_nothing_that_identifies_the_screening_may_be_missing(missing: str) -> None:
    raw = {key: value for key, value in REQUEST.items() if key != missing}
    with pytest.raises(ValidationError, match=missing):
        ScreeningRequest.model_validate_json(json.dumps(raw), strict=True)


@pytest.mark.parametrize(
    "change",
    [
        {"schemaVersion": "2"},
        {"schemaVersion": 1},
        {"unknown": 1},
        {"metadata": {"ani": "+15551234567"}},
        {"metadata": {"participants": ["+15551234567"]}},
        {"metadata": {"participants": [TOKEN + "b"]}},
        {"metadata": {"queue": "ann@example.com"}},
        {"metadata": {"queue": "4111 1111 1111 1111"}},
        {"metadata": {"startTime": "2026-03-01T12:00:00"}},
        {"contentType": "audio"},
        {"mediaUrl": "s3://bucket/rec-1"},
        {"mediaUrl": "https://"},
        {"mediaUrl": "https://user:secret@media.test/"},
        {"mediaUrl": "https://media.test:99999/"},
        {"callbackUrl": "javascript:alert(1)"},
    ],
)
def test_a_request_outside_the_schema_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parsed(**change)


@given(
    st.sampled_from(Channel),
    st.none() | st.sampled_from(Direction),
    st.lists(st.just(TOKEN), max_size=3),
    st.none() | st.datetimes(min_value=datetime(1970, 1, 2), timezones=st.just(UTC)),  # noqa: DTZ001
    st.none() | st.just("https://here.test/back"),
)
def test_any_request_comes_back_from_its_json_as_it_went(
    channel: Channel, direction: Direction | None, tokens: list[str], start: datetime | None, back: str | None
) -> None:
    metadata = TokenisedMetadata(direction=direction, participants=tuple(tokens), start_time=start)
    request = parsed().model_copy(update={"channel": channel, "metadata": metadata, "callback_url": back})
    wire = request.model_dump_json(by_alias=True, exclude_none=True)
    assert ScreeningRequest.model_validate_json(wire, strict=True) == request


CLEAN = Verdict(
    recording_id="rec-1",
    verdict=VerdictValue.NO_VIOLATION,
    recommended_action=RecommendedAction.NONE,
    correlation_id="msg-1",
)
FINDING = PartialFinding(
    kind=FindingKind.CARD_NUMBER,
    detector=Detector.TONES,
    speaker="1",
    start_ms=1000,
    end_ms=2000,
    confidence=0.9,
    masked="411111******1111",
    settled=False,
)


def test_a_line_says_one_thing() -> None:
    for line in (StreamLine(finding=FINDING), StreamLine(verdict=CLEAN)):
        wire = line.model_dump_json(by_alias=True, exclude_none=True)
        assert len(json.loads(wire)) == 1
        assert StreamLine.model_validate_json(wire, strict=True) == line
    for said in ({}, {"finding": FINDING, "verdict": CLEAN}):
        with pytest.raises(ValidationError, match="a line is a finding, a verdict or a fault"):
            StreamLine(**said)


def test_a_promise_is_no_verdict_and_a_verdict_no_promise() -> None:
    promise = Accepted(recording_id="rec-1", correlation_id="msg-1").model_dump_json(by_alias=True)
    with pytest.raises(ValidationError):
        Verdict.model_validate_json(promise)
    with pytest.raises(ValidationError):
        Accepted.model_validate_json(CLEAN.model_dump_json(by_alias=True))


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("https://e.test/clip?signature=x", "https://e.test/clip"),
        ("recording:rec-1#t=1.000", "recording:rec-1#t=1.000"),
        (None, None),
    ],
)
def test_of_an_evidence_address_no_signature_is_kept(said: str | None, kept: str | None) -> None:
    assert stored_form(CLEAN.model_copy(update={"evidence_snippet": said})).evidence_snippet == kept


KEY, KEYS = b"k" * 32, {"kek-1": b"k" * 32, "kek-2": b"x" * 32}


@given(st.binary(max_size=2000))
def test_sealed_media_come_back_from_the_wire_as_they_went_in(media: bytes) -> None:
    pytest.importorskip("cryptography")
    sealed = seal(media, "kek-1", KEY, "rec-1", "msg-1")
    request = parsed(mediaUrl=None, sealed=json.loads(sealed.model_dump_json(by_alias=True)))
    assert request.sealed == sealed
    assert unseal(request.sealed, KEYS, "rec-1", "msg-1") == media
    assert seal(media, "kek-1", KEY, "rec-1", "msg-1").ciphertext != sealed.ciphertext


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("part", ["ciphertext", "nonce", "wrapped_key", "key_id"])
def test_sealed_media_that_were_touched_do_not_open(part: str) -> None:
    pytest.importorskip("cryptography")
    sealed = seal(b"media", "kek-1", KEY, "rec-1", "msg-1")
    held = getattr(sealed, part)
    for other in (
        ("kek-2", "kek-3") if part == "key_id" else (bytes([held[0] ^ 1]) + held[1:], held[:-1] + bytes([held[-1] ^ 1]))
    ):
        with pytest.raises(SealBroken):
            unseal(sealed.model_copy(update={part: other}), KEYS, "rec-1", "msg-1")


def test_sealed_media_open_under_no_other_recording_or_request() -> None:
    pytest.importorskip("cryptography")
    sealed = seal(b"media", "kek-1", KEY, "rec-1", "msg-1")
    for recording_id, correlation_id in (("rec-2", "msg-1"), ("rec-1", "msg-2")):
        with pytest.raises(SealBroken):
            unseal(sealed, KEYS, recording_id, correlation_id)


def test_media_come_by_address_or_sealed_and_not_both() -> None:
    sealed = {"keyId": "k", "wrappedKey": "A" * 56, "nonce": "A" * 16, "ciphertext": "A" * 24}
    with pytest.raises(ValidationError, match="either mediaUrl or sealed"):
        parsed(mediaUrl=None)
    with pytest.raises(ValidationError, match="either mediaUrl or sealed"):
        parsed(sealed=sealed)
    parsed(mediaUrl=None, sealed=sealed)
