"""Recording events as the platform posts them (guide, step 1: `eventData.include`)."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

CANARY = "canary"
"""Source of synthetic recordings that must be flagged (`canaries`): whatever counts recordings leaves theirs out."""


class EventType(StrEnum):
    """The lifecycle events of the guide, in the order in which a recording goes through them."""

    STARTED = "recording:recordingStarted"
    COMPLETED = "recording:recordingCompleted"
    AVAILABLE = "recording:recordingAvailable"

    @property
    def rank(self) -> int:
        return list(EventType).index(self)


class Channel(StrEnum):
    VOICE = "voice"
    CHAT = "chat"
    EMAIL = "email"


class Direction(StrEnum):
    INBOUND = "inbound"
    OUTBOUND = "outbound"


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("is before the year 1 or after 9999") from None


UtcDatetime = Annotated[AwareDatetime, AfterValidator(_to_utc)]
RecordingId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")]


def _short_text(value: object) -> str | None:
    """What we can do without refuses no event, whatever it is."""
    return value if isinstance(value, str) and len(value) <= 256 else None


class WireModel(BaseModel):
    """camelCase on the wire, snake_case in code; what is not named here is dropped, not kept."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class Participant(WireModel):
    """Who took part. Only `purpose` and `queue` are kept as they come; the identifiers leave the receiver as tokens.

    The guide's edge case 2 names `extension`, `email` and `externalCallerId` as raw attributes found in payloads. Of
    these the last is read, for the time zone of whoever was called; it is never kept or written out.
    """

    id: str | None = Field(default=None, max_length=256)
    external_caller_id: Annotated[str | None, BeforeValidator(_short_text)] = Field(
        default=None, exclude=True, repr=False
    )
    purpose: str | None = Field(default=None, max_length=32, pattern=r"^[A-Za-z_]+$")
    queue: str | None = Field(default=None, max_length=128)


class RecordingEvent(WireModel):
    """One event of the guide's subscription.

    `event` names the kind; the guide's payload leaves it out because a subscription carries one kind, so it
    defaults to recordingAvailable. `event_time` (ours) is when the platform says that it happened.

    conversation_id (ours): the conversation that the recording is of. Where the platform announces conversations
    only, `recording_id` is the same: the row stands for recordings that are yet to be listed. called_time_zone
    (ours): IANA name, of the party that an outbound call went to, where its number leaves no doubt.
    """

    recording_id: RecordingId
    conversation_id: RecordingId | None = None
    event: EventType = EventType.AVAILABLE
    media_uri: str | None = Field(default=None, max_length=2048)
    participants: tuple[Participant, ...] = Field(default=(), max_length=64)
    start_time: UtcDatetime | None = None
    end_time: UtcDatetime | None = None
    event_time: UtcDatetime | None = None
    direction: Direction | None = None
    channel: Channel = Channel.VOICE
    called_time_zone: str | None = Field(default=None, max_length=64, pattern=r"^[A-Za-z0-9_+/-]+$")

    @property
    def is_conversation(self) -> bool:
        return self.conversation_id == self.recording_id and not self.media_uri

    @property
    def agent(self) -> str | None:
        return next((p.id for p in self.participants if p.id and p.purpose == "agent"), None)

    @property
    def queue(self) -> str | None:
        return next((p.queue for p in self.participants if p.queue), None)

    @model_validator(mode="after")
    def _available_names_its_media(self) -> "RecordingEvent":
        if self.event is EventType.AVAILABLE and not self.media_uri and not self.conversation_id:
            raise ValueError("mediaUri is required in a recordingAvailable event")
        if self.start_time and self.end_time and self.end_time < self.start_time:
            raise ValueError("endTime is before startTime")
        return self
