"""The port: what the pipeline needs of a platform, in the pipeline's words. Adapters implement it; no I/O here."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from compliance_pipeline.contracts.work_item import SupervisorCallback, WorkItem


class PlatformError(Exception):
    """A request that the platform did not serve. Says what was asked and what came back; holds no secret or body."""


class Unavailable(PlatformError):
    """The platform or the network failed for now: worth another try later."""


class Refused(PlatformError):
    """The platform said no for good (permissions, bad request, credentials): a person must act."""


class TransferBroken(Unavailable):
    """A media transfer broke off or ended short."""


@dataclass(frozen=True, slots=True)
class Media:
    """Where one media file of a recording lies. The URL may be signed: never log or store it."""

    url: str
    content_type: str | None = None

    def __repr__(self) -> str:
        return "Media(<url hidden>)"


@dataclass(frozen=True, slots=True)
class Ready:
    """transcript: of a voice recording, where the platform has one. speakers: who is on each audio channel, in order
    ('agent', 'customer', 'ivr'); empty where the platform does not say."""

    media: Media
    transcript: Media | None = None
    speakers: tuple[str, ...] = ()


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

    def locate(self, recording_id: str) -> Location:
        """Say whether the recording's media can be fetched now, and where; and its transcript, if there is one."""
        ...

    def open_media(self, media: Media) -> AbstractContextManager[MediaStream]:
        """Open the media or the transcript for streaming. The platform's bearer token never goes to the media host."""
        ...

    def tag(self, recording_id: str, tags: Mapping[str, str]) -> None:
        """Merge `tags` into the recording's tags: reads first, writes only what is missing or differs."""
        ...

    def open_work_item(self, item: WorkItem) -> str:
        """Return the id of the work item with `item.key`, created if there is none."""
        ...

    def request_callback(self, callback: SupervisorCallback) -> str:
        """Return the id of the callback with `callback.key`, created if there is none."""
        ...

    def close(self) -> None: ...
