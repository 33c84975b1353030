"""The webhook receiver (ASGI): check, minimise, tokenise, store durably, answer. Nothing else happens in a request.

Events of the platform, and verdicts of an external engine. What becomes of them is decided in the inbox, never here.
"""

import asyncio
import logging
import queue
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from sqlalchemy.exc import DataError, OperationalError, SQLAlchemyError
from standardwebhooks.webhooks import Webhook
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from compliance_pipeline import asgi, breaker, tallies
from compliance_pipeline.asgi import (
    BODY_SECONDS,
    Rejected,
    figures,
    healthz,
    line,
    parsed,
    read_body,
    refusing,
    verified,
)
from compliance_pipeline.clock import Clock, utc_now
from compliance_pipeline.contracts.engine import stored_form
from compliance_pipeline.contracts.event import RecordingEvent
from compliance_pipeline.contracts.verdict import VerdictRefused, parse_verdict
from compliance_pipeline.database import DatabaseDamaged
from compliance_pipeline.intake import callbacks
from compliance_pipeline.intake.callbacks import POLICY_PARAMETER, Message, MessageIdReused, UnknownRecording
from compliance_pipeline.intake.events import minimise
from compliance_pipeline.intake.inbox import Inbox, IncomingEvent, Stored
from compliance_pipeline.intake.tokens import Tokenizer
from compliance_pipeline.settings import Settings
from compliance_pipeline.tallies import RECEIVED, REJECTED

EVENT_SOURCE = "recording-pipeline"
"""Value of X-Genesys-Event-Source in the guide's subscription (step 1)."""
SOURCE = "guide"
"""The platform adapter whose events this endpoint understands."""

MAX_BATCH = 256
RETRY_AFTER_SECONDS = 5
TALLY_EVERY_S = 5.0

_POLICY = re.compile(r"[\w.@+:-]{0,128}")
_log = logging.getLogger(__name__)


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
            if len(events) == 1 or isinstance(error, OperationalError | DatabaseDamaged | OSError):
                return [error] * len(events)
        return [result for event in events for result in self._stored([event])]


