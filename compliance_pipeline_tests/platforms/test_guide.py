import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compliance_pipeline.contracts.work_item import SupervisorCallback, WorkItem
from compliance_pipeline.database import connect
from compliance_pipeline.platforms.guide import CALLBACKS, RECORDS, GuidePlatform
from compliance_pipeline.platforms.port import Gone, Media, NotYet, Platform, PlatformError, Ready, Unavailable
from compliance_pipeline.platforms.profiles import platform_of
from compliance_pipeline.platforms.transport import Transport
from compliance_pipeline.sandbox.calls import Kind, SyntheticRecording, make_recording
from compliance_pipeline.sandbox.platform import PlatformState, serve
from compliance_pipeline.settings import Settings
from compliance_pipeline_tests.platforms.loopback import Asked, GuideServer, Reply, no, ok

pytestmark = pytest.mark.usefixtures("by_the_contract")

PATH = "/api/v2/recordings/rec-1"
ITEM = WorkItem(
    key="rec-1/PCI-DTMF/create_work_item",
    recording_id="rec-1",
    violation_type="PCI_MID_CAPTURE",
    queue="compliance_review_queue",
    priority="high",
    summary="PCI-DTMF at 12.5 s: 411111******1111",
)
CALLBACK = SupervisorCallback(
    key="rec-1/PCI-DTMF/supervisor_callback",
    recording_id="rec-1",
    queue="supervisor_callback_queue",
    scheduled_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    reason="PCI-DTMF",
)
Create = Callable[[GuidePlatform], str]
CREATES = pytest.mark.parametrize(
    ("path", "kind", "create"),
    [
        (RECORDS, "records", lambda platform: platform.open_work_item(ITEM)),
        (CALLBACKS, "callbacks", lambda platform: platform.request_callback(CALLBACK)),
    ],
    ids=["work item", "callback"],
)


@pytest.fixture
def platform(transport: Transport) -> GuidePlatform:
    return GuidePlatform(transport)


# --- locate


def test_an_available_recording_with_media_is_ready(server: GuideServer, platform: GuidePlatform) -> None:
    server.recordings["rec-1"] = {"id": "rec-1", "status": "Available", "mediaUri": "http://m/x?sig=1", "new": [1]}
    assert platform.locate("rec-1") == Ready(Media("http://m/x?sig=1"))


def test_a_call_says_where_its_transcript_lies_and_who_is_on_which_channel(
    server: GuideServer, platform: GuidePlatform
) -> None:
    server.recordings["rec-1"] = {
        "id": "rec-1",
        "status": "available",
        "mediaUri": "http://m/x",
        "transcriptUri": "http://m/t?sig=1",
        "channels": ["Agent", "external"],
    }
    assert platform.locate("rec-1") == Ready(Media("http://m/x"), Media("http://m/t?sig=1"), ("agent", "customer"))


@pytest.mark.parametrize("channels", [None, [], ["agent", "Jane Roe"], [""]])
def test_channels_that_are_no_roles_and_an_empty_transcript_are_none(
    server: GuideServer, platform: GuidePlatform, channels: Any
) -> None:
    recording = {
        "id": "rec-1",
        "status": "available",
        "mediaUri": "http://m/x",
        "transcriptUri": "",
        "channels": channels,
    }
    server.recordings["rec-1"] = recording
    assert platform.locate("rec-1") == Ready(Media("http://m/x"))


@pytest.mark.parametrize("status", ["deleted", "FAILED", "Error"])
def test_a_recording_that_will_never_have_media_is_gone(
    server: GuideServer, platform: GuidePlatform, status: str
) -> None:
    server.recordings["rec-1"] = {"id": "rec-1", "status": status, "mediaUri": "http://m/x"}
    assert isinstance(platform.locate("rec-1"), Gone)


@pytest.mark.parametrize(
    "recording",
    [
        {"status": "processing", "mediaUri": "http://m/x"},
        {"status": "RESTORING"},
        {"status": "a state nobody has heard of"},
        {"status": "available"},
        {"status": "available", "mediaUri": None},
        {"status": "available", "mediaUri": ""},
    ],
)
def test_anything_else_is_not_there_yet(server: GuideServer, platform: GuidePlatform, recording: Any) -> None:
    server.recordings["rec-1"] = {"id": "rec-1", **recording}
    assert isinstance(platform.locate("rec-1"), NotYet)


def test_a_recording_that_the_platform_does_not_know_yet_is_not_there_yet(platform: GuidePlatform) -> None:
    assert isinstance(platform.locate("rec-1"), NotYet)


@pytest.mark.parametrize(
    ("answer", "field"),
    [({"id": "rec-1"}, "status"), ({"status": "available"}, "id"), ([], "the whole"), (None, "the whole")],
)
def test_a_malformed_recording_is_unavailable_and_names_the_field(
    server: GuideServer, platform: GuidePlatform, answer: Any, field: str
) -> None:
    server.plan("GET", PATH, ok(answer))
    with pytest.raises(Unavailable, match=field):
        platform.locate("rec-1")


