"""The guide's endpoints and payloads as it prints them; what it leaves open (look-ups, listing, callbacks) is ours.
Faults of recordings strike here; those of requests are the guard's, those of media the media host's."""

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from compliance_pipeline.sandbox.answers import json_body, platform_of
from compliance_pipeline.sandbox.faults import FaultKind
from compliance_pipeline.sandbox.state import Held, PlatformState, about_callback, shown

_PAGE: Final = 100


class _Printed(BaseModel):
    """Bodies as the guide prints them: what it requires, whatever else comes along."""

    model_config = ConfigDict(extra="allow")


class _EventData(_Printed):
    include: list[
        Literal["recordingId", "mediaUri", "participants", "startTime", "endTime", "direction", "channel", "tags"]
    ]


class _Destination(_Printed):
    type: Literal["webhook"]
    url: str


class _RetryPolicy(_Printed):
    maxRetries: int  # noqa: N815 - as printed
    backoffStrategy: Literal["exponential"]  # noqa: N815
    initialDelayMs: int  # noqa: N815


class _Subscription(_Printed):
    name: str
    event: Literal["recording:recordingStarted", "recording:recordingCompleted", "recording:recordingAvailable"]
    eventData: _EventData | None = None  # noqa: N815
    destination: _Destination
    retryPolicy: _RetryPolicy | None = None  # noqa: N815


class _Block(_Printed):
    id: str
    type: Literal["script", "api"]
    settings: dict[str, Any]


class _Flow(_Printed):
    name: str
    entryPoints: list[dict[str, Any]]  # noqa: N815
    blocks: list[_Block]
    transitions: list[dict[Literal["from", "to"], str]]


def routes() -> list[Route]:
    """The guide's profile; each route needs a bearer token (the guard's)."""
    return [
        Route("/api/v2/recordings", _list_recordings, methods=["GET"]),
        Route("/api/v2/recordings/{recording_id}", _get_recording, methods=["GET"]),
        Route("/api/v2/recordings/{recording_id}", _tag_recording, methods=["PATCH"]),
        Route("/api/v2/analytics/datadatasets/records", _create_record, methods=["POST"]),
        Route("/api/v2/analytics/datadatasets/records", _find_records, methods=["GET"]),
        Route("/api/v2/analytics/metrics/eventsub:deliveryFailure", _delivery_failures, methods=["GET"]),
        Route("/api/v2/conversations/callbacks", _create_callback, methods=["POST"]),
        Route("/api/v2/conversations/callbacks", _find_callbacks, methods=["GET"]),
        Route("/api/v2/eventsub/eventsubscriptions", _subscribe, methods=["POST"]),
        Route("/api/v2/eventsub/eventsubscriptions", _subscriptions, methods=["GET"]),
        Route("/api/v2/eventsub/eventsubscriptions/{id}", _change_subscription, methods=["PATCH"]),
        Route("/api/v2/architect/flows", _create_flow, methods=["POST"]),
        Route("/api/v2/architect/flows", _flows, methods=["GET"]),
        Route("/api/v2/architect/flows/{id}", _change_flow, methods=["PUT", "PATCH"]),
    ]


def known(request: Request) -> Held:
    """The recording of the path, once the platform knows it. Raises HTTPException 404."""
    state = platform_of(request)
    held = state.held.get(request.path_params["recording_id"])
    if held is None or datetime.now(UTC) < held.known_at:
        raise HTTPException(404, "No such recording")
    return held


def _readable(request: Request) -> Held:
    held, state = known(request), platform_of(request)
    recording_id = held.recording.recording_id
    for kind in (FaultKind.NOT_RECORDED, FaultKind.NOT_FOUND_EVER):
        if state.strikes(kind, recording_id):
            raise HTTPException(404, "No such recording")
    return held


async def _get_recording(request: Request) -> Response:
    state, held = platform_of(request), _readable(request)
    recording_id = held.recording.recording_id
    if state.passing(FaultKind.NOT_FOUND_FOR_NOW, recording_id):
        raise HTTPException(404, "No such recording")
    status = _status(request, held)
    state.saw("recording read", recording_id, status)
    if status == "available" and not held.tag_of_others and state.strikes(FaultKind.TAG_OVERWRITTEN, recording_id):
        held.tag_of_others = {"key": "reviewed_by", "value": "quality"}
        held.tags = [held.tag_of_others]
    body: dict[str, Any] = {"id": recording_id, "status": status, "tags": held.tags}
    if status == "available" and not state.passing(FaultKind.MEDIA_URIS_NULL, recording_id):
        body["mediaUri"] = state.media_url(recording_id)
        if held.recording.transcript is not None and not state.spoilt(held):
            body["transcriptUri"] = state.transcript_url(recording_id)
        if held.recording.speakers:
            body["channels"] = list(held.recording.speakers)
    return JSONResponse(body)


