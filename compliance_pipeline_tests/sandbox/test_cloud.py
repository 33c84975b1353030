"""The simulated Genesys Cloud over real HTTP: every exchange by the published contract, every fault as it is known."""

import io
import uuid
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import httpx
import jsonschema
import pytest

from compliance_pipeline.sandbox.calls import Container, Damage, Kind, SyntheticRecording, make_recording
from compliance_pipeline.sandbox.cloud import OPERATIONS, CloudState, cloud_state, permissions_of_all, routes
from compliance_pipeline.sandbox.cloud_state import id_of
from compliance_pipeline.sandbox.faults import FaultKind, FaultPlan, PlannedFault
from compliance_pipeline.sandbox.platform import Held, PlatformState, serve
from compliance_pipeline_tests.contract.conformance import check_component, check_exchange, contract

ANALYTICS = "/api/v2/analytics/conversations/details/query"
BATCHES = "/api/v2/recording/batchrequests"
CALLBACKS = "/api/v2/conversations/callbacks"
PROTECTION = "/api/v2/recordings/deletionprotection"
TRIGGERS = "/api/v2/processautomation/triggers"
WORK_ITEMS = "/api/v2/taskmanagement/workitems"
FLOW = "workflow:\n  name: Remediation\n  description: pages a supervisor\n"