# --- tag


def test_tags_are_merged_and_others_kept(server: GuideServer, platform: GuidePlatform) -> None:
    foreign = [
        {"key": "vip", "value": "yes"},
        {"key": "topic", "value": "billing"},
        {"key": "topic", "value": "refund"},
    ]
    server.recordings["rec-1"] = {
        "id": "rec-1",
        "status": "available",
        "tags": [*foreign, _tag("violation_type", "OLD")],
    }
    platform.tag("rec-1", {"compliance_status": "VIOLATION_DETECTED", "violation_type": "NEW"})
    assert server.recordings["rec-1"]["tags"] == [
        *foreign,
        _tag("compliance_status", "VIOLATION_DETECTED"),
        _tag("violation_type", "NEW"),
    ]
    (patch,) = server.calls("PATCH", PATH)
    assert patch.json.keys() == {"tags"}, "the guide's body has tags and nothing else"


@pytest.mark.parametrize("before", [None, []])
def test_a_recording_without_tags_can_be_tagged(server: GuideServer, platform: GuidePlatform, before: Any) -> None:
    server.recordings["rec-1"] = {"id": "rec-1", "status": "available", "tags": before}
    platform.tag("rec-1", {"a": "b"})
    assert server.recordings["rec-1"]["tags"] == [_tag("a", "b")]


TAG_KEYS = st.sampled_from(["compliance_status", "violation_type", "vip", "topic"])
TAGS = st.lists(st.builds(lambda key, value: _tag(key, value), TAG_KEYS, st.text(max_size=3)), max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=TAGS, ours=st.dictionaries(TAG_KEYS, st.text(max_size=3), max_size=3))
def test_tagging_twice_writes_once_and_loses_nothing(
    server: GuideServer, platform: GuidePlatform, before: list[dict[str, str]], ours: dict[str, str]
) -> None:
    server.asked.clear()
    server.recordings["rec-1"] = {"id": "rec-1", "status": "available", "tags": before}
    platform.tag("rec-1", ours)
    after = server.recordings["rec-1"]["tags"]
    written = len(server.calls("PATCH", PATH))
    platform.tag("rec-1", ours)
    assert len(server.calls("PATCH", PATH)) == written <= 1
    assert [tag for tag in after if tag["key"] not in ours] == [tag for tag in before if tag["key"] not in ours]
    for key, value in ours.items():
        assert [tag for tag in after if tag["key"] == key] == [_tag(key, value)]


def _tag(key: str, value: str) -> dict[str, str]:
    return {"key": key, "value": value}


# --- work items and callbacks


def test_a_work_item_is_the_guides_record_with_a_key(server: GuideServer, platform: GuidePlatform) -> None:
    assert platform.open_work_item(ITEM) == "records-1"
    (post,) = server.calls("POST", RECORDS)
    assert post.json == {
        "datasetId": "compliance_work_items_dataset",
        "record": {
            "recordingId": "rec-1",
            "violationType": "PCI_MID_CAPTURE",
            "assignedQueue": "compliance_review_queue",
            "priority": "high",
            "key": ITEM.key,
            "summary": ITEM.summary,
        },
    }
    assert post.headers["idempotency-key"] == ITEM.key


def test_a_callback_says_when_where_and_why(server: GuideServer, platform: GuidePlatform) -> None:
    assert platform.request_callback(CALLBACK) == "callbacks-1"
    (post,) = server.calls("POST", CALLBACKS)
    assert post.json == {
        "queueName": "supervisor_callback_queue",
        "callbackScheduledTime": "2026-01-02T03:04:05+00:00",
        "data": {"key": CALLBACK.key, "recordingId": "rec-1", "reason": "PCI-DTMF"},
    }


@CREATES
def test_asking_twice_creates_once(
    server: GuideServer, platform: GuidePlatform, path: str, kind: str, create: Create
) -> None:
    assert create(platform) == create(platform) == f"{kind}-1"
    assert len(server.calls("POST", path)) == 1


@CREATES
@pytest.mark.parametrize("answer", [Reply(drop=True), no(500), no(409), ok({"no": "id"}), Reply(201, b'{"id":', cut=3)])
def test_an_answer_lost_after_the_effect_leaves_exactly_one(
    server: GuideServer, platform: GuidePlatform, path: str, kind: str, create: Create, answer: Reply
) -> None:
    def stored_then_lost(asked: Asked) -> Reply:
        server.store(asked, kind)
        return answer

    server.plan("POST", path, stored_then_lost)
    assert create(platform) == f"{kind}-1"
    assert create(platform) == f"{kind}-1"
    assert len(server.stored[kind]) == 1
    assert len(server.calls("POST", path)) == 1


