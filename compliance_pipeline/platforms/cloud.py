"""The published Genesys Cloud API (v2) behind the port. No HTTP mechanics (the transport's), no sound (`channels`).

A recording's id is `{conversationId}:{recordingId}`: the API looks no recording up by its own id alone. An id without
a colon is a conversation's. 'SDK' below: what the vendor's SDK 269.0.0 documents of the API.
"""

import json
import logging
import re
import threading
import time
from base64 import b32encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from functools import partial
from hashlib import sha256
from itertools import count
from typing import Any
from urllib.parse import quote
from zlib import crc32

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from compliance_pipeline.clock import Clock, utc_now
from compliance_pipeline.contracts.event import Channel, Direction, EventType, RecordingEvent
from compliance_pipeline.contracts.policy import Annotation
from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.contracts.work_item import SupervisorCallback, WorkItem
from compliance_pipeline.platforms.channels import open_channels
from compliance_pipeline.platforms.port import (
    Gone,
    Location,
    Media,
    MediaStream,
    NotYet,
    PlatformError,
    PlatformHeld,
    Ready,
    Refused,
    Unavailable,
)
from compliance_pipeline.platforms.transport import MissingPermission, NotFound, Transport, iso_utc, parse

log = logging.getLogger(__name__)

CONVERSATIONS = "/api/v2/conversations"
BATCHES = "/api/v2/recording/batchrequests"
PROTECTION = "/api/v2/recordings/deletionprotection"
TRANSCRIPTS = "/api/v2/speechandtextanalytics/conversations"
DETAILS = "/api/v2/analytics/conversations/details/query"
WORK_ITEMS = "/api/v2/taskmanagement/workitems"
WORK_TYPES = "/api/v2/taskmanagement/worktypes"
WORKBINS = "/api/v2/taskmanagement/workbins"
CALLBACKS = "/api/v2/conversations/callbacks"
QUEUES = "/api/v2/routing/queues"

MANY = 100
"""Most that one request takes or gives: of recordings in a batch, conversations to protect, entries of a page."""
WORTH_A_BATCH = 10
BATCH_WAIT_S = 10.0
"""A run waits no longer for its batches: what is not done by then is asked for one by one."""
BATCH_FRESH = timedelta(seconds=100)
"""The URLs of a batch live two minutes at least."""
ASK_AGAIN_S = 1.0
PERMISSION_MEMORY = timedelta(minutes=10)
"""So long a missing permission for transcripts is not asked about again; it may be granted, or have been a passing
fault."""
LONGEST_INTERVAL = timedelta(days=31)
"""The longest that analytics takes (SDK). It selects by a conversation's start, we want its end: what goes on for
longer than a month is not swept."""
SWEPT_AT_ONCE = timedelta(days=1)
CALLBACK_LIFE = timedelta(days=3)
"""So far back a callback is looked up: an outage of a weekend, and the tries after it."""
RESTORE_S = 60.0
CLOCKS_APART = timedelta(minutes=5)
LOCKS = 64
"""Of conversations: two that share one wait for each other, no more."""
PRIORITY = {"high": 1000, "normal": 0, "low": -1000}
"""Ours, around a worktype's usual default of 0; the platform takes -25,000,000 to 25,000,000 (SDK)."""
ANNOTATION_LIMIT, DESCRIPTION_LIMIT = 500, 512
"""Characters (SDK)."""
KEY_LIMIT = 200
"""Characters of an external tag. The platform's own limit is not published: longer keys are hashed."""

_TAG_PREFIX = "compliance:"
_NEVER = {"DELETED": "the platform says that the recording is deleted", "ERROR": "the platform failed to record it"} | {
    "ARCHIVED": "the recording is archived: have the platform restore it (recording:restore), then save its file and "
    "run `compliance scan FILE`, or screen its hour again under another policy"
}
_PLAYABLE = ("", "AVAILABLE", "RESTORED")
_ABOUT_MESSAGE = frozenset(
    {"from", "fromUser", "fromExternalContact", "to", "timestamp", "id", "status", "purpose", "participantId", "queue"}
    | {"workflow", "contentType", "socialVisibility", "messageReceipts", "messageText", "events", "story"}
    | {"messageMediaAttachments", "messageStickerAttachments"}
)
_NO_WORDS = re.compile(
    r"(?:id|uri|url|type|status|style|format|timestamp|payload|image|video|audio)s?"
    r"|.*(?:Id|Uri|Url|Type|Status|Style|Format|Timestamp|Payload|Image|Video|Audio)s?"
)
"""Names of fields that say how a message works, not what a person reads in it."""
_PICTURED = re.compile(r"(?i).*(?:image|video|audio)(?:uri|url)?")
_MEDIA_TYPE = re.compile(r"[a-z]+/[a-z0-9.+-]+")
_OF_A_TEXT = re.compile(r"(?i)image\d{3}\.(?:png|gif|jpe?g)(?:@\S+)?")
"""What mail programs call a picture that was put into the text."""
_CHUNK_BYTES = 64 * 1024


