"""Conversations, recordings, transcripts, batches and analytics as the published API gives them, with their faults.
What remediation writes (work items, callbacks, flows) is `cloud_work`; media files are served by `media`."""

import asyncio
import email
import email.policy
import json
import re
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.utils import parseaddr, parsedate_to_datetime
from hashlib import sha256
from typing import Any, Final
from zlib import crc32

from starlette.responses import JSONResponse, Response

from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.sandbox.calls import SyntheticRecording
from compliance_pipeline.sandbox.cloud_state import FOREVER, BatchJob, Listed, id_of, iso
from compliance_pipeline.sandbox.cloud_wire import (
    MEDIA_FORMATS,
    Call,
    ConversationQuery,
    ConversationTags,
    DetailFilter,
    NewAnnotation,
    NewBatch,
    Predicate,
    Problem,
    Protection,
    RecordingChange,
    bad,
    interval_of,
    not_found,
)
from compliance_pipeline.sandbox.faults import FaultKind
from compliance_pipeline.sandbox.state import Held, PlatformState, shown

MOST_AT_ONCE: Final = 100
"""Recordings of a batch, conversations of a deletion protection, conversations of a page of analytics."""
MAX_WAIT_MS: Final = 5000
_LONGEST_INTERVAL: Final = timedelta(days=31)
_FINAL: Final = {FaultKind.DELETED: "DELETED", FaultKind.FILE_ERROR: "ERROR", FaultKind.ARCHIVED: "ARCHIVED"}
_FOR_NOW: Final = {
    FaultKind.UPLOADING: "UPLOADING",
    FaultKind.RESTORING: "RESTORING",
    FaultKind.UNKNOWN_STATE: "QUARANTINED",
}
_FILE_STATES: Final = {"available": "AVAILABLE", "processing": "UPLOADING", "deleted": "DELETED", "failed": "ERROR"}
_FOREIGN_TAG: Final = "externalTag"


def session_of(recording_id: str, purpose: str = "customer") -> str:
    """The session (communication) of a party that the recording is of; the recording's own is the customer's."""
    return id_of("session", f"{recording_id}:{purpose}")


# Conversations


def _conversation(call: Call) -> list[Held]:
    """The recordings of the conversation that the request names. Raises Problem 404, for now or for ever."""
    conversation_id, state = call.path("conversation_id"), call.state
    held = state.held_of(conversation_id)
    if not held and conversation_id not in call.cloud.callbacks:
        raise not_found("the conversation", "conversation.not.found")
    for one in held:
        if state.passing(FaultKind.NOT_FOUND_FOR_NOW, one.recording.recording_id):
            raise not_found("the conversation", "conversation.not.found")
    there = [one for one in held if not state.strikes(FaultKind.NOT_FOUND_EVER, one.recording.recording_id)]
    if held and not there:
        raise not_found("the conversation")
    _let_others_tag(call, there)
    return there


def _let_others_tag(call: Call, recordings: Iterable[Held]) -> None:
    """Someone else takes a conversation's one external tag before the client first looks."""
    for held in recordings:
        if held.tag_of_others is None and call.state.strikes(FaultKind.TAG_OVERWRITTEN, held.recording.recording_id):
            value = f"crm-case-{crc32(held.conversation_id.encode()) % 10_000}"
            call.cloud.external_tags[held.conversation_id] = value
            held.tag_of_others = {"key": _FOREIGN_TAG, "value": value}
            held.tags.append(held.tag_of_others)


async def get_conversation(call: Call) -> Response:
    held = _conversation(call)
    conversation_id = call.path("conversation_id")
    if not held:
        return JSONResponse(call.cloud.callbacks[conversation_id])
    call.state.saw("conversation read", held[0].recording.recording_id)
    start = min(one.recording.start_time for one in held)
    end = max(one.recording.end_time for one in held)
    body: dict[str, Any] = {
        "id": conversation_id,
        "startTime": iso(start),
        "endTime": iso(end),
        "participants": [party for one in held for party in _participants(one)],
        "recordingState": "NONE",
        "divisions": [{"division": {"id": id_of("division", "Home")}, "entities": []}],
        "selfUri": f"/api/v2/conversations/{conversation_id}",
    }
    if tag := call.cloud.external_tags.get(conversation_id):
        body["externalTag"] = tag
    return JSONResponse(body)


