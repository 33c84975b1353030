"""What senders say, in our words: the bytes of a message to events that may be stored, and what must not be.

No I/O. Which queue the bytes came from is the consumer's; what becomes of an event is decided in the inbox.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from urllib.parse import unquote, unquote_plus, urlsplit, urlunsplit

from pydantic_core import from_json

from compliance_pipeline.asgi import Rejected, parsed, schema_fault
from compliance_pipeline.contracts.event import Channel, Direction, EventType, Participant, RecordingEvent
from compliance_pipeline.intake.inbox import IncomingEvent
from compliance_pipeline.intake.tokens import Tokenizer
from compliance_pipeline.platforms.canary import is_canary

GUIDE, CLOUD = "guide", "cloud"
"""Names of the platform adapters that can look up what an event announces."""

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_ID = re.compile(_UUID, re.IGNORECASE)
_CONVERSATION_TOPIC = re.compile(r"v2\.detail\.events\.conversation\.[^.]+\.(?:customer\.end|user\.end|acw)")
_RECORDING_TOPIC = re.compile(r"v2\.users\.[^.]+\.(?:conversations\.[^.]+\.)?recordings(?:\.[^.]+)?")
_OTHER_TOPIC = re.compile(
    r"v2\.(?:detail\.events\.conversation\.[^.]+\.attributes|taskmanagement\.workitems\.[^.]+"
    r"|operations\.events\.[^.]+|audits\.entitytype\.[^.]+\.entityid\.[^.]+)"
)
_CHANNELS = {
    "VOICE": Channel.VOICE,
    "CALLBACK": Channel.VOICE,
    "CHAT": Channel.CHAT,
    "MESSAGE": Channel.CHAT,
    "EMAIL": Channel.EMAIL,
}
_UNSCREENED = {"COBROWSE", "VIDEO", "SCREENSHARE", "INTERNALMESSAGE", "SCREENMONITORING"}
"""Of `mediaType` in the published event schemas: what has no recording that we screen. Anything else is a hint."""
_DIRECTIONS = {"INBOUND": Direction.INBOUND, "OUTBOUND": Direction.OUTBOUND}
_CONVERSATION_FOLDER = re.compile(rf"(?:^|/)conversation_id=({_UUID})(?:/|$)", re.IGNORECASE)
_METADATA_SUFFIX = "_metadata.json"
_WORD = re.compile(r"[a-z]{1,24}")


class NotUnderstood(Exception):
    """A message that is nothing we know. The text says why, is stored and shown, and quotes no content."""


def incoming(body: bytes, tokens: Tokenizer, now: datetime) -> list[IncomingEvent]:
    """The events in a message, minimised; none if it is understood and about nothing that is screened.

    Understood: the guide's event (step 1), Genesys Cloud's topics in an EventBridge envelope or as a notification,
    S3 'object created' of Genesys Cloud's recording export (directly, by EventBridge, or wrapped by SNS). Raises
    NotUnderstood, and nothing else.
    """
    message = _object(body)
    if message.get("Type") == "Notification" and isinstance(message.get("Message"), str):
        body = message["Message"].encode()
        message = _object(body)
    elif message.get("Type") in ("SubscriptionConfirmation", "UnsubscribeConfirmation"):
        raise NotUnderstood(f"an SNS {message['Type']}: subscribe the queue in the SNS console, then discard this")
    # Keyed: from a plain digest and what is stored, a number in the body could be guessed.
    digest = tokens.token("message", sha256(body).hexdigest())
    if "recordingId" in message:
        return [_guide_event(body, tokens, digest, now)]
    if message.get("source") == "aws.s3":
        return _bridged_object(message, digest, now)
    if "Records" in message or message.get("Event") == "s3:TestEvent":
        return _created_objects(message, digest, now)
    if "topicName" in message or "detail-type" in message:
        return _cloud_event(message, digest, now)
    raise NotUnderstood("neither a recording event, an EventBridge event, a notification nor an S3 event")


def minimise(event: RecordingEvent, tokens: Tokenizer) -> RecordingEvent:
    """The event as it may be stored: identifiers as tokens, the media address without credentials or signature.

    The guide's edge case 2: free text (a queue's name, a file's name) may hold a number or an address too. Raises
    asgi.Rejected for a media address that is none, and for an id of the form that canaries have.
    """
    if is_canary(event.recording_id):
        raise schema_fault("event", [{"field": "recordingId", "problem": "is reserved for canaries"}])
    participants = tuple(
        Participant(
            id=tokens.identifier(person.id) if person.id else None,
            purpose=person.purpose,
            queue=tokens.scrubbed("queue", person.queue) if person.queue else None,
        )
        for person in event.participants
    )
    changes: dict[str, Any] = {"participants": participants} if participants else {}
    called = [person.external_caller_id for person in event.participants if person.external_caller_id]
    outbound = event.direction is Direction.OUTBOUND and len(called) == 1
    changes["called_time_zone"] = time_zone_of(called[0]) if outbound else None  # never the sender's word
    if event.media_uri:
        changes["media_uri"] = _bare_uri(event.media_uri, event.recording_id, tokens)
    return event.model_copy(update=changes)


def time_zone_of(number: str) -> str | None:
    """IANA zone of a telephone number in international form; None where it may lie in several.

    A mobile's number says where it is from, not where it rings.
    """
    from phonenumbers import NumberParseException, parse
    from phonenumbers.timezone import UNKNOWN_TIMEZONE, time_zones_for_number

    try:
        zones = time_zones_for_number(parse(number.removeprefix("tel:"), None))
    except NumberParseException:
        return None
    return zones[0] if len(zones) == 1 and zones[0] != UNKNOWN_TIMEZONE else None


def _bare_uri(uri: str, recording_id: str, tokens: Tokenizer) -> str:
    try:
        parts = urlsplit(uri)
    except ValueError:
        parts = urlsplit("")
    path = "/".join(
        piece
        if piece == recording_id
        or piece.startswith(f"{recording_id}.")
        or tokens.scrubbed("media", unquote(piece)) == unquote(piece)
        else tokens.token("media", unquote(piece))
        for piece in parts.path.split("/")
    )
    if not (bare := urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))):
        raise schema_fault("event", [{"field": "mediaUri", "problem": "is not an address"}])
    return bare


def _object(body: bytes) -> dict[str, Any]:
    try:
        message = from_json(body, allow_inf_nan=False)
    except ValueError:
        raise NotUnderstood("not JSON" if body.strip() else "empty") from None
    if not isinstance(message, dict):
        raise NotUnderstood("not a JSON object")
    return message


def _guide_event(body: bytes, tokens: Tokenizer, digest: str, now: datetime) -> IncomingEvent:
    try:
        event = minimise(parsed(RecordingEvent, body, "event"), tokens)
    except Rejected as refusal:
        raise NotUnderstood(str(refusal)) from None
    return _stored_as(event, GUIDE, digest, now)


def _cloud_event(message: Mapping[str, Any], digest: str, now: datetime) -> list[IncomingEvent]:
    """An EventBridge envelope, or the notification in it; contract: genesys_events.schema.json."""
    detail = _part(message, "detail") if "detail-type" in message else message
    topic = detail.get("topicName") or message.get("detail-type")
    if not isinstance(topic, str) or not topic.startswith("v2."):
        raise NotUnderstood("the topic is none of Genesys Cloud's (v2.…)")
    if _OTHER_TOPIC.fullmatch(topic):
        return []
    metadata = detail.get("metadata")
    named = [message.get("id"), metadata.get("CorrelationId") if isinstance(metadata, dict) else None]
    # Only a UUID is surely no name and no number.
    correlation_id = next((name for name in named if isinstance(name, str) and _ID.fullmatch(name)), digest)
    told_at = _iso_time(detail.get("timestamp")) or _iso_time(message.get("time"))
    if _CONVERSATION_TOPIC.fullmatch(topic):
        body = _part(detail, "eventBody")
        conversation_id = _id(body, "conversationId")
        media, direction = str(body.get("mediaType")), str(body.get("direction"))
        if media in _UNSCREENED:
            return []
        ended_at = _epoch_time(body.get("eventTime")) or told_at
        # Of a call only: a conversation can be a chat first, whose 'dnis' rang nowhere.
        called = body.get("dnis") if (direction, media) == ("OUTBOUND", "VOICE") else None
        said = {
            "end_time": ended_at,
            "direction": _DIRECTIONS.get(direction),
            "channel": _CHANNELS.get(media),
            "called_time_zone": time_zone_of(called) if isinstance(called, str) else None,
        }
        event = _announcement(conversation_id, None, ended_at, **said)
    elif _RECORDING_TOPIC.fullmatch(topic):
        body = _part(detail, "eventBody")
        event = _announcement(_id(body, "conversationId"), _id(body, "id"), told_at)
    else:
        raise NotUnderstood(f"unknown topic {_shown(topic)}")
    return [_stored_as(event, CLOUD, correlation_id, now)]


def _bridged_object(message: Mapping[str, Any], digest: str, now: datetime) -> list[IncomingEvent]:
    """An S3 event by EventBridge; its key is not URL-encoded, unlike in S3's own notifications."""
    if message.get("detail-type") != "Object Created":
        return []
    stored = _part(_part(message, "detail"), "object")
    return _of_object(stored.get("key"), _iso_time(message.get("time")), digest, now)


