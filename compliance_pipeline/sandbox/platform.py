"""A simulated platform in the guide's profile, with faults on demand and counters of what it saw.
Endpoints and payloads are the guide's; what it leaves open (look-ups, callbacks, media host, /sandbox) is ours."""

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Final, Literal
from urllib.parse import parse_qs

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compliance_pipeline.sandbox.calls import SyntheticRecording
from compliance_pipeline.sandbox.faults import FaultKind, FaultPlan, PlannedFault

_EXPIRED_XML: Final = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
)


class Fault(BaseModel):
    """What happens to the next `times` requests whose path starts with `path` (and that use `method`, if given).

    status None: the connection is dropped without an answer. after_effect: the request is carried out first.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")

    path: str
    status: int | None = Field(default=None, ge=400, le=599)
    times: int = Field(default=1, ge=1)
    retry_after: int | None = None
    after_effect: bool = False
    method: str | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing that the platform saw. `detail` is safe to show: a violation type, a status, an id."""

    what: str
    recording_id: str | None
    at: datetime
    detail: str = ""


@dataclass(slots=True)
class Held:
    """A recording on the platform. It is `processing` until `available_at`, then `available`,
    unless `status` says otherwise; until `known_at` the API answers 404.

    address: the id by which clients know it: of the recording (guide), or conversation:recording (cloud).
    """

    recording: SyntheticRecording
    available_at: datetime
    known_at: datetime
    status: str = "available"
    conversation_id: str = ""
    address: str = ""
    tags: list[dict[str, str]] = field(default_factory=list)
    tagged_at: datetime | None = None
    seen: Counter[str] = field(default_factory=Counter)

    def status_at(self, now: datetime) -> str:
        return "processing" if self.status == "available" and now < self.available_at else self.status