_MEDIA_LISTS: Final = {"voice": "calls", "chat": "chats", "message": "messages", "email": "emails"}


def _media_type(held: Held) -> str:
    """As analytics names it. Half of the written interactions in real time are web chats, half are messages."""
    recording = held.recording
    if recording.channel is Channel.VOICE:
        return "voice"
    if recording.channel is Channel.EMAIL:
        return "email"
    return "chat" if crc32(recording.recording_id.encode()) % 2 else "message"


def _parties(recording: SyntheticRecording) -> tuple[dict[str, str], dict[str, str]]:
    """Agent and customer; empty where nobody is known, as of a sample."""
    return (recording.participants[0], recording.participants[-1]) if recording.participants else ({}, {})


def _participants(held: Held) -> list[dict[str, Any]]:
    """Raw, as the platform gives them out: names, numbers, addresses."""
    recording = held.recording
    agent, customer = _parties(recording)
    times = {"startTime": iso(recording.start_time), "endTime": iso(recording.end_time)}
    media_list = _MEDIA_LISTS[_media_type(held)]

    def leg(purpose: str) -> dict[str, Any]:
        return {
            "id": session_of(recording.recording_id, purpose),
            "state": "disconnected" if media_list in ("messages", "emails") else "terminated",
            "direction": recording.direction.value,
            "connectedTime": iso(recording.start_time),
            "disconnectedTime": iso(recording.end_time),
        } | ({"recording": True} if media_list == "calls" else {})

    caller = customer.get("ani", "")
    return [
        {
            **times,
            "id": id_of("participant", f"{recording.recording_id}:customer"),
            "purpose": "customer",
            "name": customer.get("email", ""),
            "address": f"tel:{caller}",
            "ani": f"tel:{caller}",
            "dnis": "tel:+13175550100",
            "attributes": {"email": customer.get("email", "")},
            media_list: [leg("customer")],
        },
        {
            **times,
            "id": id_of("participant", f"{recording.recording_id}:agent"),
            "purpose": "agent",
            "userId": agent.get("id", ""),
            "queueName": agent.get("queue", ""),
            "queueId": id_of("queue", agent.get("queue", "")),
            "address": f"sip:{agent.get('extension', '')}@org.example",
            "ani": f"tel:{caller}",
            "attributes": {},
            media_list: [leg("agent")],
        },
    ]


async def put_tags(call: Call) -> Response:
    held = _conversation(call)
    tag = (await call.body(ConversationTags)).external_tag
    conversation_id = call.path("conversation_id")
    call.cloud.external_tags[conversation_id] = tag
    for one in held:
        foreign = one.tag_of_others
        if foreign and foreign["value"] not in tag and foreign in one.tags:
            one.tags.remove(foreign)
            call.state.saw("tag of others lost", one.recording.recording_id)
        call.state.saw("external tag written", one.recording.recording_id, shown(tag))
    call.cloud.audit("ContactCenter", "Update", "Conversation", conversation_id)
    return Response(status_code=204)


async def protect(call: Call) -> Response:
    protected = call.flag("protect", True)
    needed = "recording:deletionProtection:" + ("apply" if protected else "revoke")
    if not call.cloud.grants(needed):
        raise missing_permissions([needed])
    ids = (await call.body(Protection)).conversation_ids
    if len(ids) > MOST_AT_ONCE:
        raise bad(f"At most {MOST_AT_ONCE} conversations at once", "conversationIds")
    failed = []
    for conversation_id in ids:
        held = call.state.held_of(conversation_id)
        if not held:
            failed.append(
                {
                    "conversation": {"id": conversation_id},
                    "errorCode": "conversation.not.found",
                    "errorMessage": "Unable to find the conversation",
                }
            )
            continue
        (call.cloud.protected.add if protected else call.cloud.protected.discard)(conversation_id)
        call.cloud.audit("Recording", "Update", "DeletionProtection", conversation_id)
        for one in held:
            what = "protection applied" if protected else "protection revoked"
            call.state.saw(what, one.recording.recording_id)
    return JSONResponse({"failedUpdates": failed})


