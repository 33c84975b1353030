"""The sandbox's cloud profile driven by the vendor's own client, so that our client and our simulator can't share one
misreading. What our client does is tested in `platforms`."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest

from compliance_pipeline.sandbox.calls import Kind, SyntheticRecording, make_recording
from compliance_pipeline.sandbox.cloud_state import CloudState, cloud_state
from compliance_pipeline.sandbox.platform import Held, PlatformState
from compliance_pipeline_tests.contract.recorder import Recorder, conforming_sandbox

sdk: ModuleType = pytest.importorskip(
    "PureCloudPlatformClientV2",
    reason="the vendor's client (172 MB) is not installed; `uv pip install PureCloudPlatformClientV2` enables this",
)

CLIENT = ("compliance-service", "client-secret-canary-5e3a")
ENDED = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
KEY = "rec-1/PCI-DTMF/create_work_item"


class Org:
    """The sandbox as an org: a call and a chat on it, and the vendor's client signed in."""

    def __init__(self, state: PlatformState, recorder: Recorder, calls: list[SyntheticRecording]) -> None:
        self.state, self.recorder = state, recorder
        self.voice, self.chat = (
            state.add(one, available_at=one.end_time, known_at=one.start_time, conversation_id=None) for one in calls
        )
        self.client = sdk.api_client.ApiClient(host=recorder.url).get_client_credentials_token(*CLIENT)

    @property
    def cloud(self) -> CloudState:
        return cloud_state(self.state)

    def api(self, name: str) -> Any:
        return getattr(sdk, name)(self.client)


@pytest.fixture(scope="module")
def calls() -> list[SyntheticRecording]:
    return [make_recording(11, kind, ended_at=ENDED) for kind in (Kind.VOICE_NO_NOTICE, Kind.CHAT_CLEAN)]


@pytest.fixture
def org(calls: list[SyntheticRecording]) -> Iterator[Org]:
    state = PlatformState(*CLIENT, profile="cloud")
    cloud_state(state).analytics_lag_s = 0
    with conforming_sandbox(state) as recorder:
        yield Org(state, recorder, calls)


def test_signing_in_with_wrong_credentials_is_an_error_of_the_vendors_client(org: Org) -> None:
    with pytest.raises(sdk.rest.ApiException) as caught:
        sdk.api_client.ApiClient(host=org.recorder.url).get_client_credentials_token(CLIENT[0], "wrong")
    assert caught.value.status in (400, 401)


def test_a_token_that_was_revoked_is_an_error_with_the_platforms_code(org: Org) -> None:
    org.state.expire_tokens()
    with pytest.raises(sdk.rest.ApiException) as caught:
        org.api("RecordingApi").get_conversation_recordingmetadata(org.voice.conversation_id)
    assert caught.value.status == 401


def test_the_recordings_of_a_conversation_are_listed_with_media_to_play(org: Org) -> None:
    (recording,) = org.api("RecordingApi").get_conversation_recordings(org.voice.conversation_id, format_id="WAV")
    assert recording.id == org.voice.recording.recording_id
    assert recording.conversation_id == org.voice.conversation_id
    assert (recording.media, recording.file_state) == ("audio", "AVAILABLE")
    assert [result.media_uri for result in recording.media_uris.values()]


def test_one_recording_and_its_metadata_agree(org: Org) -> None:
    api, ids = org.api("RecordingApi"), (org.voice.conversation_id, org.voice.recording.recording_id)
    recording, metadata = (
        api.get_conversation_recording(*ids),
        api.get_conversation_recordingmetadata_recording_id(*ids),
    )
    (listed,) = api.get_conversation_recordingmetadata(org.voice.conversation_id)
    for name in ("id", "conversation_id", "start_time", "end_time", "media", "file_state", "session_id"):
        assert getattr(recording, name) == getattr(metadata, name) == getattr(listed, name)
    started = datetime.fromisoformat(metadata.start_time)
    assert abs(started - org.voice.recording.start_time) < timedelta(milliseconds=1)