def _status(request: Request, held: Held) -> str:
    state, recording_id = platform_of(request), held.recording.recording_id
    status = held.status_at(datetime.now(UTC))
    if status != "available":
        return status
    for kind, word in ((FaultKind.DELETED, "deleted"), (FaultKind.FILE_ERROR, "error")):
        if state.strikes(kind, recording_id):
            return word
    for kind, word in (
        (FaultKind.UPLOADING, "processing"),
        (FaultKind.RESTORING, "restoring"),
        (FaultKind.UNKNOWN_STATE, "quarantined"),
    ):
        if state.passing(kind, recording_id):
            return word
    return status


async def _tag_recording(request: Request) -> Response:
    state, held = platform_of(request), _readable(request)
    tags = (await json_body(request, "tags"))["tags"]
    well_formed = isinstance(tags, list) and all(
        isinstance(tag, dict) and isinstance(tag.get("key"), str) and isinstance(tag.get("value"), str) for tag in tags
    )
    if not well_formed:
        raise HTTPException(400, "tags must be a list of {key, value}")
    held.tags = [{"key": tag["key"], "value": tag["value"]} for tag in tags]
    held.tagged_at = held.tagged_at or datetime.now(UTC)
    state.saw(
        "tags written",
        held.recording.recording_id,
        ", ".join(f"{shown(tag['key'])}={shown(tag['value'])}" for tag in held.tags),
    )
    return JSONResponse({"id": held.recording.recording_id, "tags": held.tags})


async def _list_recordings(request: Request) -> Response:
    state = platform_of(request)
    since, until = (_time(request, name) for name in ("availableFrom", "availableTo"))
    now = datetime.now(UTC)
    found = [
        held
        for held in list(state.held.values())
        if since <= held.available_at < until
        and state.is_listed(held, now)
        and not state.passing(FaultKind.LISTED_LATE, held.recording.recording_id)
    ]
    found.sort(key=lambda held: (held.available_at, held.recording.recording_id))
    state.saw("listed")
    return _page_of(request, found, lambda held: _listed(state, held))


def _listed(state: PlatformState, held: Held) -> dict[str, Any]:
    recording = held.recording
    return {
        "id": recording.recording_id,
        "availableAt": held.available_at.isoformat(),
        "mediaUri": state.media_url(recording.recording_id),
        "channel": recording.channel,
        "direction": recording.direction,
        "startTime": recording.start_time.isoformat(),
        "endTime": recording.end_time.isoformat(),
    }


_T = TypeVar("_T")