def missing_permissions(names: Iterable[str]) -> Problem:
    listed = ", ".join(names)
    return Problem(
        403,
        "missing.permissions",
        f"Unable to perform the requested action. You are missing the following permission(s): {listed}",
        extra={"messageParams": {"permissions": listed}},
    )


# Recordings


async def list_recordings(call: Call) -> Response:
    call.choices("formatId", MEDIA_FORMATS)
    call.choices("mediaFormats", MEDIA_FORMATS[:-1])
    call.flag("includePauseAnnotationsForScreenRecordings")
    wait_ms = call.integer("maxWaitMs", MAX_WAIT_MS)
    state = call.state
    listed = _listed(state, _conversation(call))
    for held in listed:
        if state.passing(FaultKind.TRANSCODING_202, held.recording.recording_id):
            return _transcoding(state, held)
        if state.passing(FaultKind.TRANSCODING_EMPTY_LIST, held.recording.recording_id):
            return JSONResponse([], 202)
    if not await _become_available(listed, wait_ms):
        return _transcoding(state, listed[0])
    raw = {id(one) for one in listed if state.passing(FaultKind.TRANSCODING_WITHOUT_URIS, one.recording.recording_id)}
    bodies = [_recording(call, held, transcoded=id(held) not in raw) for held in listed]
    for held in listed:
        bodies += _companions(call, held)
    return JSONResponse(bodies, 202 if raw else 200)


def _transcoding(state: PlatformState, held: Held) -> Response:
    state.saw("recording read", held.recording.recording_id, "202")
    return Response(status_code=202)


async def _become_available(listed: list[Held], wait_ms: int) -> bool:
    """Waits for what is being made playable, at most `wait_ms`; whether all is."""
    now = datetime.now(UTC)
    coming = [one.available_at for one in listed if one.status_at(now) == "processing"]
    if not coming:
        return True
    left = (max(coming) - now).total_seconds()
    await asyncio.sleep(min(max(left, 0) + 0.002, wait_ms / 1000))
    now = datetime.now(UTC)
    return all(one.status_at(now) != "processing" for one in listed)


def _listed(state: PlatformState, recordings: Iterable[Held]) -> list[Held]:
    """What a listing of the conversation has by now."""
    now = datetime.now(UTC)
    return [
        held
        for held in recordings
        if held.known_at <= now
        and not state.strikes(FaultKind.NOT_RECORDED, held.recording.recording_id)
        and not state.passing(FaultKind.LISTED_LATE, held.recording.recording_id)
    ]


async def get_recording(call: Call) -> Response:
    call.choices("formatId", MEDIA_FORMATS)
    call.choices("mediaFormats", MEDIA_FORMATS[:-1])
    mail_format = call.choices("emailFormatId", ("EML", "NONE"))
    call.choices("chatFormatId", ("ZIP", "NONE"))
    call.choices("messageFormatId", ("ZIP", "NONE"))
    call.flag("download")
    held, companion = _one(call)
    if companion:
        return JSONResponse(companion)
    state, recording_id = call.state, held.recording.recording_id
    pending = (
        state.passing(FaultKind.TRANSCODING_202, recording_id)
        or state.passing(FaultKind.TRANSCODING_EMPTY_LIST, recording_id)
        or state.passing(FaultKind.TRANSCODING_WITHOUT_URIS, recording_id)
        or held.status_at(datetime.now(UTC)) == "processing"
    )
    body = _recording(call, held, transcoded=not pending)
    if mail_format == ["EML"] and not pending and body["media"] == "email" and body["fileState"] == "AVAILABLE":
        body["mediaUris"] = {"0": {"mediaUri": state.media_url(recording_id)}}
    return JSONResponse(body, 202 if pending else 200)


def _one(call: Call) -> tuple[Held, dict[str, Any] | None]:
    """The recording that the request names; with a body of its own if it only stands beside a real one."""
    wanted = call.path("recording_id")
    for held in _listed(call.state, _conversation(call)):
        if held.recording.recording_id == wanted:
            return held, None
        for companion in _companions(call, held):
            if companion["id"] == wanted:
                return held, companion
    raise not_found("the recording")