def test_the_words_of_a_chat_come_with_its_recording(org: Org) -> None:
    (recording,) = org.api("RecordingApi").get_conversation_recordings(org.chat.conversation_id)
    words = recording.transcript or recording.messaging_transcript
    assert [message.body if recording.transcript else message.message_text for message in words]


def test_a_recording_that_is_still_being_transcoded_is_an_empty_list_to_the_vendors_client(
    org: Org, calls: list[SyntheticRecording]
) -> None:
    """As measured against what is published: it turns the empty 202 into nothing, and can't tell the two apart."""
    late = org.state.add(
        make_recording(12, Kind.VOICE_CLEAN, ended_at=ENDED), available_at=datetime.now(UTC) + timedelta(hours=1)
    )
    recordings = org.api("RecordingApi").get_conversation_recordings(late.conversation_id, max_wait_ms=1)
    assert not recordings
    assert org.recorder.seen["GET", "/api/v2/conversations/{conversationId}/recordings", 202] == 1


def test_an_unknown_conversation_is_404_with_the_platforms_error_body(org: Org) -> None:
    with pytest.raises(sdk.rest.ApiException) as caught:
        org.api("RecordingApi").get_conversation_recordingmetadata("00000000-0000-4000-8000-000000000000")
    assert caught.value.status == 404
    assert '"contextId"' in caught.value.body


def test_an_annotation_is_added_and_read_back(org: Org) -> None:
    api, ids = org.api("RecordingApi"), (org.voice.conversation_id, org.voice.recording.recording_id)
    note = sdk.Annotation()
    note.type, note.location, note.duration_ms, note.description = "bookmark", 12500, 1000, "compliance_status=OK"
    made = api.post_conversation_recording_annotations(*ids, note)
    (found,) = api.get_conversation_recording_annotations(*ids)
    assert (found.id, found.location, found.duration_ms) == (made.id, 12500, 1000)
    assert found.description == "compliance_status=OK"


def test_the_external_tag_of_a_conversation_is_set_and_read_back(org: Org) -> None:
    api, update = org.api("ConversationsApi"), sdk.ConversationTagsUpdate()
    update.external_tag = "compliance:VIOLATION_DETECTED"
    api.put_conversation_tags(org.voice.conversation_id, update)
    conversation = api.get_conversation(org.voice.conversation_id)
    assert conversation.external_tag == "compliance:VIOLATION_DETECTED"
    assert {party.purpose for party in conversation.participants} >= {"agent", "customer"}


def test_deletion_is_protected_against_and_what_failed_is_told(org: Org) -> None:
    body = sdk.ConversationDeletionProtectionQuery()
    body.conversation_ids = [org.voice.conversation_id, "00000000-0000-4000-8000-000000000000"]
    result = org.api("RecordingApi").put_recordings_deletionprotection(protect=True, body=body)
    (failed,) = result.failed_updates
    assert failed.conversation.id == "00000000-0000-4000-8000-000000000000"
    assert org.cloud.protected == {org.voice.conversation_id}


def test_a_batch_gives_the_media_of_recordings_and_says_what_failed(org: Org) -> None:
    api, submission = org.api("RecordingApi"), sdk.BatchDownloadJobSubmission()
    submission.batch_download_request_list = [
        _batch_item(org.voice),
        _batch_item(org.chat),
        _batch_item(None),
    ]
    job = api.post_recording_batchrequests(submission)
    for _ in range(20):
        status = api.get_recording_batchrequest(job.id)
        if status.status == "Completed":
            break
        time.sleep(0.05)
    assert (status.status, status.result_count, status.error_count) == ("Completed", 3, 1)
    found = {result.recording_id: result for result in status.results if not result.error_msg}
    assert found.keys() == {org.voice.recording.recording_id, org.chat.recording.recording_id}
    assert all(result.result_url and result.content_type for result in found.values())


def _batch_item(held: Held | None) -> Any:
    item = sdk.BatchDownloadRequest()
    item.conversation_id = held.conversation_id if held else "00000000-0000-4000-8000-000000000000"
    item.recording_id = held.recording.recording_id if held else "00000000-0000-4000-8000-000000000001"
    return item