class PlatformState:
    """All that the platform holds and saw, in memory. Tests in the same process read it while the server runs.

    token_ttl_s, media_ttl_s: lifetimes of bearer tokens and of signed media URLs.
    """

    def __init__(
        self,
        client_id: str,
        client_secret: str,
        *,
        token_ttl_s: float = 3600,
        media_ttl_s: float = 300,
        profile: Literal["guide", "cloud"] = "guide",
        plan: FaultPlan | None = None,
    ) -> None:
        self.client_id = client_id
        self.client_secret = client_secret
        self.token_ttl_s = token_ttl_s
        self.media_ttl_s = media_ttl_s
        self.base_url = ""
        self.held: dict[str, Held] = {}
        self.work_items: list[dict[str, Any]] = []
        self.callbacks: list[dict[str, Any]] = []
        self.subscriptions: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.listeners: list[Callable[[Observation], None]] = []
        self.planned: int | None = None
        self.finished = False
        self.profile = profile
        self.plan = plan or FaultPlan()
        self.started_at = time.monotonic()
        self._tokens: dict[str, float] = {}
        self._media_key = secrets.token_bytes(32)

    def add(
        self,
        recording: SyntheticRecording,
        *,
        available_at: datetime | None = None,
        known_at: datetime | None = None,
        status: str = "available",
        conversation_id: str | None = None,
    ) -> Held:
        """Puts a recording on the platform. Times are aware; without them it is known and available at once.

        conversation_id: to put several recordings into one; else it has a conversation of its own.
        """
        now = datetime.now(UTC)
        held = Held(recording, (available_at or now).astimezone(UTC), known_at or now, status)
        held.conversation_id = conversation_id or conversation_id_of(recording.recording_id)
        held.address = recording.recording_id
        if self.profile == "cloud":
            held.address = f"{held.conversation_id}:{recording.recording_id}"
        self.held[recording.recording_id] = held
        return held

    def held_of(self, conversation_id: str) -> list[Held]:
        """The recordings of a conversation, in the order in which they were added."""
        return [held for held in self.held.values() if held.conversation_id == conversation_id]

    def strikes(self, kind: FaultKind, key: str) -> PlannedFault | None:
        """The plan's fault of that kind that strikes `key` now."""
        return self.plan.strikes(kind, key, time.monotonic() - self.started_at)

    def fail_next(
        self,
        path: str,
        status: int | None = None,
        times: int = 1,
        retry_after: int | None = None,
        after_effect: bool = False,
        method: str | None = None,
    ) -> None:
        """Arms a `Fault`."""
        self.faults.append(
            Fault(
                path=path,
                status=status,
                times=times,
                retry_after=retry_after,
                after_effect=after_effect,
                method=method,
            )
        )

    def expire_tokens(self) -> None:
        """From now on every bearer token given out so far is refused."""
        self._tokens.clear()

    def saw(self, what: str, recording_id: str | None = None, detail: str = "") -> None:
        """Counts an observation, for the recording too if it is known, and tells the listeners."""
        self.counts[what] += 1
        if recording_id in self.held:
            self.held[recording_id].seen[what] += 1
        observation = Observation(what, recording_id, datetime.now(UTC), detail)
        for listener in self.listeners:
            listener(observation)

    def issue_token(self) -> str:
        token = secrets.token_urlsafe(24)
        self._tokens[token] = time.monotonic() + self.token_ttl_s
        return token

    def is_authorised(self, header: str | None) -> bool:
        scheme, _, token = (header or "").partition(" ")
        return scheme.lower() == "bearer" and time.monotonic() < self._tokens.get(token, 0)

    def media_url(self, recording_id: str) -> str:
        """A signed URL that works for `media_ttl_s` seconds. Carries a secret: never print it."""
        return self._signed_url(f"/media/{recording_id}")

    def transcript_url(self, recording_id: str) -> str:
        """The same for the transcript of a call."""
        return self._signed_url(f"/transcripts/{recording_id}")

    def _signed_url(self, path: str) -> str:
        expires = f"{time.time() + self.media_ttl_s:.3f}"
        return f"{self.base_url}{path}?token={expires}.{self._signature(path, expires)}"

    def is_media_token(self, path: str, token: str) -> bool:
        expires, _, signature = token.rpartition(".")
        try:
            fresh = time.time() < float(expires)
        except ValueError:
            return False
        return fresh and hmac.compare_digest(signature.encode(), self._signature(path, expires).encode())

    def _signature(self, path: str, expires: str) -> str:
        return hmac.new(self._media_key, f"{path}.{expires}".encode(), hashlib.sha256).hexdigest()

    def take_fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if path.startswith(fault.path) and fault.method in (None, method):
                fault.times -= 1
                if not fault.times:
                    self.faults.remove(fault)
                return fault
        return None

    def note_planted(self, body: bytes) -> None:
        """Counts a request that brings back a clear value which only the media or the raw event held."""
        text = body.decode(errors="replace")
        digits = re.sub(r"[ -]", "", text)
        for held in list(self.held.values()):
            if any(value in text or value in digits for value in held.recording.planted):
                self.saw("sensitive value received", held.recording.recording_id)

    def truth(self) -> dict[str, Any]:
        """Every recording so far with what it holds; no clear values. `finished`: all has come, every event sent."""
        return {
            "planned": self.planned,
            "finished": self.finished,
            "recordings": [
                {
                    "recordingId": recording_id,
                    "kind": held.recording.kind,
                    "channel": held.recording.channel,
                    "expectedVerdict": held.recording.truth.verdict,
                    "violationType": held.recording.truth.violation_type,
                    "offsetMs": held.recording.truth.offset_ms,
                    "endMs": held.recording.truth.end_ms,
                    "damage": held.recording.truth.damage,
                    "transcript": held.recording.transcript is not None,
                    "endedAt": held.recording.end_time.isoformat(),
                    "availableAt": held.available_at.isoformat(),
                }
                for recording_id, held in list(self.held.items())
            ],
        }

    def observed(self) -> dict[str, Any]:
        """Everything seen, for all and for each recording; ids, types, statuses and counts only."""
        now = datetime.now(UTC)
        return {
            "counts": dict(self.counts),
            "subscriptions": len(self.subscriptions),
            "faultsLeft": sum(fault.times for fault in self.faults),
            "recordings": [
                {
                    "recordingId": recording_id,
                    "status": held.status_at(now),
                    "tags": {_shown(tag["key"]): _shown(tag["value"]) for tag in held.tags},
                    "taggedAt": held.tagged_at and held.tagged_at.isoformat(),
                    "seen": dict(held.seen),
                    "workItems": [
                        _shown(str(item["record"].get("violationType")))
                        for item in self.work_items
                        if item["record"].get("recordingId") == recording_id
                    ],
                    "callbacks": sum(_about(callback) == recording_id for callback in self.callbacks),
                }
                for recording_id, held in list(self.held.items())
            ],
        }