class Api:
    """A client that holds every exchange against the contract."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def __call__(
        self, method: str, path: str, *, json: Any = None, wrong: bool = False, **query: Any
    ) -> httpx.Response:
        """wrong: the request is meant to break the contract; then its answer must be a 4xx with the error body."""
        answer = self.client.request(method, path, params=query, **({} if json is None else {"json": json}))
        body = answer.json() if answer.content else None
        if wrong:
            assert 400 <= answer.status_code < 500, answer.text
        else:
            asked = parse_qs(answer.request.url.query.decode(), keep_blank_values=True)
            check_exchange("cloud", method, path, asked, json, answer.status_code, body)
        if answer.status_code >= 400:
            check_component("ErrorBody", body, "cloud")
            assert set(body or ()) >= {"message", "code", "status", "contextId", "details", "errors"}
        return answer

    def get(self, path: str, **query: Any) -> Any:
        answer = self("GET", path, **query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, json: Any, **query: Any) -> Any:
        answer = self("POST", path, json=json, **query)
        assert answer.status_code < 300, answer.text
        return answer.json()


@pytest.fixture
def state() -> PlatformState:
    return PlatformState("compliance-service", "s3cret", profile="cloud")


@pytest.fixture
def cloud(state: PlatformState) -> CloudState:
    return cloud_state(state)


@pytest.fixture
def api(state: PlatformState) -> Iterator[Api]:
    with calling(state) as api:
        yield api


@pytest.fixture(scope="module")
def empty() -> Iterator[Api]:
    """Of an org in which nothing is; tests leave it so."""
    with calling(PlatformState("compliance-service", "s3cret", profile="cloud")) as api:
        yield api


@contextmanager
def calling(state: PlatformState) -> Iterator[Api]:
    with serve(state) as url:
        headers = {"Authorization": f"Bearer {state.issue_token()}"}
        with httpx.Client(base_url=url, headers=headers) as client:
            yield Api(client)


def make(kind: Kind = Kind.CHAT_CARD, seed: int = 1, **more: Any) -> SyntheticRecording:
    return make_recording(seed, kind, ended_at=more.pop("ended_at", datetime.now(UTC)), **more)


def recordings_path(held: Held) -> str:
    return f"/api/v2/conversations/{held.conversation_id}/recordings"


def one_path(held: Held) -> str:
    return f"{recordings_path(held)}/{held.recording.recording_id}"


def strike(state: PlatformState, kind: FaultKind, times: int = 1) -> None:
    state.follow(FaultPlan(faults=(PlannedFault(kind=kind, rate=1, times=times),)))


def interval(start: datetime, end: datetime) -> str:
    return f"{start.isoformat()}/{end.isoformat()}"


def around(held: Held) -> str:
    return interval(held.recording.start_time - timedelta(seconds=1), held.recording.end_time + timedelta(seconds=1))


def matching(dimension: str, value: str) -> dict[str, Any]:
    return {"type": "and", "predicates": [{"type": "dimension", "dimension": dimension, "value": value}]}


# The contract as a whole


def test_every_operation_is_one_of_the_contract_and_needs_the_permissions_that_it_says() -> None:
    paths = {
        "/".join("*" if part.startswith("{") else part for part in path.split("/")): operations
        for path, operations in contract("cloud")["paths"].items()
    }
    for path, operations in OPERATIONS.items():
        declared = paths["/".join("*" if part.startswith("{") else part for part in path.split("/"))]
        for method, operation in operations.items():
            needed = declared[method.lower()]["x-genesys-permissions"]
            assert set(operation.permissions) == set(needed["permissions"]), (method, path)
            assert len(operation.permissions) < 2 or operation.every == (needed["type"] == "ALL"), (method, path)
    assert len(routes()) == len(OPERATIONS) + 1


def test_a_missing_permission_is_named_and_one_of_several_is_enough_where_the_contract_says_any(
    api: Api, state: PlatformState, cloud: CloudState
) -> None:
    held = state.add(make(Kind.VOICE_THREAT))
    session = api.get(one_path(held))["sessionId"]
    transcript = f"/api/v2/speechandtextanalytics/conversations/{held.conversation_id}/communications/{session}"
    cloud.permissions = {"recording:screenRecording:view", "conversation:communication:view"}
    assert api.get(recordings_path(held))
    cloud.permissions = {"recording:recording:view"}
    refused = api("GET", f"{transcript}/transcripturl")
    assert (refused.status_code, refused.json()["code"]) == (403, "missing.permissions")
    assert refused.json()["message"].endswith("permission(s): speechAndTextAnalytics:data:view")
    assert api("GET", f"/api/v2/conversations/{held.conversation_id}").status_code == 403
    cloud.permissions.add("speechAndTextAnalytics:data:view")
    assert api.get(f"{transcript}/transcripturl")["url"]


def test_the_client_can_ask_what_it_may_do(api: Api, cloud: CloudState) -> None:
    def listed() -> set[str]:
        grants = api.get("/api/v2/authorization/subjects/me", includeFullRoles=True)["grants"]
        return {
            f"{policy['domain']}:{policy['entityName']}:{action}"
            for grant in grants
            for policy in grant["role"]["policies"]
            for action in policy["actions"]
        }

    assert listed() == permissions_of_all()
    cloud.permissions = {"recording:recording:view", "recording:annotation:add"}
    assert listed() == cloud.permissions
    assert "policies" not in api.get("/api/v2/authorization/subjects/me")["grants"][0]["role"]
    assert api.get("/api/v2/tokens/me")["OAuthClient"]["name"] == "compliance-service"


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", WORK_ITEMS, {"typeId": "t"}, "name"),
        ("POST", WORK_ITEMS, {"name": "Review", "typeId": "t", "severity": "high"}, "severity"),
        ("POST", WORK_ITEMS, {"name": "Review", "typeId": "t", "priority": "high"}, "priority"),
        ("POST", WORK_ITEMS, {"name": "Review", "typeId": "t", "queueId": None}, ""),
        ("POST", WORK_ITEMS, {"name": "Review", "typeId": "nobody's"}, "typeId"),
        ("POST", WORK_ITEMS, {"name": "Review", "typeId": "t", "priority": 25_000_001}, "priority"),
        ("POST", CALLBACKS, {"queueName": "supervisors", "callbackNumbers": ["+1"]}, "queueName"),
        ("POST", CALLBACKS, {"callbackNumbers": ["+1"]}, "queueId"),
        ("POST", CALLBACKS, {"callbackNumbers": ["+1"], "queueId": "q", "data": {"offset": 3}}, "data.offset"),
        ("PUT", PROTECTION, {"conversationIds": [str(uuid.uuid4())] * 101}, "conversationIds"),
        ("POST", BATCHES, {"batchDownloadRequestList": [{"recordingId": "r"}]}, "batchDownloadRequestList"),
        ("POST", ANALYTICS, {"interval": "yesterday"}, "interval"),
        ("POST", ANALYTICS, {"paging": {"pageSize": 10, "pageNumber": 1}}, "interval"),
        ("POST", TRIGGERS, {"name": "n", "enabled": True, "topicName": "t", "target": {"id": "f"}}, "target.type"),
        ("POST", "/api/v2/flows/executions", {"flow": "f"}, "flow"),
        ("POST", "/api/v2/audits/query", {"serviceName": "Quality"}, "interval"),
        ("POST", "/api/v2/usage/events/query", {"interval": "2026-01-01/2025-01-01"}, "interval"),
    ],
)
def test_a_request_that_breaks_the_contract_is_refused_with_the_field(
    empty: Api, method: str, path: str, body: Any, field: str
) -> None:
    answer = empty(method, path, json=body, wrong=True)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad.request")
    assert field in [detail["fieldName"] for detail in answer.json()["details"]]


def test_other_methods_other_types_and_unknown_things_are_refused_each_in_its_way(api: Api) -> None:
    assert api("DELETE", WORK_ITEMS, wrong=True).status_code == 405
    assert api("GET", CALLBACKS, wrong=True).status_code == 405
    form = api.client.post(WORK_ITEMS, data={"name": "Review"})
    assert form.status_code == 415
    nowhere = f"/api/v2/conversations/{uuid.uuid4()}"
    for path, code in (
        (nowhere, "conversation.not.found"),
        (f"{nowhere}/recordings", "conversation.not.found"),
        (f"{WORK_ITEMS}/{uuid.uuid4()}", "not.found"),
        (f"{BATCHES}/{uuid.uuid4()}", "not.found"),
        (f"/api/v2/audits/query/{uuid.uuid4()}/results", "not.found"),
    ):
        answer = api("GET", path)
        assert (answer.status_code, answer.json()["code"]) == (404, code)


# Conversations and recordings


def test_a_conversation_shows_raw_parties_and_holds_one_external_tag(api: Api, state: PlatformState) -> None:
    held = state.add(make(Kind.VOICE_TONES))
    path = f"/api/v2/conversations/{held.conversation_id}"
    before = api.get(path)
    customer, agent = before["participants"]
    assert (customer["purpose"], agent["purpose"]) == ("customer", "agent")
    assert held.recording.participants[-1]["ani"] in customer["ani"]
    assert customer["calls"][0]["id"] == api.get(one_path(held))["sessionId"]
    assert "externalTag" not in before
    assert api("PUT", f"{path}/tags", json={"externalTag": "compliance:flagged"}).status_code == 204
    assert api.get(path)["externalTag"] == "compliance:flagged"


def test_a_call_is_listed_with_a_playable_file_of_both_channels_and_its_transcript(
    api: Api, state: PlatformState
) -> None:
    held = state.add(make(Kind.VOICE_THREAT))
    (listed,) = api.get(recordings_path(held), formatId="WAV", maxWaitMs=5000)
    assert (listed["id"], listed["media"], listed["fileState"]) == (held.recording.recording_id, "audio", "AVAILABLE")
    assert datetime.fromisoformat(listed["startTime"]) == held.recording.start_time.replace(
        microsecond=held.recording.start_time.microsecond // 1000 * 1000
    )
    ((key, media),) = listed["mediaUris"].items()
    assert key == "S"
    assert httpx.get(media["mediaUri"]).content == held.recording.media
    url = api.get(
        f"/api/v2/speechandtextanalytics/conversations/{held.conversation_id}"
        f"/communications/{listed['sessionId']}/transcripturl"
    )["url"]
    assert httpx.get(url).content == held.recording.transcript
    (metadata,) = api.get(f"/api/v2/conversations/{held.conversation_id}/recordingmetadata")
    assert metadata == api.get(
        f"/api/v2/conversations/{held.conversation_id}/recordingmetadata/{held.recording.recording_id}"
    )
    assert "mediaUris" not in metadata


def test_chats_messages_and_e_mails_come_inline_with_every_word(api: Api, state: PlatformState) -> None:
    seen = set()
    for seed in range(6):
        held = state.add(make(Kind.CHAT_CARD, seed))
        (listed,) = api.get(recordings_path(held))
        seen.add(listed["media"])
        assert listed["mediaUris"] is None
        if listed["media"] == "chat":
            text = "\n".join(message["body"] for message in listed["transcript"])
        else:
            text = "\n".join(message["messageText"] for message in listed["messagingTranscript"])
        assert any(value in text for value in held.recording.planted)
    assert seen == {"chat", "messaging"}
    held = state.add(make(Kind.EMAIL_CARD))
    (listed,) = api.get(recordings_path(held))
    (mail,) = listed["emailTranscript"]
    assert any(value in mail["textBody"] for value in held.recording.planted)
    assert mail["from"]["email"] == held.recording.participants[-1]["email"]
    eml = api.get(one_path(held), emailFormatId="EML")["mediaUris"]["0"]["mediaUri"]
    assert httpx.get(eml).content == held.recording.media


def test_a_recording_of_which_no_party_is_known_can_be_read(api: Api, state: PlatformState) -> None:
    for kind in (Kind.VOICE_CLEAN, Kind.EMAIL_CLEAN):
        held = state.add(replace(make(kind), participants=()))
        assert len(api.get(recordings_path(held))) == 1
        assert api.get(f"/api/v2/conversations/{held.conversation_id}")["participants"][1]["userId"] == ""
    (mail,) = api.get(one_path(held))["emailTranscript"]
    bare = replace(held.recording, recording_id=str(uuid.uuid4()), media=b"Subject: hello\n\nhello\n")
    (short,) = api.get(one_path(state.add(bare)))["emailTranscript"]
    assert short["textBody"] == "hello\n"
    assert short["id"] not in ("", mail["id"])


def test_a_listing_waits_for_transcoding_as_long_as_asked_and_then_says_202_without_a_body(
    api: Api, state: PlatformState
) -> None:
    held = state.add(make(), available_at=datetime.now(UTC) + timedelta(minutes=1))
    early = api("GET", recordings_path(held), maxWaitMs=1)
    assert (early.status_code, early.content) == (202, b"")
    one = api("GET", one_path(held))
    assert (one.status_code, one.json()["mediaUris"]) == (202, None)
    assert one.json()["estimatedTranscodeTimeMs"] > 0
    held.available_at = datetime.now(UTC) + timedelta(seconds=0.3)
    assert len(api.get(recordings_path(held), maxWaitMs=5000)) == 1
    assert datetime.now(UTC) > held.available_at
    assert api("GET", recordings_path(held), maxWaitMs=0, wrong=True).status_code == 400
    assert api("GET", recordings_path(held), formatId="FLAC", wrong=True).status_code == 400


def test_annotations_are_kept_and_become_the_tags_that_the_sandbox_shows(
    api: Api, state: PlatformState, cloud: CloudState
) -> None:
    held = state.add(make(Kind.VOICE_TONES))
    annotation = {
        "type": "bookmark",
        "location": 4200,
        "durationMs": 900,
        "description": "compliance_status=flagged; violation_type=PCI_DTMF_CAPTURE",
    }
    made = api.post(f"{one_path(held)}/annotations", annotation)
    assert made.items() >= annotation.items()
    assert api.get(f"{one_path(held)}/annotations") == [made]
    (seen,) = state.observed()["recordings"]
    assert seen["tags"] == {"compliance_status": "flagged", "violation_type": "PCI_DTMF_CAPTURE"}
    assert seen["taggedAt"]
    assert seen["seen"]["tags written"] == 1
    assert api("POST", f"{one_path(held)}/annotations", json={"location": -1}).status_code == 400
    cloud.permissions = permissions_of_all() - {"recording:annotation:view"}
    assert api.get(one_path(held))["annotations"] == []


def test_retention_can_be_set_and_an_archived_recording_brought_back(
    api: Api, state: PlatformState, cloud: CloudState
) -> None:
    strike(state, FaultKind.ARCHIVED)
    held = state.add(make(Kind.VOICE_TONES))
    before = api.get(one_path(held))
    assert (before["fileState"], before["mediaUris"], before["startTime"]) == ("ARCHIVED", None, None)
    change = {"archiveDate": "2027-01-01T00:00:00.000Z", "deleteDate": "2028-01-01T00:00:00.000Z"}
    changed = api("PUT", one_path(held), json=change)
    assert changed.json().items() >= change.items()
    assert changed.json()["fileState"] == "RESTORING"
    cloud.restored[held.recording.recording_id] -= timedelta(seconds=2)
    restored = api.get(one_path(held))
    assert (restored["fileState"], list(restored["mediaUris"])) == ("RESTORED", ["S"])


def test_what_is_due_to_be_deleted_is_deleted_unless_its_conversation_is_protected(
    api: Api, state: PlatformState, cloud: CloudState
) -> None:
    held = state.add(make(Kind.VOICE_TONES))
    cloud.protected.add(held.conversation_id)
    api("PUT", one_path(held), json={"deleteDate": "2099-01-01T00:00:00.000Z"})
    assert api.get(one_path(held))["fileState"] == "AVAILABLE"
    due = api("PUT", one_path(held), json={"deleteDate": "2026-01-01T00:00:00.000Z"})
    assert due.json()["fileState"] == "AVAILABLE"
    cloud.protected.clear()
    assert api.get(one_path(held))["fileState"] == "DELETED"


def test_retention_is_changed_only_with_the_permission_for_it(
    api: Api, state: PlatformState, cloud: CloudState
) -> None:
    held = state.add(make(Kind.VOICE_TONES))
    cloud.permissions = permissions_of_all() - {"recording:recording:editRetention", "recording:recording:restore"}
    assert api("PUT", one_path(held), json={"deleteDate": "2026-01-01T00:00:00.000Z"}).status_code == 403
    assert api.get(one_path(held))["fileState"] == "AVAILABLE"


def test_an_archive_date_that_stays_as_it_is_brings_nothing_back(
    api: Api, state: PlatformState, cloud: CloudState
) -> None:
    strike(state, FaultKind.ARCHIVED)
    held = state.add(make(Kind.VOICE_TONES))
    until = "2027-01-01T00:00:00.000Z"
    cloud.retention[held.recording.recording_id] = {"archiveDate": until}
    kept = api("PUT", one_path(held), json={"archiveDate": until, "deleteDate": "2099-01-01T00:00:00.000Z"})
    assert kept.json()["fileState"] == "ARCHIVED"


def test_conversations_can_be_protected_and_only_with_the_permission_for_it(
    api: Api, state: PlatformState, cloud: CloudState
) -> None:
    held, unknown = state.add(make()), str(uuid.uuid4())
    answer = api("PUT", PROTECTION, json={"conversationIds": [held.conversation_id, unknown]}, protect=True)
    (failed,) = answer.json()["failedUpdates"]
    assert failed["conversation"]["id"] == unknown
    assert cloud.protected == {held.conversation_id}
    cloud.permissions = {"recording:deletionProtection:apply"}
    revoke = api("PUT", PROTECTION, json={"conversationIds": [held.conversation_id]}, protect=False)
    assert revoke.status_code == 403
    cloud.permissions = {"recording:deletionProtection:revoke"}
    api("PUT", PROTECTION, json={"conversationIds": [held.conversation_id]}, protect=False)
    assert not cloud.protected
    assert api.get("/api/v2/recording/settings")["recordingPlaybackUrlTtl"] >= 2


# Faults, by the groups of the notes


@pytest.mark.parametrize(
    ("kind", "body"), [(FaultKind.TRANSCODING_202, b""), (FaultKind.TRANSCODING_EMPTY_LIST, b"[]")]
)
def test_transcoding_answers_202_as_often_as_planned_and_then_200(
    api: Api, state: PlatformState, kind: FaultKind, body: bytes
) -> None:
    strike(state, kind, times=2)
    held = state.add(make(Kind.VOICE_TONES))
    answers = [api("GET", recordings_path(held)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 200]
    assert [answer.content for answer in answers[:2]] == [body, body]
    assert answers[2].json()[0]["mediaUris"]


def test_a_recording_can_be_listed_with_202_before_it_has_media(api: Api, state: PlatformState) -> None:
    strike(state, FaultKind.TRANSCODING_WITHOUT_URIS)
    held = state.add(make(Kind.VOICE_TONES))
    first = api("GET", recordings_path(held))
    (listed,) = first.json()
    check_component("Recording", listed, "cloud")
    assert (first.status_code, listed["mediaUris"]) == (202, None)
    assert listed["estimatedTranscodeTimeMs"] > 0
    assert api.get(recordings_path(held))[0]["mediaUris"]


def test_a_recording_is_listed_late_or_never(api: Api, state: PlatformState) -> None:
    strike(state, FaultKind.LISTED_LATE)
    late = state.add(make(seed=1))
    strike(state, FaultKind.NOT_RECORDED)
    never = state.add(make(seed=2))
    assert [len(api.get(recordings_path(late))) for _ in range(2)] == [0, 1]
    assert [len(api.get(recordings_path(never))) for _ in range(3)] == [0, 0, 0]
    assert api("GET", one_path(never)).status_code == 404
    state.follow(FaultPlan())
    early = state.add(make(seed=3), known_at=datetime.now(UTC) + timedelta(minutes=1))
    assert api.get(recordings_path(early)) == []
    early.known_at = datetime.now(UTC)
    assert len(api.get(recordings_path(early))) == 1


def test_a_conversation_is_not_found_for_now_or_ever(api: Api, state: PlatformState) -> None:
    strike(state, FaultKind.NOT_FOUND_FOR_NOW)
    passing = state.add(make(seed=1))
    strike(state, FaultKind.NOT_FOUND_EVER)
    lasting = state.add(make(seed=2))
    first = api("GET", recordings_path(passing))
    assert (first.status_code, first.json()["code"]) == (404, "conversation.not.found")
    assert len(api.get(recordings_path(passing))) == 1
    assert [api("GET", recordings_path(lasting)).status_code for _ in range(3)] == [404] * 3


@pytest.mark.parametrize(
    ("kind", "states"),
    [
        (FaultKind.UPLOADING, ["UPLOADING", "AVAILABLE", "AVAILABLE"]),
        (FaultKind.RESTORING, ["RESTORING", "AVAILABLE", "AVAILABLE"]),
        (FaultKind.ARCHIVED, ["ARCHIVED"] * 3),
        (FaultKind.DELETED, ["DELETED"] * 3),
        (FaultKind.FILE_ERROR, ["ERROR"] * 3),
    ],
)
def test_a_file_has_a_state_that_passes_or_stays_and_content_only_when_available(
    api: Api, state: PlatformState, kind: FaultKind, states: list[str]
) -> None:
    strike(state, kind)
    for of in (Kind.VOICE_TONES, Kind.CHAT_CARD):
        held = state.add(make(of))
        answers = [api.get(recordings_path(held))[0] for _ in states]
        assert [answer["fileState"] for answer in answers] == states
        for answer in answers:
            content = answer["mediaUris"] or answer.get("transcript") or answer.get("messagingTranscript")
            assert bool(content) == (answer["fileState"] == "AVAILABLE")


def test_a_file_can_have_a_state_that_the_contract_does_not_know(api: Api, state: PlatformState) -> None:
    strike(state, FaultKind.UNKNOWN_STATE)
    held = state.add(make(Kind.VOICE_TONES))
    with pytest.raises(jsonschema.ValidationError):
        api.get(recordings_path(held))
    assert api.get(recordings_path(held))[0]["fileState"] == "AVAILABLE"


def test_media_uris_are_null_for_a_while(api: Api, state: PlatformState) -> None:
    strike(state, FaultKind.MEDIA_URIS_NULL, times=2)
    held = state.add(make(Kind.VOICE_TONES))
    assert [bool(api.get(recordings_path(held))[0]["mediaUris"]) for _ in range(3)] == [False, False, True]


def test_a_whole_two_channel_wav_can_come_as_a_file_for_each_channel_and_nothing_else_does(
    api: Api, state: PlatformState
) -> None:
    strike(state, FaultKind.CHANNEL_FILES)
    wav = state.add(make(Kind.VOICE_TONES, 1))
    mp3 = state.add(make(Kind.VOICE_TONES, 2, container=Container.MP3))
    broken = state.add(make(Kind.VOICE_TONES, 3, damage=Damage.TRUNCATED))
    uris = api.get(recordings_path(wav))[0]["mediaUris"]
    assert list(uris) == ["0", "1"]
    files = [httpx.get(uri["mediaUri"]).content for uri in uris.values()]
    assert all(content.startswith(b"RIFF") for content in files)
    assert files[0] != files[1]
    assert [list(api.get(recordings_path(one))[0]["mediaUris"]) for one in (mp3, broken)] == [["S"], ["S"]]


def test_some_of_those_come_as_one_mono_file(api: Api, state: PlatformState) -> None:
    strike(state, FaultKind.CHANNEL_FILES)
    call = make(Kind.VOICE_TONES)
    held = [state.add(replace(call, recording_id=str(uuid.UUID(int=number)))) for number in range(12)]
    uris = [api.get(recordings_path(one))[0]["mediaUris"] for one in held]
    assert {tuple(one) for one in uris} == {("0",), ("0", "1")}
    alone = next(one for one in uris if list(one) == ["0"])
    with wave.open(io.BytesIO(httpx.get(alone["0"]["mediaUri"]).content)) as sound:
        assert sound.getnchannels() == 1
        length_s = sound.getnframes() / sound.getframerate()
    assert length_s == pytest.approx((call.end_time - call.start_time).total_seconds(), abs=0.1)


def test_a_call_can_have_a_screen_recording_and_a_lost_consult_beside_it(api: Api, state: PlatformState) -> None:
    strike(state, FaultKind.SEVERAL_RECORDINGS)
    held = state.add(make(Kind.VOICE_TONES))
    listed = api.get(recordings_path(held))
    kinds = [(one["media"], one["mediaSubtype"], one["fileState"]) for one in listed]
    assert kinds == [
        ("audio", "Trunk", "AVAILABLE"),
        ("screen", "Screen", "AVAILABLE"),
        ("audio", "Consult", "DELETED"),
    ]
    assert len({one["id"] for one in listed}) == len({one["sessionId"] for one in listed}) == 3
    for one in listed[1:]:
        alone = api.get(f"{recordings_path(held)}/{one['id']}")
        assert (alone["id"], alone["mediaSubtype"]) == (one["id"], one["mediaSubtype"])
    api.post(f"{recordings_path(held)}/{listed[1]['id']}/annotations", {"description": "compliance_status=flagged"})
    assert not held.tags
    other = state.add(make(Kind.CHAT_CARD), conversation_id=held.conversation_id)
    assert {one["id"] for one in api.get(recordings_path(held))} > {other.recording.recording_id, listed[0]["id"]}


def test_a_batch_grows_then_completes_and_what_fails_in_it_passes(api: Api, state: PlatformState) -> None:
    strike(state, FaultKind.BATCH_TROUBLE)
    troubled = [state.add(make(Kind.VOICE_TONES, seed)) for seed in range(2)]
    state.follow(FaultPlan())
    sound = [state.add(make(Kind.CHAT_CARD, seed)) for seed in range(2)]
    asked = [
        {"conversationId": held.conversation_id, "recordingId": held.recording.recording_id}
        for held in troubled + sound
    ]
    job = api.post(BATCHES, {"batchDownloadRequestList": asked})["id"]
    looks = [api.get(f"{BATCHES}/{job}") for _ in range(4)]
    assert [look["status"] for look in looks] == ["InProgress"] * 3 + ["Completed"]
    assert [look["expectedResultCount"] for look in looks] == [look["resultCount"] for look in looks] == [1, 2, 3, 4]
    assert looks[-1]["errorCount"] == 2
    failed = {result["recordingId"] for result in looks[-1]["results"] if "errorMsg" in result}
    assert failed == {held.recording.recording_id for held in troubled}
    again = api.post(BATCHES, {"batchDownloadRequestList": [{"conversationId": troubled[0].conversation_id}]})["id"]
    first, last = (api.get(f"{BATCHES}/{again}") for _ in range(2))
    assert (first["status"], first["expectedResultCount"], last["status"]) == ("InProgress", 1, "Completed")
    (result,) = last["results"]
    assert httpx.get(result["resultUrl"]).content == troubled[0].recording.media


def test_a_batch_names_each_item_that_it_has_nothing_for_and_refuses_more_than_a_hundred(
    api: Api, state: PlatformState
) -> None:
    strike(state, FaultKind.DELETED)
    deleted = state.add(make(Kind.VOICE_TONES))
    asked = [{"conversationId": deleted.conversation_id}, {"conversationId": str(uuid.uuid4())}]
    job = api.post(BATCHES, {"batchDownloadRequestList": asked})["id"]
    api.get(f"{BATCHES}/{job}")
    done = api.get(f"{BATCHES}/{job}")
    assert (done["status"], done["errorCount"], done["resultCount"]) == ("Completed", 2, 2)
    too_many = api("POST", BATCHES, json={"batchDownloadRequestList": asked * 51}, wrong=True)
    assert (too_many.status_code, too_many.json()["code"]) == (400, "batch.download.too.many.items")


def test_someone_else_takes_the_external_tag_first_and_losing_it_is_seen(api: Api, state: PlatformState) -> None:
    strike(state, FaultKind.TAG_OVERWRITTEN)
    polite, rude = state.add(make(seed=1)), state.add(make(seed=2))
    path = f"/api/v2/conversations/{polite.conversation_id}"
    foreign = api.get(path)["externalTag"]
    assert foreign.startswith("crm-case-")
    api("PUT", f"{path}/tags", json={"externalTag": f"{foreign} compliance:flagged"})
    assert api.get(path)["externalTag"] == f"{foreign} compliance:flagged"
    api("PUT", f"/api/v2/conversations/{rude.conversation_id}/tags", json={"externalTag": "compliance:flagged"})
    lost = {row["recordingId"]: row["tagOfOthersLost"] for row in state.observed()["recordings"]}
    assert lost == {polite.address: False, rude.address: True}


# Work items, callbacks, analytics


def work_item(cloud: CloudState, held: Held, **more: Any) -> dict[str, Any]:
    return {
        "name": "Review a possible PCI violation",
        "typeId": cloud.worktypes["Compliance review"],
        "queueId": cloud.queues["compliance_review_queue"],
        "workbinId": cloud.workbins["Compliance"],
        "priority": 100,
        "externalTag": f"{held.address}/pci/work_item",
        "description": "violation_type=PCI_DTMF_CAPTURE; card ending ****",
        "dateDue": "2026-12-01T00:00:00.000Z",
        "customFields": {"confidence_decimal": 0.93},
    } | more


def equal(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "type": "String", "operator": "EQ", "values": [value]}


def test_names_resolve_to_ids(api: Api, cloud: CloudState) -> None:
    (queue,) = api.get("/api/v2/routing/queues", name="Compliance_Review_Queue")["entities"]
    assert queue["id"] == cloud.queues["compliance_review_queue"]
    assert len(api.get("/api/v2/routing/queues", name="*queue")["entities"]) == 2
    assert api.get("/api/v2/routing/queues", name="nobody's")["total"] == 0
    for what, names in (("worktypes", cloud.worktypes), ("workbins", cloud.workbins)):
        name = next(iter(names))
        (found,) = api.post(f"/api/v2/taskmanagement/{what}/query", {"filters": [equal("name", name)]})["entities"]
        assert found["id"] == names[name]


def test_a_work_item_is_made_found_by_its_tag_and_shown_by_the_sandbox(
    api: Api, state: PlatformState, cloud: CloudState
) -> None:
    held = state.add(make(Kind.VOICE_TONES))
    item = work_item(cloud, held)
    made = api.post(WORK_ITEMS, item)
    assert api.get(f"{WORK_ITEMS}/{made['id']}") == made
    filters = [equal("typeId", item["typeId"]), equal("externalTag", item["externalTag"])]
    assert api.post(f"{WORK_ITEMS}/query", {"filters": filters})["entities"] == [made]
    filters[1] = equal("externalTag", "another")
    assert api.post(f"{WORK_ITEMS}/query", {"filters": filters})["entities"] == []
    (seen,) = state.observed()["recordings"]
    assert seen["workItems"] == ["PCI_DTMF_CAPTURE"]
    assert seen["seen"]["work item"] == 1


def test_work_items_are_queried_only_as_documented(api: Api, state: PlatformState, cloud: CloudState) -> None:
    held = state.add(make())
    item = work_item(cloud, held)
    made = [api.post(WORK_ITEMS, item | {"externalTag": f"{held.address}/r{at}/work_item"}) for at in range(5)]
    of_type, query = equal("typeId", item["typeId"]), f"{WORK_ITEMS}/query"
    for filters in ([], [equal("externalTag", "t")], [of_type] * 4, [of_type, equal("colour", "red")]):
        assert api("POST", query, json={"filters": filters}).status_code == 400
    assert api("POST", query, json={"filters": [of_type], "pageSize": 201}).status_code == 400
    assert api("POST", query, json={"filters": [of_type], "after": "x"}).status_code == 400
    first = api.post(query, {"filters": [of_type], "pageSize": 3})
    second = api.post(query, {"filters": [of_type], "pageSize": 3, "after": first["after"]})
    assert first["entities"] + second["entities"] == made
    assert "after" not in second
    assert api.post(query, {"filters": [of_type], "select": "Count"})["count"] == 5
    urgent = {"name": "priority", "type": "Int", "operator": "GT", "values": ["100"]}
    assert api.post(query, {"filters": [of_type, urgent]})["entities"] == []
    starting = {"name": "externalTag", "type": "String", "operator": "BEGINS_WITH", "values": [f"{held.address}/r3"]}
    assert api.post(query, {"filters": [of_type, starting]})["entities"] == [made[3]]


def test_someone_else_deletes_a_work_item_once(api: Api, state: PlatformState, cloud: CloudState) -> None:
    strike(state, FaultKind.WORK_ITEM_DELETED)
    item = work_item(cloud, state.add(make()))
    made = api.post(WORK_ITEMS, item)
    assert api("GET", f"{WORK_ITEMS}/{made['id']}").status_code == 404
    by_tag = {"filters": [equal("typeId", item["typeId"]), equal("externalTag", item["externalTag"])]}
    assert api.post(f"{WORK_ITEMS}/query", by_tag)["entities"] == []
    assert state.observed()["recordings"][0]["workItemsDeleted"] == 1
    again = api.post(WORK_ITEMS, item)
    assert api.post(f"{WORK_ITEMS}/query", by_tag)["entities"] == [again]
    assert state.observed()["doubles"] == []


def test_a_callback_is_a_conversation_that_analytics_shows_after_a_while(
    api: Api, state: PlatformState, cloud: CloudState
) -> None:
    cloud.analytics_lag_s = 60
    held = state.add(make())
    key = f"{held.address}/pci/callback"
    asked = {
        "callbackNumbers": ["+13175550123"],
        "queueId": cloud.queues["supervisor_callback_queue"],
        "callbackUserName": key,
        "callbackScheduledTime": "2026-12-01T00:00:00.000Z",
        "data": {"key": key, "reason": "PCI_DTMF_CAPTURE"},
    }
    made = api.post(CALLBACKS, asked)["conversation"]["id"]
    conversation = api.get(f"/api/v2/conversations/{made}")
    assert conversation["participants"][0]["attributes"] == asked["data"]
    assert api.get(f"/api/v2/conversations/{made}/recordings") == []
    now = datetime.now(UTC)
    query = {
        "interval": interval(now - timedelta(minutes=1), now + timedelta(minutes=1)),
        "segmentFilters": [matching("mediaType", "callback")],
    }
    assert api.post(ANALYTICS, query) == {"totalHits": 0}
    cloud.analytics_lag_s = 0
    (listed,) = api.post(ANALYTICS, query)["conversations"]
    assert listed["conversationId"] == made
    assert listed["participants"][0]["sessions"][0]["callbackUserName"] == key
    assert "conversationEnd" not in listed
    assert state.observed()["recordings"][0]["callbacks"] == 1


def test_under_a_fault_plan_a_callback_takes_a_minute_to_be_in_analytics_unless_it_is_set(
    state: PlatformState, cloud: CloudState
) -> None:
    cloud.analytics_lag_s = 0
    strike(state, FaultKind.NOT_RECORDED)
    cloud.list_callback(made := str(uuid.uuid4()), datetime.now(UTC) - timedelta(seconds=55))
    now = datetime.now(UTC)
    assert list(cloud.listed(state, now - timedelta(hours=1), now + timedelta(hours=1))) == []
    cloud.callback_lag_s = 0
    assert [one.conversation_id for one in cloud.listed(state, now - timedelta(hours=1), now)] == [made]


def test_analytics_lists_conversations_of_the_interval_page_by_page(
    api: Api, state: PlatformState, cloud: CloudState
) -> None:
    cloud.analytics_lag_s = 0
    noon = datetime(2026, 3, 4, 12, tzinfo=UTC)
    held = [state.add(make(seed=seed, ended_at=noon + timedelta(minutes=10 * seed))) for seed in range(5)]
    query = {"interval": interval(noon, noon + timedelta(minutes=35))}
    pages = [api.post(ANALYTICS, query | {"paging": {"pageSize": 3, "pageNumber": number}}) for number in (1, 2, 3)]
    assert [page["totalHits"] for page in pages] == [4, 4, 4]
    ids = [one["conversationId"] for page in pages[:2] for one in page["conversations"]]
    assert ids == [one.conversation_id for one in held[:4]]
    assert "conversations" not in pages[2]
    for wrong in ({"pageSize": 101, "pageNumber": 1}, {"pageSize": 5, "pageNumber": 0}):
        assert api("POST", ANALYTICS, json=query | {"paging": wrong}).status_code == 400
    month = interval(noon - timedelta(days=32), noon)
    assert api("POST", ANALYTICS, json={"interval": month}).status_code == 400
    tagged = query | {"conversationFilters": [matching("externalTag", "mine")]}
    assert api.post(ANALYTICS, tagged)["totalHits"] == 0
    api("PUT", f"/api/v2/conversations/{held[2].conversation_id}/tags", json={"externalTag": "mine"})
    assert [one["conversationId"] for one in api.post(ANALYTICS, tagged)["conversations"]] == [held[2].conversation_id]
    by_wrap_up = query | {"segmentFilters": [matching("wrapUpCode", "x")]}
    assert api("POST", ANALYTICS, json=by_wrap_up).status_code == 400


def test_analytics_leaves_out_what_began_on_the_day_before_the_interval(
    api: Api, state: PlatformState, cloud: CloudState
) -> None:
    cloud.analytics_lag_s = 0
    midnight = datetime(2026, 3, 5, tzinfo=UTC)
    held = state.add(make(Kind.VOICE_TONES, ended_at=midnight + timedelta(seconds=1)))
    assert held.recording.start_time < midnight
    after = midnight + timedelta(hours=1)
    assert api.post(ANALYTICS, {"interval": interval(midnight, after)})["totalHits"] == 0
    day_before = midnight - timedelta(seconds=1)
    assert api.post(ANALYTICS, {"interval": interval(day_before, after)})["totalHits"] == 1


def test_a_conversation_of_several_recordings_is_one_in_analytics_and_says_if_it_was_recorded(
    api: Api, state: PlatformState, cloud: CloudState
) -> None:
    cloud.analytics_lag_s = 0
    call = state.add(make(Kind.VOICE_TONES, ended_at=datetime.now(UTC) - timedelta(seconds=10)))
    everything = {"interval": around(call)}
    assert api.post(ANALYTICS, everything)["totalHits"] == 1
    strike(state, FaultKind.NOT_RECORDED)
    chat = make(Kind.CHAT_CARD, ended_at=call.recording.end_time + timedelta(milliseconds=500))
    state.add(chat, conversation_id=call.conversation_id)
    everything = {"interval": interval(call.recording.start_time, chat.end_time + timedelta(seconds=1))}
    (listed,) = api.post(ANALYTICS, everything)["conversations"]
    sessions = [session for party in listed["participants"] for session in party["sessions"]]
    recorded = {session["mediaType"] == "voice": session["recording"] for session in sessions}
    assert recorded == {True: True, False: False}
    state.follow(FaultPlan())
    text = state.add(make(Kind.CHAT_CARD, seed=2))
    (written,) = api.post(ANALYTICS, {"interval": around(text)})["conversations"][-1:]
    flags = {session["recording"] for party in written["participants"] for session in party["sessions"]}
    assert flags == {False}, "the flag is about sound"


# Triggers, flows, audits


def test_a_flow_is_published_through_a_job_and_a_trigger_points_at_it(api: Api, state: PlatformState) -> None:
    def publish(content: str) -> dict[str, Any]:
        job = api.post("/api/v2/flows/jobs", {})
        path = f"/api/v2/flows/jobs/{job['id']}"
        assert api.get(path)["status"] == "Registered"
        assert httpx.put(job["presignedUrl"], content=content).status_code == 403
        bearer = {"Authorization": "Bearer x"}
        assert httpx.put(job["presignedUrl"], content=content, headers=job["headers"] | bearer).status_code == 400
        assert httpx.put(job["presignedUrl"], content=content, headers=job["headers"]).status_code == 200
        assert api.get(path)["status"] == "Started"
        done: dict[str, Any] = api.get(path, expand="messages")
        return done

    assert api.client.post(
        "/api/v2/flows/jobs", content=b"null", headers={"Content-Type": "application/json"}
    ).is_success
    failed = publish("nonsense: [")
    assert (failed["status"], failed["messages"][0]["type"]) == ("Failure", "Error")
    done = publish(FLOW)
    assert done["status"] == "Success"
    assert publish(FLOW.replace("pages", "calls"))["flow"]["id"] == done["flow"]["id"]
    (flow,) = api.get("/api/v2/flows", name="Remediation", type="workflow")["entities"]
    assert (flow["id"], flow["publishedVersion"]["id"]) == (done["flow"]["id"], "2.0")
    assert state.counts["bearer leaked"] == 3
    launched = api.post("/api/v2/flows/executions", {"flowId": flow["id"], "inputData": {"recordingId": "r"}})
    assert launched["flowVersion"]["id"] == "2.0"
    assert api("POST", "/api/v2/flows/executions", json={"flowId": str(uuid.uuid4())}).status_code == 404

    topic = api.get(f"{TRIGGERS}/topics")["entities"][0]
    trigger = {
        "name": "Compliance",
        "enabled": True,
        "topicName": topic,
        "target": {
            "type": "Workflow",
            "id": flow["id"],
            "workflowTargetSettings": {"dataFormat": "TopLevelPrimitives"},
        },
        "matchCriteria": [{"jsonPath": "mediaType", "operator": "In", "values": ["VOICE"]}],
        "eventTTLSeconds": 60,
    }
    for wrong in ({"topicName": "v2.nothing"}, {"target": {"type": "Workflow", "id": str(uuid.uuid4())}}):
        assert api("POST", TRIGGERS, json=trigger | wrong).status_code == 400
    made = api.post(TRIGGERS, trigger)
    assert made.items() >= (trigger | {"version": 1}).items()
    assert api.get(TRIGGERS, topicName=topic)["entities"] == [made]
    path = f"{TRIGGERS}/{made['id']}"
    changed = api("PUT", path, json=trigger | {"version": 1, "enabled": False})
    assert (changed.json()["version"], changed.json()["enabled"]) == (2, False)
    assert api("PUT", path, json=trigger | {"version": 1}).status_code == 409
    other = api.get(f"{TRIGGERS}/topics")["entities"][1]
    assert api("PUT", path, json=trigger | {"version": 2, "topicName": other}).status_code == 400
    assert api.get(TRIGGERS, enabled=True)["entities"] == []
    assert [one["version"] for one in state.subscriptions] == [2]


def test_a_webhook_is_taken_with_202(api: Api, cloud: CloudState) -> None:
    answer = api("POST", "/api/v2/integrations/webhooks/t0ken/events", json={"verdict": "NO_VIOLATION"})
    assert answer.status_code == 202
    assert answer.json()["invocationId"]
    assert cloud.webhook_events == [("t0ken", {"verdict": "NO_VIOLATION"})]


def test_audits_tell_what_the_client_changed(api: Api, state: PlatformState) -> None:
    held = state.add(make())
    since = datetime.now(UTC) - timedelta(seconds=1)
    for at in range(3):
        api.post(f"{one_path(held)}/annotations", {"description": f"note {at}"})
    api("PUT", f"/api/v2/conversations/{held.conversation_id}/tags", json={"externalTag": "t"})
    asked = {
        "interval": interval(since, datetime.now(UTC) + timedelta(seconds=1)),
        "serviceName": "Recording",
        "filters": [{"property": "EntityType", "value": "Annotation"}],
    }
    query = api.post("/api/v2/audits/query", asked)
    path = f"/api/v2/audits/query/{query['id']}"
    assert api("GET", f"{path}/results").status_code == 400
    assert [api.get(path)["state"] for _ in range(2)] == ["Running", "Succeeded"]
    first = api.get(f"{path}/results", pageSize=2)
    second = api.get(f"{path}/results", pageSize=2, cursor=first["cursor"])
    assert [len(first["entities"]), len(second["entities"])] == [2, 1]
    assert "cursor" not in second
    now = api.post("/api/v2/audits/query/realtime", asked | {"pageSize": 10})
    assert now["entities"] == first["entities"] + second["entities"]
    long_ago = interval(since - timedelta(days=15), since)
    assert api("POST", "/api/v2/audits/query/realtime", json={"interval": long_ago}).status_code == 400


def test_operational_events_are_listed_by_interval(api: Api, cloud: CloudState) -> None:
    cloud.operational_events = [
        {"eventDefinition": {"id": id_of("event", "delivery")}, "dateCreated": f"2026-01-0{day}T00:00:00.000Z"}
        for day in (1, 2, 3)
    ]
    asked = {"interval": "2026-01-02T00:00:00/2026-01-04T00:00:00"}
    found = api.post("/api/v2/usage/events/query", asked)["entities"]
    assert found == cloud.operational_events[1:]
    newest_first = asked | {"sortOrder": "DESC"}
    assert api.post("/api/v2/usage/events/query", newest_first)["entities"] == found[::-1]
