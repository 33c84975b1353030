"""Events of every sender, verdicts, and signatures: understood or refused, by the exception that is meant for it."""

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from compliance_pipeline.contracts.verdict import VerdictRefused, parse_verdict
from compliance_pipeline.intake.events import NotUnderstood, incoming
from compliance_pipeline.intake.receiver import create_app
from compliance_pipeline.intake.tokens import Tokenizer
from compliance_pipeline_tests.fuzz.broken import CARD, MAIL, documents, effort, files, says_nothing_of
from compliance_pipeline_tests.intake import messages
from compliance_pipeline_tests.intake.test_receiver import GUIDE, KEY, PATH, settings_in

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
TOKENS = Tokenizer("a key of the tests")
GUIDE_EVENT = {
    "recordingId": "rec-1",
    "mediaUri": f"https://media.test/{CARD}.wav?token=x",
    "event": "recording:recordingAvailable",
    "participants": [{"id": MAIL, "purpose": "customer", "queue": "sales", "externalCallerId": "tel:+4930123456"}],
    "startTime": "2026-03-01T11:50:00Z",
    "endTime": "2026-03-01T11:58:00Z",
    "eventTime": "2026-03-01T11:59:00Z",
    "direction": "outbound",
    "channel": "voice",
}
EVENTS: list[dict[str, Any]] = [
    GUIDE_EVENT,
    messages.envelope(messages.topic(), messages.ended(dnis="tel:+4930123456", direction="OUTBOUND")),
    messages.notification(messages.topic("acw"), messages.ended()),
    messages.s3_created(messages.export_key(f"{messages.RECORDING}.opus"), messages.export_key("x_metadata.json")),
    messages.s3_by_eventbridge(messages.export_key(f"{messages.RECORDING}.opus")),
    messages.by_sns(messages.s3_created(messages.export_key(f"{messages.RECORDING}.opus"))),
]
VERDICT = {
    "recordingId": "rec-1",
    "verdict": "VIOLATION_DETECTED",
    "violationType": "PCI_PAN",
    "confidenceScore": 0.94,
    "timestampOffsetMs": 12_000,
    "evidenceSnippet": f"https://engine.test/clips/1?number={CARD}",
    "recommendedAction": "QUARANTINE_AND_NOTIFY",
    "correlationId": "msg-1",
}


@given(documents(EVENTS))
@effort(1000)
def test_a_queues_message_is_understood_or_refused_by_name(body: bytes) -> None:
    try:
        events = incoming(body, TOKENS, NOW)
    except NotUnderstood as error:
        says_nothing_of(str(error))
    else:
        for event in events:
            assert "@" not in (event.event.media_uri or "")


@given(documents([VERDICT, VERDICT | {"verdict": "COMPLIANT", "violationType": None}]))
@effort(1000)
def test_a_verdict_is_parsed_or_refused_by_name(body: bytes) -> None:
    try:
        parse_verdict(body)
    except VerdictRefused as error:
        says_nothing_of(str(error))


def truly_signed(body: bytes, headers: dict[str, bytes]) -> bool:
    """The Standard Webhooks specification once more, apart from the library that the receiver uses."""
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    message_id, stamp, signatures = (headers.get(name, b"") for name in names)
    if not re.fullmatch(rb"[A-Za-z0-9._:-]{1,256}", message_id) or not re.fullmatch(rb"\d{1,12}", stamp):
        return False
    digest = hmac.digest(KEY, b".".join([message_id, stamp, body]), hashlib.sha256)
    given_by_v1 = [part[3:] for part in signatures.split(b" ") if part.startswith(b"v1,")]
    decoded = []
    for part in given_by_v1:
        with suppress(ValueError):
            decoded.append(base64.b64decode(part))
    return digest in decoded and abs(time.time() - int(stamp)) <= 300


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with TestClient(create_app(settings_in(tmp_path_factory.mktemp("fuzz")))) as client:
        yield client


header_bytes = st.binary(max_size=60).map(lambda raw: bytes(byte for byte in raw if byte >= 32 and byte != 127))
changes = st.dictionaries(
    st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]),
    st.one_of(
        header_bytes,
        st.sampled_from([b"", b"nan", b"inf", b"1e400", b"-1", b"v1,", b"v1,=", b"v1", b"v2,x", b"v1,\xff\xfe"]),
    ),
    max_size=2,
)


@given(documents([GUIDE_EVENT]), changes, st.none() | st.integers(-400, 400), st.booleans())
@effort(400)
def test_only_what_is_signed_is_taken_and_nothing_makes_the_receiver_fail(
    receiver: TestClient, body: bytes, changed: dict[str, bytes], age_s: int | None, swapped: bool
) -> None:
    stamp = str(int(time.time()) - (age_s or 0)).encode()
    signed_body = json.dumps(GUIDE_EVENT).encode() if swapped else body
    digest = hmac.digest(KEY, b".".join([b"msg-1", stamp, signed_body]), hashlib.sha256)
    signature = b"v1," + base64.b64encode(digest)
    headers = {"webhook-id": b"msg-1", "webhook-timestamp": stamp, "webhook-signature": signature} | changed
    sent = {name.lower(): value.encode() for name, value in GUIDE.items()} | headers
    answer = receiver.post(PATH, content=body, headers=[(name.encode(), value) for name, value in sent.items()])
    assert answer.status_code in (200, 400, 401, 413, 422)
    if answer.status_code != 200:
        says_nothing_of(answer.text)
    elif abs(abs(age_s or 0) - 300) > 5:
        assert truly_signed(body, headers)


@given(files([b"", b"{}", json.dumps(VERDICT).encode()]), st.binary(max_size=200))
@effort(300)
def test_any_bytes_are_refused_by_name(body: bytes, junk: bytes) -> None:
    for content in (body, junk):
        with suppress(NotUnderstood):
            incoming(content, TOKENS, NOW)
        with suppress(VerdictRefused):
            parse_verdict(content)