@CREATES
def test_an_answer_lost_before_the_effect_fails_and_the_next_try_creates_one(
    server: GuideServer, platform: GuidePlatform, path: str, kind: str, create: Create
) -> None:
    server.plan("POST", path, Reply(drop=True))
    with pytest.raises(Unavailable, match="effect is unknown"):
        create(platform)
    assert create(platform) == f"{kind}-1"
    assert len(server.stored[kind]) == 1


@CREATES
def test_a_platform_that_ignores_the_key_of_the_look_up_does_not_swallow_the_item(
    server: GuideServer, platform: GuidePlatform, path: str, kind: str, create: Create
) -> None:
    other = {"id": "foreign", "record": {"key": "other"}, "data": {"key": "other"}}
    server.plan("GET", path, ok({"entities": [other, {"id": "without a key"}]}))
    assert create(platform) == f"{kind}-1"


@CREATES
def test_nothing_is_created_while_the_look_up_fails(
    server: GuideServer, platform: GuidePlatform, path: str, kind: str, create: Create
) -> None:
    server.plan("GET", path, ok({"entities": None}))
    with pytest.raises(Unavailable, match="entities"):
        create(platform)
    assert server.calls("POST", path) == []


def test_an_error_does_not_tell_the_summary(server: GuideServer, platform: GuidePlatform) -> None:
    server.plan("POST", RECORDS, no(400))
    with pytest.raises(PlatformError) as caught:
        platform.open_work_item(ITEM)
    assert "411111" not in "".join(traceback.format_exception(caught.value))


# --- against the sandbox platform


@pytest.fixture(scope="module")
def recording() -> SyntheticRecording:
    return make_recording(7, Kind.CHAT_CLEAN, ended_at=datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[tuple[PlatformState, Platform]]:
    settings = Settings(home=tmp_path, _env_file=None)
    state = PlatformState(settings.client_id, settings.platform_client_secret)
    with serve(state) as url:
        database = connect(settings.inbox_database_url)
        platform = platform_of(settings.model_copy(update={"platform_url": url}), database)
        yield state, platform
        platform.close()
        database.dispose()


def test_the_whole_port_works_against_the_sandbox(
    sandbox: tuple[PlatformState, Platform], recording: SyntheticRecording
) -> None:
    state, platform = sandbox
    assert isinstance(platform.locate(recording.recording_id), NotYet)
    state.add(recording)
    location = platform.locate(recording.recording_id)
    assert isinstance(location, Ready)
    state.expire_tokens()
    with platform.open_media(location.media) as stream:
        assert b"".join(stream) == recording.media
        assert stream.last_modified is not None
    assert (location.transcript, location.speakers) == (None, ())
    platform.tag(recording.recording_id, {"compliance_status": "VIOLATION_DETECTED"})
    platform.tag(recording.recording_id, {"compliance_status": "VIOLATION_DETECTED"})
    state.fail_next(RECORDS, method="POST", after_effect=True)
    state.fail_next(CALLBACKS, method="POST", after_effect=True)
    item = platform.open_work_item(ITEM)
    callback = platform.request_callback(CALLBACK)
    assert [one["id"] for one in state.work_items] == [item]
    assert [one["id"] for one in state.callbacks] == [callback]
    assert state.held[recording.recording_id].tags == [_tag("compliance_status", "VIOLATION_DETECTED")]
    assert state.counts["tags written"] == 1
    assert state.counts["fault"] == 2
    assert not state.counts["bearer leaked"]


def test_the_transcript_of_a_call_comes_from_the_sandbox_without_the_bearer_token(
    sandbox: tuple[PlatformState, Platform],
) -> None:
    state, platform = sandbox
    call = make_recording(7, Kind.VOICE_NO_NOTICE, ended_at=datetime(2026, 1, 1, tzinfo=UTC))
    state.add(call)
    location = platform.locate(call.recording_id)
    assert isinstance(location, Ready)
    assert location.transcript
    assert location.speakers == ("agent", "customer")
    with platform.open_media(location.transcript) as stream:
        assert b"".join(stream) == call.transcript
        assert stream.content_type == "application/json"
    assert (state.counts["transcript fetched"], state.counts["media fetched"], state.counts["bearer leaked"]) == (
        1,
        0,
        0,
    )


def test_an_expired_url_of_the_sandbox_is_replaced_by_locating_again(
    sandbox: tuple[PlatformState, Platform], recording: SyntheticRecording
) -> None:
    state, platform = sandbox
    state.add(recording)
    state.media_ttl_s = -1
    expired = platform.locate(recording.recording_id)
    assert isinstance(expired, Ready)
    with pytest.raises(Unavailable, match="ask for a new URL"), platform.open_media(expired.media):
        pass
    state.media_ttl_s = 60
    fresh = platform.locate(recording.recording_id)
    assert isinstance(fresh, Ready)
    with platform.open_media(fresh.media) as stream:
        assert b"".join(stream) == recording.media
