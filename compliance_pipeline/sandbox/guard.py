"""In front of the application: authorisation, rate and size limits, and the faults that strike requests.

Faults of a recording are those of who serves it (guide, cloud, media).
"""

import socket
import struct
from typing import Final
from urllib.parse import unquote_plus

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compliance_pipeline.sandbox.answers import BODY_LIMIT_BYTES, error_answer
from compliance_pipeline.sandbox.faults import FaultKind, PlannedFault
from compliance_pipeline.sandbox.state import Fault, PlatformState

_WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_SERVER_ERRORS: Final = (500, 502, 503, 504)
_STRIKING: Final = (
    FaultKind.UNAUTHORISED,
    FaultKind.TOO_MANY_REQUESTS,
    FaultKind.SERVER_ERROR,
    FaultKind.FORBIDDEN_FOR_NOW,
    FaultKind.CONFLICT,
    FaultKind.TOO_LARGE,
    FaultKind.DROPPED_AFTER_EFFECT,
)
_ON_WRITES: Final = frozenset({FaultKind.CONFLICT, FaultKind.TOO_LARGE})


class Guard:
    """Plain ASGI: only so can it drop a connection. The connection is in `scope["sandbox.transport"]` for others."""

    def __init__(self, app: ASGIApp, state: PlatformState) -> None:
        self._app = app
        self._state = state
        self._requests = 0
        self._in_a_row: dict[tuple[str, str], tuple[PlannedFault, int]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state, path, method = self._state, scope["path"], scope["method"]
        # ASGI has no word for the connection; uvicorn's `send` belongs to the object that holds it.
        scope["sandbox.transport"] = getattr(getattr(send, "__self__", None), "transport", None)
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        # The store of flow files sees to its own.
        if path.startswith(("/media/", "/transcripts/", "/internal/")) and "authorization" in headers:
            state.saw("bearer leaked", path.split("/")[2])
        # A browser that looks at /sandbox/ asks for an icon, too.
        if path.startswith("/sandbox") or path in ("/healthz", "/favicon.ico"):
            await self._app(scope, receive, send)
            return
        state.counts["requests"] += 1
        state.note_planted(path.encode(), unquote_plus(scope["query_string"].decode("latin-1")).encode())
        if fault := state.take_fault(method, path):
            await self._asked_for(fault, headers, scope, receive, send)
        elif path.startswith("/api/"):
            await self._api(headers, scope, receive, send)
        elif path == "/oauth/token" and (busy := self._struck(FaultKind.TOKEN_BUSY, method, path)):
            status = (429, 500, 503)[self._requests % 3]
            await _limited(busy, 0, status)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _asked_for(
        self, fault: Fault, headers: dict[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        path = scope["path"]
        self._state.saw("fault", detail=f"{scope['method']} {path} {fault.status or 'dropped'}")
        if fault.after_effect:
            if path.startswith("/api/") and not self._state.is_authorised(headers.get("authorization")):
                await self._no_token(scope, receive, send)
                return
            await self._app(scope, receive, _swallow)
        if fault.status is None:
            await drop(scope, receive)
            return
        answer = error_answer(fault.status, "sandbox.fault", "A fault that was asked for")
        if fault.retry_after is not None:
            answer.headers["Retry-After"] = str(fault.retry_after)
        await answer(scope, receive, send)

    async def _api(self, headers: dict[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        state, method, path = self._state, scope["method"], scope["path"]
        bearer = headers.get("authorization")
        if not state.is_authorised(bearer):
            await self._no_token(scope, receive, send)
            return
        if wait := state.wait_of(bearer):
            state.saw("rate limited")
            answer = _too_many(state.requests_per_minute or 0, 429)
            answer.headers["Retry-After"] = str(wait)
            await answer(scope, receive, send)
            return
        if int(headers.get("content-length") or 0) > BODY_LIMIT_BYTES:
            state.saw("too large")
            await error_answer(413, "request.too.large", f"More than {BODY_LIMIT_BYTES} bytes")(scope, receive, send)
            return
        struck = next((fault for kind in _STRIKING if (fault := self._struck(kind, method, path))), None)
        if struck is None:
            await self._app(scope, receive, send)
        elif struck.kind is FaultKind.DROPPED_AFTER_EFFECT:
            await self._app(scope, receive, _swallow)
            await drop(scope, receive)
        else:
            if struck.kind is FaultKind.UNAUTHORISED:
                state.revoke(bearer)
            await self._answer(struck)(scope, receive, send)

    async def _no_token(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._state.saw("unauthorised")
        await error_answer(401, "authentication.required", "No valid bearer token")(scope, receive, send)

    def _struck(self, kind: FaultKind, method: str, path: str) -> PlannedFault | None:
        """A fault for this request, drawn anew for each; once it strikes a path, `times` in a row."""
        if kind is FaultKind.DROPPED_AFTER_EFFECT and method != "POST":
            return None
        if kind in _ON_WRITES and method not in _WRITES:
            return None
        row = (kind, f"{method} {path}")
        fault, left = self._in_a_row.pop(row, (None, 0))
        self._requests += 1
        fault = fault or self._state.strikes(kind, f"request:{self._requests}")
        if fault is None:
            return None
        left = (left or fault.times) - 1
        if left:
            self._in_a_row[row] = fault, left
        return fault

    def _answer(self, fault: PlannedFault) -> Response:
        if fault.kind is FaultKind.TOO_MANY_REQUESTS:
            return _limited(fault, self._state.requests_per_minute or 300, 429)
        if fault.kind is FaultKind.SERVER_ERROR:
            status = _SERVER_ERRORS[self._requests % 4]
            return error_answer(status, "internal.server.error", "The request could not be completed")
        status, code, message = {
            FaultKind.UNAUTHORISED: (401, "bad.credentials", "Invalid login credentials."),
            FaultKind.FORBIDDEN_FOR_NOW: (403, "missing.permissions", "Unable to perform the requested action."),
            FaultKind.CONFLICT: (409, "conflict", "The resource has been changed by another request."),
            FaultKind.TOO_LARGE: (413, "request.too.large", "The request is too large."),
        }[fault.kind]
        return error_answer(status, code, message)


def _limited(fault: PlannedFault, limit: int, status: int) -> JSONResponse:
    answer = _too_many(limit, status) if status == 429 else error_answer(status, "service.unavailable", "Try again")
    if fault.seconds is not None:
        answer.headers["Retry-After"] = str(round(fault.seconds))
    return answer


def _too_many(limit: int, status: int) -> JSONResponse:
    message = f"Rate limit exceeded the maximum. Retry the request. Limit: {limit}"
    return error_answer(
        status,
        "too.many.requests",
        message,
        limit={"key": "client.credentials.token.rate.per.minute", "namespace": "platform.api", "value": limit},
    )


async def drop(scope: Scope, receive: Receive, *, flush: bool = False) -> None:
    """Ends the connection: at once with a reset, or (flush) in order, after what is written."""
    transport = scope["sandbox.transport"]
    if flush:
        transport.close()
    else:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _swallow(message: Message) -> None:
    """Stands for `send` where the answer is not to reach the client."""
