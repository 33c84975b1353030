"""Messages as queues deliver them: Genesys Cloud's by its published schema, S3's and SNS's by the AWS user guides."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus
from uuid import NAMESPACE_URL, uuid5

CONTRACT: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "contract" / "genesys_events.schema.json").read_text()
)
ORG = "7dd9e1d4-5a1c-4a5e-b3f6-3c9a6d0f5e11"
ENVELOPE_ID = "0b1d0c5e-7d8b-4c0d-9d43-6f2f3c9d1a20"
ENDED = datetime(2026, 3, 1, 11, 59, 30, 250_000, tzinfo=UTC)


def an_id(name: object) -> str:
    return str(uuid5(NAMESPACE_URL, str(name)))


CONVERSATION, RECORDING = an_id("conversation"), an_id("recording")
ANNOUNCING = ("customer.end", "user.end", "acw")


def topic(event: str = "customer.end", conversation_id: str = CONVERSATION) -> str:
    return f"v2.detail.events.conversation.{conversation_id}.{event}"


def notification(name: str, body: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"topicName": name, "version": "2", "eventBody": body, "metadata": {"CorrelationId": an_id("c")}} | fields


def envelope(name: str, body: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """EventBridge's envelope of a notification."""
    return {
        "version": "0",
        "id": ENVELOPE_ID,
        "detail-type": name,
        "source": f"aws.partner/genesys.com/cloud/{ORG}/compliance",
        "account": "123456789012",
        "time": "2026-03-01T11:59:31Z",
        "region": "eu-west-1",
        "resources": [],
        "detail": notification(name, body, timestamp="2026-03-01T11:59:30.900Z"),
    } | fields


def ended(conversation_id: str = CONVERSATION, **fields: Any) -> dict[str, Any]:
    at = int(ENDED.timestamp() * 1000)
    return {"eventTime": at, "conversationId": conversation_id, "mediaType": "VOICE", "direction": "INBOUND"} | fields


def conversation_ended(conversation_id: str = CONVERSATION, **fields: Any) -> bytes:
    return as_bytes(envelope(topic(conversation_id=conversation_id), ended(conversation_id, **fields)))


def export_key(name: str, conversation_id: str = CONVERSATION) -> str:
    return f"{ORG}/year=2026/month=03/day=01/hour=11/conversation_id={conversation_id}/{name}"


def s3_created(*keys: str, event: str = "ObjectCreated:Put") -> dict[str, Any]:
    return {
        "Records": [
            {
                "eventVersion": "2.1",
                "eventSource": "aws:s3",
                "awsRegion": "eu-west-1",
                "eventTime": "2026-03-01T11:59:30.250Z",
                "eventName": event,
                "s3": {"bucket": {"name": "exports"}, "object": {"key": quote_plus(key, safe="/"), "size": 1024}},
            }
            for key in keys
        ]
    }


def s3_by_eventbridge(key: str, kind: str = "Object Created") -> dict[str, Any]:
    detail = {"version": "0", "bucket": {"name": "exports"}, "object": {"key": key, "size": 1024}}
    times = {"id": ENVELOPE_ID, "time": "2026-03-01T11:59:30Z"}
    return {"version": "0", "source": "aws.s3", "detail-type": kind, "detail": detail} | times


def by_sns(message: dict[str, Any]) -> dict[str, Any]:
    return {"Type": "Notification", "MessageId": ENVELOPE_ID, "Message": json.dumps(message)}


def guide_event(recording_id: str, **fields: Any) -> bytes:
    uri = f"https://media.test/{recording_id}.wav?token=secret"
    return as_bytes({"recordingId": recording_id, "mediaUri": uri} | fields)


def as_bytes(message: Any) -> bytes:
    return json.dumps(message).encode()
