"""The receiver's door for engines: a verdict that is well signed, new and of the schema comes in; nothing else does."""

import base64
import json
import logging
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from compliance_pipeline.contracts.verdict import Verdict
from compliance_pipeline.intake.callbacks import verdict_for
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.intake.receiver import create_app
from compliance_pipeline_tests.intake.test_receiver import KEY, Running, body_of, settings_in, signed

ENGINE_KEY = b"the engine's key, not the events"
ENGINE_SECRET = "whsec_" + base64.b64encode(ENGINE_KEY).decode()
PATH = "/api/v1/callback/genesys"
CARD = "4111111111111111"


def verdict_body(recording_id: Any = "rec-1", /, **changes: Any) -> bytes:
    said = {
        "recordingId": recording_id,
        "verdict": "VIOLATION_DETECTED",
        "violationType": "PCI_MID_CAPTURE",
        "confidenceScore": 0.94,
        "timestampOffsetMs": 124500,
        "evidenceSnippet": "https://evidence.test/clip-1?signature=canary-signature",
        "recommendedAction": "ROUTE_TO_COMPLIANCE_QUEUE",
        "correlationId": "msg-1",
    }
    return json.dumps({key: value for key, value in (said | changes).items() if value is not ...}).encode()


class Door:
    def __init__(self, folder: Path) -> None:
        self.settings = settings_in(folder, engine_url="http://127.0.0.1:1", callback_secret=ENGINE_SECRET)
        self.receiver = Running(create_app(self.settings))
        self.inbox = Inbox(self.settings.inbox_database_url)
        assert self.receiver.post(body_of("rec-1")).status_code == 200

    def post(self, body: bytes, query: str = "", **signing: Any) -> httpx.Response:
        headers = signed(body, **{"message_id": "scr-1", "key": ENGINE_KEY} | signing)
        return self.receiver.http.post(PATH + query, content=body, headers=headers)

    def count(self, reason: str) -> float:
        name = f'compliance_engine_verdicts_rejected_total{{reason="{reason}"}} '
        lines = self.receiver.http.get("/metrics").text.splitlines()
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    door = Door(tmp_path)
    yield door
    door.receiver.stop()
    door.inbox.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """For tests that store nothing."""
    door = Door(tmp_path_factory.mktemp("door"))
    yield door
    door.receiver.stop()
    door.inbox.close()


def test_a_signed_verdict_is_stored_before_it_is_answered_without_its_urls_signature(door: Door) -> None:
    answer = door.post(verdict_body(), "?policy=pack%401.0.0%2Bab12")
    assert answer.status_code == 200
    assert answer.json() == {"recordingId": "rec-1", "status": "accepted", "duplicate": False}
    kept = verdict_for(door.inbox.engine, "rec-1", "msg-1", "pack@1.0.0+ab12")
    assert kept
    assert kept.verdict == Verdict.model_validate_json(verdict_body(evidenceSnippet="https://evidence.test/clip-1"))


def test_a_replay_is_answered_200_and_applied_once(door: Door) -> None:
    door.post(verdict_body())
    for _ in range(2):
        replay = door.post(verdict_body())
        assert (replay.status_code, replay.json()["duplicate"]) == (200, True)
    assert 'outcome="accepted",verdict="VIOLATION_DETECTED"} 1.0' in door.receiver.http.get("/metrics").text


def test_another_verdict_under_the_same_id_is_409_and_counted(door: Door) -> None:
    door.post(verdict_body())
    answer = door.post(verdict_body(confidenceScore=0.1))
    assert (answer.status_code, answer.json()["reason"]) == (409, "reused_id")
    kept = verdict_for(door.inbox.engine, "rec-1", "msg-1")
    assert kept
    assert kept.verdict.confidence_score == 0.94
    assert door.count("reused_id") == 1


def test_a_verdict_on_an_unknown_recording_is_404_and_counted(shared: Door) -> None:
    answer = shared.post(verdict_body("rec-unheard-of"))
    assert (answer.status_code, answer.json()["reason"]) == (404, "unknown_recording")
    assert shared.count("unknown_recording") == 1