def _created_objects(message: Mapping[str, Any], digest: str, now: datetime) -> list[IncomingEvent]:
    records = message.get("Records", [])
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise NotUnderstood("Records is not a list of objects")
    events = []
    for record in records:
        if record.get("eventSource") != "aws:s3":
            raise NotUnderstood("Records of another service than S3")
        if not str(record.get("eventName")).removeprefix("s3:").startswith("ObjectCreated"):
            continue
        key = _part(_part(record, "s3"), "object").get("key")
        key = unquote_plus(key) if isinstance(key, str) else None
        events += _of_object(key, _iso_time(record.get("eventTime")), digest, now)
    return events


def _of_object(key: Any, created_at: datetime | None, digest: str, now: datetime) -> list[IncomingEvent]:
    """What a key of the export announces: {org}/year=…/month=…/day=…/hour=…/conversation_id={id}/{recording id}.{ext};
    source: Genesys Cloud Resource Center, 'Work with exported recordings in AWS S3 bucket'."""
    if not isinstance(key, str) or not (folder := _CONVERSATION_FOLDER.search(key)):
        raise NotUnderstood("the object's key has no conversation_id=… folder: not a recording export")
    name = key[folder.end() :]
    if name.endswith(_METADATA_SUFFIX):
        return []
    recording = _ID.match(name)
    event = _announcement(folder[1], recording[0] if recording else None, created_at)
    return [_stored_as(event, CLOUD, digest, now)]