def test_queues_worktypes_and_workbins_are_found_by_name(org: Org) -> None:
    queues = org.api("RoutingApi").get_routing_queues(name="compliance_review_queue", page_size=10)
    assert {queue.name: queue.id for queue in queues.entities} == {
        "compliance_review_queue": org.cloud.queues["compliance_review_queue"]
    }
    tasks = org.api("TaskManagementApi")
    query = sdk.WorktypeQueryRequest()
    query.filters = [_equals("name", "Compliance review")]
    assert [one.id for one in tasks.post_taskmanagement_worktypes_query(query).entities] == [
        org.cloud.worktypes["Compliance review"]
    ]
    bins = sdk.WorkbinQueryRequest()
    bins.filters = [_equals("name", "Compliance")]
    assert [one.name for one in tasks.post_taskmanagement_workbins_query(bins).entities] == ["Compliance"]


def test_a_work_item_is_created_found_by_its_tag_and_read(org: Org) -> None:
    tasks, create = org.api("TaskManagementApi"), sdk.WorkitemCreate()
    create.name, create.type_id = "Compliance: PCI_MID_CAPTURE", org.cloud.worktypes["Compliance review"]
    create.queue_id, create.priority = org.cloud.queues["compliance_review_queue"], 1000
    create.external_tag, create.date_due = KEY, ENDED + timedelta(days=1)
    made = tasks.post_taskmanagement_workitems(create)
    query = sdk.WorkitemQueryPostRequest()
    query.filters = [_equals("typeId", create.type_id), _equals("externalTag", KEY)]
    (found,) = tasks.post_taskmanagement_workitems_query(query).entities
    read = tasks.get_taskmanagement_workitem(made.id)
    assert found.id == made.id == read.id
    assert (read.external_tag, read.priority, read.status_category) == (KEY, 1000, "Open")
    assert (read.queue.id, read.type.id, read.date_due) == (create.queue_id, create.type_id, create.date_due)


def test_a_work_item_of_an_unknown_type_is_refused(org: Org) -> None:
    create = sdk.WorkitemCreate()
    create.name, create.type_id = "Compliance", "00000000-0000-4000-8000-000000000000"
    with pytest.raises(sdk.rest.ApiException) as caught:
        org.api("TaskManagementApi").post_taskmanagement_workitems(create)
    assert 400 <= caught.value.status < 500


def _equals(name: str, value: str) -> Any:
    one = sdk.WorkitemFilter()
    one.name, one.type, one.operator, one.values = name, "String", "EQ", [value]
    return one


def test_a_callback_is_made_and_analytics_finds_it_by_its_user_name(org: Org) -> None:
    command = sdk.CreateCallbackCommand()
    command.callback_numbers, command.queue_id = ["+13175550199"], org.cloud.queues["supervisor_callback_queue"]
    command.callback_user_name, command.data = "Compliance PCI-DTMF", {"key": KEY}
    command.callback_scheduled_time = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    made = org.api("ConversationsApi").post_conversations_callbacks(command)
    query = _details(datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(hours=1))
    query.segment_filters = [_segment("mediaType", "callback")]
    (found,) = org.api("AnalyticsApi").post_analytics_conversations_details_query(query).conversations
    (party,) = found.participants
    assert found.conversation_id == made.conversation.id
    assert [session.callback_user_name for session in party.sessions] == ["Compliance PCI-DTMF"]


def test_the_sweep_finds_what_ended_and_past_the_last_page_nothing(org: Org) -> None:
    analytics, query = org.api("AnalyticsApi"), _details(ENDED - timedelta(hours=1), ENDED + timedelta(hours=1))
    result = analytics.post_analytics_conversations_details_query(query)
    assert result.total_hits == 2
    found = {one.conversation_id: one for one in result.conversations}
    assert found.keys() == {org.voice.conversation_id, org.chat.conversation_id}
    assert all(abs(one.conversation_end - ENDED) < timedelta(milliseconds=1) for one in found.values())
    query.paging.page_number = 2
    assert not analytics.post_analytics_conversations_details_query(query).conversations