def _what(error: Exception) -> str:
    """Of other errors the text may quote what was stored."""
    return str(error) if isinstance(error, DatabaseDamaged) else type(error).__name__


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
        self.verdicts = Counter(
            "engine_verdicts", "Verdicts that engines called back with", ["verdict", "outcome"], "compliance",
            registry=registry,
        )  # fmt: skip
        self.verdicts_rejected = Counter(
            "engine_verdicts_rejected", "Verdicts not taken", ["reason"], "compliance", registry=registry
        )
        self.store = Histogram("store_seconds", "Time of one inbox transaction", (), "compliance", registry=registry)
        self._tallied: dict[str, int] = {}
        self.rows = Gauge("inbox_rows", "Rows of the inbox", ["state"], "compliance", registry=registry)
        self.breakers = Gauge(
            "breaker_open", "Circuit breakers: 1 open, 0.5 half-open, 0 closed", ["name"], "compliance",
            registry=registry,
        )  # fmt: skip

    def since_last_tally(self) -> dict[str, int]:
        """What was taken and refused since this was last asked and `tallied` was told, by the names of `tallies`."""
        now = {
            f"{prefix}{sample.labels[label]}": int(sample.value)
            for counter, prefix, label in ((self.events, RECEIVED, "outcome"), (self.rejected, REJECTED, "reason"))
            for metric in counter.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        }
        return {name: count - self._tallied.get(name, 0) for name, count in now.items()}

    def tallied(self, counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            self._tallied[name] = self._tallied.get(name, 0) + count


def create_app(
    settings: Settings,
    *,
    clock: Clock = utc_now,
    body_seconds: float = BODY_SECONDS,
) -> Starlette:
    """The receiver. A repeat gets the first answer again with `duplicate` true and the first correlation id.


    `clock` gives the times that are stored; the signature's age is always checked against the system's clock.
    """
    inbox = Inbox(settings.inbox_database_url)
    webhook = Webhook(settings.webhook_signing_secret)
    callback_webhook = Webhook(settings.callback_signing_secret)
    tokens = Tokenizer(settings.participant_token_key)
    metrics = _Metrics()
    commits: GroupCommit

    def write(events: Sequence[IncomingEvent]) -> list[Stored]:
        with metrics.store.time():
            inbox.create()
            return inbox.store(events, clock())

    async def take(request: Request) -> Response:
        if request.headers.get("x-genesys-event-source") != EVENT_SOURCE:
            raise Rejected(401, "source", f"X-Genesys-Event-Source must be {EVENT_SOURCE}")
        body = await read_body(request, settings.max_body_bytes, body_seconds)
        correlation_id = verified(webhook, body, request.headers)
        event = minimise(parsed(RecordingEvent, body, "event"), tokens)
        now = clock()
        # An event can't be from the future: the hour to come has no partition yet.
        available_at = min(event.event_time or now, now)
        try:
            stored = await commits.put(IncomingEvent(event, SOURCE, correlation_id, available_at))
        except Exception as error:
            _log.error(line("storage", error=_what(error), recording=event.recording_id))
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            raise Rejected(503, "storage", "the inbox can't store now: send again", headers=headers) from None
        outcome = "duplicate" if stored.duplicate else "accepted"
        metrics.events.labels(event.event.value, outcome).inc()
        if stored.duplicate:
            metrics.duplicates.inc()
        _log.info(line(outcome, recording=stored.recording_id, event=event.event.value, seq=stored.seq))
        return JSONResponse(stored.response)

    async def take_verdict(request: Request) -> Response:
        body = await read_body(request, settings.max_body_bytes, body_seconds)
        message_id = verified(callback_webhook, body, request.headers)
        try:
            verdict = stored_form(parse_verdict(body))
        except VerdictRefused as error:
            raise Rejected(422, "schema", str(error)) from None
        if not _POLICY.fullmatch(policy := request.query_params.get(POLICY_PARAMETER, "")):
            raise Rejected(400, "address", f"{POLICY_PARAMETER}: not a policy version; use the callback URL as given")
        message = Message(message_id, sha256(body).hexdigest(), policy)
        try:
            await asyncio.to_thread(inbox.create)
            duplicate = await asyncio.to_thread(callbacks.take, inbox.engine, message, verdict, clock())
        except UnknownRecording:
            raise Rejected(404, "unknown_recording", "no event of this recording was ever received here") from None
        except MessageIdReused:
            why = "another verdict came under this webhook-id: each message needs an id of its own"
            raise Rejected(409, "reused_id", why) from None
        except DataError:
            raise Rejected(422, "schema", "a text of the verdict can't be stored: no control characters") from None
        except SQLAlchemyError as error:
            _log.error(line("storage", error=_what(error), recording=verdict.recording_id))
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            raise Rejected(503, "storage", "the inbox can't store now: send again", headers=headers) from None
        outcome = "duplicate" if duplicate else "accepted"
        metrics.verdicts.labels(verdict.verdict.value, outcome).inc()
        _log.info(line(f"verdict {outcome}", recording=verdict.recording_id, verdict=verdict.verdict.value))
        return JSONResponse({"recordingId": verdict.recording_id, "status": "accepted", "duplicate": duplicate})

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
            for one in await asyncio.to_thread(breaker.states, inbox.engine, clock()):
                metrics.breakers.labels(one.name).set({"open": 1.0, "half-open": 0.5}.get(one.state, 0.0))
        except Exception as error:
            metrics.rows.clear()
            metrics.breakers.clear()
            _log.error(line("metrics", error=type(error).__name__))
        return figures(metrics.registry)

    async def tally() -> None:
        counts = metrics.since_last_tally()
        try:
            await asyncio.to_thread(tallies.count, inbox.engine, counts, clock())
        except Exception as error:  # counted again next time
            _log.error(line("tallies", error=type(error).__name__))
        else:
            metrics.tallied(counts)

    async def keep_tally(ended: asyncio.Event) -> None:
        while not ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), TALLY_EVERY_S)
            await tally()

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        nonlocal commits
        commits = GroupCommit(write)
        try:
            await asyncio.to_thread(inbox.create)
        except Exception as error:  # starts anyway: /readyz says so, and the first event tries again
            _log.error(line("storage", error=_what(error)))
        ended = asyncio.Event()
        keeping = asyncio.create_task(keep_tally(ended))
        yield
        await asyncio.to_thread(commits.close)
        ended.set()
        await keeping
        inbox.close()

    routes = [
        Route("/api/v1/ingest/recording", refusing(take, metrics.rejected, _log), methods=["POST"]),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", show_metrics),
    ]
    if settings.engine_url:
        handler = refusing(take_verdict, metrics.verdicts_rejected, _log)
        routes.append(Route(callbacks.PATH, handler, methods=["POST"]))
    return Starlette(routes=routes, lifespan=lifespan)


def serve(settings: Settings) -> None:
    asgi.serve(create_app(settings), settings.host, settings.receiver_port)
