"""What our HTTP services share at their edge: bounded bodies, signatures, schemas, and refusals that quote nothing.

What a request means, and what follows from it, is each service's own.
"""

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
from pydantic import BaseModel, ValidationError
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

BODY_SECONDS = 10.0

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