class _Answer(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", hide_input_in_errors=True)


class _Id(_Answer):
    id: str


class _Note(_Answer):
    """Annotation. Milliseconds; `realtime_location` counts pauses in."""

    reason: str | None = None
    location: float | None = None
    duration_ms: float | None = None
    realtime_location: float | None = None
    description: str | None = None
    annotations: list["_Note"] | None = None


class _Playable(_Answer):
    media_uri: str | None = None


class _ChatMessage(_Answer):
    body: str | None = None
    message: str | None = None
    utc: str | None = None
    participant_purpose: str | None = None
    sender_communication_id: str | None = None


class _Attachment(_Answer):
    """EmailAttachment (SDK): where the file lies is not fetched. content_length: bytes."""

    name: str | None = None
    content_type: str | None = None
    content_length: int | None = None
    attachment_id: str | None = None


class _Mail(_Answer):
    subject: str | None = None
    text_body: str | None = None
    html_body: str | None = None
    attachments: list[_Attachment] | None = None


class _Recording(_Answer):
    """Recording, or RecordingMetadata, which has neither media nor words. Times are text of no promised form."""

    id: str
    start_time: str | None = None
    end_time: str | None = None
    media: str | None = None
    media_subtype: str | None = None
    annotations: list[_Note] | None = None
    transcript: list[_ChatMessage] | None = None
    email_transcript: list[_Mail] | None = None
    messaging_transcript: list[dict[str, Any]] | None = None
    file_state: str | None = None
    media_uris: dict[str, _Playable | None] | None = None
    estimated_transcode_time_ms: float | None = None
    recording_error_status: str | None = None
    session_id: str | None = None
    archive_date: str | None = None
    delete_date: str | None = None

    @property
    def kind(self) -> Channel | None:
        """None: a screen recording."""
        media = (self.media or "").lower()
        if media.startswith("screen") or (self.media_subtype or "").lower() == "screen":
            return None
        if media == "email" or self.email_transcript:
            return Channel.EMAIL
        if media in ("chat", "message", "messaging") or self.transcript or self.messaging_transcript:
            return Channel.CHAT
        return Channel.VOICE

    @property
    def length_ms(self) -> float | None:
        start, end = _instant(self.start_time), _instant(self.end_time)
        return (end - start).total_seconds() * 1000 if start and end else None


class _Url(_Answer):
    url: str | None = None


class _BatchItem(_Answer):
    conversation_id: str | None = None
    recording_id: str | None = None
    result_url: str | None = None
    content_type: str | None = None
    error_msg: str | None = None


class _Batch(_Answer):
    status: str | None = None
    results: list[_BatchItem] | None = None


class _Session(_Answer):
    media_type: str | None = None
    recording: bool | None = None
    callback_user_name: str | None = None


class _Party(_Answer):
    sessions: list[_Session] | None = None


class _Conversation(_Answer):
    """AnalyticsConversationWithoutAttributes (SDK)."""

    conversation_id: str
    conversation_start: AwareDatetime | None = None
    conversation_end: AwareDatetime | None = None
    originating_direction: str | None = None
    participants: list[_Party] | None = None

    @property
    def sessions(self) -> list[_Session]:
        return [session for party in self.participants or () for session in party.sessions or ()]

    @property
    def is_unrecorded(self) -> bool:
        """The flag is about sound alone, so only a conversation of nothing but calls can say so."""
        return bool(self.sessions) and all(
            session.media_type in ("voice", "callback") and session.recording is False for session in self.sessions
        )


class _Details(_Answer):
    conversations: list[_Conversation] | None = None
    total_hits: int | None = None


class _Tagged(_Answer):
    id: str | None = None
    external_tag: str | None = None


class _Named(_Answer):
    id: str
    name: str | None = None
    external_tag: str | None = None


class _Listing(_Answer):
    entities: list[_Named] | None = None
    after: str | None = None


class _Called(_Answer):
    conversation: _Id


class _NotProtected(_Answer):
    error_code: str | None = None


class _Protection(_Answer):
    failed_updates: list[_NotProtected] | None = None


@dataclass(frozen=True, slots=True)
class _Fetched:
    media: Media
    at: datetime


@dataclass(frozen=True, slots=True)
class _Metadata:
    """Of a conversation's recordings, as they came."""

    recordings: Any
    at: datetime


class _Inline:
    """Media that came with the platform's answer, as a stream."""

    last_modified: datetime | None = None

    def __init__(self, content: bytes, content_type: str | None) -> None:
        self._content = content
        self.content_length: int | None = len(content)
        self.content_type = content_type

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._content), _CHUNK_BYTES):
            yield self._content[start : start + _CHUNK_BYTES]