def _announcement(
    conversation_id: str, recording_id: str | None, at: datetime | None, **said: object
) -> RecordingEvent:
    """A hint that the conversation has recordings, or that one is there: where its media is must be looked up."""
    conversation_id = conversation_id.lower()
    known = {name: value for name, value in {"event_time": at, **said}.items() if value is not None}
    return RecordingEvent.model_validate(
        {
            "recording_id": f"{conversation_id}:{recording_id.lower()}" if recording_id else conversation_id,
            "conversation_id": conversation_id,
            "event": EventType.COMPLETED,
            **known,
        }
    )


def _stored_as(event: RecordingEvent, source: str, correlation_id: str, now: datetime) -> IncomingEvent:
    # An event can't be from the future: the hour to come has no partition yet.
    return IncomingEvent(event, source, correlation_id, min(event.event_time or now, now))


def _part(message: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if not isinstance(found := message.get(name), dict):
        raise NotUnderstood(f"{name} is {'missing' if found is None else 'not an object'}")
    return found


def _id(body: Mapping[str, Any], name: str) -> str:
    found = body.get(name)
    if not isinstance(found, str) or not _ID.fullmatch(found):
        raise NotUnderstood(f"eventBody.{name} is {'not a UUID' if found else 'missing'}")
    return found


def _epoch_time(value: Any) -> datetime | None:
    """Epoch milliseconds; nothing for what is no time, as the hint counts without one."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    try:
        return datetime.fromtimestamp(value / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _iso_time(value: Any) -> datetime | None:
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else None
        return at.astimezone(UTC) if at and at.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _shown(topic: str) -> str:
    """A topic without its ids, which may be anything in a message that is nothing we know."""
    words = [word if _WORD.fullmatch(word) else "{id}" for word in topic.removeprefix("v2.").split(".")]
    return ".".join(["v2", *words[:8], *(["…"] if len(words) > 8 else [])])
