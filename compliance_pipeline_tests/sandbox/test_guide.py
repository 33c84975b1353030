"""The guide's profile under faults of recordings, and what of it is ours: listing, subscriptions, flows, the metric."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from compliance_pipeline.platforms.guide import GuidePlatform
from compliance_pipeline.platforms.transport import Transport
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.sandbox.faults import FaultKind
from compliance_pipeline.sandbox.platform import PlatformState
from compliance_pipeline_tests.contract.conformance import check_answer, check_request
from compliance_pipeline_tests.sandbox.struck import api_of, chat, fault, state_under

RECORDINGS = "/api/v2/recordings"
RECORDS = "/api/v2/analytics/datadatasets/records"
SUBSCRIPTIONS = "/api/v2/eventsub/eventsubscriptions"
FLOWS = "/api/v2/architect/flows"
METRIC = "/api/v2/analytics/metrics/eventsub:deliveryFailure"
SUBSCRIPTION: dict[str, Any] = {
    "name": "ComplianceRecordingIngestion",
    "event": "recording:recordingAvailable",
    "eventData": {"include": ["recordingId", "mediaUri"]},
    "destination": {
        "type": "webhook",
        "url": "https://compliance-engine.internal/x",
        "authentication": {"type": "oauth2", "clientId": "c", "clientSecret": "hidden"},
    },
    "retryPolicy": {"maxRetries": 3, "backoffStrategy": "exponential", "initialDelayMs": 1000},
}
FLOW: dict[str, Any] = {
    "name": "ComplianceRemediation",
    "entryPoints": [{"type": "api"}],
    "blocks": [{"id": "tag", "type": "api", "settings": {}}],
    "transitions": [{"from": "start", "to": "tag"}],
}


@pytest.fixture
def state() -> PlatformState:
    return state_under()


@pytest.fixture
def api(state: PlatformState) -> Iterator[httpx.Client]:
    with api_of(state) as client:
        yield client


def answers(*kinds: FaultKind, tries: int = 2, **fields: Any) -> list[tuple[int, str | None]]:
    """Status and `status` of so many reads of one recording."""
    state = state_under(*(fault(kind, **fields) for kind in kinds))
    state.add(recording := chat())
    with api_of(state) as api:
        got = [api.get(f"{RECORDINGS}/{recording.recording_id}") for _ in range(tries)]
    return [(answer.status_code, answer.json().get("status")) for answer in got]


@pytest.mark.parametrize("kind", [FaultKind.NOT_FOUND_EVER, FaultKind.NOT_RECORDED])
def test_some_recordings_are_404_for_ever(kind: FaultKind) -> None:
    assert {status for status, _ in answers(kind, tries=4)} == {404}


def test_some_are_404_for_a_few_answers() -> None:
    assert [status for status, _ in answers(FaultKind.NOT_FOUND_FOR_NOW, times=2, tries=3)] == [404, 404, 200]


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (FaultKind.UPLOADING, "processing"),
        (FaultKind.RESTORING, "restoring"),
        (FaultKind.UNKNOWN_STATE, "quarantined"),
    ],
)
def test_states_that_pass_pass(kind: FaultKind, word: str) -> None:
    assert answers(kind) == [(200, word), (200, "available")]
    assert answers(kind, seconds=0) == [(200, "available")] * 2
    assert answers(kind, seconds=60) == [(200, word)] * 2


@pytest.mark.parametrize(("kind", "word"), [(FaultKind.DELETED, "deleted"), (FaultKind.FILE_ERROR, "error")])
def test_states_that_stay_stay_and_are_expected_to_be_refused(kind: FaultKind, word: str) -> None:
    assert answers(kind, tries=3) == [(200, word)] * 3
    state = state_under(fault(kind))
    state.add(chat())
    assert state.truth()["recordings"][0]["expectation"] == "refused"
    assert state.truth()["recordings"][0]["faults"] == [kind]


def test_an_available_recording_may_lack_its_media_for_an_answer(api: httpx.Client) -> None:
    state = state_under(fault(FaultKind.MEDIA_URIS_NULL))
    state.add(recording := chat())
    with api_of(state) as api:
        bodies = [api.get(f"{RECORDINGS}/{recording.recording_id}").json() for _ in range(2)]
    assert ["mediaUri" in body for body in bodies] == [False, True]


def test_a_tag_of_someone_else_that_a_client_drops_is_seen() -> None:
    state = state_under(fault(FaultKind.TAG_OVERWRITTEN))
    state.add(kept := chat(1))
    state.add(lost := chat(2))
    ours = {"key": "compliance_status", "value": "VIOLATION_DETECTED"}
    with api_of(state) as api:
        for recording, keep in ((kept, True), (lost, False)):
            path = f"{RECORDINGS}/{recording.recording_id}"
            theirs = api.get(path).json()["tags"]
            assert theirs
            api.patch(path, json={"tags": [*(theirs if keep else []), ours]})
    seen = {row["recordingId"]: row["tagOfOthersLost"] for row in state.observed()["recordings"]}
    assert seen == {kept.recording_id: False, lost.recording_id: True}


def test_a_work_item_that_someone_deletes_can_be_made_again_without_being_double() -> None:
    state = state_under(fault(FaultKind.WORK_ITEM_DELETED))
    state.add(recording := chat())
    body = {
        "datasetId": "d",
        "record": {
            "recordingId": recording.recording_id,
            "violationType": "PCI_MID_CAPTURE",
            "assignedQueue": "q",
            "priority": "high",
            "key": "k",
        },
    }
    query = {"datasetId": "d", "key": "k"}
    with api_of(state) as api:
        assert api.post(RECORDS, json=body).status_code == 201
        assert api.get(RECORDS, params=query).json()["entities"] == []
        assert api.post(RECORDS, json=body).status_code == 201
        assert len(api.get(RECORDS, params=query).json()["entities"]) == 1
        [row] = state.observed()["recordings"]
        assert (len(row["workItems"]), row["workItemsDeleted"], row["double"]) == (1, 1, False)
        api.post(RECORDS, json=body)
    assert state.observed()["doubles"] == [recording.recording_id]


def test_the_listing_has_what_became_available_in_its_time_and_no_more(state: PlatformState, api: httpx.Client) -> None:
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    state.add(old := chat(1), available_at=now - 3 * hour)
    state.add(recent := chat(2, Kind.EMAIL_CLEAN), available_at=now - hour)
    state.add(chat(3), available_at=now + hour)
    state.add(chat(4), available_at=now - hour, known_at=now + hour)
    state.add(chat(5), available_at=now - hour, status="deleted")
    query = {"availableFrom": (now - 2 * hour).isoformat(), "availableTo": now.isoformat()}
    answer = api.get(RECORDINGS, params=query)
    check_answer("get", RECORDINGS, answer.status_code, answer.json())
    [listed] = answer.json()["entities"]
    assert (listed["id"], listed["channel"]) == (recent.recording_id, "email")
    assert httpx.get(listed["mediaUri"]).content == recent.media
    query["availableFrom"] = (now - 3 * hour).isoformat()
    assert [row["id"] for row in api.get(RECORDINGS, params=query).json()["entities"]] == [
        old.recording_id,
        recent.recording_id,
    ]
    for wrong in ({}, {**query, "availableFrom": "x"}, {**query, "pageNumber": "0"}, {**query, "availableTo": "2026"}):
        assert api.get(RECORDINGS, params=wrong).status_code == 400


def test_the_adapter_lists_all_pages_and_each_recording_once(state: PlatformState, api: httpx.Client) -> None:
    now = datetime.now(UTC)
    ids = {state.add(chat(seed), available_at=now - timedelta(minutes=1)).recording.recording_id for seed in range(230)}
    adapter = GuidePlatform(Transport(state.base_url, "compliance-service", "s3cret"))
    try:
        listed = list(adapter.list_available(now - timedelta(hours=1), now))
    finally:
        adapter.close()
    assert len(listed) == 230
    assert {event.recording_id for event in listed} == ids


def test_a_recording_that_only_a_sweep_can_find_is_listed_late_or_never() -> None:
    now = datetime.now(UTC)
    query = {"availableFrom": (now - timedelta(hours=1)).isoformat(), "availableTo": now.isoformat()}
    for kind, counts in ((FaultKind.LISTED_LATE, [0, 1]), (FaultKind.NOT_FOUND_EVER, [0, 0])):
        state = state_under(fault(kind))
        state.add(chat(), available_at=now - timedelta(minutes=1))
        with api_of(state) as api:
            assert [len(api.get(RECORDINGS, params=query).json()["entities"]) for _ in range(2)] == counts


def test_subscriptions_are_made_listed_and_changed_and_keep_their_secret(
    state: PlatformState, api: httpx.Client
) -> None:
    check_request("post", SUBSCRIPTIONS, SUBSCRIPTION)
    made = api.post(SUBSCRIPTIONS, json=SUBSCRIPTION)
    check_answer("post", SUBSCRIPTIONS, made.status_code, made.json())
    changed = api.patch(f"{SUBSCRIPTIONS}/{made.json()['id']}", json={**SUBSCRIPTION, "description": "new"})
    assert changed.status_code == 200
    listed = api.get(SUBSCRIPTIONS)
    check_answer("get", SUBSCRIPTIONS, listed.status_code, listed.json())
    [entity] = listed.json()["entities"]
    assert (entity["id"], entity["description"]) == (made.json()["id"], "new")
    assert "hidden" not in listed.text + made.text + changed.text
    assert state.subscriptions[0]["destination"]["authentication"]["clientSecret"] == "hidden"
    assert api.patch(f"{SUBSCRIPTIONS}/unknown", json=SUBSCRIPTION).status_code == 404


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "x"},
        {**SUBSCRIPTION, "event": "recording:else"},
        {**SUBSCRIPTION, "eventData": {"include": ["ssn"]}},
        {**SUBSCRIPTION, "destination": {"type": "webhook"}},
        {**SUBSCRIPTION, "retryPolicy": {"maxRetries": 3}},
    ],
)
def test_a_subscription_that_is_not_as_the_guide_prints_it_is_400(
    state: PlatformState, api: httpx.Client, wrong: dict[str, Any]
) -> None:
    refused = api.post(SUBSCRIPTIONS, json=wrong)
    assert refused.status_code == 400
    assert not state.subscriptions


def test_flows_are_made_once_found_by_name_and_replaced(state: PlatformState, api: httpx.Client) -> None:
    check_request("post", FLOWS, FLOW)
    made = api.post(FLOWS, json=FLOW)
    check_answer("post", FLOWS, made.status_code, made.json())
    assert api.post(FLOWS, json=FLOW).status_code == 409
    [found] = api.get(FLOWS, params={"name": FLOW["name"]}).json()["entities"]
    assert found == made.json()
    assert api.get(FLOWS, params={"name": "else"}).json()["entities"] == []
    replaced = api.put(f"{FLOWS}/{found['id']}", json={**FLOW, "description": "new"})
    assert replaced.json() == {**FLOW, "description": "new", "id": found["id"]}
    for wrong in ({**FLOW, "blocks": [{"id": "x"}]}, {**FLOW, "transitions": [{"from": "a"}]}, {"name": "x"}):
        assert api.put(f"{FLOWS}/{found['id']}", json=wrong).status_code == 400
    assert state.flows == [replaced.json()]


def test_the_metric_counts_deliveries_that_were_given_up(state: PlatformState, api: httpx.Client) -> None:
    since = datetime.now(UTC) - timedelta(minutes=5)
    for _ in range(2):
        state.saw("delivery failed")
    state.saw("delivery retried")
    state.delivery_failures.append(since - timedelta(hours=1))
    answer = api.get(METRIC, params={"since": since.isoformat()})
    check_answer("get", METRIC, answer.status_code, answer.json())
    assert (answer.json()["metric"], answer.json()["total"]) == ("eventsub:deliveryFailure", 2)
    assert sum(entity["count"] for entity in answer.json()["entities"]) == 2