class CloudPlatform:
    """The platform port over Genesys Cloud. Raises the port's errors. Safe to use from several threads.

    work_item_type, workbin: by name, as the queues of work items and callbacks. supervisor_number: E.164.
    callback_lag_s: how far analytics, where callbacks are looked up, may lag behind.
    """

    name = "cloud"

    def __init__(
        self,
        transport: Transport,
        *,
        work_item_type: str,
        workbin: str | None,
        supervisor_number: str | None,
        callback_lag_s: float = 900.0,
        now: Clock = utc_now,
    ) -> None:
        self.callback_lag_s = callback_lag_s
        self._transport = transport
        self._work_item_type = work_item_type
        self._workbin = workbin
        self._supervisor_number = supervisor_number
        self._now = now
        self._lock = threading.Lock()
        self._conversations = tuple(threading.Lock() for _ in range(LOCKS))
        self._ids: dict[tuple[str, str], str] = {}
        self._fetched: dict[str, _Fetched] = {}
        self._metadata: dict[str, _Metadata] = {}
        self._no_transcripts_until: datetime | None = None

    # Finding recordings

    def locate(self, recording_id: str) -> Location:
        """Asks the conversation's list, not for the one recording: only the list waits for transcoding (maxWaitMs).

        404 and a list without it are NotYet: an event may come before the recording can be read. The caller limits
        the tries. Who speaks on which channel the platform does not say.
        """
        conversation, recording = _parts(recording_id)
        if recording is None:
            return Gone("this is the id of a conversation; its recordings are screened one by one")
        if found := self._from_batch(recording_id, conversation, recording):
            return found
        path = f"{_path(conversation)}/recordings"
        params = {"maxWaitMs": "5000", "formatId": "WAV"}
        try:
            answer = self._transport.ask("GET", path, params=params)
        except NotFound:
            return NotYet("the platform does not know the conversation's recordings (404)")
        mine = _recording(answer.body, recording, f"GET {path}")
        if mine is None and answer.status == 202:
            return NotYet("the platform is preparing the conversation's recordings (202)", answer.retry_after_s)
        if mine is None:
            return NotYet("the platform does not list the recording among its conversation's")
        location = self._location(conversation, mine, lambda: _media(mine))
        if isinstance(location, NotYet) and location.after_s is None and answer.status == 202:
            return NotYet(location.why, answer.retry_after_s)
        return location

    def prefetch(self, recording_ids: Sequence[str]) -> None:
        """One batch a hundred recordings, in their original format and not transcoded; each result is used once.

        What the batches don't give in time is asked for one by one by `locate`.
        """
        wanted = [one for one in dict.fromkeys(recording_ids) if _parts(one)[1]]
        if len(wanted) < WORTH_A_BATCH:
            return
        jobs = []
        for some in _hundreds(wanted):
            try:
                jobs.append(self._start_batch(some))
            except PlatformError as error:
                log.warning("%d recordings are asked for one by one, not in a batch: %s", len(some), error)
        deadline = time.monotonic() + BATCH_WAIT_S
        wait = 0.25
        while jobs:
            jobs = [job for job in jobs if not self._batch_done(job, frozenset(wanted))]
            if not jobs or time.monotonic() + wait > deadline:
                return
            time.sleep(wait)
            wait = min(wait * 2, 4.0)

    def recordings_of(self, conversation_id: str) -> tuple[RecordingEvent, ...] | NotYet:
        """By the conversation's metadata, which starts no transcoding. An empty list stays NotYet: just after
        hang-up, or because nothing was recorded, the platform says the same."""
        path = f"{_path(conversation_id)}/recordingmetadata"
        try:
            answer = self._transport.request("GET", path)
        except NotFound:
            return NotYet("the platform does not know the conversation (404)")
        recordings = [parse(_Recording, one, f"GET {path}") for one in _list(answer, f"GET {path}")]
        if not recordings:
            return NotYet("the platform lists no recordings of the conversation")
        return tuple(_announced(conversation_id, recording, f"GET {path}") for recording in recordings)

    def list_available(self, since: datetime, until: datetime) -> Iterator[RecordingEvent]:
        """Conversations by their end, but for calls that were not recorded.

        Analytics selects conversations that started on a day which the interval touches (SDK), so we ask from a month
        before `until`, the last to end first, and stop where the ends come before `since`. Where the platform sorts
        those that have not ended is not published; they are passed over. Analytics lags behind by minutes.
        """
        seen: set[str] = set()
        start = since
        while start < until:
            end = min(start + SWEPT_AT_ONCE, until)
            for page in self._pages(end - LONGEST_INTERVAL, end, "conversationEnd"):
                ends = [one.conversation_end for one in page if one.conversation_end]
                for one in page:
                    ended = one.conversation_end
                    if not ended or not start <= ended < end or one.is_unrecorded or one.conversation_id in seen:
                        continue
                    seen.add(one.conversation_id)
                    yield _ended(one, ended)
                if ends and max(ends) < start:
                    break
            start = end

    def open_media(self, media: Media) -> AbstractContextManager[MediaStream]:
        if media.content is not None:
            return nullcontext(_Inline(media.content, media.content_type))
        if len(media.channels) > 1:
            return open_channels(self._transport.open_media, media)
        return self._transport.open_media(media.url)

    # Remediation

    def tag(self, recording_id: str, tags: Mapping[str, str], at_ms: int | None = None) -> None:
        """A bookmark annotation at the place, and the conversation's external tag.

        The annotation's `location` is in milliseconds (SDK); whether it counts what a pause cut out is not
        published, so the description says the place too, in milliseconds of the recording as served. The one external
        tag of a conversation is set where it is empty or ours (`compliance:<status>:<types>`): the gravest status of
        its recordings, never a lesser one; somebody else's is kept. Two processes that tag one conversation in the
        same moment can lose one of the two.
        """
        conversation, recording = _parts(recording_id)
        if recording is None:
            raise Refused("a conversation's id: only recordings are tagged")
        self._annotate(f"{_path(conversation)}/recordings/{quote(recording, safe='')}/annotations", tags, at_ms)
        status = tags.get("compliance_status")
        if status:
            with self._lock_of(conversation):
                self._tag_conversation(conversation, status, tags.get("violation_type"))

    def open_work_item(self, item: WorkItem) -> str:
        """A workitem whose external tag is the item's key."""
        type_id, queue_id, workbin_id = (
            self.resolve_work_item_type(),
            self.resolve_queue(item.queue),
            self.resolve_workbin(),
        )
        tag = item.key if len(item.key) <= KEY_LIMIT else f"{_TAG_PREFIX}{_digest(item.key)}"
        body = {
            "name": f"Compliance: {item.violation_type}",
            "typeId": type_id,
            "queueId": queue_id,
            "priority": PRIORITY.get(item.priority, 0),
            "description": f"{item.summary}\nRecording {item.recording_id}"[:DESCRIPTION_LIMIT],
            "externalTag": tag,
        }
        if workbin_id:
            body["workbinId"] = workbin_id
        if item.due_at:
            body["dateDue"] = iso_utc(item.due_at)
        if found := self._find_work_item(type_id, tag):
            return found
        try:
            return parse(_Id, self._transport.request("POST", WORK_ITEMS, json=body), f"POST {WORK_ITEMS}").id
        except PlatformHeld:
            raise
        except Unavailable:
            if found := self._find_work_item(type_id, tag):
                return found
            raise

    def request_callback(self, callback: SupervisorCallback) -> str:
        """A callback conversation to the supervisor's number; returns its id.

        The API looks no callback up by a key, so the callback's user name carries it, and analytics finds that.
        Analytics lags: where the answer is lost and the callback is not found, Unavailable says to try again after
        the lag, and the next try looks first. A time that has passed is left out: the platform then calls as soon as
        it can.
        """
        if not self._supervisor_number:
            raise Refused(
                "no number to call supervisors back on; set COMPLIANCE_SUPERVISOR_NUMBER (E.164), then try again"
            )
        queue_id = self.resolve_queue(callback.queue)
        name = _callback_name(callback.key)
        if found := self._find_callback(queue_id, name):
            return found
        body: dict[str, Any] = {
            "callbackNumbers": [self._supervisor_number],
            "queueId": queue_id,
            "callbackUserName": name,
            "data": {"key": callback.key, "recordingId": callback.recording_id, "reason": callback.reason},
        }
        if callback.scheduled_at > self._now():
            body["callbackScheduledTime"] = iso_utc(callback.scheduled_at)
        try:
            answer = self._transport.request("POST", CALLBACKS, json=body)
            return parse(_Called, answer, f"POST {CALLBACKS}").conversation.id
        except PlatformHeld:
            raise
        except Unavailable as error:
            if found := self._find_callback_if_asked(queue_id, name):
                return found
            raise Unavailable(str(error), after_s=self.callback_lag_s) from None

    def protect(self, recording_ids: Sequence[str], *, protected: bool) -> None:
        """The platform protects whole conversations: all recordings of the ones named. Raises Refused where some
        could not be, after having tried all."""
        conversations = list(dict.fromkeys(_parts(one)[0] for one in recording_ids))
        failed: list[_NotProtected] = []
        for some in _hundreds(conversations):
            answer = self._transport.request(
                "PUT",
                PROTECTION,
                params={"protect": "true" if protected else "false"},
                json={"conversationIds": list(some)},
            )
            failed += parse(_Protection, answer or {}, f"PUT {PROTECTION}").failed_updates or []
        if failed:
            codes = sorted({one.error_code or "no code" for one in failed})
            told = ", ".join(code for code in codes if re.fullmatch(r"[A-Za-z. _-]{1,64}", code)) or "no reason"
            raise Refused(
                f"the legal hold of {len(failed)} of {len(conversations)} conversations could not be "
                f"{'set' if protected else 'lifted'} ({told}); see them in the platform and try again"
            )

    def purge(self, recording_id: str) -> None:
        """By the recording's delete date, set to now: the platform deletes in its own time, and under deletion
        protection not before that is lifted. Done too where it has no such recording, or one that it deleted.

        The request replaces all dates: the archive date goes back as it was read, for another one would restore the
        archived recording.
        """
        conversation, recording = _parts(recording_id)
        if recording is None:
            raise Refused("a conversation's id: only recordings are purged")
        metadata = f"{_path(conversation)}/recordingmetadata/{quote(recording, safe='')}"
        try:
            mine = parse(_Recording, self._transport.request("GET", metadata), f"GET {metadata}")
        except NotFound:
            return
        if (mine.file_state or "").upper() == "DELETED" or self._is_past(mine.delete_date):
            return
        path = f"{_path(conversation)}/recordings/{quote(recording, safe='')}"
        body = {"deleteDate": iso_utc(self._now())} | ({"archiveDate": mine.archive_date} if mine.archive_date else {})
        try:
            # Asked for twice, it changes nothing.
            answer = self._transport.request("PUT", path, json=body, repeatable=True)
        except NotFound:
            return
        if not self._is_past(parse(_Recording, answer, f"PUT {path}").delete_date):
            raise Refused(f"PUT {path}: the platform took no delete date; see the recording in the platform")

    def _is_past(self, date: str | None) -> bool:
        """As far as two clocks agree."""
        moment = _instant(date)
        return moment is not None and moment <= self._now() + CLOCKS_APART

    # Names

    def resolve_queue(self, name: str) -> str:
        """The id of the queue. Raises Refused, as the two below, where there is none or more than one."""
        settings = "COMPLIANCE_COMPLIANCE_QUEUE and COMPLIANCE_SUPERVISOR_QUEUE"
        return self._resolve("queue", name, settings, lambda: self._queues(name))

    def resolve_work_item_type(self) -> str:
        name = self._work_item_type
        return self._resolve("worktype", name, "COMPLIANCE_WORK_ITEM_TYPE", lambda: self._by_name(WORK_TYPES, name))

    def resolve_workbin(self) -> str | None:
        """None where none is set: the worktype's default."""
        name = self._workbin
        if not name:
            return None
        return self._resolve("workbin", name, "COMPLIANCE_WORKBIN", lambda: self._by_name(WORKBINS, name))

    def names(self, queues: Sequence[str]) -> dict[str, str | PlatformError]:
        """Ids by what they are of ("queue 'X'", "worktype 'Y'", "workbin 'Z'"), or why there is none."""
        wanted: dict[str, Callable[[], str | None]] = {
            f"queue '{queue}'": partial(self.resolve_queue, queue) for queue in queues
        }
        wanted[f"worktype '{self._work_item_type}'"] = self.resolve_work_item_type
        wanted[f"workbin '{self._workbin}'"] = self.resolve_workbin
        found: dict[str, str | PlatformError] = {}
        for what, resolve in wanted.items():
            try:
                if its_id := resolve():
                    found[what] = its_id
            except PlatformError as error:
                found[what] = error
        return found

    def delivery_failures(self, since: datetime) -> None:  # noqa: ARG002
        """The platform publishes no such figure; what was not delivered, the sweep finds."""
        return

    def close(self) -> None:
        self._transport.close()

    def _from_batch(self, recording_id: str, conversation: str, recording: str) -> Location | None:
        """With what a batch does not say, so that a verdict does not depend on the way that the media came."""
        with self._lock:
            fetched = self._fetched.pop(recording_id, None)
        if fetched is None or self._now() - fetched.at > BATCH_FRESH:
            return None
        path = f"{_path(conversation)}/recordingmetadata"
        try:
            mine = _recording(self._metadata_of(conversation, path), recording, f"GET {path}")
        except NotFound:
            return None
        told = Channel.EMAIL if fetched.media.content_type == "message/rfc822" else Channel.VOICE
        if mine is None or mine.kind is not told:
            return None
        return self._location(conversation, mine, lambda: fetched.media)

    def _metadata_of(self, conversation: str, path: str) -> Any:
        """Once for all recordings of the conversation that a batch fetched."""
        with self._lock_of(conversation):
            known = self._metadata.get(conversation)
            if known is None or self._now() - known.at > BATCH_FRESH:
                known = _Metadata(self._transport.request("GET", path), self._now())
            with self._lock:
                if any(_parts(key)[0] == conversation for key in self._fetched):
                    self._metadata[conversation] = known
                else:
                    self._metadata.pop(conversation, None)
            return known.recordings

    def _lock_of(self, conversation: str) -> threading.Lock:
        return self._conversations[crc32(conversation.encode()) % LOCKS]

    def _location(self, conversation: str, recording: _Recording, media: Callable[[], Media | None]) -> Location:
        if recording.kind is None:
            return Gone("a screen recording: this engine hears and reads, it does not watch")
        state = (recording.file_state or "").upper()
        if state in _NEVER:
            return Gone(_NEVER[state])
        if state == "RESTORING":
            return NotYet("the platform is restoring the recording (fileState RESTORING)", RESTORE_S)
        if state not in _PLAYABLE:
            return NotYet(f"the recording's fileState is {state if state.isalpha() else 'not a word'}")
        found = media()
        if found is None:
            estimate = recording.estimated_transcode_time_ms
            if recording.recording_error_status == "EMAIL_TRANSCRIPT_TOO_LARGE":
                return NotYet("the e-mail is too large for the platform to give its text, and it gives no file either")
            return NotYet("the recording has no media yet", None if estimate is None else max(0.0, estimate / 1000))
        ready = Ready(found, annotations=_annotations(recording))
        if recording.kind is not Channel.VOICE or not recording.session_id:
            return ready
        try:
            return replace(ready, transcript=self._transcript(conversation, recording.session_id))
        except Unavailable as error:
            if isinstance(error, PlatformHeld) and not error.host_failed:
                raise
            log.warning("recording %s:%s: its transcript can't be asked for now", conversation, recording.id)
            return replace(ready, transcript_missing=True)

    def _transcript(self, conversation: str, session: str) -> Media | None:
        """Of a call, from speech and text analytics; None where it has none, or the client may not see it."""
        until = self._no_transcripts_until
        if until and self._now() < until:
            return None
        path = f"{TRANSCRIPTS}/{quote(conversation, safe='')}/communications/{quote(session, safe='')}/transcripturl"
        try:
            url = parse(_Url, self._asked_twice(path) or {}, f"GET {path}").url
        except MissingPermission as error:
            log.warning("no transcripts of calls for %s: %s", PERMISSION_MEMORY, error)
            self._no_transcripts_until = self._now() + PERMISSION_MEMORY
            return None
        except Refused:
            return None
        return Media(url) if url else None

    def _asked_twice(self, path: str) -> Any:
        """A permission that is missing for a moment only is known to happen."""
        try:
            return self._transport.request("GET", path)
        except MissingPermission:
            time.sleep(ASK_AGAIN_S)
            return self._transport.request("GET", path)

    def _start_batch(self, recording_ids: Sequence[str]) -> str:
        pairs = [_parts(one) for one in recording_ids]
        body = {"batchDownloadRequestList": [{"conversationId": c, "recordingId": r} for c, r in pairs]}
        # A batch asked for twice changes nothing.
        answer = self._transport.request("POST", BATCHES, json=body, repeatable=True)
        return parse(_Id, answer, f"POST {BATCHES}").id

    def _batch_done(self, job: str, wanted: frozenset[str]) -> bool:
        """Keep what the batch has when it is done, which only its status says: its counts move."""
        path = f"{BATCHES}/{quote(job, safe='')}"
        try:
            batch = parse(_Batch, self._transport.request("GET", path), f"GET {path}")
        except PlatformError as error:
            log.warning("a batch of recordings is given up, they are asked for one by one: %s", error)
            return True
        if batch.status != "Completed":
            return False
        now = self._now()
        # A recording with an error, or with a file a channel, is left to `locate`: half of it must not pass for all.
        files: dict[str, list[Media | None]] = {}
        for one in batch.results or ():
            usable = one.result_url and not one.error_msg and _read_from_file(one.content_type)
            media = Media(one.result_url, one.content_type) if one.result_url and usable else None
            files.setdefault(f"{one.conversation_id}:{one.recording_id}", []).append(media)
        got = {key: _Fetched(some[0], now) for key, some in files.items() if len(some) == 1 and some[0]}
        with self._lock:
            self._fetched = {key: one for key, one in self._fetched.items() if now - one.at <= BATCH_FRESH}
            self._fetched |= {key: one for key, one in got.items() if key in wanted}
            # What was noted before this batch may say too little of what is in it.
            self._metadata.clear()
        return True

    def _pages(
        self, since: datetime, until: datetime, order_by: str, segments: Sequence[Mapping[str, Any]] = ()
    ) -> Iterator[list[_Conversation]]:
        """The latest first."""
        body: dict[str, Any] = {
            "interval": f"{iso_utc(since)}/{iso_utc(until)}",
            "order": "desc",
            "orderBy": order_by,
        } | ({"segmentFilters": list(segments)} if segments else {})
        for page in count(1):
            asked = body | {"paging": {"pageSize": MANY, "pageNumber": page}}
            answer = self._transport.request("POST", DETAILS, json=asked, repeatable=True)
            details = parse(_Details, answer or {}, f"POST {DETAILS}")
            yield details.conversations or []
            known = details.total_hits
            if not details.conversations or (known is not None and page * MANY >= known):
                return

    def _annotate(self, path: str, tags: Mapping[str, str], at_ms: int | None) -> None:
        words = {**tags} if at_ms is None else {**tags, "at_ms": str(at_ms)}
        said = "; ".join(f"{key}={value}" for key, value in words.items())[:ANNOTATION_LIMIT]
        if self._annotated(path, said):
            return
        body = {"type": "bookmark", "location": at_ms or 0, "durationMs": 1000, "description": said}
        try:
            self._transport.request("POST", path, json=body)
        except PlatformHeld:
            raise
        except Unavailable:
            if not self._annotated(path, said):
                raise

    def _annotated(self, path: str, said: str) -> bool:
        answer = self._transport.request("GET", path)
        notes = [parse(_Note, one, f"GET {path}") for one in _list(answer, f"GET {path}")]
        return any(_said_in(note.description or "") == _said_in(said) for note in _flat(notes))

    def _tag_conversation(self, conversation: str, status: str, violation_type: str | None) -> None:
        path = _path(conversation)
        present = parse(_Tagged, self._transport.request("GET", path), f"GET {path}").external_tag or ""
        if present and not present.startswith(_TAG_PREFIX):
            return
        tag = _gravest(present, status, violation_type)
        if tag != present:
            self._transport.request("PUT", f"{path}/tags", json={"externalTag": tag})

    def _find_work_item(self, type_id: str, tag: str) -> str | None:
        """The query takes three filters at most, and one of them has to be a type, queue, workbin or assignee (SDK)."""
        filters = [_equals("typeId", type_id), _equals("externalTag", tag)]
        return next((one.id for one in self._query(WORK_ITEMS, filters) if one.external_tag == tag), None)

    def _find_callback_if_asked(self, queue_id: str, name: str) -> str | None:
        """None also where the platform can't be asked: the callback may be there all the same."""
        try:
            return self._find_callback(queue_id, name)
        except PlatformError as error:
            log.warning("a callback of which the answer is lost was not looked up: %s", error)
            return None

    def _find_callback(self, queue_id: str, name: str) -> str | None:
        predicates = [
            {"type": "dimension", "dimension": dimension, "operator": "matches", "value": value}
            for dimension, value in (("mediaType", "callback"), ("queueId", queue_id))
        ]
        now = self._now()
        segments = [{"type": "and", "predicates": predicates}]
        return next(
            (
                one.conversation_id
                for page in self._pages(now - CALLBACK_LIFE, now + timedelta(hours=1), "conversationStart", segments)
                for one in page
                if any(session.callback_user_name == name for session in one.sessions)
            ),
            None,
        )

    def _resolve(self, what: str, name: str, settings: str, look: Callable[[], Iterator[_Named]]) -> str:
        with self._lock:
            known = self._ids.get((what, name))
        if known:
            return known
        ids = list(dict.fromkeys(one.id for one in look() if one.name == name))
        if len(ids) != 1:
            there = "no" if not ids else f"more than one ({len(ids)})"
            raise Refused(
                f"the platform shows {there} {what} named '{name}'; create or rename it, give the client's role the "
                f"division that it is in, or change {settings}"
            )
        with self._lock:
            self._ids[what, name] = ids[0]
        return ids[0]

    def _queues(self, name: str) -> Iterator[_Named]:
        answer = self._transport.request("GET", QUEUES, params={"name": name, "pageSize": str(MANY)})
        yield from parse(_Listing, answer, f"GET {QUEUES}").entities or ()

    def _by_name(self, path: str, name: str) -> Iterator[_Named]:
        return self._query(path, [_equals("name", name)])

    def _query(self, path: str, filters: Sequence[Mapping[str, Any]]) -> Iterator[_Named]:
        """All that match, over all pages: a page may be short, or empty, before the last (SDK)."""
        after: str | None = None
        while True:
            body: dict[str, Any] = {"pageSize": MANY, "filters": list(filters)} | ({"after": after} if after else {})
            answer = self._transport.request("POST", f"{path}/query", json=body, repeatable=True)
            listing = parse(_Listing, answer, f"POST {path}/query")
            yield from listing.entities or ()
            if not listing.after or listing.after == after:
                return
            after = listing.after


