"""What the platform's handlers share: its state, bodies read and checked, errors in the platform's words."""

import json
import uuid
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from compliance_pipeline.sandbox.state import PlatformState

BODY_LIMIT_BYTES: Final = 512_000


def platform_of(request: Request) -> PlatformState:
    state: PlatformState = request.app.state.platform
    return state


def error_answer(status: int, code: str, message: str, **more: Any) -> JSONResponse:
    """An error as Genesys Cloud words it: {message, code, status, contextId, details[], errors[]} and `more`."""
    body = {"message": message, "code": code, "status": status, "contextId": str(uuid.uuid4())}
    return JSONResponse({**body, "details": [], "errors": [], **more}, status)


async def json_body(request: Request, *required: str) -> dict[str, Any]:
    """The JSON object of a request, checked for planted values. Raises HTTPException 400 naming what is missing."""
    raw = await request.body()
    if len(raw) > BODY_LIMIT_BYTES:
        raise HTTPException(413, f"More than {BODY_LIMIT_BYTES} bytes")
    platform_of(request).note_planted(raw)
    try:
        body = json.loads(raw)
    except ValueError:
        raise HTTPException(400, "The body is not JSON") from None
    if not isinstance(body, dict):
        raise HTTPException(400, "The body is not a JSON object")
    if missing := [name for name in required if name not in body]:
        raise HTTPException(400, f"Missing: {', '.join(missing)}")
    return body
