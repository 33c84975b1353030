"""The webhook receiver (ASGI): check, minimise, tokenise, store durably, answer. Nothing else happens in a request.

Signature and schema live here; what becomes of a stored event is decided in the inbox, never here.
"""

import asyncio
import json
import logging
import queue
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from compliance_pipeline.contracts.event import Participant, RecordingEvent
from compliance_pipeline.intake.inbox import Inbox, IncomingEvent, Stored
from compliance_pipeline.intake.tokens import Tokenizer
from compliance_pipeline.settings import Settings

EVENT_SOURCE = "recording-pipeline"
"""Value of X-Genesys-Event-Source in the guide's subscription (step 1)."""
SOURCE = "guide"
"""The platform adapter whose events this endpoint understands."""

BODY_SECONDS = 10.0
MAX_BATCH = 256
RETRY_AFTER_SECONDS = 5

_WEBHOOK_ID = re.compile(r"[A-Za-z0-9._:-]{1,256}")
_log = logging.getLogger(__name__)


class Rejected(Exception):
    """A request that is not taken. `message` is sent back: it says what is wrong and never repeats the input."""

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        fields: list[dict[str, str]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.headers = status, reason, headers
        self.body: dict[str, Any] = {"error": message} | ({"fields": fields} if fields else {})


def parse(body: bytes) -> RecordingEvent:
    """The event in `body`. Raises Rejected: 400 if it is not JSON, 422 naming the fields if it breaks the schema."""
    try:
        return RecordingEvent.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
    if problems[0]["type"] == "json_invalid":
        raise Rejected(400, "json", problems[0]["msg"])
    fields = [
        {"field": ".".join(map(str, problem["loc"])) or "event", "problem": problem["msg"]} for problem in problems
    ]
    raise Rejected(422, "schema", "the event does not match the schema: " + _sentence(fields), fields)


def _sentence(fields: list[dict[str, str]]) -> str:
    return "; ".join(f"{field['field']}: {field['problem']}" for field in fields)


def minimise(event: RecordingEvent, tokens: Tokenizer) -> RecordingEvent:
    """The event as it may be stored: identifiers as tokens, the media address without credentials or signature.

    The guide's edge case 2: free text (a queue's name, a file's name) may hold a number or an address too.
    """
    participants = tuple(
        Participant(
            id=tokens.identifier(person.id) if person.id else None,
            purpose=person.purpose,
            queue=tokens.scrubbed("queue", person.queue) if person.queue else None,
        )
        for person in event.participants
    )
    changes: dict[str, Any] = {"participants": participants} if participants else {}
    if event.media_uri:
        changes["media_uri"] = _bare_uri(event.media_uri, event.recording_id, tokens)
    return event.model_copy(update=changes)


def _bare_uri(uri: str, recording_id: str, tokens: Tokenizer) -> str:
    try:
        parts = urlsplit(uri)
    except ValueError:
        parts = urlsplit("")
    path = "/".join(
        piece
        if piece == recording_id
        or piece.startswith(f"{recording_id}.")
        or tokens.scrubbed("media", unquote(piece)) == unquote(piece)
        else tokens.token("media", unquote(piece))
        for piece in parts.path.split("/")
    )
    if not (bare := urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))):
        problem = {"field": "mediaUri", "problem": "is not an address"}
        raise Rejected(422, "schema", "the event does not match the schema: " + _sentence([problem]), [problem])
    return bare


