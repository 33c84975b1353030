"""The port: what the pipeline needs of a platform, in the pipeline's words. Adapters implement it; no I/O here."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from compliance_pipeline.contracts.event import RecordingEvent
from compliance_pipeline.contracts.policy import Annotation
from compliance_pipeline.contracts.work_item import SupervisorCallback, WorkItem


class PlatformError(Exception):
    """A request that the platform did not serve. Says what was asked and what came back; holds no secret or body."""


class Unavailable(PlatformError):
    """The platform or the network failed for now: worth another try later, not before `after_s` where that is known."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class PlatformHeld(Unavailable):
    """Not asked: the circuit breaker of a host is open, or the budget of requests is spent, for `for_s` seconds.

    No fault of the recording's, so it costs it no try. host_failed: it is the circuit breaker.
    """

    def __init__(self, message: str, for_s: float, *, host_failed: bool = False) -> None:
        super().__init__(message, for_s)
        self.for_s, self.host_failed = for_s, host_failed


class Refused(PlatformError):
    """The platform said no for good (permissions, bad request, credentials): a person must act."""


class NotSupported(Refused):
    """This platform has no such thing: no permission mends it, and another try says the same."""


class TransferBroken(Unavailable):
    """A media transfer broke off or ended short."""


@dataclass(frozen=True, slots=True)
class Media:
    """Where the media of a recording lies. The URL may be signed: never log or store it.

    content: the media itself, where the platform hands it over in its answer (a chat); `url` then only names it.
    channels: URLs of one WAV file an audio channel, where the platform splits them; `url` is the first of them.
    """

    url: str
    content_type: str | None = None
    content: bytes | None = field(default=None, repr=False)
    channels: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "Media(<url hidden>)"


@dataclass(frozen=True, slots=True)
class Ready:
    """transcript: of a voice recording, where the platform has one; transcript_missing: it may have one that can't be
    asked for now. speakers: who is on each audio channel, in order
    ('agent', 'customer', 'ivr'); empty where the platform does not say. annotations: what the platform noted about
    the recording; None where it notes nothing."""

    media: Media
    transcript: Media | None = None
    speakers: tuple[str, ...] = ()
    annotations: frozenset[Annotation] | None = None
    transcript_missing: bool = False


@dataclass(frozen=True, slots=True)
class NotYet:
    """The recording is known but its media is not there yet; ask again after `after_s` seconds if it says."""

    why: str
    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """The recording will never have media (deleted, failed, not recorded)."""

    why: str


Location = Ready | NotYet | Gone


class MediaStream(Protocol):
    """A transfer of media or of a transcript. Iterate once; raises TransferBroken if shorter than `content_length`."""

    content_length: int | None
    content_type: str | None
    last_modified: datetime | None

    def __iter__(self) -> Iterator[bytes]: ...


class Platform(Protocol):
    """A contact-center platform. Every method raises PlatformError; each that writes looks before it creates."""

    name: str
    callback_lag_s: float
    """So long after it was asked for, a callback may not be found yet by its key."""

    def locate(self, recording_id: str) -> Location:
        """Say whether the recording's media can be fetched now, and where; and its transcript, if there is one."""
        ...

    def prefetch(self, recording_ids: Sequence[str]) -> None:
        """These will be located soon: ask for them in bulk where the platform can. Never raises PlatformError."""
        ...

    def recordings_of(self, conversation_id: str) -> tuple[RecordingEvent, ...] | NotYet:
        """The recordings of a conversation so far; NotYet where the platform knows none (yet)."""
        ...

    def list_available(self, since: datetime, until: datetime) -> Iterator[RecordingEvent]:
        """What became available from `since` until before `until`, as events: recordings, or conversations where
        the platform lists those. `event_time` is when. Each once, in any order."""
        ...

    def open_media(self, media: Media) -> AbstractContextManager[MediaStream]:
        """Open the media or the transcript for streaming. The platform's bearer token never goes to the media host."""
        ...

    def tag(self, recording_id: str, tags: Mapping[str, str], at_ms: int | None = None) -> None:
        """Merge `tags` into the recording's tags: reads first, writes only what is missing or differs.

        at_ms: where in the recording it is about, for platforms that can mark the place.
        """
        ...

    def open_work_item(self, item: WorkItem) -> str:
        """Return the id of the work item with `item.key`, created if there is none."""
        ...

    def request_callback(self, callback: SupervisorCallback) -> str:
        """Return the id of the callback with `callback.key`, created if there is none."""
        ...

    def protect(self, recording_ids: Sequence[str], *, protected: bool) -> None:
        """Legal hold: keep the platform from deleting these recordings, or let it again."""
        ...

    def purge(self, recording_id: str) -> None:
        """Have the platform delete the recording for good; one that is gone already is done. Other recordings, and the
        platform's legal holds, stay as they are."""
        ...

    def delivery_failures(self, since: datetime) -> int | None:
        """Events that the platform says it could not deliver since then; None where it does not say."""
        ...

    def close(self) -> None: ...