@pytest.mark.parametrize(
    ("signing", "reason"),
    [
        ({"key": b"x" * 32}, "signature"),
        ({"key": KEY}, "signature"),
        ({"at": time.time() - 3600}, "stale"),
        ({"at": time.time() + 3600}, "stale"),
    ],
    ids=["another key", "the key of events", "old", "from the future"],
)
def test_a_verdict_signed_badly_or_long_ago_is_401_and_counted(
    shared: Door, signing: dict[str, Any], reason: str
) -> None:
    before = shared.count(reason)
    answer = shared.post(verdict_body(), **signing)
    assert (answer.status_code, answer.json()["reason"]) == (401, reason)
    assert shared.count(reason) == before + 1
    assert verdict_for(shared.inbox.engine, "rec-1", "msg-1") is None


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "CLEAN"},
        {"verdict": ...},
        {"recordingId": ...},
        {"recordingId": 7},
        {"confidenceScore": "0.94"},
        {"timestampOffsetMs": 1.5},
        {"violationType": None},
        {"correlationId": ""},
        {"transcript": f"my card is {CARD}"},
        {CARD: CARD},
    ],
)
def test_a_verdict_outside_the_schema_is_422_and_nothing_of_it_comes_back(shared: Door, change: dict[str, Any]) -> None:
    before = shared.count("schema")
    answer = shared.post(verdict_body(**change))
    assert (answer.status_code, answer.json()["reason"]) == (422, "schema")
    assert CARD not in answer.text
    assert shared.count("schema") == before + 1
    assert verdict_for(shared.inbox.engine, "rec-1", "msg-1") is None


def test_a_policy_that_can_not_be_one_is_400(shared: Door) -> None:
    assert shared.post(verdict_body(), "?policy=" + "x" * 300).status_code == 400
    assert shared.post(verdict_body(), "?policy=%00").status_code == 400


def test_without_a_secret_for_engines_there_is_no_door(tmp_path: Path) -> None:
    receiver = Running(create_app(settings_in(tmp_path)))
    body = verdict_body()
    assert receiver.http.post(PATH, content=body, headers=signed(body, key=ENGINE_KEY)).status_code == 404
    receiver.stop()


def test_a_database_that_is_down_is_503_until_it_is_back(door: Door, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "inbox.db") as other:
        other.execute("ALTER TABLE inbox RENAME TO hidden")
    answer = door.post(verdict_body())
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    with sqlite3.connect(tmp_path / "inbox.db") as other:
        other.execute("ALTER TABLE hidden RENAME TO inbox")
    assert door.post(verdict_body()).json()["duplicate"] is False


def test_nothing_of_a_refused_verdict_reaches_the_disk_or_the_log(
    door: Door, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    door.post(verdict_body(transcript=f"my card is {CARD}"))
    door.post(verdict_body(**{CARD: 1}))
    door.post(verdict_body("rec-2", evidenceSnippet=CARD))
    door.post(verdict_body(evidenceSnippet=CARD), key=b"x" * 32)
    door.post(verdict_body())
    door.post(verdict_body(evidenceSnippet=CARD))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    texts = {path.name: path.read_bytes() for path in files} | {"log": caplog.text.encode()}
    for reason in ("schema", "unknown_recording", "signature", "reused_id"):
        assert f'"reason": "{reason}"' in caplog.text
    for canary in (CARD, "canary-signature", ENGINE_SECRET):
        assert [name for name, text in texts.items() if canary.encode() in text] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.binary(max_size=200)
    | st.dictionaries(st.sampled_from(list(json.loads(verdict_body()))), JSON, min_size=1, max_size=8).map(
        lambda changes: verdict_body("rec-nobody", **changes)
    )
)
@hypothesis_settings(max_examples=80, deadline=None)
def test_any_signed_body_is_answered_and_never_500(shared: Door, body: bytes) -> None:
    assert shared.post(body).status_code in (400, 404, 413, 422)