def conversation_id_of(recording_id: str) -> str:
    """The conversation of a recording that has one of its own."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, recording_id))


def create_app(state: PlatformState) -> ASGIApp:
    """The platform as an ASGI application over `state`."""
    app = Starlette(
        routes=[
            Route("/oauth/token", _token, methods=["POST"]),
            Route("/api/v2/recordings/{recording_id}", _get_recording, methods=["GET"]),
            Route("/api/v2/recordings/{recording_id}", _tag_recording, methods=["PATCH"]),
            Route("/api/v2/analytics/datadatasets/records", _create_record, methods=["POST"]),
            Route("/api/v2/analytics/datadatasets/records", _find_records, methods=["GET"]),
            Route("/api/v2/conversations/callbacks", _create_callback, methods=["POST"]),
            Route("/api/v2/conversations/callbacks", _find_callbacks, methods=["GET"]),
            Route("/api/v2/eventsub/eventsubscriptions", _subscribe, methods=["POST"]),
            Route("/media/{recording_id}", _media, methods=["GET"]),
            Route("/transcripts/{recording_id}", _transcript, methods=["GET"]),
            Route("/sandbox/truth", _truth, methods=["GET"]),
            Route("/sandbox/state", _state, methods=["GET"]),
            Route("/sandbox/faults", _faults, methods=["POST"]),
            Route("/healthz", _health, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _refuse},
    )
    app.state.platform = state
    return _Guarded(app, state)


@contextmanager
def serve(state: PlatformState, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Runs the platform in a thread of this process; gives its base URL. Port 0: any free one."""
    import uvicorn

    config = uvicorn.Config(create_app(state), host=host, port=port, log_level="warning", access_log=False)
    listener = config.bind_socket()
    state.base_url = f"http://{host}:{listener.getsockname()[1]}"
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError(f"the sandbox platform did not start at {state.base_url}")
            time.sleep(0.005)
        yield state.base_url
    finally:
        server.should_exit = True
        thread.join(timeout=5)