class GroupCommit:
    """Many requests, one transaction, one fsync: each request waits until the batch that holds its event is stored."""

    def __init__(self, write: Callable[[Sequence[IncomingEvent]], list[Stored]]) -> None:
        self._write = write
        self._queue: queue.SimpleQueue[tuple[IncomingEvent, asyncio.Future[Stored]] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="group-commit", daemon=True)
        self._thread.start()

    def put(self, event: IncomingEvent) -> Awaitable[Stored]:
        """Resolves once the event is durable; raises what the storage raised."""
        future: asyncio.Future[Stored] = self._loop.create_future()
        self._queue.put((event, future))
        return future

    def close(self) -> None:
        """Store what is queued, then stop. Blocks; the loop must still run."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        open_ = True
        while open_:
            batch = []
            entry = self._queue.get()
            while entry is not None:
                batch.append(entry)
                if len(batch) == MAX_BATCH:
                    break
                try:
                    entry = self._queue.get_nowait()
                except queue.Empty:
                    break
            open_ = entry is not None
            if batch:
                results = self._stored([event for event, _ in batch])
                self._loop.call_soon_threadsafe(_resolve, [future for _, future in batch], results)

    def _stored(self, events: list[IncomingEvent]) -> list[Stored | Exception]:
        try:
            return [*self._write(events)]
        except Exception as error:
            # A row that the database won't take must not take its neighbours with it; a database that is down would.
            if len(events) == 1 or isinstance(error, OperationalError | OSError):
                return [error] * len(events)
        return [result for event in events for result in self._stored([event])]


def _resolve(futures: list[asyncio.Future[Stored]], results: list[Stored | Exception]) -> None:
    for future, result in zip(futures, results, strict=True):
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


class _Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.events = Counter("events", "Events stored", ["event", "outcome"], "compliance", registry=registry)
        self.duplicates = Counter("duplicates", "Events that were repeats", (), "compliance", registry=registry)
        self.rejected = Counter("rejected", "Requests not taken", ["reason"], "compliance", registry=registry)
        self.store = Histogram("store_seconds", "Time of one inbox transaction", (), "compliance", registry=registry)
        self.rows = Gauge("inbox_rows", "Rows of the inbox", ["state"], "compliance", registry=registry)


def _utc_now() -> datetime:
    return datetime.now(UTC)


def create_app(
    settings: Settings, *, clock: Callable[[], datetime] = _utc_now, body_seconds: float = BODY_SECONDS
) -> Starlette:
    """The receiver. A repeat gets the first answer again with `duplicate` true and the first correlation id.

    `clock` gives the times that are stored; the signature's age is always checked against the system's clock.
    """
    inbox = Inbox(settings.inbox_database_url)
    webhook = Webhook(settings.webhook_signing_secret)
    tokens = Tokenizer(settings.participant_token_key)
    metrics = _Metrics()
    commits: GroupCommit

    def write(events: Sequence[IncomingEvent]) -> list[Stored]:
        with metrics.store.time():
            inbox.create()
            return inbox.store(events, clock())

    async def read_body(request: Request) -> bytes:
        too_large = Rejected(
            413,
            "too_large",
            f"the body is larger than {settings.max_body_bytes} bytes",
            headers={"Connection": "close"},
        )
        if int(request.headers.get("content-length", 0)) > settings.max_body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(body_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > settings.max_body_bytes:
                        raise too_large
        except TimeoutError:
            message = f"the body did not arrive within {body_seconds:g} s"
            raise Rejected(408, "slow", message, headers={"Connection": "close"}) from None
        except ClientDisconnect:
            raise Rejected(400, "disconnected", "the body ended early") from None
        return bytes(body)

    def check_signature(body: bytes, headers: dict[str, str]) -> str:
        try:
            text = body.decode()
        except UnicodeDecodeError:
            raise Rejected(400, "json", "the body is not UTF-8") from None
        try:
            webhook.verify(text, headers, json_parse=False)
        except WebhookVerificationError as error:
            if "too old" in str(error) or "too new" in str(error):
                hint = "webhook-timestamp must be within 5 minutes of this server's clock, sign and send again"
                raise Rejected(401, "stale", f"{error}: {hint}") from None
            raise Rejected(401, "signature", f"{error}: see standardwebhooks.com") from None
        except ValueError:
            raise Rejected(401, "signature", "malformed webhook-signature: see standardwebhooks.com") from None
        if not _WEBHOOK_ID.fullmatch(correlation_id := headers["webhook-id"]):
            raise Rejected(400, "webhook_id", "webhook-id: 1 to 256 letters, digits, '.', '_', ':' or '-'")
        return correlation_id

    async def take(request: Request) -> Response:
        if request.headers.get("x-genesys-event-source") != EVENT_SOURCE:
            raise Rejected(401, "source", f"X-Genesys-Event-Source must be {EVENT_SOURCE}")
        body = await read_body(request)
        correlation_id = check_signature(body, dict(request.headers))
        event = minimise(parse(body), tokens)
        now = clock()
        # An event can't be from the future: the hour to come has no partition yet.
        available_at = min(event.event_time or now, now)
        try:
            stored = await commits.put(IncomingEvent(event, SOURCE, correlation_id, available_at))
        except Exception as error:
            _log.error(_line("storage", error=type(error).__name__, recording=event.recording_id))
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            raise Rejected(503, "storage", "the inbox can't store now: send again", headers=headers) from None
        outcome = "duplicate" if stored.duplicate else "accepted"
        metrics.events.labels(event.event.value, outcome).inc()
        if stored.duplicate:
            metrics.duplicates.inc()
        _log.info(_line(outcome, recording=stored.recording_id, event=event.event.value, seq=stored.seq))
        return JSONResponse(stored.response)

    async def ingest(request: Request) -> Response:
        try:
            return await take(request)
        except Rejected as rejected:
            metrics.rejected.labels(rejected.reason).inc()
            _log.warning(_line("rejected", reason=rejected.reason, status=rejected.status))
            return JSONResponse(rejected.body, rejected.status, rejected.headers)

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(_request: Request) -> Response:
        try:
            await asyncio.to_thread(inbox.ping)
        except Exception as error:
            return JSONResponse({"status": "inbox unreachable", "error": type(error).__name__}, 503)
        return JSONResponse({"status": "ready"})

    async def show_metrics(_request: Request) -> Response:
        try:
            for state, count in (await asyncio.to_thread(inbox.counts)).items():
                metrics.rows.labels(state.value).set(count)
        except Exception as error:
            metrics.rows.clear()
            _log.error(_line("metrics", error=type(error).__name__))
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        nonlocal commits
        commits = GroupCommit(write)
        try:
            await asyncio.to_thread(inbox.create)
        except Exception as error:  # starts anyway: /readyz says so, and the first event tries again
            _log.error(_line("storage", error=type(error).__name__))
        yield
        await asyncio.to_thread(commits.close)
        inbox.close()

    routes = [
        Route("/api/v1/ingest/recording", ingest, methods=["POST"]),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", show_metrics),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def _line(outcome: str, **fields: Any) -> str:
    return json.dumps({"outcome": outcome, **fields})


def serve(settings: Settings) -> None:
    """Run the receiver until SIGTERM or SIGINT; requests under way are answered first."""
    import uvicorn

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.receiver_port,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=10,
        limit_concurrency=1024,
    )
