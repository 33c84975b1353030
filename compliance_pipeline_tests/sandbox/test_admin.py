"""/sandbox: what people and tests see, the plan that can be replaced, samples through the platform's redaction."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.sandbox.cloud_state import cloud_state
from compliance_pipeline.sandbox.faults import FaultKind
from compliance_pipeline.sandbox.platform import PlatformState
from compliance_pipeline.sandbox.samples import REDACTIONS
from compliance_pipeline.screening.transcripts import parse_transcript
from compliance_pipeline_tests.sandbox.struck import api_of, chat, fault, state_under

CARD = "4111 1111 1111 1111"
TEXT = f"my card is {CARD}, my number 078-05-1120, call +1 212-555-0123 or a.b@example.com"


@pytest.fixture
def state() -> PlatformState:
    return state_under()


@pytest.fixture
def api(state: PlatformState) -> Iterator[httpx.Client]:
    with api_of(state) as client:
        yield client


def test_the_page_is_whole_by_itself(api: httpx.Client) -> None:
    page = api.get("/sandbox", follow_redirects=True)
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
    for what in ("double work items", "bearer tokens leaked", "malformed messages taken", "Faults struck"):
        assert what in page.text


def test_the_plan_is_read_and_replaced_while_it_runs(api: httpx.Client, state: PlatformState) -> None:
    look_up = "/api/v2/architect/flows"
    assert api.get("/sandbox/plan").json()["faults"] == []
    plan = {"seed": 7, "faults": [{"kind": "server_error", "rate": 1}]}
    assert api.put("/sandbox/plan", json=plan).status_code == 204
    assert api.get(look_up).status_code >= 500
    said = api.get("/sandbox/plan").json()
    assert (said["seed"], said["faults"][0]["kind"]) == (7, "server_error")
    malformed: list[Any] = [{"faults": [{"kind": "nonsense", "rate": 1}]}, {"seeds": 1}, []]
    for wrong in malformed:
        assert api.put("/sandbox/plan", json=wrong).status_code == 400
    assert api.put("/sandbox/plan", json={"faults": []}).status_code == 204
    assert api.get(look_up).status_code == 200
    assert state.struck[FaultKind.SERVER_ERROR] == 1


def test_only_the_newest_recordings_are_told_if_asked_so(api: httpx.Client, state: PlatformState) -> None:
    ids = [state.add(chat(seed)).address for seed in range(5)]
    for what in ("state", "truth"):
        assert [row["address"] for row in api.get(f"/sandbox/{what}?last=2").json()["recordings"]] == ids[-2:]
        assert [row["recordingId"] for row in api.get(f"/sandbox/{what}").json()["recordings"]] == ids
        assert api.get(f"/sandbox/{what}?last=0").json()["recordings"] == []
    assert api.get("/sandbox/state?last=2").json()["held"] == 5
    truth = api.get("/sandbox/truth?last=0").json()
    assert (truth["count"], truth["planned"], truth["finished"]) == (5, None, False)


def test_the_status_is_what_the_plan_makes_of_it() -> None:
    kinds = {FaultKind.DELETED: "deleted", FaultKind.FILE_ERROR: "error", FaultKind.ARCHIVED: "available"}
    for kind, word in kinds.items():
        state = state_under(fault(kind))
        state.add(chat())
        assert state.observed()["recordings"][0]["status"] == word
    state = state_under(fault(FaultKind.ARCHIVED), profile="cloud")
    state.add(chat())
    assert state.observed()["recordings"][0]["status"] == "archived"


def test_what_the_platform_redacts_can_be_set(api: httpx.Client) -> None:
    assert api.put("/sandbox/redaction", json={"chat": list(REDACTIONS)}).status_code == 204
    assert CARD not in sampled(api, "chat")
    assert CARD in sampled(api, "email")
    malformed: list[Any] = [{"fax": ["card"]}, {"chat": ["name"]}, []]
    for wrong in malformed:
        assert api.put("/sandbox/redaction", json=wrong).status_code == 400


def test_permissions_can_be_taken_and_given_back() -> None:
    queues, said = "/api/v2/routing/queues", "/sandbox/permissions"
    with api_of(state_under(profile="cloud")) as api:
        assert api.post(said, json={"permissions": ["recording:recording:view"]}).status_code == 204
        refused = api.get(queues)
        assert (refused.status_code, refused.json()["code"]) == (403, "missing.permissions")
        assert api.post(said, json={}).status_code == 400
        assert api.post(said, json={"permissions": None}).status_code == 204
        assert api.get(queues).status_code == 200
    with api_of(state_under()) as api:
        assert api.post(said, json={"permissions": None}).status_code == 404


def sampled(api: httpx.Client, channel: str) -> str:
    """What the platform gives out of a sample: the words."""
    made = api.post("/sandbox/sample", json={"channel": channel, "text": TEXT})
    assert made.status_code == 201
    recording = api.get(f"/api/v2/recordings/{made.json()['recordingId']}").json()
    assert recording["status"] == "available"
    if channel != "voice":
        return httpx.get(recording["mediaUri"]).text
    assert httpx.get(recording["mediaUri"]).content.startswith(b"RIFF")
    return json.dumps(
        [
            turn.text
            for turn in parse_transcript(httpx.get(recording["transcriptUri"]).content, "application/json").turns
        ]
    )


@pytest.mark.parametrize("channel", Channel)
def test_a_sample_comes_back_as_it_went_in_unless_the_platform_redacts(
    api: httpx.Client, state: PlatformState, channel: Channel
) -> None:
    assert CARD in sampled(api, channel)
    state.redaction = {channel: frozenset({"card"})}
    redacted = sampled(api, channel)
    assert CARD not in redacted
    assert "078-05-1120" in redacted
    state.redaction = {channel: frozenset(REDACTIONS)}
    for value in (CARD, "078-05-1120", "212-555-0123", "a.b@example.com"):
        assert value not in sampled(api, channel)


def test_a_sample_of_an_unknown_channel_is_refused(api: httpx.Client) -> None:
    assert api.post("/sandbox/sample", json={"channel": "fax", "text": "x"}).status_code == 400


def test_a_sample_is_struck_by_no_fault_and_is_in_no_account_or_listing() -> None:
    state = state_under(fault(FaultKind.DELETED), fault(FaultKind.MEDIA_ELSEWHERE))
    with api_of(state) as api:
        assert CARD in sampled(api, "chat")
        now = datetime.now(UTC)
        query = {"availableFrom": (now - timedelta(hours=1)).isoformat(), "availableTo": now.isoformat()}
        assert api.get("/api/v2/recordings", params=query).json()["entities"] == []
    assert state.truth()["recordings"] == state.observed()["recordings"] == []
    assert state.truth()["count"] == 0


def test_a_sample_is_not_in_the_clouds_analytics() -> None:
    state = state_under(fault(FaultKind.DELETED), profile="cloud")
    cloud_state(state).analytics_lag_s = 0
    with api_of(state) as api:
        made = api.post("/sandbox/sample", json={"channel": "chat", "text": TEXT}).json()
        [listed] = api.get(f"/api/v2/conversations/{made['conversationId']}/recordings").json()
        assert listed["fileState"] == "AVAILABLE"
        now = datetime.now(UTC)
        interval = f"{(now - timedelta(hours=1)).isoformat()}/{(now + timedelta(hours=1)).isoformat()}"
        query = {"interval": interval}
        assert api.post("/api/v2/analytics/conversations/details/query", json=query).json()["totalHits"] == 0
        state.add(chat())
        assert api.post("/api/v2/analytics/conversations/details/query", json=query).json()["totalHits"] == 1