def _parts(recording_id: str) -> tuple[str, str | None]:
    conversation, _, recording = recording_id.partition(":")
    return conversation, recording or None


def _path(conversation_id: str) -> str:
    return f"{CONVERSATIONS}/{quote(conversation_id, safe='')}"


def _list(answer: Any, asked: str) -> list[Any]:
    """Nothing at all is an empty list: so the platform answers while it works."""
    if answer is None:
        return []
    if not isinstance(answer, list):
        raise Unavailable(f"{asked}: the answer is malformed: not a list")
    return answer


def _recording(answer: Any, recording_id: str, asked: str) -> _Recording | None:
    """The one asked for; what is wrong with another one of the conversation is no matter."""
    ours = (one for one in _list(answer, asked) if isinstance(one, dict) and one.get("id") == recording_id)
    return next((parse(_Recording, one, asked) for one in ours), None)


def _media(recording: _Recording) -> Media | None:
    """Words come in the answer itself, sound by URL: one file, or one a channel ('0', '1'; 'S' is both in one)."""
    uris = {key: one.media_uri for key, one in (recording.media_uris or {}).items() if one and one.media_uri}
    name = f"inline:{recording.id}"
    match recording.kind:
        case Channel.EMAIL if recording.email_transcript:
            return Media(name, "message/rfc822", _mail(recording.email_transcript))
        case Channel.EMAIL:
            return next((Media(uri, "message/rfc822") for uri in uris.values()), None)
        case Channel.CHAT:
            messages = [_said(one) for one in recording.transcript or ()]
            messages += [_sent(one) for one in recording.messaging_transcript or ()]
            content = json.dumps({"messages": messages}, ensure_ascii=True).encode()
            return Media(name, "application/json", content) if messages else None
    if not uris:
        return None
    if "S" in uris:
        return Media(uris["S"])
    if len(uris) < len(recording.media_uris or {}):
        # Half of a call must not pass for all of it.
        return None
    urls = tuple(uris[key] for key in sorted(uris, key=lambda key: (len(key), key)))
    return Media(urls[0], channels=urls if len(urls) > 1 else ())