async def put_recording(call: Call) -> Response:
    needed = ["recording:recording:editRetention", "recording:recording:restore"]
    if not any(map(call.cloud.grants, needed)):
        raise missing_permissions(needed)
    held, companion = _one(call)
    change = await call.body(RecordingChange)
    if companion:
        raise bad("The recording is not eligible", "recordingId")
    recording_id = held.recording.recording_id
    kept = call.cloud.retention.setdefault(recording_id, {})
    archived_until = kept.get("archiveDate")
    for name, value in change.model_dump(by_alias=True).items():
        kept[name] = value and iso(value)
    if kept["archiveDate"] not in (None, archived_until) and _file_state(call, held) == "ARCHIVED":
        call.cloud.restored[recording_id] = datetime.now(UTC)
    call.cloud.audit("Recording", "Update", "Recording", recording_id)
    call.state.saw("retention changed", recording_id)
    return JSONResponse(_recording(call, held))


def _file_state(call: Call, held: Held) -> str:
    state, recording_id = call.state, held.recording.recording_id
    delete_date = call.cloud.retention.get(recording_id, {}).get("deleteDate")
    is_due = delete_date and datetime.fromisoformat(delete_date) <= datetime.now(UTC)
    if is_due and held.conversation_id not in call.cloud.protected:
        return "DELETED"
    for kind, word in _FINAL.items():
        if state.strikes(kind, recording_id):
            restored = call.cloud.restored.get(recording_id)
            if word != "ARCHIVED" or restored is None:
                return word
            return "RESTORED" if datetime.now(UTC) > restored + timedelta(seconds=1) else "RESTORING"
    for kind, word in _FOR_NOW.items():
        if state.passing(kind, recording_id):
            return word
    return _FILE_STATES.get(held.status_at(datetime.now(UTC)), held.status.upper())


def _metadata(call: Call, held: Held) -> dict[str, Any]:
    recording = held.recording
    recording_id = recording.recording_id
    media_type = _media_type(held)
    annotations = call.cloud.annotations.get(recording_id, [])
    body: dict[str, Any] = {
        "id": recording_id,
        "conversationId": held.conversation_id,
        "startTime": iso(recording.start_time),
        "endTime": iso(recording.end_time),
        "media": {"voice": "audio", "message": "messaging"}.get(media_type, media_type),
        # Bookmarks are left out for those who may not see them.
        "annotations": list(annotations) if call.cloud.grants("recording:annotation:view") else [],
        "fileState": _file_state(call, held),
        "sessionId": session_of(recording_id),
        "selfUri": f"/api/v2/conversations/{held.conversation_id}/recordings/{recording_id}",
    }
    if media_type == "voice":
        body["mediaSubtype"] = "Trunk"
    return body | call.cloud.retention.get(recording_id, {})


def _recording(call: Call, held: Held, *, transcoded: bool = True) -> dict[str, Any]:
    """The Recording of a listing, with media if it is there and `transcoded`."""
    state, recording = call.state, held.recording
    recording_id = recording.recording_id
    body = _metadata(call, held) | {
        "mediaUris": None,
        "users": [{"id": _parties(recording)[0].get("id", "")}],
        "recordingFileRole": "CUSTOMER_EXPERIENCE",
        "originalRecordingStartTime": iso(recording.start_time),
        "creationTime": iso(recording.end_time),
    }
    playable = transcoded and body["fileState"] in ("AVAILABLE", "RESTORED")
    state.saw("recording read", recording_id, shown(body["fileState"]) if transcoded else "202")
    if not transcoded:
        body["estimatedTranscodeTimeMs"] = 1500
    if body["media"] != "audio":
        return body | (_text(body["media"], recording.media) if playable else {})
    if playable and not state.passing(FaultKind.MEDIA_URIS_NULL, recording_id):
        body["mediaUris"] = {
            key: {"mediaUri": state.media_url(recording_id, channel)} for key, channel in _channels(state, held)
        }
        body["outputDurationMs"] = round((recording.end_time - recording.start_time).total_seconds() * 1000)
        body["outputSizeInBytes"] = len(recording.media)
    else:
        # As documented: null when there is no playable media.
        body["startTime"] = body["endTime"] = None
    return body


