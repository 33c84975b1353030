"""What our HTTP services share at their edge: bounded bodies, signatures, schemas, and refusals that quote nothing.

What a request means, and what follows from it, is each service's own.
"""

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
from pydantic import BaseModel, ValidationError
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

BODY_SECONDS = 10.0
HEAD_SECONDS = 10.0
REQUEST_SECONDS = 60.0
"""From the end of its headers to the end of its answer, for a client that doesn't read what it asked for."""
MAX_OVERHEAD_BYTES = 64 * 2**10
"""Of a request besides its body: headers, chunk framing, trailers."""
MAX_UNFINISHED = 256
"""Connections without a whole request; honest ones have it within milliseconds, so the oldest goes first."""

_WEBHOOK_ID = re.compile(r"[A-Za-z0-9._:-]{1,256}")

Model = TypeVar("Model", bound=BaseModel)
Handler = Callable[[Request], Awaitable[Response]]


class Rejected(Exception):
    """A request that is not taken. `message` is sent back: it says what is wrong and never repeats the input.

    reason: one word for logs and counters.
    """

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
        self.body: dict[str, Any] = {"error": message, "reason": reason} | ({"fields": fields} if fields else {})


async def read_body(request: Request, max_bytes: int, seconds: float = BODY_SECONDS) -> bytes:
    """The whole body. Raises Rejected: 413 above `max_bytes`, 408 after `seconds`, 400 where the sender hangs up."""
    close = {"Connection": "close"}
    too_large = Rejected(413, "too_large", f"the body is larger than {max_bytes} bytes", headers=close)
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError:
        raise Rejected(408, "slow", f"the body did not arrive within {seconds:g} s", headers=close) from None
    except ClientDisconnect:
        raise Rejected(400, "disconnected", "the body ended early") from None
    return bytes(body)


def bounded_connections(request_seconds: float = REQUEST_SECONDS) -> type[asyncio.Protocol]:
    """The protocol for `uvicorn.run(http=...)`, whose connections end: one server for each call of this.

    uvicorn waits for headers for ever and takes any length of them; and each connection counts against its
    `limit_concurrency`, so that a thousand unfinished ones kept everybody else out.
    """
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Bounded(HttpToolsProtocol):
        unfinished: ClassVar[dict[asyncio.Protocol, asyncio.Transport]] = {}
        _deadline: asyncio.TimerHandle | None = None
        _overhead = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait_for_request()
            if len(self.unfinished) > MAX_UNFINISHED:
                self.unfinished.pop(next(iter(self.unfinished))).abort()

        def connection_lost(self, exc: Exception | None) -> None:
            self.unfinished.pop(self, None)
            if self._deadline:
                self._deadline.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._overhead += len(data)
            if self._overhead > MAX_OVERHEAD_BYTES and not self.transport.is_closing():
                self._refuse("431 Request Header Fields Too Large")

        def on_message_begin(self) -> None:
            self._overhead = min(self._overhead, 0)
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            self._limit(request_seconds)

        def on_body(self, body: bytes) -> None:
            self._overhead -= len(body)
            super().on_body(body)

        def on_message_complete(self) -> None:
            super().on_message_complete()
            if not self.cycle.response_complete:
                self.unfinished.pop(self, None)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle.response_complete and not self.transport.is_closing():
                self._wait_for_request()

        def _wait_for_request(self) -> None:
            self.unfinished.pop(self, None)
            self.unfinished[self] = self.transport
            self._limit(HEAD_SECONDS)

        def _limit(self, seconds: float) -> None:
            if self._deadline:
                self._deadline.cancel()
            self._deadline = self.loop.call_later(seconds, self._refuse, "408 Request Timeout")

        def _refuse(self, status: str) -> None:
            if self.cycle and not self.cycle.response_complete:
                self.transport.abort()
                return
            self.transport.write(f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode())
            self.transport.close()

    return Bounded


def serve(app: Starlette, host: str, port: int, request_seconds: float = REQUEST_SECONDS) -> None:
    """Run until SIGTERM or SIGINT; requests under way have 10 s more. No access log: paths hold tokens."""
    import uvicorn

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    uvicorn.run(
        app,
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        server_header=False,
        # Who asks is the peer, whatever its headers say.
        proxy_headers=False,
        http=bounded_connections(request_seconds),
        ws="none",
        timeout_keep_alive=5,
        timeout_graceful_shutdown=10,
        limit_concurrency=1024,
    )


def verified(webhook: Webhook, body: bytes, headers: Mapping[str, str]) -> str:
    """The webhook-id of a body signed by the Standard Webhooks specification. Raises Rejected: 401, 400.

    The timestamp may be 5 minutes from this machine's clock (the library's tolerance).
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise Rejected(400, "json", "the body is not UTF-8") from None
    try:
        webhook.verify(text, dict(headers), json_parse=False)
    except WebhookVerificationError as error:
        if "too old" in str(error) or "too new" in str(error):
            hint = "webhook-timestamp must be within 5 minutes of this server's clock, sign and send again"
            raise Rejected(401, "stale", f"{error}: {hint}") from None
        raise Rejected(401, "signature", f"{error}: see standardwebhooks.com") from None
    except ValueError:
        raise Rejected(401, "signature", "malformed webhook-signature: see standardwebhooks.com") from None
    if not _WEBHOOK_ID.fullmatch(message_id := headers["webhook-id"]):
        raise Rejected(400, "webhook_id", "webhook-id: 1 to 256 letters, digits, '.', '_', ':' or '-'")
    return message_id


def parsed(model: type[Model], body: bytes, what: str, *, strict: bool = False) -> Model:
    """The `what` (one word) in `body`. Raises Rejected: 400 if it is not JSON, 422 naming the fields that are wrong."""
    try:
        return model.model_validate_json(body, strict=strict, by_name=False, by_alias=True)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
    if problems[0]["type"] == "json_invalid":
        raise Rejected(400, "json", problems[0]["msg"])
    raise schema_fault(
        what,
        [
            {"field": ".".join(_names(fault["loc"], fault["type"])) or what, "problem": fault["msg"]}
            for fault in problems
        ],
    )


def _names(location: tuple[int | str, ...], kind: str) -> list[str]:
    """Where a fault lies; the name of an unknown field is the sender's, so it may be data."""
    known = location[:-1] if kind == "extra_forbidden" else location
    return [str(part) for part in known] + (["an unknown field"] if known != location else [])


def schema_fault(what: str, fields: list[dict[str, str]]) -> Rejected:
    sentence = "; ".join(f"{field['field']}: {field['problem']}" for field in fields)
    return Rejected(422, "schema", f"the {what} does not match the schema: {sentence}", fields)


def refusing(handler: Handler, rejected: Counter, log: logging.Logger) -> Handler:
    """`handler`, whose Rejected are answered, counted by reason in `rejected`, and logged without content."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Rejected as refusal:
            rejected.labels(refusal.reason).inc()
            log.warning(line("rejected", reason=refusal.reason, status=refusal.status))
            return JSONResponse(refusal.body, refusal.status, refusal.headers)

    return answer


async def healthz(_request: Request) -> Response:
    return JSONResponse({"status": "alive"})


def figures(registry: CollectorRegistry) -> Response:
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def line(outcome: str, **fields: Any) -> str:
    return json.dumps({"outcome": outcome, **fields})