def _page_of(request: Request, found: Sequence[_T], shape: Callable[[_T], dict[str, Any]]) -> Response:
    asked = request.query_params.get("pageNumber", "1")
    if not (asked.isascii() and asked.isdigit() and int(asked) > 0):
        raise HTTPException(400, "pageNumber must be a number from 1")
    page = int(asked)
    return JSONResponse(
        {
            "entities": [shape(one) for one in found[_PAGE * (page - 1) : _PAGE * page]],
            "pageNumber": page,
            "pageCount": max(1, -(-len(found) // _PAGE)),
            "total": len(found),
        }
    )


def _time(request: Request, name: str) -> datetime:
    try:
        at = datetime.fromisoformat(request.query_params.get(name, ""))
    except ValueError:
        raise HTTPException(400, f"{name} must be a time in ISO 8601") from None
    if at.tzinfo is None:
        raise HTTPException(400, f"{name} must have a time zone")
    return at


async def _create_record(request: Request) -> Response:
    state = platform_of(request)
    body = await json_body(request, "datasetId", "record")
    record = body["record"]
    needed = ("recordingId", "violationType", "assignedQueue", "priority")
    if not isinstance(record, dict) or (missing := [name for name in needed if name not in record]):
        raise HTTPException(400, f"record is missing: {', '.join(missing if isinstance(record, dict) else needed)}")
    item = {"id": str(uuid.uuid4()), "datasetId": body["datasetId"], "record": record}
    recording_id = str(record["recordingId"])
    state.saw("work item", recording_id, shown(str(record["violationType"])))
    # Somebody clears it away as soon as it is made.
    deleted = state.passing(FaultKind.WORK_ITEM_DELETED, recording_id) is not None
    kept = {**item, "deleted": True} if deleted else item
    state.work_items.append(kept)
    state.by_key.setdefault((str(body["datasetId"]), str(record.get("key"))), []).append(kept)
    return JSONResponse(item, 201)


async def _find_records(request: Request) -> Response:
    dataset, key = request.query_params.get("datasetId"), request.query_params.get("key")
    if not dataset or not key:
        raise HTTPException(400, "Missing: datasetId or key")
    found = [item for item in platform_of(request).by_key.get((dataset, key), []) if not item.get("deleted")]
    return JSONResponse({"entities": found, "total": len(found)})


async def _create_callback(request: Request) -> Response:
    state = platform_of(request)
    body = await json_body(request, "callbackScheduledTime", "data")
    if not isinstance(body["data"], dict):
        raise HTTPException(400, "data must be an object")
    callback = body | {"id": str(uuid.uuid4())}
    state.callbacks.append(callback)
    state.by_key.setdefault(("", str(body["data"].get("key"))), []).append(callback)
    state.saw("callback", about_callback(callback))
    return JSONResponse(callback, 201)


async def _find_callbacks(request: Request) -> Response:
    key = request.query_params.get("key")
    if not key:
        raise HTTPException(400, "Missing: key")
    found = platform_of(request).by_key.get(("", key), [])
    return JSONResponse({"entities": found, "total": len(found)})


async def _subscribe(request: Request) -> Response:
    state = platform_of(request)
    subscription = _checked(_Subscription, await json_body(request)) | {"id": str(uuid.uuid4())}
    state.subscriptions.append(subscription)
    state.saw("subscription")
    return JSONResponse(_without_secret(subscription), 201)


async def _subscriptions(request: Request) -> Response:
    return _page_of(request, platform_of(request).subscriptions, _without_secret)


async def _change_subscription(request: Request) -> Response:
    state = platform_of(request)
    stored = _stored(state.subscriptions, request)
    changed = _checked(_Subscription, {**stored, **await json_body(request), "id": stored["id"]})
    stored.update(changed)
    state.saw("subscription changed")
    return JSONResponse(_without_secret(stored))


def _without_secret(subscription: dict[str, Any]) -> dict[str, Any]:
    """As platforms answer: a secret goes in and never comes out."""
    destination = dict(subscription["destination"])
    if isinstance(given := destination.get("authentication"), dict):
        destination["authentication"] = {name: value for name, value in given.items() if name != "clientSecret"}
    return {**subscription, "destination": destination}


async def _create_flow(request: Request) -> Response:
    state = platform_of(request)
    flow = _checked(_Flow, await json_body(request))
    if any(other["name"] == flow["name"] for other in state.flows):
        raise HTTPException(409, "A flow of that name exists")
    state.flows.append(flow | {"id": str(uuid.uuid4())})
    state.saw("flow")
    return JSONResponse(state.flows[-1], 201)


async def _flows(request: Request) -> Response:
    name = request.query_params.get("name")
    return _page_of(request, [flow for flow in platform_of(request).flows if name in (None, flow["name"])], dict)


async def _change_flow(request: Request) -> Response:
    state = platform_of(request)
    stored = _stored(state.flows, request)
    kept = stored if request.method == "PATCH" else {}
    changed = _checked(_Flow, {**kept, **await json_body(request), "id": stored["id"]})
    stored.clear()
    stored.update(changed)
    state.saw("flow changed")
    return JSONResponse(stored)


def _stored(things: list[dict[str, Any]], request: Request) -> dict[str, Any]:
    if found := next((thing for thing in things if thing["id"] == request.path_params["id"]), None):
        return found
    raise HTTPException(404, "Nothing has that id")


def _checked(model: type[_Printed], body: dict[str, Any]) -> dict[str, Any]:
    """The body, if it has what the guide's profile requires. Raises HTTPException 400 naming fields."""
    try:
        model.model_validate(body)
    except ValidationError as error:
        fields = sorted({".".join(str(part) for part in fault["loc"]) for fault in error.errors()})
        raise HTTPException(400, f"Missing or wrong: {', '.join(fields)}") from None
    if model is _Flow and any({"from", "to"} - transition.keys() for transition in body["transitions"]):
        raise HTTPException(400, "Missing or wrong: transitions")
    return body


async def _delivery_failures(request: Request) -> Response:
    """Ours: deliveries that were given up, by minute."""
    since = _time(request, "since") if "since" in request.query_params else datetime.min.replace(tzinfo=UTC)
    failed = [at for at in platform_of(request).delivery_failures if at >= since]
    minutes = Counter(at.replace(second=0, microsecond=0).isoformat() for at in failed)
    entities = [{"at": at, "count": count} for at, count in sorted(minutes.items())]
    return JSONResponse({"metric": "eventsub:deliveryFailure", "total": len(failed), "entities": entities})
