"""Recording events: the guide's payload, what is required, and that nothing unnamed is kept."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from compliance_pipeline.contracts.event import Channel, Direction, EventType, Participant, RecordingEvent

GUIDE: dict[str, Any] = {
    "recordingId": "rec-1",
    "mediaUri": "https://media.test/rec-1.wav",
    "participants": [{"id": "agent-1", "purpose": "agent", "queue": "billing"}],
    "startTime": "2026-03-01T12:00:00+02:00",
    "endTime": "2026-03-01T10:05:00Z",
    "direction": "inbound",
}


def test_the_guides_payload_is_an_available_voice_recording_with_times_in_utc() -> None:
    event = RecordingEvent.model_validate(GUIDE)
    assert event.event is EventType.AVAILABLE
    assert event.channel is Channel.VOICE
    assert event.direction is Direction.INBOUND
    assert event.start_time == datetime(2026, 3, 1, 10, 0, tzinfo=UTC)
    assert event.start_time.tzinfo is UTC
    assert event.participants == (Participant(id="agent-1", purpose="agent", queue="billing"),)


def test_what_is_not_named_in_the_contract_is_dropped() -> None:
    leaky = GUIDE | {"ani": "+12125550123", "participants": [{"id": "c", "email": "a@b.test", "extension": "4711"}]}
    event = RecordingEvent.model_validate(leaky)
    for value in ("+12125550123", "a@b.test", "4711"):
        assert value not in event.model_dump_json() + repr(event)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recordingId": None}, "recordingId"),
        ({"recordingId": ""}, "recordingId"),
        ({"recordingId": "a/../b"}, "recordingId"),
        ({"recordingId": "-rf"}, "recordingId"),
        ({"recordingId": "a" * 129}, "recordingId"),
        ({"mediaUri": None}, "mediaUri"),
        ({"startTime": "2026-03-01T12:00:00"}, "startTime"),
        ({"endTime": "yesterday"}, "endTime"),
        ({"endTime": "2026-03-01T09:59:59Z"}, "endTime"),
        ({"direction": "sideways"}, "direction"),
        ({"channel": "smoke"}, "channel"),
        ({"event": "recording:recordingDeleted"}, "event"),
        ({"participants": [{"purpose": "agent; drop table"}]}, "purpose"),
        ({"participants": [{}] * 65}, "participants"),
    ],
)
def test_a_payload_outside_the_contract_is_refused_with_the_field_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RecordingEvent.model_validate(GUIDE | change)
    assert named in str(caught.value.errors(include_input=False))


@pytest.mark.parametrize("event", [EventType.STARTED, EventType.COMPLETED])
def test_only_an_available_recording_needs_its_media(event: EventType) -> None:
    assert RecordingEvent.model_validate({"recordingId": "rec-1", "event": event}).media_uri is None


def test_the_events_rank_in_the_order_of_a_recordings_life() -> None:
    assert [event.rank for event in (EventType.STARTED, EventType.COMPLETED, EventType.AVAILABLE)] == [0, 1, 2]


zones = st.integers(-12, 14).map(lambda hours: timezone(timedelta(hours=hours)))
aware = st.integers(0, 10**10).flatmap(
    lambda s: zones.map(lambda zone: (datetime(1970, 1, 2, tzinfo=UTC) + timedelta(seconds=s)).astimezone(zone))
)


@given(
    st.fixed_dictionaries(
        {
            "recordingId": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", fullmatch=True),
            "mediaUri": st.just("https://media.test/1"),
            "participants": st.lists(st.fixed_dictionaries({"id": st.text(max_size=20)}), max_size=3),
            "endTime": st.none() | aware,
            "eventTime": st.none() | aware,
            "event": st.sampled_from(EventType),
            "channel": st.sampled_from(Channel),
            "direction": st.none() | st.sampled_from(Direction),
        }
    ).map(RecordingEvent.model_validate)
)
def test_any_event_comes_back_from_its_json_as_it_went(event: RecordingEvent) -> None:
    wire = event.model_dump_json(by_alias=True)
    assert "recordingId" in wire
    assert RecordingEvent.model_validate_json(wire) == event
