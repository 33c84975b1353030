"""Our engine behind HTTP (guide, step 2: stateless, idempotent): a signed request in, the guide's verdict out.

The wire is `contracts.engine`; finding and judging is the engine's and the policy's. Nothing is stored.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from time import perf_counter
from typing import TYPE_CHECKING

import httpx
from httpx_retries import Retry, RetryTransport
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from standardwebhooks.webhooks import Webhook
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

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
from compliance_pipeline.contracts.engine import (
    NDJSON,
    SCREENINGS_PATH,
    Accepted,
    Fault,
    PartialFinding,
    ScreeningRequest,
    SealBroken,
    StreamLine,
    unseal,
)
from compliance_pipeline.contracts.policy import PolicyPack
from compliance_pipeline.contracts.verdict import Verdict
from compliance_pipeline.media.clips import MemoryMedia
from compliance_pipeline.platforms.addresses import AddressRules, CheckedTransport
from compliance_pipeline.platforms.port import PlatformError, Refused, Unavailable
from compliance_pipeline.platforms.transport import HttpMediaStream
from compliance_pipeline.screening.engine import (
    TRANSFER_TRIES,
    EmbeddedEngine,
    Report,
    Screening,
    facts_of,
    reach,
    read_transcript,
)
from compliance_pipeline.screening.findings import Finding
from compliance_pipeline.screening.policy import evaluate, judge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

MAX_BODY_BYTES = 64 * 1024
MAX_SEALED_BODY_BYTES = 32 * 2**20
"""24 MB of media, 50 minutes of G.711: what is longer is named by its URL."""
MAX_CACHED = 10_000
ANSWER_WITHIN_S = 25.0
"""What takes longer is answered 202 if there is a callback URL: well within the 60 s of usual gateways."""
RETRY_AFTER_S = 5
CALLBACK_TRIES = 10
LONGEST_WAIT_S = 60.0
TIMEOUT = httpx.Timeout(30.0, connect=5.0)

_EXPIRED = frozenset({401, 403, 404, 410})
_WORTH_ANOTHER_TRY = frozenset({408, 425, 429})
_log = logging.getLogger(__name__)


def _judged(request: ScreeningRequest, screening: Screening, policy: PolicyPack) -> Verdict:
    told = request.metadata
    facts = facts_of(screening, request.channel, direction=told.direction, queue=told.queue, started_at=told.start_time)
    outcomes = evaluate(screening.findings, facts, policy)
    return judge(request.recording_id, request.correlation_id, outcomes, screening.unscreenable)


class Outbound:
    """HTTP to the addresses that callers name: media and callbacks. Follows no redirect and no proxy setting.

    hosts: the only hosts that may be asked (`AddressRules`); if empty, any host with a public address, none of this
    machine or its network. Raises the port's errors; their text has nothing of the address.
    """

    def __init__(self, hosts: Collection[str] = ()) -> None:
        self._rules = AddressRules(hosts, ("http", "https"), "COMPLIANCE_ENGINE_HOSTS")
        retry = Retry(
            total=TRANSFER_TRIES - 1,
            allowed_methods=("GET",),
            status_forcelist=(500, 502, 503, 504),
            backoff_factor=0.25,
            backoff_jitter=0.5,
            total_timeout=10.0,
        )
        self._client = httpx.Client(
            transport=RetryTransport(CheckedTransport(self._rules), retry),
            timeout=TIMEOUT,
            headers={"Accept-Encoding": "identity"},
            trust_env=False,
        )

    def check(self, url: str) -> None:
        """Raise Refused for an address that may not be asked, as far as its text says so."""
        self._rules.check(url)

    @contextmanager
    def open_media(self, url: str) -> "Iterator[HttpMediaStream]":
        response = self._send("GET", url, {}, None)
        try:
            status = response.status_code
            if status in _EXPIRED:
                raise Unavailable(f"the media host answered {status}: the URL has expired, ask again with a new one")
            if 300 <= status < 400:
                message = f"the media host answered {status}, a redirect, which is not followed"
                raise self._rules.refuse("redirect", response.url.host, message)
            if 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY:
                raise Refused(f"the media host answered {status}")
            if status != 200:
                raise Unavailable(f"the media host answered {status}")
            yield HttpMediaStream(response)
        finally:
            response.close()

    def post(self, url: str, headers: dict[str, str], body: bytes) -> tuple[int, str | None]:
        """The answer's status and Retry-After."""
        response = self._send("POST", url, headers, body)
        response.close()
        return response.status_code, response.headers.get("retry-after")

    def close(self) -> None:
        self._client.close()

    def _send(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> httpx.Response:
        request = self._client.build_request(method, self._rules.check(url), headers=headers, content=body)
        try:
            return self._client.send(request, stream=True)
        except httpx.TransportError as error:
            raise Unavailable(f"no answer from the host ({type(error).__name__})") from None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a screening came to no verdict. retry_after: seconds, where another try may help."""

    status: int
    reason: str
    message: str
    retry_after: float | None = None


class Job:
    """One screening, under way or done. Lives in the event loop; `lines` grow until `outcome` is there."""

    def __init__(self, key: tuple[str, ...]) -> None:
        self.key = key
        self.lines: list[PartialFinding] = []
        self.outcome: asyncio.Future[Verdict | Failure] = asyncio.get_running_loop().create_future()
        self.owed: set[str] = set()
        """Callback URLs that wait for the verdict."""
        self._said: dict[tuple[str, str, str, int, str | None], PartialFinding] = {}
        self._news = asyncio.Event()

    def hear(self, findings: Sequence[Finding], settled: Sequence[Finding]) -> None:
        """Add a line for each finding that is new or says something else than before."""
        for found in findings:
            said = PartialFinding(
                kind=found.kind,
                detector=found.detector,
                speaker=found.speaker,
                start_ms=found.start_ms,
                end_ms=found.end_ms,
                confidence=float(found.confidence),
                masked=found.masked,
                settled=found in settled,
            )
            which = (found.kind, found.detector, found.speaker, found.start_ms, found.fingerprint)
            if self._said.get(which) != said:
                self._said[which] = said
                self.lines.append(said)
        self._tell()

    def end(self, outcome: Verdict | Failure) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)
        self._tell()

    async def stream(self) -> AsyncIterator[StreamLine]:
        """Every line from the first on, as they come; then the verdict or the fault."""
        sent = 0
        while True:
            news = self._news
            while sent < len(self.lines):
                yield StreamLine(finding=self.lines[sent])
                sent += 1
            if self.outcome.done():
                break
            if news is self._news:
                await news.wait()
        match self.outcome.result():
            case Failure() as failure:
                yield StreamLine(fault=Fault(reason=failure.reason, retry_after=failure.retry_after))
            case verdict:
                yield StreamLine(verdict=verdict)

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class _Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        prefix = "compliance_engine"
        self.screenings = Counter(
            "screenings", "Screenings by verdict or fault", ["outcome"], prefix, registry=registry
        )
        self.answers = Counter("answers", "Answers by where from", ["source"], prefix, registry=registry)
        self.rejected = Counter("rejected", "Requests not taken", ["reason"], prefix, registry=registry)
        self.callbacks = Counter("callbacks", "Verdicts called back", ["outcome"], prefix, registry=registry)
        self.running = Gauge("running", "Screenings under way", (), prefix, registry=registry)
        self.seconds = Histogram("screening_seconds", "Fetch and screening", (), prefix, registry=registry)


class Screenings:
    """The jobs: each request is screened once, however often it comes, as long as it is remembered."""

    def __init__(
        self,
        policy: PolicyPack,
        engine: EmbeddedEngine,
        outbound: Outbound,
        keys: Mapping[str, bytes],
        max_running: int,
        metrics: _Metrics,
    ) -> None:
        self._policy, self._engine, self._outbound, self._keys = policy, engine, outbound, keys
        self._max_running, self._metrics = max_running, metrics
        self._version = engine.version
        self._pool = ThreadPoolExecutor(max_running, thread_name_prefix="screening")
        self._running: dict[tuple[str, ...], Job] = {}
        self._done: OrderedDict[tuple[str, ...], Job] = OrderedDict()

    def job(self, request: ScreeningRequest) -> Job:
        """The job of this request, started if there is none. Raises Rejected 429 if too many are under way."""
        key = (request.recording_id, request.correlation_id, request.policy_version, self._version)
        if job := self._done.get(key):
            self._done.move_to_end(key)
            self._metrics.answers.labels("cache").inc()
            return job
        if job := self._running.get(key):
            self._metrics.answers.labels("running").inc()
            return job
        if len(self._running) >= self._max_running:
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            raise Rejected(429, "full", f"{len(self._running)} screenings are under way: ask again", headers=headers)
        self._metrics.answers.labels("new").inc()
        job = self._running[key] = Job(key)
        self._metrics.running.set(len(self._running))
        loop = asyncio.get_running_loop()
        self._pool.submit(self._screen, request, job, loop)
        return job

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _screen(self, request: ScreeningRequest, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of the pool: the whole of one screening. Never raises."""
        started = perf_counter()
        findings: Sequence[Finding] = ()
        lasting = False

        def report(found: Sequence[Finding], settled: Sequence[Finding]) -> None:
            loop.call_soon_threadsafe(job.hear, list(found), list(settled))

        outcome: Verdict | Failure
        try:
            screening = self._screening(request, report)
            findings = screening.findings
            outcome = _judged(request, screening, self._policy)
            # What a broken transfer gave may be more at the next try.
            lasting = not screening.transfer_broken
        except (Refused, SealBroken) as error:
            outcome = Failure(422, "media_refused", str(error))
        except PlatformError as error:
            outcome = Failure(424, "media_unavailable", str(error), RETRY_AFTER_S)
        except Exception as error:
            # The text of an unforeseen exception may quote what was screened: only its type is kept.
            what = type(error).__qualname__
            _log.error(line("failed", recording=request.recording_id, error=what))
            outcome = Failure(500, "engine", f"the engine failed with {what}: see its log", RETRY_AFTER_S)
        seconds = perf_counter() - started
        try:
            loop.call_soon_threadsafe(self._finish, job, findings, outcome, lasting, seconds)
        except RuntimeError:
            return  # the service was stopped: nobody waits any more

    def _screening(self, request: ScreeningRequest, report: Report) -> Screening:
        transcript = None
        if request.transcript_url:
            with suppress(Unavailable):  # the sound is screened all the same
                opened_transcript = self._outbound.open_media(request.transcript_url)
                transcript = read_transcript(opened_transcript, request.recording_id)
        if request.sealed:
            media = unseal(request.sealed, self._keys, request.recording_id, request.correlation_id)
            opened = MemoryMedia(media, request.content_type)
            return self._engine.screen(opened, request.channel, request.speakers, transcript, report)
        tries: list[Screening] = []
        while len(tries) < TRANSFER_TRIES:
            try:
                with self._outbound.open_media(request.media_url or "") as stream:
                    stream.content_type = request.content_type or stream.content_type
                    tries.append(self._engine.screen(stream, request.channel, request.speakers, transcript, report))
            except PlatformError:
                if not tries:
                    raise
                break
            if not tries[-1].transfer_broken:
                return tries[-1]
        return max(tries, key=reach)

    def _finish(
        self, job: Job, findings: Sequence[Finding], outcome: Verdict | Failure, lasting: bool, seconds: float
    ) -> None:
        del self._running[job.key]
        if lasting:
            self._done[job.key] = job
            if len(self._done) > MAX_CACHED:
                self._done.popitem(last=False)
        said = outcome.reason if isinstance(outcome, Failure) else outcome.verdict.value
        self._metrics.running.set(len(self._running))
        self._metrics.screenings.labels(said).inc()
        self._metrics.seconds.observe(seconds)
        _log.info(line("screened", recording=job.key[0], verdict=said, seconds=round(seconds, 3)))
        job.hear(findings, findings)
        job.end(outcome)


class Callbacks:
    """Verdicts that are owed: sent signed, again and again until taken, under one webhook-id.

    A screening that fails calls nobody back: the guide's verdict can't say so. Whoever waits asks again.
    """

    def __init__(self, outbound: Outbound, secret: str, backoff_s: float, metrics: _Metrics) -> None:
        self._outbound, self._webhook, self._backoff_s, self._metrics = outbound, Webhook(secret), backoff_s, metrics
        self._tasks: set[asyncio.Task[None]] = set()

    def owe(self, job: Job, url: str) -> None:
        if url in job.owed:
            return
        job.owed.add(url)
        task = asyncio.create_task(self._deliver(job, url))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _deliver(self, job: Job, url: str) -> None:
        outcome = await asyncio.shield(job.outcome)
        if isinstance(outcome, Failure):
            return self._count("failed", job)
        body = _json(outcome)
        # Of key and body, so that a repeat has the same id even after a restart, and another verdict another one.
        message_id = "scr_" + sha256("\0".join((*job.key, body.decode())).encode()).hexdigest()[:40]
        for attempt in range(CALLBACK_TRIES):
            status, retry_after = await asyncio.to_thread(self._post, url, message_id, body)
            if status is not None and status < 300:
                return self._count("delivered", job)
            if status == 0 or (status is not None and 300 <= status < 500 and status not in _WORTH_ANOTHER_TRY):
                return self._count("refused", job)
            if attempt + 1 < CALLBACK_TRIES:
                self._metrics.callbacks.labels("retried").inc()
                await asyncio.sleep(max(_seconds(retry_after), min(self._backoff_s * 2.0**attempt, LONGEST_WAIT_S)))
        return self._count("given up", job)

    def _post(self, url: str, message_id: str, body: bytes) -> tuple[int | None, str | None]:
        """The answer's status, None without an answer, 0 for a host that may not be asked; and its Retry-After."""
        now = datetime.now(UTC)
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._webhook.sign(message_id, now, body.decode()),
        }
        try:
            return self._outbound.post(url, headers, body)
        except Refused:
            return 0, None
        except PlatformError:
            return None, None

    def _count(self, outcome: str, job: Job) -> None:
        self._metrics.callbacks.labels(outcome).inc()
        level = logging.INFO if outcome == "delivered" else logging.WARNING
        _log.log(level, line(f"callback {outcome}", recording=job.key[0]))