def _details(since: datetime, until: datetime) -> Any:
    query = sdk.ConversationQuery()
    query.interval = f"{since:%Y-%m-%dT%H:%M:%S.000Z}/{until:%Y-%m-%dT%H:%M:%S.000Z}"
    query.order, query.order_by, query.paging = "asc", "conversationStart", sdk.PagingSpec()
    query.paging.page_size, query.paging.page_number = 100, 1
    return query


def _segment(dimension: str, value: str) -> Any:
    predicate, kind = sdk.SegmentDetailQueryPredicate(), sdk.SegmentDetailQueryFilter()
    predicate.type, predicate.dimension, predicate.operator, predicate.value = "dimension", dimension, "matches", value
    kind.type, kind.predicates = "and", [predicate]
    return kind


def test_the_transcript_of_a_call_has_a_url(org: Org) -> None:
    (recording,) = org.api("RecordingApi").get_conversation_recordings(org.voice.conversation_id)
    api = org.api("SpeechTextAnalyticsApi")
    told = api.get_speechandtextanalytics_conversation_communication_transcripturl(
        org.voice.conversation_id, recording.session_id
    )
    assert told.url.startswith(org.recorder.url)


def test_a_trigger_is_made_changed_and_listed(org: Org) -> None:
    api, create = org.api("ProcessAutomationApi"), sdk.CreateTriggerRequest()
    create.name, create.topic_name, create.enabled = (
        "compliance",
        "v2.detail.events.conversation.{id}.customer.end",
        True,
    )
    create.target = sdk.TriggerTarget()
    create.target.type, create.target.id = "Workflow", _published_flow(org)
    made = api.post_processautomation_triggers(create)
    change = sdk.UpdateTriggerRequest()
    change.name, change.topic_name, change.target = create.name, create.topic_name, create.target
    change.enabled, change.version = False, made.version
    changed = api.put_processautomation_trigger(made.id, change)
    assert (changed.enabled, changed.version > made.version) == (False, True)
    listed = api.get_processautomation_triggers(topic_name=create.topic_name)
    assert [(one.id, one.enabled) for one in listed.entities] == [(made.id, False)]


def _published_flow(org: Org) -> str:
    """Through a flow job: the vendor's client registers it and asks for its state; the file goes to a signed URL."""
    import httpx

    api = org.api("ArchitectApi")
    job = api.post_flows_jobs()
    yaml = "workflow:\n  name: compliance\n  division: Home\n  startUpRef: ./workflow/states/state[Initial_10]\n"
    httpx.put(job.presigned_url, headers=job.headers or {}, content=yaml.encode()).raise_for_status()
    for _ in range(50):
        state = api.get_flows_job(job.id, expand=["messages"])
        if state.status in ("Success", "Failure"):
            break
        time.sleep(0.05)
    assert state.status == "Success", state.messages
    flows = api.get_flows(name="compliance")
    assert [flow.name for flow in flows.entities] == ["compliance"]
    flow_id: str = flows.entities[0].id
    return flow_id


def test_what_was_done_is_in_the_audit_log(org: Org) -> None:
    update, query = sdk.ConversationTagsUpdate(), sdk.AuditRealtimeQueryRequest()
    update.external_tag = "x"
    org.api("ConversationsApi").put_conversation_tags(org.voice.conversation_id, update)
    now = datetime.now(UTC)
    query.interval = f"{now - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}/{now + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
    query.service_name = "ContactCenter"
    found = org.api("AuditApi").post_audits_query_realtime(query)
    assert org.voice.conversation_id in [entry.entity.id for entry in found.entities]


def test_the_client_is_told_what_it_may_do(org: Org) -> None:
    assert org.api("TokensApi").get_tokens_me().o_auth_client.id
    subject = org.api("AuthorizationApi").get_authorization_subjects_me(include_full_roles=True)
    policies = [policy for grant in subject.grants for policy in grant.role.policies]
    assert ("recording", "recording") in [(policy.domain, policy.entity_name) for policy in policies]