def _channels(state: PlatformState, held: Held) -> list[tuple[str, str | None]]:
    """Keys of mediaUris: one file of both channels, one a channel, or one into which both are mixed."""
    recording = held.recording
    whole = recording.content_type == "audio/wav" and recording.truth.damage is None and len(recording.speakers) == 2
    if whole and state.strikes(FaultKind.CHANNEL_FILES, recording.recording_id):
        is_mono = crc32(recording.recording_id.encode()) % 3 == 0
        return [("0", "mono")] if is_mono else [("0", "0"), ("1", "1")]
    return [("S" if len(recording.speakers) == 2 else "0", None)]


def _text(media: str, raw: bytes) -> dict[str, Any]:
    """The inline transcript of a chat, of messages or of an e-mail."""
    if media == "email":
        return {"emailTranscript": [_mail(raw)]}
    messages = json.loads(raw)["messages"]
    if media == "chat":
        return {
            "transcript": [
                {
                    "id": id_of("message", f"{at}:{message['time']}"),
                    "body": message["text"],
                    "utc": iso(datetime.fromisoformat(message["time"])),
                    "from": message["participant"],
                    "participantPurpose": message["participant"],
                    "type": "message",
                    "bodyType": "STANDARD",
                }
                for at, message in enumerate(messages)
            ]
        }
    return {
        "messagingTranscript": [
            {
                "id": id_of("message", f"{at}:{message['time']}"),
                "messageText": message["text"],
                "timestamp": iso(datetime.fromisoformat(message["time"])),
                "from": message["participant"],
                "purpose": message["participant"],
                "status": "delivered",
            }
            for at, message in enumerate(messages)
        ]
    }


def _mail(raw: bytes) -> dict[str, Any]:
    message = email.message_from_bytes(raw, policy=email.policy.default)
    if not isinstance(message, EmailMessage):
        raise TypeError("the default policy makes EmailMessage")
    body = message.get_body(("plain", "html"))
    text = body.get_content() if isinstance(body, EmailMessage) else ""
    sent = message["Date"]
    return {
        "id": str(message["Message-ID"] or id_of("mail", sha256(raw).hexdigest())),
        "subject": str(message["Subject"] or ""),
        "from": _address(message["From"]),
        "to": [_address(message["To"])],
        "cc": [],
        "bcc": [],
        "attachments": [],
        "textBody": text,
    } | ({"time": iso(parsedate_to_datetime(str(sent)))} if sent else {})


def _address(header: Any) -> dict[str, str]:
    name, address = parseaddr(str(header or ""))
    return {"email": address, "name": name}


def _companions(call: Call, held: Held) -> list[dict[str, Any]]:
    """What stands beside a call: its screen recording, and a consult whose file is gone."""
    recording = held.recording
    recording_id = recording.recording_id
    if recording.channel is not Channel.VOICE or not call.state.strikes(FaultKind.SEVERAL_RECORDINGS, recording_id):
        return []

    def beside(what: str, **fields: Any) -> dict[str, Any]:
        other = id_of("recording", f"{recording_id}:{what}")
        return {
            "id": other,
            "conversationId": held.conversation_id,
            "startTime": iso(recording.start_time),
            "endTime": iso(recording.end_time),
            "annotations": list(call.cloud.annotations.get(other, [])),
            "mediaUris": None,
            "selfUri": f"/api/v2/conversations/{held.conversation_id}/recordings/{other}",
        } | fields

    return [
        beside(
            "screen",
            media="screen",
            mediaSubtype="Screen",
            fileState="AVAILABLE",
            sessionId=session_of(recording_id, "screen"),
            mediaUris={"0": {"mediaUri": call.state.media_url(recording_id)}},
        ),
        beside(
            "consult",
            media="audio",
            mediaSubtype="Consult",
            fileState="DELETED",
            sessionId=session_of(recording_id, "consult"),
            deleteDate=iso(recording.end_time),
            startTime=None,
            endTime=None,
        ),
    ]