class _Guarded:
    """Faults and authorisation in front of the application. A plain ASGI class: only so can it drop a connection."""

    def __init__(self, app: ASGIApp, state: PlatformState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        if path.startswith(("/media/", "/transcripts/")) and "authorization" in headers:
            self._state.saw("bearer leaked", path.rpartition("/")[2])
        fault = None if path.startswith("/sandbox/") else self._state.take_fault(scope["method"], path)
        if fault:
            self._state.saw("fault", detail=f"{scope['method']} {path} {fault.status or 'dropped'}")
        if fault and not fault.after_effect:
            await self._fail(fault, scope, receive, send)
        elif path.startswith("/api/") and not self._state.is_authorised(headers.get("authorization")):
            self._state.saw("unauthorised")
            await _error(401, "authentication.required", "No valid bearer token")(scope, receive, send)
        elif fault:
            await self._app(scope, receive, _swallow)
            await self._fail(fault, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _fail(self, fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
        if fault.status is None:
            # ASGI has no word for it; uvicorn's `send` belongs to the object that holds the transport.
            send.__self__.transport.abort()  # type: ignore[attr-defined]
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        answer = _error(fault.status, "sandbox.fault", "A fault that was asked for")
        if fault.retry_after is not None:
            answer.headers["Retry-After"] = str(fault.retry_after)
        await answer(scope, receive, send)


async def _swallow(message: Message) -> None:
    """Stands for `send` where the answer is not to reach the client."""


def _error(status: int, code: str, message: str) -> JSONResponse:
    body = {"message": message, "code": code, "status": status, "contextId": str(uuid.uuid4())}
    return JSONResponse(body, status)


async def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, _Expired):
        return Response(_EXPIRED_XML, 403, media_type="application/xml")
    if not isinstance(error, HTTPException):
        raise error
    return _error(error.status_code, f"http.{error.status_code}", error.detail)


def _platform(request: Request) -> PlatformState:
    state: PlatformState = request.app.state.platform
    return state


async def _body(request: Request, *required: str) -> dict[str, Any]:
    """The JSON object of a request, checked for canaries. Raises HTTPException 400 naming what is missing."""
    raw = await request.body()
    _platform(request).note_planted(raw)
    try:
        body = json.loads(raw)
    except ValueError:
        raise HTTPException(400, "The body is not JSON") from None
    if not isinstance(body, dict):
        raise HTTPException(400, "The body is not a JSON object")
    if missing := [name for name in required if name not in body]:
        raise HTTPException(400, f"Missing: {', '.join(missing)}")
    return body


def _known(request: Request) -> Held:
    held = _platform(request).held.get(request.path_params["recording_id"])
    if held is None or datetime.now(UTC) < held.known_at:
        raise HTTPException(404, "No such recording")
    return held


async def _token(request: Request) -> Response:
    state = _platform(request)
    state.saw("token request")
    form = parse_qs((await request.body()).decode(errors="replace"))
    if form.get("grant_type") != ["client_credentials"]:
        raise HTTPException(400, "grant_type must be client_credentials")
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    try:
        given = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        given = b""
    expected = f"{state.client_id}:{state.client_secret}".encode()
    if scheme.lower() != "basic" or not hmac.compare_digest(given, expected):
        raise HTTPException(401, "Client id and secret do not match")
    token = state.issue_token()
    return JSONResponse({"access_token": token, "token_type": "bearer", "expires_in": int(state.token_ttl_s)})


async def _get_recording(request: Request) -> Response:
    state, held = _platform(request), _known(request)
    recording_id = held.recording.recording_id
    status = held.status_at(datetime.now(UTC))
    state.saw("recording read", recording_id, status)
    body: dict[str, Any] = {"id": recording_id, "status": status, "tags": held.tags}
    if status == "available":
        body["mediaUri"] = state.media_url(recording_id)
        if held.recording.transcript is not None:
            body["transcriptUri"] = state.transcript_url(recording_id)
        if held.recording.speakers:
            body["channels"] = list(held.recording.speakers)
    return JSONResponse(body)


async def _tag_recording(request: Request) -> Response:
    state, held = _platform(request), _known(request)
    tags = (await _body(request, "tags"))["tags"]
    well_formed = isinstance(tags, list) and all(
        isinstance(tag, dict) and isinstance(tag.get("key"), str) and isinstance(tag.get("value"), str) for tag in tags
    )
    if not well_formed:
        raise HTTPException(400, "tags must be a list of {key, value}")
    held.tags = [{"key": tag["key"], "value": tag["value"]} for tag in tags]
    held.tagged_at = held.tagged_at or datetime.now(UTC)
    shown = ", ".join(f"{_shown(tag['key'])}={_shown(tag['value'])}" for tag in held.tags)
    state.saw("tags written", held.recording.recording_id, shown)
    return JSONResponse({"id": held.recording.recording_id, "tags": held.tags})


async def _create_record(request: Request) -> Response:
    state = _platform(request)
    body = await _body(request, "datasetId", "record")
    record = body["record"]
    needed = ("recordingId", "violationType", "assignedQueue", "priority")
    if not isinstance(record, dict) or (missing := [name for name in needed if name not in record]):
        raise HTTPException(400, f"record is missing: {', '.join(missing if isinstance(record, dict) else needed)}")
    item = {"id": str(uuid.uuid4()), "datasetId": body["datasetId"], "record": record}
    state.work_items.append(item)
    state.saw("work item", str(record["recordingId"]), _shown(str(record["violationType"])))
    return JSONResponse(item, 201)


async def _find_records(request: Request) -> Response:
    dataset, key = request.query_params.get("datasetId"), request.query_params.get("key")
    if not dataset or not key:
        raise HTTPException(400, "Missing: datasetId or key")
    found = [
        item
        for item in _platform(request).work_items
        if item["datasetId"] == dataset and item["record"].get("key") == key
    ]
    return JSONResponse({"entities": found, "total": len(found)})


async def _create_callback(request: Request) -> Response:
    state = _platform(request)
    body = await _body(request, "callbackScheduledTime", "data")
    if not isinstance(body["data"], dict):
        raise HTTPException(400, "data must be an object")
    callback = body | {"id": str(uuid.uuid4())}
    state.callbacks.append(callback)
    state.saw("callback", _about(callback))
    return JSONResponse(callback, 201)


async def _find_callbacks(request: Request) -> Response:
    key = request.query_params.get("key")
    if not key:
        raise HTTPException(400, "Missing: key")
    found = [callback for callback in _platform(request).callbacks if callback["data"].get("key") == key]
    return JSONResponse({"entities": found, "total": len(found)})


async def _subscribe(request: Request) -> Response:
    state = _platform(request)
    subscription = await _body(request, "name", "event", "destination") | {"id": str(uuid.uuid4())}
    state.subscriptions.append(subscription)
    state.saw("subscription")
    return JSONResponse(subscription, 201)


def _signed_for(request: Request) -> Held:
    """The recording of a signed URL, once it is available.

    The media host knows signed URLs and nothing else; a bearer token that comes here has leaked.
    """
    state = _platform(request)
    recording_id = request.path_params["recording_id"]
    if "authorization" in request.headers:
        raise HTTPException(400, "Only one authentication mechanism allowed")
    if not state.is_media_token(request.url.path, request.query_params.get("token", "")):
        state.saw("media refused", recording_id)
        raise _Expired(403)
    held = _known(request)
    if held.status_at(datetime.now(UTC)) != "available":
        state.saw("media asked too early", recording_id)
        raise HTTPException(404, "No media")
    return held


class _Expired(HTTPException):
    """Media hosts answer in their own way (S3: XML), not as the API does."""


async def _media(request: Request) -> Response:
    held = _signed_for(request)
    _platform(request).saw("media fetched", held.recording.recording_id)
    return _file(held, held.recording.media, held.recording.content_type)


async def _transcript(request: Request) -> Response:
    held = _signed_for(request)
    if held.recording.transcript is None:
        raise HTTPException(404, "No transcript")
    _platform(request).saw("transcript fetched", held.recording.recording_id)
    return _file(held, held.recording.transcript, "application/json")


def _file(held: Held, content: bytes, content_type: str) -> Response:
    headers = {
        "Content-Type": content_type,
        "Last-Modified": format_datetime(held.available_at, usegmt=True),
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    }
    return Response(content, headers=headers)


async def _truth(request: Request) -> Response:
    return JSONResponse(_platform(request).truth())


async def _state(request: Request) -> Response:
    return JSONResponse(_platform(request).observed())


async def _faults(request: Request) -> Response:
    try:
        fault = Fault.model_validate_json(await request.body())
    except ValidationError as error:
        raise HTTPException(400, f"Not a fault: {error.errors()[0]['loc']}") from None
    _platform(request).faults.append(fault)
    return Response(status_code=204)


async def _health(_: Request) -> Response:
    return Response("ok")


def _about(callback: dict[str, Any]) -> str | None:
    recording_id = callback["data"].get("recordingId")
    return recording_id if isinstance(recording_id, str) else None


def _shown(text: str) -> str:
    """Text from a request, fit to print: short, without long numbers or control characters."""
    return re.sub(r"(?:\d[ -]?){7,}", "*", "".join(char for char in text if char.isprintable()))[:80]