def _seconds(retry_after: str | None) -> float:
    whole = retry_after is not None and retry_after.isascii() and retry_after.isdigit()
    return min(float(retry_after or 0), LONGEST_WAIT_S) if whole else 0.0


def _json(model: "BaseModel") -> bytes:
    return model.model_dump_json(by_alias=True, exclude_none=True).encode()


def create_engine_app(
    policy: PolicyPack,
    engine: EmbeddedEngine,
    secret: str,
    callback_secret: str,
    *,
    max_running: int = 4,
    hosts: Collection[str] = (),
    keys: Mapping[str, bytes] | None = None,
    answer_within_s: float = ANSWER_WITHIN_S,
    callback_backoff_s: float = 1.0,
    body_seconds: float = BODY_SECONDS,
) -> Starlette:
    """The engine's HTTP service. Requests are signed by the Standard Webhooks specification, as events are.

    secret, callback_secret: whsec_..., the one that requests are signed with, the one that signs what is called back.
    max_running: screenings at a time; what comes beyond is answered 429. hosts: see `Outbound`.
    keys: 32 bytes each, by id, for media that come along sealed; without them none do.
    answer_within_s: a screening that takes longer is answered 202, if the request has a callback URL.
    """
    webhook = Webhook(secret)
    metrics = _Metrics()
    outbound = Outbound(hosts)
    screenings = Screenings(policy, engine, outbound, keys or {}, max_running, metrics)
    callbacks = Callbacks(outbound, callback_secret, callback_backoff_s, metrics)

    async def take(request: Request) -> Response:
        body = await read_body(request, MAX_SEALED_BODY_BYTES if keys else MAX_BODY_BYTES, body_seconds)
        verified(webhook, body, request.headers)
        asked = parsed(ScreeningRequest, body, "request", strict=True)
        if asked.policy_version != policy.policy_version:
            raise Rejected(409, "policy", f"this engine screens under {policy.policy_version}: give both the same pack")
        for name, url in asked.addresses:
            try:
                if url:
                    outbound.check(url)
            except Refused as error:
                raise Rejected(422, "address", f"{name}: {error}") from None
        job = screenings.job(asked)
        if NDJSON in request.headers.get("accept", ""):
            return StreamingResponse((_json(one) + b"\n" async for one in job.stream()), media_type=NDJSON)
        patience = None
        if asked.callback_url:
            patience = 0.0 if "respond-async" in request.headers.get("prefer", "") else answer_within_s
        await asyncio.wait([job.outcome], timeout=patience)
        if asked.callback_url and not job.outcome.done():
            callbacks.owe(job, asked.callback_url)
            accepted = Accepted(recording_id=asked.recording_id, correlation_id=asked.correlation_id)
            return Response(_json(accepted), 202, media_type="application/json")
        match job.outcome.result():
            case Failure() as failure:
                headers = {"Retry-After": f"{failure.retry_after:.0f}"} if failure.retry_after else None
                raise Rejected(failure.status, failure.reason, failure.message, headers=headers)
            case verdict:
                return Response(_json(verdict), media_type="application/json")

    async def readyz(_request: Request) -> Response:
        return JSONResponse({"status": "ready", "policy": policy.policy_version, "engine": engine.version})

    async def show_metrics(_request: Request) -> Response:
        return figures(metrics.registry)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await callbacks.close()
        screenings.close()
        outbound.close()

    routes = [
        Route(SCREENINGS_PATH, refusing(take, metrics.rejected, _log), methods=["POST"]),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", show_metrics),
    ]
    return Starlette(routes=routes, lifespan=lifespan)
