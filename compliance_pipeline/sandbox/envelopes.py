"""Events as each profile words them: the guide's payload, Genesys Cloud's topics in EventBridge envelopes, with the
personal data that the real ones leak. How they are sent, and what goes wrong with that, is `delivery`."""

import uuid
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from compliance_pipeline.contracts.event import Channel, EventType
from compliance_pipeline.sandbox.calls import SyntheticRecording

_ORG: Final = "7f9a1d3c-5b2e-4c86-9d0f-3a1b2c4d5e6f"
_SOURCE: Final = f"aws.partner/genesys.com/cloud/{_ORG}/compliance"
_MEDIA_TYPES: Final = {Channel.VOICE: "VOICE", Channel.CHAT: "MESSAGE", Channel.EMAIL: "EMAIL"}


class Topic(StrEnum):
    """Of v2.detail.events.conversation.{id}, in the order in which a conversation ends."""

    CUSTOMER_END = "customer.end"
    USER_END = "user.end"
    AFTER_CALL_WORK = "acw"


def event_payload(
    recording: SyntheticRecording, event: EventType, *, event_time: datetime, media_url: str | None
) -> dict[str, Any]:
    """The event as the guide's platform sends it, with the raw attributes that the guide's edge case 2 warns of."""
    customer = recording.participants[-1]
    payload = {
        "recordingId": recording.recording_id,
        "event": event,
        "eventTime": event_time.isoformat(),
        "participants": list(recording.participants),
        "startTime": recording.start_time.isoformat(),
        "direction": recording.direction,
        "channel": recording.channel,
        "externalCallerId": customer["externalCallerId"],
        "email": customer["email"],
        "ani": customer["ani"],
    }
    if event is not EventType.STARTED:
        payload["endTime"] = recording.end_time.isoformat()
    if media_url:
        payload["mediaUri"] = media_url
    return payload


def envelope(
    recording: SyntheticRecording, conversation_id: str, topic: str, *, event_time: datetime, sent_at: datetime
) -> dict[str, Any]:
    """A conversation's event as Amazon EventBridge delivers it (contract: genesys_events.schema.json).

    topic: a Topic, or any other word for a topic that no client knows.
    """
    agent, customer = recording.participants[0], recording.participants[-1]
    name = f"v2.detail.events.conversation.{conversation_id}.{topic}"
    sent = sent_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    body: dict[str, Any] = {
        "eventTime": _epoch_ms(event_time),
        "conversationId": conversation_id,
        "participantId": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{conversation_id}:{topic}")),
        "sessionId": str(uuid.uuid5(uuid.NAMESPACE_OID, f"session:{conversation_id}:{topic}")),
        "mediaType": _MEDIA_TYPES[recording.channel],
        "provider": "Edge" if recording.channel is Channel.VOICE else "PureCloud Messaging",
        "direction": recording.direction.upper(),
        "ani": f"tel:{customer['ani']}",
        "dnis": "tel:+13175550100",
        "addressFrom": customer["email"],
    }
    length_ms = round((recording.end_time - recording.start_time).total_seconds() * 1000)
    if topic == Topic.AFTER_CALL_WORK:
        body |= {"userId": agent["id"], "wrapupCode": "DEFAULT", "wrapupDurationMs": 0}
    else:
        body |= {"disconnectType": "CLIENT", "interactingDurationMs": length_ms}
    if topic == Topic.USER_END:
        body["userId"] = agent["id"]
    return {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": name.replace(conversation_id, "{id}"),
        "source": _SOURCE,
        "account": "123456789012",
        "time": sent,
        "region": "us-east-1",
        "resources": [],
        "detail": {
            "topicName": name,
            "version": "2",
            "eventBody": body,
            "metadata": {"CorrelationId": str(uuid.uuid4())},
            "timestamp": sent,
        },
    }


def _epoch_ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)
