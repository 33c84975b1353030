"""The simulated platform over real HTTP: the guide's contract, faults, and counters that see what went wrong."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import jsonschema
import pytest

from compliance_pipeline.contracts.work_item import SupervisorCallback, WorkItem
from compliance_pipeline.platforms.guide import GuidePlatform
from compliance_pipeline.platforms.port import Gone, NotYet, Ready
from compliance_pipeline.platforms.transport import Transport
from compliance_pipeline.sandbox.calls import Kind, SyntheticRecording, make_recording
from compliance_pipeline.sandbox.platform import Observation, PlatformState, serve
from compliance_pipeline_tests.contract.conformance import check_answer, check_component, check_request

RECORDINGS = "/api/v2/recordings"
RECORDS = "/api/v2/analytics/datadatasets/records"
CALLBACKS = "/api/v2/conversations/callbacks"
SUBSCRIPTIONS = "/api/v2/eventsub/eventsubscriptions"


@pytest.fixture
def state() -> PlatformState:
    return PlatformState("compliance-service", "s3cret")


@pytest.fixture
def base_url(state: PlatformState) -> Iterator[str]:
    with serve(state) as url:
        yield url


@pytest.fixture
def api(state: PlatformState, base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, headers={"Authorization": f"Bearer {state.issue_token()}"}) as client:
        yield client


def chat(seed: int = 1, kind: Kind = Kind.CHAT_CARD) -> SyntheticRecording:
    return make_recording(seed, kind, ended_at=datetime.now(UTC))


def record(key: str = "k1", **fields: str) -> dict[str, Any]:
    return {
        "datasetId": "compliance_work_items_dataset",
        "record": {
            "recordingId": "r1",
            "violationType": "PCI_MID_CAPTURE",
            "assignedQueue": "compliance_review_queue",
            "priority": "high",
            "key": key,
            "summary": "card ending ****",
        }
        | fields,
    }


def callback(key: str = "k1") -> dict[str, Any]:
    return {
        "queueName": "supervisors",
        "callbackScheduledTime": "2026-01-01T00:00:00+00:00",
        "data": {"key": key, "recordingId": "r1", "reason": "tones"},
    }


def test_client_credentials_give_a_bearer_token_and_a_wrong_secret_gives_401(
    base_url: str, state: PlatformState
) -> None:
    form = {"grant_type": "client_credentials"}
    answer = httpx.post(f"{base_url}/oauth/token", data=form, auth=("compliance-service", "s3cret"))
    check_answer("post", "/oauth/token", answer.status_code, answer.json())
    state.add(recording := chat())
    token = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    assert httpx.get(f"{base_url}{RECORDINGS}/{recording.recording_id}", headers=token).status_code == 200
    for auth in (("compliance-service", "wrong"), ("somebody", "s3cret"), None):
        refused = httpx.post(f"{base_url}/oauth/token", data=form, auth=auth)
        assert refused.status_code == 401
        check_component("Error", refused.json())
    assert httpx.post(f"{base_url}/oauth/token", auth=("compliance-service", "s3cret")).status_code == 400


@pytest.mark.parametrize("path", [f"{RECORDINGS}/x", RECORDS, CALLBACKS])
def test_no_token_a_made_up_one_and_an_expired_one_are_401(api: httpx.Client, state: PlatformState, path: str) -> None:
    assert api.get(path).status_code != 401
    assert api.get(path, headers={"Authorization": "Bearer made-up"}).status_code == 401
    assert httpx.get(api.base_url.join(path)).status_code == 401
    state.expire_tokens()
    refused = api.get(path)
    assert refused.status_code == 401
    check_component("Error", refused.json())
    assert state.counts["unauthorised"] == 3


def test_a_token_ends_with_its_lifetime(state: PlatformState) -> None:
    assert state.is_authorised(f"Bearer {state.issue_token()}")
    state.token_ttl_s = 0
    assert not state.is_authorised(f"Bearer {state.issue_token()}")


def test_a_recording_is_unknown_then_processing_then_available_with_its_media(
    api: httpx.Client, state: PlatformState
) -> None:
    recording = chat()
    path = f"{RECORDINGS}/{recording.recording_id}"
    held = state.add(recording)
    later = datetime.now(UTC) + timedelta(minutes=1)
    held.known_at = held.available_at = later
    unknown = api.get(path)
    assert unknown.status_code == 404
    check_component("Error", unknown.json())
    held.known_at = datetime.now(UTC)
    processing = api.get(path)
    check_answer("get", f"{RECORDINGS}/{{recordingId}}", processing.status_code, processing.json())
    assert processing.json()["status"] == "processing"
    assert not {"mediaUri", "transcriptUri", "channels"} & processing.json().keys()
    assert httpx.get(state.media_url(recording.recording_id)).status_code == 404
    held.available_at = datetime.now(UTC)
    available = api.get(path)
    check_answer("get", f"{RECORDINGS}/{{recordingId}}", available.status_code, available.json())
    assert available.json()["status"] == "available"
    assert httpx.get(available.json()["mediaUri"]).content == recording.media


def test_a_call_has_a_transcript_under_a_signed_url_of_its_own_and_its_channels_have_names(
    api: httpx.Client, state: PlatformState
) -> None:
    state.add(call := chat(1, Kind.VOICE_NO_NOTICE))
    answer = api.get(f"{RECORDINGS}/{call.recording_id}")
    check_answer("get", f"{RECORDINGS}/{{recordingId}}", answer.status_code, answer.json())
    assert answer.json()["channels"] == ["agent", "customer"]
    url = answer.json()["transcriptUri"]
    served = httpx.get(url)
    assert (served.content, served.headers["content-type"]) == (call.transcript, "application/json")
    assert state.held[call.recording_id].seen["transcript fetched"] == 1
    assert httpx.get(url.replace("/transcripts/", "/media/")).status_code == 403
    assert httpx.get(answer.json()["mediaUri"].replace("/media/", "/transcripts/")).status_code == 403
    assert api.get(url).status_code == 400
    assert state.counts["bearer leaked"] == state.held[call.recording_id].seen["bearer leaked"] == 1


def test_what_has_no_transcript_says_nothing_of_one(api: httpx.Client, state: PlatformState) -> None:
    state.add(recording := chat())
    assert not {"transcriptUri", "channels"} & api.get(f"{RECORDINGS}/{recording.recording_id}").json().keys()
    assert httpx.get(state.transcript_url(recording.recording_id)).status_code == 404


@pytest.mark.parametrize("status", ["deleted", "failed"])
def test_a_deleted_or_failed_recording_has_no_media(api: httpx.Client, state: PlatformState, status: str) -> None:
    state.add(recording := chat(), status=status)
    answer = api.get(f"{RECORDINGS}/{recording.recording_id}").json()
    assert answer["status"] == status
    assert "mediaUri" not in answer
    assert httpx.get(state.media_url(recording.recording_id)).status_code == 404


def test_media_comes_with_length_type_etag_and_the_time_when_it_became_available(
    state: PlatformState, base_url: str
) -> None:
    available_at = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    state.add(recording := chat(), available_at=available_at)
    answer = httpx.get(state.media_url(recording.recording_id))
    assert int(answer.headers["content-length"]) == len(recording.media)
    assert answer.headers["content-type"] == "application/json"
    assert parsedate_to_datetime(answer.headers["last-modified"]) == available_at.replace(microsecond=0)
    assert answer.headers["etag"]
    assert state.held[recording.recording_id].seen["media fetched"] == 1


def test_a_bearer_token_at_the_media_host_is_refused_and_counted_as_a_leak(
    api: httpx.Client, state: PlatformState
) -> None:
    state.add(recording := chat())
    url = state.media_url(recording.recording_id)
    assert api.get(url).status_code == 400
    assert state.counts["bearer leaked"] == 1
    assert state.counts["media fetched"] == 0
    assert httpx.get(url).status_code == 200
    assert state.counts["bearer leaked"] == 1


def test_an_expired_a_foreign_and_a_forged_media_token_get_403_as_xml(state: PlatformState, base_url: str) -> None:
    state.add(recording := chat(1))
    state.add(other := chat(2))
    url = state.media_url(recording.recording_id)
    assert httpx.get(url).status_code == 200
    state.media_ttl_s = 0
    expired = state.media_url(recording.recording_id)
    foreign = url.replace(recording.recording_id, other.recording_id)
    prolonged = expired.replace("token=", "token=9")
    bare = url.partition("?")[0]
    for refused in (expired, foreign, prolonged, bare, f"{bare}?token=é.ü"):
        answer = httpx.get(refused)
        assert answer.status_code == 403
        assert "Request has expired" in answer.text
        assert answer.headers["content-type"].startswith("application/xml")
    assert httpx.get(url).status_code == 200


def test_a_patch_replaces_the_tags(api: httpx.Client, state: PlatformState) -> None:
    state.add(recording := chat())
    path = f"{RECORDINGS}/{recording.recording_id}"
    for tags in ([{"key": "a", "value": "1"}, {"key": "b", "value": "2"}], [{"key": "c", "value": "3"}]):
        check_request("patch", f"{RECORDINGS}/{{recordingId}}", {"tags": tags})
        answer = api.patch(path, json={"tags": tags})
        check_answer("patch", f"{RECORDINGS}/{{recordingId}}", answer.status_code, answer.json())
        assert api.get(path).json()["tags"] == tags
    assert state.held[recording.recording_id].seen["tags written"] == 2
    malformed: list[Any] = [{}, {"tags": "x"}, {"tags": [{"key": "a"}]}, {"tags": [1]}, []]
    for wrong in malformed:
        refused = api.patch(path, json=wrong)
        assert refused.status_code == 400
        check_component("Error", refused.json())
    assert api.patch(path, content=b"{").status_code == 400
    assert api.patch(f"{RECORDINGS}/unknown", json={"tags": []}).status_code == 404


def test_creating_twice_makes_two_and_both_are_found_by_their_key(api: httpx.Client, state: PlatformState) -> None:
    for path, body, query in (
        (RECORDS, record(), {"datasetId": "compliance_work_items_dataset"}),
        (CALLBACKS, callback(), {}),
    ):
        check_request("post", path, body)
        created = [api.post(path, json=body) for _ in range(2)]
        for answer in created:
            check_answer("post", path, answer.status_code, answer.json())
        found = api.get(path, params={**query, "key": "k1"})
        check_answer("get", path, found.status_code, found.json())
        assert [item["id"] for item in found.json()["entities"]] == [answer.json()["id"] for answer in created]
        assert api.get(path, params={**query, "key": "k2"}).json()["entities"] == []
        assert api.get(path, params=query).status_code == 400
    assert len(state.work_items) == len(state.callbacks) == 2
    assert api.get(RECORDS, params={"datasetId": "another", "key": "k1"}).json()["entities"] == []


def test_what_lacks_a_required_field_is_400_and_creates_nothing(api: httpx.Client, state: PlatformState) -> None:
    incomplete = record()
    del incomplete["record"]["priority"]
    for path, body in ((RECORDS, incomplete), (RECORDS, {"datasetId": "d"}), (CALLBACKS, {"data": {}})):
        with pytest.raises(jsonschema.ValidationError):
            check_request("post", path, body)
        assert api.post(path, json=body).status_code == 400
    assert not state.work_items
    assert not state.callbacks


def test_the_guides_subscription_is_taken(api: httpx.Client, state: PlatformState) -> None:
    subscription = {
        "name": "ComplianceRecordingIngestion",
        "event": "recording:recordingAvailable",
        "eventData": {"include": ["recordingId", "mediaUri"]},
        "destination": {"type": "webhook", "url": "https://compliance-engine.internal/api/v1/ingest/recording"},
        "retryPolicy": {"maxRetries": 3, "backoffStrategy": "exponential", "initialDelayMs": 1000},
    }
    check_request("post", SUBSCRIPTIONS, subscription)
    answer = api.post(SUBSCRIPTIONS, json=subscription)
    check_answer("post", SUBSCRIPTIONS, answer.status_code, answer.json())
    assert len(state.subscriptions) == 1


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_a_fault_answers_as_told_for_as_many_times_as_told(
    api: httpx.Client, state: PlatformState, status: int
) -> None:
    fault = {"path": RECORDS, "status": status, "times": 2, "retryAfter": 7, "method": "POST"}
    assert api.post("/sandbox/faults", json=fault).status_code == 204
    assert api.get(RECORDS, params={"datasetId": "d", "key": "k"}).status_code == 200
    for _ in range(2):
        answer = api.post(RECORDS, json=record())
        assert (answer.status_code, answer.headers["retry-after"]) == (status, "7")
        check_component("Error", answer.json())
    assert not state.work_items
    assert api.post(RECORDS, json=record()).status_code == 201
    assert len(state.work_items) == 1


def test_a_fault_after_the_effect_leaves_the_effect(api: httpx.Client, state: PlatformState) -> None:
    state.fail_next(RECORDS, 503, after_effect=True)
    assert api.post(RECORDS, json=record()).status_code == 503
    assert len(state.work_items) == 1


@pytest.mark.parametrize("after_effect", [False, True])
def test_a_dropped_connection_gives_no_answer_before_or_after_the_effect(
    api: httpx.Client, state: PlatformState, after_effect: bool
) -> None:
    state.fail_next(RECORDS, after_effect=after_effect)
    with pytest.raises(httpx.TransportError):
        api.post(RECORDS, json=record())
    assert len(state.work_items) == after_effect
    assert api.post(RECORDS, json=record()).status_code == 201


def test_a_fault_of_the_media_host_and_a_malformed_fault(api: httpx.Client, state: PlatformState) -> None:
    state.add(recording := chat())
    state.fail_next("/media/", 503)
    assert httpx.get(state.media_url(recording.recording_id)).status_code == 503
    assert httpx.get(state.media_url(recording.recording_id)).status_code == 200
    for wrong in ({}, {"path": "/", "status": 200}, {"path": "/", "times": 0}, {"path": "/", "tmies": 1}):
        assert api.post("/sandbox/faults", json=wrong).status_code == 400
    assert not state.faults


def test_truth_and_state_show_everything_but_no_clear_value(api: httpx.Client, state: PlatformState) -> None:
    recordings = [make_recording(seed, kind, ended_at=datetime.now(UTC)) for seed, kind in enumerate(Kind)]
    for recording in recordings:
        state.add(recording)
    guilty = next(recording for recording in recordings if recording.kind is Kind.CHAT_CARD)
    leaked = guilty.planted[-2]
    api.patch(f"{RECORDINGS}/{guilty.recording_id}", json={"tags": [{"key": "violation_type", "value": leaked}]})
    api.post(RECORDS, json=record(recordingId=guilty.recording_id, violationType=f"X {leaked}"))
    body = callback()
    body["data"] |= {"recordingId": guilty.recording_id}
    api.post(CALLBACKS, json=body)
    truth, seen = httpx.get(f"{api.base_url}/sandbox/truth"), httpx.get(f"{api.base_url}/sandbox/state")
    for value in (value for recording in recordings for value in recording.planted):
        assert value not in truth.text
        assert value not in seen.text
    by_id = {row["recordingId"]: row for row in truth.json()["recordings"]}
    row = by_id[guilty.recording_id]
    assert (row["expectedVerdict"], row["violationType"]) == ("VIOLATION_DETECTED", "PCI_MID_CAPTURE")
    assert row["offsetMs"] == guilty.truth.offset_ms
    assert datetime.fromisoformat(row["availableAt"]) >= datetime.fromisoformat(row["endedAt"])
    observed = {row["recordingId"]: row for row in seen.json()["recordings"]}[guilty.recording_id]
    assert observed["tags"] == {"violation_type": "*"}
    assert observed["workItems"] == ["X *"]
    assert observed["callbacks"] == 1
    assert observed["taggedAt"]
    assert seen.json()["counts"]["sensitive value received"] == 2


def test_a_sensitive_value_in_any_request_is_counted_also_when_it_is_spaced_out(
    api: httpx.Client, state: PlatformState
) -> None:
    state.add(recording := chat())
    card, phone = recording.planted[-2], recording.planted[0]
    api.post(RECORDS, json=record(summary="nothing to see"))
    assert state.counts["sensitive value received"] == 0
    api.post(RECORDS, json=record(summary=f"card {card[:4]} {card[4:]}"))
    api.post(RECORDS, json=record(summary=f"call {phone}"))
    assert state.counts["sensitive value received"] == 2


def test_listeners_hear_what_was_seen(api: httpx.Client, state: PlatformState) -> None:
    heard: list[Observation] = []
    state.listeners.append(heard.append)
    state.add(recording := chat())
    tags = [{"key": "violation_type", "value": "PCI_MID_CAPTURE"}]
    api.patch(f"{RECORDINGS}/{recording.recording_id}", json={"tags": tags})
    assert [(o.what, o.recording_id, o.detail) for o in heard] == [
        ("tags written", recording.recording_id, "violation_type=PCI_MID_CAPTURE")
    ]


def test_the_guide_adapter_does_its_whole_job_here(state: PlatformState, base_url: str) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=1)
    state.add(ready := chat(1))
    state.add(late := chat(2), available_at=soon)
    state.add(gone := chat(3), status="deleted")
    adapter = GuidePlatform(Transport(base_url, "compliance-service", "s3cret", backoff_s=0.01))
    try:
        assert isinstance(adapter.locate(late.recording_id), NotYet)
        assert isinstance(adapter.locate(gone.recording_id), Gone)
        location = adapter.locate(ready.recording_id)
        assert isinstance(location, Ready)
        with adapter.open_media(location.media) as stream:
            assert b"".join(stream) == ready.media
        adapter.tag(ready.recording_id, {"violation_type": "PCI_MID_CAPTURE"})
        item = WorkItem(
            key=f"{ready.recording_id}/PCI-PAN/create_work_item",
            recording_id=ready.recording_id,
            violation_type="PCI_MID_CAPTURE",
            queue="compliance_review_queue",
            priority="high",
            summary="a card number",
        )
        ask = SupervisorCallback(
            key="k", recording_id=ready.recording_id, queue="supervisors", scheduled_at=soon, reason="a card number"
        )
        state.fail_next(RECORDS, after_effect=True, method="POST")
        state.fail_next(CALLBACKS, 500, after_effect=True, method="POST")
        assert adapter.open_work_item(item) == adapter.open_work_item(item) == state.work_items[0]["id"]
        assert adapter.request_callback(ask) == adapter.request_callback(ask) == state.callbacks[0]["id"]
    finally:
        adapter.close()
    assert (len(state.work_items), len(state.callbacks), state.counts["tags written"]) == (1, 1, 1)
    assert state.counts["bearer leaked"] == state.counts["sensitive value received"] == 0
    for stored in state.work_items:
        check_component("Record", stored)
    for stored in state.callbacks:
        check_component("Callback", stored)


def test_the_contract_check_can_fail() -> None:
    with pytest.raises(jsonschema.ValidationError):
        check_component("Tag", {"key": "a"})
    with pytest.raises(jsonschema.ValidationError):
        check_answer("get", f"{RECORDINGS}/{{recordingId}}", 200, json.loads("{}"))
