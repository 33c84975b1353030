"""Events for the tests of this folder."""

from datetime import UTC, datetime, timedelta

from compliance_pipeline.contracts.event import EventType, RecordingEvent
from compliance_pipeline.intake.inbox import IncomingEvent

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LEASE = timedelta(seconds=120)
HOUR = "2026-03-01-12:00"


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def incoming(
    recording_id: str = "rec-1",
    event: EventType = EventType.AVAILABLE,
    at: datetime = NOON,
    correlation_id: str = "msg-1",
    **fields: object,
) -> IncomingEvent:
    raw = {"recordingId": recording_id, "event": event, "mediaUri": f"https://media.test/{recording_id}.wav", **fields}
    return IncomingEvent(RecordingEvent.model_validate(raw), "guide", correlation_id, at)