_ONLY_WITH_MEDIA: Final = ("mediaUris", "users", "recordingFileRole", "originalRecordingStartTime", "creationTime")


async def list_metadata(call: Call) -> Response:
    bodies = []
    for held in _listed(call.state, _conversation(call)):
        call.state.saw("metadata read", held.recording.recording_id)
        bodies += [_metadata(call, held), *map(_without_media, _companions(call, held))]
    return JSONResponse(bodies)


async def get_metadata(call: Call) -> Response:
    held, companion = _one(call)
    call.state.saw("metadata read", held.recording.recording_id)
    return JSONResponse(_without_media(companion) if companion else _metadata(call, held))


def _without_media(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in _ONLY_WITH_MEDIA}


async def list_annotations(call: Call) -> Response:
    _one(call)
    may_see = call.cloud.grants("recording:annotation:view")
    return JSONResponse(call.cloud.annotations.get(call.path("recording_id"), []) if may_see else [])


async def add_annotation(call: Call) -> Response:
    held, companion = _one(call)
    new = await call.body(NewAnnotation)
    recording_id = call.path("recording_id")
    if new.location is not None and new.location < 0:
        raise bad("location must not be before the recording", "location")
    annotation_id = str(uuid.uuid4())
    annotation = new.model_dump(by_alias=True, exclude_none=True) | {
        "id": annotation_id,
        "user": {"id": id_of("client", call.state.client_id)},
        "selfUri": f"{call.request.url.path}/{annotation_id}",
    }
    call.cloud.annotations.setdefault(recording_id, []).append(annotation)
    call.cloud.audit("Recording", "Create", "Annotation", annotation_id)
    tags = dict(re.findall(r"(\w+)=([^;]*[^;\s])", new.description or ""))
    if companion:
        call.state.saw("other recording annotated", held.recording.recording_id)
    elif tags:
        held.tags = [tag for tag in held.tags if tag["key"] not in tags]
        held.tags += [{"key": key, "value": value} for key, value in tags.items()]
        held.tagged_at = held.tagged_at or datetime.now(UTC)
        text = ", ".join(f"{shown(key)}={shown(value)}" for key, value in tags.items())
        call.state.saw("tags written", recording_id, text)
    return JSONResponse(annotation)


async def get_transcript_url(call: Call) -> Response:
    session = call.path("communication_id")
    now = datetime.now(UTC)
    for held in _listed(call.state, _conversation(call)):
        recording_id = held.recording.recording_id
        if session in (session_of(recording_id), session_of(recording_id, "agent")):
            # What spoils the audio of a call leaves no transcript of it either.
            if held.recording.transcript is None or held.status_at(now) != "available" or call.state.spoilt(held):
                break
            call.state.saw("transcript asked", recording_id)
            return JSONResponse({"url": call.state.transcript_url(recording_id)})
    raise not_found("the transcript")


async def get_settings(call: Call) -> Response:
    call.flag("createDefault")
    ttl = min(60, max(2, round(call.state.media_ttl_s / 60)))
    return JSONResponse(
        {
            "maxSimultaneousStreams": 1,
            "maxConfigurableScreenRecordingStreams": 1,
            "regionalRecordingStorageEnabled": False,
            "recordingPlaybackUrlTtl": ttl,
            "recordingBatchDownloadUrlTtl": ttl,
        }
    )


# Batches


async def submit_batch(call: Call) -> Response:
    asked = (await call.body(NewBatch)).batch_download_request_list
    if len(asked) > MOST_AT_ONCE:
        message = f"At most {MOST_AT_ONCE} recordings can be asked for at once"
        raise Problem(400, "batch.download.too.many.items", message, fields=("batchDownloadRequestList",))
    if any(not item.conversation_id for item in asked) or not asked:
        raise bad("Every item names a conversation", "batchDownloadRequestList")
    items = [(item.conversation_id or "", item.recording_id) for item in asked]
    state = call.state
    named = {
        held.recording.recording_id
        for conversation_id, recording_id in items
        for held in state.held_of(conversation_id)
        if recording_id in (None, held.recording.recording_id)
    }
    troubled = frozenset(one for one in named if state.passing(FaultKind.BATCH_TROUBLE, one))
    job_id = str(uuid.uuid4())
    call.cloud.batches[job_id] = BatchJob(items, troubled, steps=4 if troubled else 2)
    state.saw("batch asked", detail=str(len(items)))
    return JSONResponse({"id": job_id, "selfUri": f"/api/v2/recording/batchrequests/{job_id}"})


