"""The guide's endpoints and payloads as it prints them, behind the port. No HTTP mechanics: those are the transport's.

The guide prints no listing, and no look-up of records and callbacks: those here are ours, as are `key` and `dueAt` in
the bodies.
Nor does it print transcripts: `transcriptUri` and `channels` of a recording are ours, and may be missing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any
from urllib.parse import quote

from pydantic import AwareDatetime, BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from compliance_pipeline.contracts.event import Channel, Direction, EventType, RecordingEvent
from compliance_pipeline.contracts.work_item import SupervisorCallback, WorkItem
from compliance_pipeline.platforms.port import (
    Gone,
    Location,
    Media,
    MediaStream,
    NotSupported,
    NotYet,
    Ready,
    Unavailable,
)
from compliance_pipeline.platforms.transport import NotFound, Transport, iso_utc, parse

RECORDINGS = "/api/v2/recordings"
RECORDS = "/api/v2/analytics/datadatasets/records"
CALLBACKS = "/api/v2/conversations/callbacks"
DELIVERY_FAILURES = "/api/v2/analytics/metrics/eventsub:deliveryFailure"
DATASET = "compliance_work_items_dataset"

_ROLES = {"agent": "agent", "internal": "agent", "customer": "customer", "external": "customer", "ivr": "ivr"}
_NO_MEDIA_EVER = frozenset({"deleted", "failed", "error"})


class _Answer(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore")


class _Tag(_Answer):
    key: str
    value: str


class _Recording(_Answer):
    """GuideRecording of the guide's profile; `status` is an open set."""

    id: str
    status: str
    media_uri: str | None = None
    transcript_uri: str | None = None
    channels: list[str] | None = None
    tags: list[_Tag] | None = None


class _Listed(_Answer):
    id: str
    available_at: AwareDatetime
    media_uri: str | None = None
    channel: Channel = Channel.VOICE
    direction: Direction | None = None
    start_time: AwareDatetime | None = None
    end_time: AwareDatetime | None = None

    @property
    def event(self) -> RecordingEvent:
        return RecordingEvent(
            recording_id=self.id,
            event=EventType.AVAILABLE if self.media_uri else EventType.COMPLETED,
            media_uri=self.media_uri,
            event_time=self.available_at,
            channel=self.channel,
            direction=self.direction,
            start_time=self.start_time,
            end_time=self.end_time,
        )


class _Listing(_Answer):
    entities: list[_Listed]
    page_count: int


class _Metric(_Answer):
    total: int


class _Created(_Answer):
    id: str


class _Keyed(_Answer):
    key: str | None = None


class _Entity(_Answer):
    """A stored record or callback; `key` stands where we put it: in the record, or in the callback's data."""

    id: str
    record: _Keyed | None = None
    data: _Keyed | None = None

    @property
    def key(self) -> str | None:
        return (self.record or self.data or _Keyed()).key


class _Found(_Answer):
    entities: list[_Entity]


