"""Bytes to events: every form that senders use, what is refused and why, and that no personal data gets through."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from compliance_pipeline.contracts.event import Channel, Direction, EventType
from compliance_pipeline.intake.events import NotUnderstood, incoming, time_zone_of
from compliance_pipeline.intake.inbox import IncomingEvent, _payload
from compliance_pipeline.intake.tokens import Tokenizer, is_token
from compliance_pipeline_tests.intake.messages import (
    ANNOUNCING,
    CONTRACT,
    CONVERSATION,
    ENDED,
    ENVELOPE_ID,
    RECORDING,
    an_id,
    as_bytes,
    by_sns,
    conversation_ended,
    ended,
    envelope,
    export_key,
    guide_event,
    notification,
    s3_by_eventbridge,
    s3_created,
    topic,
)
from compliance_pipeline_tests.intake.samples import NOON

TOKENS = Tokenizer("key")
PHONE, EMAIL, NAME = "+1 415 555 0123", "jane.canary@example.com", "Jane Canary"
CANARY = f"{NAME} {PHONE} {EMAIL}"
RECORDING_TOPIC = f"v2.users.{an_id('user')}.conversations.{CONVERSATION}.recordings"


def read(message: Any) -> list[IncomingEvent]:
    return incoming(message if isinstance(message, bytes) else as_bytes(message), TOKENS, NOON)


def why(message: Any) -> str:
    with pytest.raises(NotUnderstood) as refused:
        read(message)
    return str(refused.value)


@pytest.mark.parametrize("event", ANNOUNCING)
@pytest.mark.parametrize("wrapped", [envelope, notification])
def test_the_end_of_a_conversation_announces_its_recordings(event: str, wrapped: Any) -> None:
    message = wrapped(topic(event), ended())
    form = "EventBridgeEnvelope" if wrapped is envelope else "NotificationMessage"
    jsonschema.validate(message, {"$ref": f"#/$defs/{form}", "$defs": CONTRACT["$defs"]})
    (found,) = read(message)
    assert (found.event.recording_id, found.event.conversation_id) == (CONVERSATION, CONVERSATION)
    assert found.event.is_conversation
    assert found.event.event is EventType.COMPLETED
    assert found.event.end_time == found.event.event_time == found.available_at == ENDED
    assert (found.event.channel, found.event.direction) == (Channel.VOICE, Direction.INBOUND)
    assert found.source == "cloud"
    assert found.correlation_id == (ENVELOPE_ID if wrapped is envelope else an_id("c"))


@pytest.mark.parametrize(
    ("media", "channel"),
    [
        ("VOICE", Channel.VOICE),
        ("CALLBACK", Channel.VOICE),
        ("CHAT", Channel.CHAT),
        ("MESSAGE", Channel.CHAT),
        ("EMAIL", Channel.EMAIL),
        ("UNKNOWN", Channel.VOICE),
        ("HOLOGRAM", Channel.VOICE),
    ],
)
def test_the_media_type_says_the_channel_and_an_unknown_one_is_still_a_hint(media: str, channel: Channel) -> None:
    assert read(conversation_ended(mediaType=media))[0].event.channel is channel


@pytest.mark.parametrize("media", ["COBROWSE", "VIDEO", "SCREENSHARE", "INTERNALMESSAGE", "SCREENMONITORING"])
def test_media_that_is_not_screened_announces_nothing(media: str) -> None:
    assert read(conversation_ended(mediaType=media)) == []


def test_every_topic_of_the_contract_is_understood() -> None:
    body = ended() | {"id": RECORDING}
    for name, schema in CONTRACT["x-topics"].items():
        found = read(envelope(name.replace("{id}", CONVERSATION), body))
        announces = any(word in name for word in (*ANNOUNCING, "recordings"))
        assert bool(found) is announces, (name, schema)


@pytest.mark.parametrize("name", [RECORDING_TOPIC, f"{RECORDING_TOPIC}.{RECORDING}", "v2.users.u.recordings"])
def test_a_topic_of_recordings_announces_the_one_it_names(name: str) -> None:
    (found,) = read(envelope(name, {"id": RECORDING, "conversationId": CONVERSATION, "fileState": "AVAILABLE"}))
    assert found.event.recording_id == f"{CONVERSATION}:{RECORDING}"
    assert found.event.conversation_id == CONVERSATION
    assert found.event.event is EventType.COMPLETED
    assert found.available_at == datetime(2026, 3, 1, 11, 59, 30, 900_000, tzinfo=UTC)


@pytest.mark.parametrize("at", [None, "soon", True, 10**400, -(10**18), {"at": 1}])
def test_a_conversation_without_a_time_counts_as_of_the_envelope(at: Any) -> None:
    (found,) = read(conversation_ended(eventTime=at))
    assert found.available_at == datetime(2026, 3, 1, 11, 59, 30, 900_000, tzinfo=UTC)


def test_an_event_of_the_future_is_available_now() -> None:
    later = int((NOON + timedelta(hours=3)).timestamp() * 1000)
    assert read(conversation_ended(eventTime=later))[0].available_at == NOON
    assert read(guide_event("rec-1", eventTime="2026-03-02T00:00:00Z"))[0].available_at == NOON


@pytest.mark.parametrize("wrapped", [s3_created, s3_by_eventbridge, lambda key: by_sns(s3_created(key))])
@pytest.mark.parametrize("suffix", [".opus", ".ogg", ".zip", ".json", "", "_part one.wav"])
def test_an_exported_recording_is_named_by_its_key(wrapped: Any, suffix: str) -> None:
    (found,) = read(wrapped(export_key(f"{RECORDING}{suffix}")))
    assert found.event.recording_id == f"{CONVERSATION}:{RECORDING}"
    assert found.event.conversation_id == CONVERSATION
    assert found.event.event is EventType.COMPLETED
    assert found.source == "cloud"
    assert found.available_at.replace(microsecond=0) == ENDED.replace(microsecond=0)


def test_one_notification_may_tell_of_many_objects_and_encode_their_keys() -> None:
    keys = [export_key(f"{an_id(number)}.opus").replace("conversation_id=", "conversation_id%3D") for number in (1, 2)]
    message = s3_created(*keys)
    for record, key in zip(message["Records"], keys, strict=True):
        record["s3"]["object"]["key"] = key
    assert [found.event.recording_id for found in read(message)] == [f"{CONVERSATION}:{an_id(n)}" for n in (1, 2)]


def test_a_key_without_a_recording_announces_the_conversation() -> None:
    assert [found.event.is_conversation for found in read(s3_created(export_key("export.zip")))] == [True]


@pytest.mark.parametrize(
    "message",
    [
        s3_created(export_key(f"{RECORDING}_metadata.json")),
        s3_by_eventbridge(export_key(f"{RECORDING}_metadata.json")),
        s3_created(export_key(f"{RECORDING}.opus"), event="ObjectRemoved:Delete"),
        s3_by_eventbridge(export_key(f"{RECORDING}.opus"), kind="Object Deleted"),
        {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "exports"},
        by_sns({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "exports"}),
    ],
)
def test_what_is_about_no_recording_is_understood_and_is_nothing(message: Any) -> None:
    assert read(message) == []


def test_the_guides_event_is_minimised_like_the_receivers() -> None:
    people = [{"id": PHONE, "purpose": "customer", "queue": f"queue of {EMAIL}", "name": NAME}]
    (found,) = read(guide_event("rec-1", participants=people, eventTime=ENDED.isoformat()))
    assert found.source == "guide"
    assert found.event.media_uri == "https://media.test/rec-1.wav"
    (person,) = found.event.participants
    assert is_token(person.id or "")
    assert is_token(person.queue or "")
    assert found.available_at == ENDED
    assert is_token(found.correlation_id)


def test_the_same_message_gets_the_same_correlation_id_and_another_key_another() -> None:
    first, again = read(guide_event("rec-1")), read(guide_event("rec-1"))
    assert first[0].correlation_id == again[0].correlation_id
    assert incoming(guide_event("rec-1"), Tokenizer("other"), NOON)[0].correlation_id != first[0].correlation_id


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "empty"),
        (b"\xff\xfe", "not JSON"),
        (b'{"recordingId": ', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        ({}, "neither a recording event"),
        ({"recordingId": "rec-1"}, "mediaUri is required"),
        ({"recordingId": "rec-1", "mediaUri": "?"}, "mediaUri: is not an address"),
        ({"recordingId": "r", "mediaUri": "h", "startTime": "0001-01-01T00:00:00+14:00"}, "before the year 1"),
        (envelope(topic(), {}), "eventBody.conversationId is missing"),
        (envelope(topic(), {"conversationId": PHONE}), "eventBody.conversationId is not a UUID"),
        (envelope(topic(), {}, detail=7), "detail is not an object"),
        ({"topicName": topic()}, "eventBody is missing"),
        ({"topicName": "channel.metadata"}, "the topic is none of Genesys Cloud's"),
        (envelope(topic("wrapup"), ended()), "unknown topic v2.detail.events.conversation.{id}.wrapup"),
        (envelope(f"v2.users.{EMAIL}.{PHONE}.presence", {}), "unknown topic v2.users."),
        (envelope(RECORDING_TOPIC, {"conversationId": CONVERSATION}), "eventBody.id is missing"),
        (s3_created("somewhere/else.wav"), "no conversation_id=… folder"),
        ({"Records": [{"eventSource": "aws:sns"}]}, "Records of another service than S3"),
        ({"Records": 5}, "Records is not a list"),
        ({"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put"}]}, "s3 is missing"),
        (by_sns({}), "neither a recording event"),
        ({"Type": "SubscriptionConfirmation", "Token": "secret"}, "an SNS SubscriptionConfirmation"),
    ],
)
def test_anything_else_is_refused_with_a_reason(message: Any, reason: str) -> None:
    assert reason in why(message)


def test_the_reason_for_an_unknown_topic_shows_no_id_and_nothing_that_could_be_data() -> None:
    shown = why(envelope(f"v2.users.{an_id('user')}.{EMAIL}.{PHONE}.{NAME}.presence", {}))
    assert shown.startswith("unknown topic v2.users.{id}.")
    assert shown.endswith(".presence")
    for canary in (an_id("user"), "canary", "Canary", "415", "0123"):
        assert canary not in shown


_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just(CONVERSATION), st.just(CANARY)
)
_KNOWN_NAMES = (
    *("recordingId", "mediaUri", "participants", "startTime", "eventTime", "event", "channel"),
    *("Records", "s3", "object", "key", "eventSource", "eventName", "Event", "Type", "Message"),
    *("source", "detail", "detail-type", "topicName", "eventBody", "conversationId", "id", "metadata"),
    *("CorrelationId", "time", "timestamp", "mediaType", "direction"),
)
_NAMES = st.one_of(st.text(max_size=8), st.sampled_from(_KNOWN_NAMES))
_VALUES = st.one_of(
    _LEAVES,
    st.sampled_from(
        [
            "aws.s3", "aws:s3", "Object Created", "ObjectCreated:Put", "Notification", "s3:TestEvent", "rec-1", topic(),
            RECORDING_TOPIC, export_key(f"{RECORDING}.opus"), "https://[media", "0001-01-01T00:00:00+14:00", "VOICE",
        ]
    ),
)  # fmt: skip
_JSON = st.recursive(
    _VALUES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_NAMES, inner, max_size=6))
)


@hypothesis_settings(max_examples=400, deadline=None)
@given(
    st.one_of(st.binary(max_size=200), _JSON.map(as_bytes), st.dictionaries(_NAMES, _JSON, max_size=8).map(as_bytes))
)
def test_any_bytes_give_events_or_not_understood(body: bytes) -> None:
    try:
        found = incoming(body, TOKENS, NOON)
    except NotUnderstood as reason:
        assert str(reason)  # noqa: PT017
    else:
        assert all(event.available_at <= NOON for event in found)


def _mutated(message: Any, draw: Any) -> Any:
    """The message with one of its values, anywhere, replaced by another."""
    if not isinstance(message, dict | list) or not message or draw(st.integers(0, 3)) == 0:
        return draw(_VALUES)
    copied = dict(message) if isinstance(message, dict) else list(message)
    place: Any = draw(st.sampled_from(sorted(copied))) if isinstance(copied, dict) else 0
    copied[place] = _mutated(copied[place], draw)
    return copied


@hypothesis_settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_known_message_with_any_value_changed_gives_events_or_not_understood(data: st.DataObject) -> None:
    messages = [
        envelope(topic(), ended()),
        notification(RECORDING_TOPIC, {"id": RECORDING, "conversationId": CONVERSATION}),
        s3_created(export_key(f"{RECORDING}.opus")),
        s3_by_eventbridge(export_key(f"{RECORDING}.opus")),
        json.loads(guide_event("rec-1", participants=[{"id": "x", "purpose": "agent"}], endTime=ENDED.isoformat())),
    ]
    message = _mutated(data.draw(st.sampled_from(messages)), data.draw)
    try:
        incoming(as_bytes(data.draw(st.sampled_from([message, by_sns(message)]))), TOKENS, NOON)
    except NotUnderstood as reason:
        assert "Canary" not in str(reason)  # noqa: PT017


def _planted(schema: dict[str, Any]) -> dict[str, Any]:
    """A body with a canary in every field that may hold one, by the contract."""
    body: dict[str, Any] = {}
    for name, kind in schema["properties"].items():
        kinds = kind.get("type", [])
        if "enum" in kind or name == "conversationId":
            continue
        if "string" in kinds:
            body[name] = CANARY
        elif "array" in kinds:
            body[name] = [CANARY]
        elif "object" in kinds:
            body[name] = {NAME: CANARY}
    return body


@pytest.mark.parametrize("event", ANNOUNCING)
def test_no_personal_data_of_any_field_is_kept(event: str) -> None:
    schema = CONTRACT["$defs"][CONTRACT["x-topics"][f"v2.detail.events.conversation.{{id}}.{event}"]]
    planted = _planted(schema)
    assert {"ani", "dnis", "addressFrom", "participantId"} <= set(planted)
    message = envelope(topic(event), planted | ended(), id=PHONE, account=CANARY, resources=[CANARY])
    message["detail"] |= {"metadata": {"CorrelationId": NAME}, "timestamp": CANARY, "version": CANARY}
    (found,) = read(message)
    kept = repr(found) + json.dumps(_payload(found.event)) + found.correlation_id
    for canary in (PHONE, EMAIL, NAME, "Canary", "5550123", "555 0123"):
        assert canary not in kept


@pytest.mark.parametrize(
    ("number", "zone"),
    [
        ("+12125550143", "America/New_York"),
        ("tel:+442079460958", "Europe/London"),
        ("+18005550143", None),  # toll-free: anywhere
        ("212 555 0143", None),  # no country said
        ("sip:agent@example.com", None),
        ("", None),
    ],
)
def test_a_number_gives_its_time_zone_only_where_it_leaves_no_doubt(number: str, zone: str | None) -> None:
    assert time_zone_of(number) == zone


def test_of_an_outbound_call_the_time_zone_is_kept_and_the_number_is_not() -> None:
    raw = {
        "recordingId": "rec-1",
        "mediaUri": "https://media.test/rec-1",
        "direction": "outbound",
        "participants": [{"id": "a", "purpose": "agent"}, {"purpose": "customer", "externalCallerId": "+12125550143"}],
    }
    [stored] = incoming(json.dumps(raw).encode(), TOKENS, NOON)
    assert stored.event.called_time_zone == "America/New_York"
    assert "2125550143" not in stored.event.model_dump_json() + repr(stored)
    [inbound] = incoming(json.dumps(raw | {"direction": "inbound"}).encode(), TOKENS, NOON)
    assert inbound.event.called_time_zone is None


@pytest.mark.parametrize(("media", "zone"), [("VOICE", "America/New_York"), ("CHAT", None), ("MESSAGE", None)])
def test_only_a_calls_number_says_where_it_rang(media: str, zone: str | None) -> None:
    body = conversation_ended(mediaType=media, direction="OUTBOUND", dnis="tel:+12125550143")
    [stored] = incoming(body, TOKENS, NOON)
    assert stored.event.called_time_zone == zone