def _said(message: _ChatMessage) -> dict[str, Any]:
    return {
        "time": _time(message.utc),
        "participant": message.participant_purpose or message.sender_communication_id,
        "text": message.body or message.message or "",
    }


def _sent(message: Mapping[str, Any]) -> dict[str, Any]:
    """RecordingMessagingMessage: its text, all that it shows or answers besides (buttons, cards, forms, payments), and
    the kinds of the media in it, which nobody reads."""
    more = {name: value for name, value in message.items() if name not in _ABOUT_MESSAGE}
    kinds = [*_kinds_of(message.get("messageMediaAttachments"), "mediaType"), *_pictures(more)]
    kinds += ["image/*" for name in ("messageStickerAttachments", "story") if message.get(name)]
    return {
        "time": _time(message.get("timestamp")),
        "participant": next((v for k in ("purpose", "participantId") if isinstance(v := message.get(k), str)), None),
        "text": "\n".join(text for text in (message.get("messageText"), *_texts(more)) if isinstance(text, str)),
        "attachments": [{"contentType": kind} for kind in kinds],
    }


def _texts(value: Any) -> Iterator[str]:
    """Every text in there but what says how the message works."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            if not (isinstance(one, str) and _NO_WORDS.fullmatch(key)):
                yield from _texts(one)


def _pictures(value: Any) -> Iterator[str]:
    """A kind for each picture, film or sound that is pointed to in there."""
    if isinstance(value, list):
        for one in value:
            yield from _pictures(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            if isinstance(one, str) and one and _PICTURED.fullmatch(key):
                yield "image/*"
            else:
                yield from _pictures(one)


def _kinds_of(attachments: Any, name: str) -> Iterator[str]:
    for one in attachments if isinstance(attachments, list) else []:
        yield str((one.get(name) if isinstance(one, dict) else None) or "")


def _mail(mails: Sequence[_Mail]) -> bytes:
    """RFC 5322. Addresses are left out, screening needs none. Attachments are not fetched: the mail says so."""
    messages = [_message(mail) for mail in mails]
    if len(messages) == 1:
        return messages[0].as_bytes()
    thread = EmailMessage()
    thread["Subject"] = ""
    thread.make_mixed()
    for message in messages:
        thread.add_attachment(message)
    return thread.as_bytes()


def _message(mail: _Mail) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = " ".join(_encodable(mail.subject or "").split())
    message.set_content(_encodable(mail.text_body or ""), cte="base64")
    if mail.html_body:
        message.add_alternative(_encodable(mail.html_body), subtype="html", cte="base64")
    for attachment in mail.attachments or ():
        message.add_attachment(_standing_for(attachment, mail), subtype="external-body", params=_away(attachment))
    return message


def _away(attachment: _Attachment) -> dict[str, str]:
    size = {} if attachment.content_length is None else {"size": str(attachment.content_length)}
    return {"access-type": "x-genesys-cloud"} | size


def _standing_for(attachment: _Attachment, mail: _Mail) -> EmailMessage:
    """The headers of a file that is not in the mail (RFC 2046, 5.2.3): its kind, and whether the text shows it."""
    kind = (attachment.content_type or "").partition(";")[0].strip().lower()
    known = _MEDIA_TYPE.fullmatch(kind) and not kind.startswith(("multipart/", "message/"))
    headers = EmailMessage()
    headers["Content-Type"] = kind if known else "application/octet-stream"
    names = [name for name in (attachment.name, attachment.attachment_id) if name]
    shown = any(f"cid:{name}" in (mail.html_body or "") for name in names)
    headers["Content-Disposition"] = "inline" if shown or any(map(_OF_A_TEXT.fullmatch, names)) else "attachment"
    return headers


def _encodable(text: str) -> str:
    """JSON can hold halves of characters, which no mail can."""
    return text.encode("utf-8", "replace").decode()


def _annotations(recording: _Recording) -> frozenset[Annotation] | None:
    """Only what an agent or a flow paused counts: a hold hides nothing, and 'FlowOrQueue' does not tell a secure flow
    from any other."""
    if recording.annotations is None:
        return None
    pauses = [note for note in _flat(recording.annotations) if note.reason in ("SecurePause", "Pause")]
    return frozenset(
        Annotation.SECURE_PAUSE if _resumed(pause, recording.length_ms) else Annotation.PAUSE_NOT_RESUMED
        for pause in pauses
    )


def _resumed(pause: _Note, length_ms: float | None) -> bool:
    """Whether it ended, and half a second or more before the recording did."""
    if not pause.duration_ms:
        return False
    at = pause.location if pause.realtime_location is None else pause.realtime_location
    return at is None or length_ms is None or at + pause.duration_ms < length_ms - 500


def _said_in(description: str) -> dict[str, str]:
    """`key=value; key=value`, as `_annotate` writes it."""
    pairs = (part.partition("=") for part in description.split(";"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def _flat(notes: Sequence[_Note]) -> Iterator[_Note]:
    for note in notes:
        yield note
        yield from _flat(note.annotations or ())


def _gravest(present: str, status: str, violation_type: str | None) -> str:
    """Our external tag with one more verdict in it: the gravest status, and the violation types of that status."""
    before, _, types = present.removeprefix(_TAG_PREFIX).partition(":")
    order = {VerdictValue.REVIEW_REQUIRED.value: 1, VerdictValue.VIOLATION_DETECTED.value: 2}
    if order.get(before, 0) > order.get(status, 0):
        return present
    both = {kind for kind in types.split(",") if kind} if before == status else set()
    kinds = sorted(both | ({violation_type} if violation_type else set()))
    tag = f"{_TAG_PREFIX}{status}" + (f":{','.join(kinds)}" if kinds else "")
    return tag if len(tag) <= KEY_LIMIT or not present else present


def _announced(conversation_id: str, recording: _Recording, asked: str) -> RecordingEvent:
    start, end = _instant(recording.start_time), _instant(recording.end_time)
    ordered = start is None or end is None or start <= end
    try:
        return RecordingEvent(
            recording_id=f"{conversation_id}:{recording.id}",
            conversation_id=conversation_id,
            event=EventType.COMPLETED,
            channel=recording.kind or Channel.VOICE,
            start_time=start if ordered else None,
            end_time=end if ordered else None,
        )
    except ValidationError:
        raise Unavailable(f"{asked}: the answer is malformed at id") from None


def _ended(conversation: _Conversation, ended: datetime) -> RecordingEvent:
    media = {"chat": Channel.CHAT, "message": Channel.CHAT, "email": Channel.EMAIL}
    started = conversation.conversation_start
    first = next((session.media_type for session in conversation.sessions if session.media_type), "")
    try:
        return RecordingEvent(
            recording_id=conversation.conversation_id,
            conversation_id=conversation.conversation_id,
            event=EventType.COMPLETED,
            event_time=ended,
            start_time=started if started and started <= ended else None,
            end_time=ended,
            channel=media.get(first, Channel.VOICE),
            direction={d.value: d for d in Direction}.get(conversation.originating_direction or ""),
        )
    except ValidationError:
        raise Unavailable(f"POST {DETAILS}: the answer is malformed at conversationId") from None


def _equals(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "type": "String", "operator": "EQ", "values": [value]}


def _read_from_file(content_type: str | None) -> bool:
    """Chats and messages come zipped in a batch, and as text otherwise."""
    return bool(content_type) and (str(content_type).startswith("audio/") or content_type == "message/rfc822")


def _callback_name(key: str) -> str:
    """What the supervisor sees as the name, and what tells the callback from others: `Compliance PCI-DTMF q3x7...`."""
    parts = key.split("/")
    rule = parts[1] if len(parts) == 3 and re.fullmatch(r"[A-Za-z0-9_-]{1,40}", parts[1]) else "callback"
    return f"Compliance {rule} {_digest(key)}"


def _digest(key: str) -> str:
    """Base32, not hex: no run of its digits passes for a card number."""
    return b32encode(sha256(key.encode()).digest()[:15]).decode().lower()


def _hundreds(items: Sequence[str]) -> Iterator[Sequence[str]]:
    return (items[start : start + MANY] for start in range(0, len(items), MANY))


def _instant(text: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except (ValueError, TypeError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _time(text: Any) -> str | None:
    moment = _instant(text)
    return iso_utc(moment) if moment else None