async def get_batch(call: Call) -> Response:
    job_id = call.path("job_id")
    job = call.cloud.batches.get(job_id)
    if job is None:
        raise not_found("the batch request")
    job.looks += 1
    results = [result for item in job.items for result in _batch_results(call, job, *item)]
    done = job.looks >= job.steps
    # While it works, what it expects grows with what it has: equal counts don't mean that it is done.
    ready = results if done else results[: len(results) * job.looks // job.steps]
    return JSONResponse(
        {
            "id": job_id,
            "jobId": job_id,
            "status": "Completed" if done else "InProgress",
            "expectedResultCount": len(ready) if job.troubled else len(results),
            "resultCount": len(ready),
            "errorCount": sum("errorMsg" in result for result in ready),
            "results": ready,
            "selfUri": f"/api/v2/recording/batchrequests/{job_id}",
        }
    )


def _batch_results(
    call: Call, job: BatchJob, conversation_id: str, recording_id: str | None
) -> Iterable[dict[str, Any]]:
    state, now = call.state, datetime.now(UTC)
    found = [
        held
        for held in state.held_of(conversation_id)
        if recording_id in (None, held.recording.recording_id)
        and held.known_at <= now
        and not state.strikes(FaultKind.NOT_RECORDED, held.recording.recording_id)
        and not state.strikes(FaultKind.NOT_FOUND_EVER, held.recording.recording_id)
    ]
    if not found:
        yield _failed(conversation_id, recording_id, "No recordings were found for the conversation")
    for held in found:
        key = held.recording.recording_id
        gone = any(state.strikes(kind, key) for kind in _FINAL) and key not in call.cloud.restored
        if key in job.troubled:
            yield _failed(conversation_id, key, "Internal error while preparing the recording")
        elif gone or held.status_at(now) != "available":
            yield _failed(conversation_id, key, "The recording is not available")
        else:
            for _, channel in _channels(state, held):
                yield {
                    "conversationId": conversation_id,
                    "recordingId": key,
                    "resultUrl": state.media_url(key, channel),
                    "contentType": held.recording.content_type,
                }


def _failed(conversation_id: str, recording_id: str | None, why: str) -> dict[str, Any]:
    return {"conversationId": conversation_id, "errorMsg": why} | (
        {"recordingId": recording_id} if recording_id else {}
    )


# Analytics


async def query_conversations(call: Call) -> Response:
    query = await call.body(ConversationQuery)
    since, until = interval_of(query.interval)
    if until - since > _LONGEST_INTERVAL:
        raise bad(f"interval must be {_LONGEST_INTERVAL.days} days at most", "interval")
    found = [
        listed
        for listed in call.cloud.listed(call.state, since, until)
        if _passes(call, listed, query.conversation_filters, query.segment_filters)
    ]
    by_end = query.order_by.endswith("End")
    if query.order != "unordered":
        found.sort(
            key=lambda one: (one.end if by_end else one.start, one.conversation_id), reverse=query.order == "desc"
        )
    at = (query.paging.page_number - 1) * query.paging.page_size
    body: dict[str, Any] = {"totalHits": len(found)}
    # Past the last page the list is left out, not empty.
    if shown_now := found[at : at + query.paging.page_size]:
        body["conversations"] = [_analytics(call, listed) for listed in shown_now]
    return JSONResponse(body)


def _analytics(call: Call, listed: Listed) -> dict[str, Any]:
    conversation_id = listed.conversation_id
    body: dict[str, Any] = {
        "conversationId": conversation_id,
        "conversationStart": iso(listed.start),
        "divisionIds": [id_of("division", "Home")],
    }
    if listed.end != FOREVER:
        body["conversationEnd"] = iso(listed.end)
    if tag := call.cloud.external_tags.get(conversation_id):
        body["externalTag"] = tag
    held = call.state.held_of(conversation_id)
    if not held:
        callback = call.cloud.callbacks[conversation_id]["participants"][0]
        return body | {
            "originatingDirection": "outbound",
            "participants": [
                {
                    "participantId": callback["id"],
                    "purpose": "customer",
                    "sessions": [_callback_session(callback)],
                }
            ],
        }
    return body | {
        "originatingDirection": held[0].recording.direction.value,
        "participants": [party for one in held for party in _analytics_parties(call.state, one)],
    }


def _callback_session(participant: dict[str, Any]) -> dict[str, Any]:
    callback = participant["callbacks"][0]
    session = {"sessionId": callback["id"], "mediaType": "callback", "direction": "outbound"}
    session |= {
        name: callback[name]
        for name in ("callbackUserName", "callbackNumbers", "callbackScheduledTime")
        if name in callback
    }
    return session | {"segments": [{"segmentType": "scheduled", "queueId": participant.get("queueId", "")}]}


def _analytics_parties(state: PlatformState, held: Held) -> list[dict[str, Any]]:
    recording = held.recording
    caller = _parties(recording)[1].get("ani", "")
    recorded = not state.strikes(FaultKind.NOT_RECORDED, recording.recording_id)
    parties = []
    for party in _participants(held):
        purpose = party["purpose"]
        segment = {
            "segmentStart": iso(recording.start_time),
            "segmentEnd": iso(recording.end_time),
            "segmentType": "interact",
            "conference": False,
        }
        session = {
            "sessionId": session_of(recording.recording_id, purpose),
            "mediaType": _media_type(held),
            "direction": recording.direction.value,
            "ani": f"tel:{caller}",
            "dnis": "tel:+13175550100",
            # The flag is about sound: of written media it says nothing, or no.
            "recording": recorded and _media_type(held) == "voice",
            "segments": [segment | ({"queueId": party["queueId"]} if "queueId" in party else {})],
        }
        parties.append(
            {
                "participantId": party["id"],
                "purpose": purpose,
                "sessions": [session],
            }
            | ({"userId": party["userId"]} if "userId" in party else {"participantName": party["name"]})
        )
    return parties


_ABOUT_CONVERSATION: Final = frozenset(
    {"conversationId", "conversationStart", "conversationEnd", "externalTag", "originatingDirection"}
)
_ABOUT_SEGMENT: Final = frozenset(
    {"mediaType", "direction", "purpose", "queueId", "recording", "ani", "dnis", "userId", "segmentType", "segmentEnd"}
)


def _passes(call: Call, listed: Listed, about_all: list[DetailFilter], about_segments: list[DetailFilter]) -> bool:
    if not about_all and not about_segments:
        return True
    body = _analytics(call, listed)
    flat = [
        {**party, **session, **segment}
        for party in body["participants"]
        for session in party["sessions"]
        for segment in session["segments"]
    ]
    return all(_filtered(one, [body], _ABOUT_CONVERSATION) for one in about_all) and all(
        _filtered(one, flat, _ABOUT_SEGMENT) for one in about_segments
    )


def _filtered(asked: DetailFilter, rows: list[dict[str, Any]], known: frozenset[str]) -> bool:
    """Whether one row meets the filter. A dimension that is not simulated is refused, never passed over."""
    needs = [(clause.type, clause.predicates) for clause in asked.clauses]
    needs += [(asked.type, asked.predicates)] if asked.predicates else []
    for predicate in (one for _, predicates in needs for one in predicates):
        if predicate.dimension not in known:
            raise bad(f"The sandbox can't filter by {shown(predicate.dimension)}", "dimension")

    def meets(row: dict[str, Any]) -> bool:
        met = [
            (all if kind == "and" else any)(_matches(row, predicate) for predicate in predicates)
            for kind, predicates in needs
        ]
        return (all if asked.type == "and" else any)(met) if met else True

    return any(map(meets, rows))


def _matches(row: dict[str, Any], predicate: Predicate) -> bool:
    value = row.get(predicate.dimension)
    if predicate.operator == "exists":
        return value is not None
    if predicate.operator == "notExists":
        return value is None
    text = str(value).lower() if isinstance(value, bool) else value
    return predicate.value is not None and text == predicate.value