class GuidePlatform:
    """The platform port over the guide's API. Raises the port's errors."""

    name = "guide"
    callback_lag_s = 0.0

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def locate(self, recording_id: str) -> Location:
        """Guide, step 1: the status must be `available` before the media is fetched.

        404 is NotYet: an event may come before the recording can be read. The caller limits the tries.
        """
        try:
            recording = self._recording(recording_id)
        except NotFound:
            return NotYet("the platform does not know the recording (404)")
        status = recording.status.lower()
        if status in _NO_MEDIA_EVER:
            return Gone(f"the platform says that the recording is {status}")
        if status != "available":
            return NotYet(f"the recording's status is {status if status.isalpha() else 'not a word'}, not available")
        if not recording.media_uri:
            return NotYet("the recording is available but has no mediaUri")
        transcript = Media(recording.transcript_uri) if recording.transcript_uri else None
        return Ready(Media(recording.media_uri), transcript, _speakers(recording.channels or ()))

    def open_media(self, media: Media) -> AbstractContextManager[MediaStream]:
        return self._transport.open_media(media.url)

    def prefetch(self, recording_ids: Sequence[str]) -> None:
        """The guide asks for one recording at a time."""

    def recordings_of(self, conversation_id: str) -> NotYet:  # noqa: ARG002
        """The guide announces recordings, never conversations."""
        return NotYet("the guide's platform announces recordings, not conversations")

    def list_available(self, since: datetime, until: datetime) -> Iterator[RecordingEvent]:
        """Ours: the guide prints no listing (`GET /api/v2/recordings?availableFrom=&availableTo=&pageNumber=`)."""
        page = 1
        while True:
            params = {"availableFrom": since.isoformat(), "availableTo": until.isoformat(), "pageNumber": str(page)}
            answer = parse(_Listing, self._transport.request("GET", RECORDINGS, params=params), f"GET {RECORDINGS}")
            yield from (listed.event for listed in answer.entities)
            if page >= answer.page_count:
                return
            page += 1

    def tag(self, recording_id: str, tags: Mapping[str, str], at_ms: int | None = None) -> None:  # noqa: ARG002
        """Guide, step 3, `tag_recording`: PATCH with the whole list, others' tags kept.

        The guide's API has no version to write against: a tag that somebody else adds between our read and our
        write (milliseconds) can be lost.
        """
        present = self._recording(recording_id).tags or []
        ours = [_Tag(key=key, value=value) for key, value in tags.items()]
        if all([tag for tag in present if tag.key == mine.key] == [mine] for mine in ours):
            return
        merged = [tag for tag in present if tag.key not in tags] + ours
        self._transport.request("PATCH", _path(recording_id), json={"tags": [tag.model_dump() for tag in merged]})

    def open_work_item(self, item: WorkItem) -> str:
        """Guide, step 3, `create_work_item`: a record of the compliance dataset."""
        record = {
            "recordingId": item.recording_id,
            "violationType": item.violation_type,
            "assignedQueue": item.queue,
            "priority": item.priority,
            "key": item.key,
            "summary": item.summary,
        }
        if item.due_at:
            record["dueAt"] = iso_utc(item.due_at)
        return self._once(RECORDS, item.key, {"datasetId": DATASET}, {"datasetId": DATASET, "record": record})

    def request_callback(self, callback: SupervisorCallback) -> str:
        """Guide, step 3, 'outbound supervisor callback', whose body the guide doesn't print (ours)."""
        body = {
            "queueName": callback.queue,
            "callbackScheduledTime": callback.scheduled_at.isoformat(),
            "data": {"key": callback.key, "recordingId": callback.recording_id, "reason": callback.reason},
        }
        return self._once(CALLBACKS, callback.key, {}, body)

    def protect(self, recording_ids: Sequence[str], *, protected: bool) -> None:  # noqa: ARG002
        raise NotSupported("the guide's platform has no legal hold; set it in the platform's own administration")

    def purge(self, recording_id: str) -> None:  # noqa: ARG002
        raise NotSupported("the guide prints no request that deletes; delete it in the platform's own administration")

    def delivery_failures(self, since: datetime) -> int:
        """Guide, edge case 3: the metric `eventsub:deliveryFailure`. Where it is read is not printed: ours."""
        answer = self._transport.request("GET", DELIVERY_FAILURES, params={"since": since.isoformat()})
        return parse(_Metric, answer, f"GET {DELIVERY_FAILURES}").total

    def close(self) -> None:
        self._transport.close()

    def _recording(self, recording_id: str) -> _Recording:
        path = _path(recording_id)
        return parse(_Recording, self._transport.request("GET", path), f"GET {path}")

    def _once(self, path: str, key: str, scope: Mapping[str, str], body: Mapping[str, Any]) -> str:
        """The id of what has `key`, created if there is none, even where the answer of the creating POST is lost."""
        if found := self._find(path, key, scope):
            return found
        try:
            answer = self._transport.request("POST", path, json=body, headers={"Idempotency-Key": key})
            return parse(_Created, answer, f"POST {path}").id
        except Unavailable:
            if found := self._find(path, key, scope):
                return found
            raise

    def _find(self, path: str, key: str, scope: Mapping[str, str]) -> str | None:
        answer = self._transport.request("GET", path, params={**scope, "key": key})
        # A platform that ignores an unknown query parameter would answer with everything: trust the key, not the rank.
        return next((e.id for e in parse(_Found, answer, f"GET {path}").entities if e.key == key), None)


def _speakers(channels: Sequence[str]) -> tuple[str, ...]:
    """Roles, or none at all: a channel under another word may be named after a person."""
    roles = tuple(_ROLES.get(channel.lower(), "") for channel in channels)
    return roles if all(roles) else ()


def _path(recording_id: str) -> str:
    return f"{RECORDINGS}/{quote(recording_id, safe='')}"
