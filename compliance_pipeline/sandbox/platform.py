"""The simulated platform as one application and one server: profile, media host, token endpoint, /sandbox together.
What it holds is `state`; what it answers is in `guide`, `cloud`, `media` and `admin`; faults of requests: `guard`."""

import base64
import binascii
import hmac
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from compliance_pipeline.sandbox import admin, guide, media
from compliance_pipeline.sandbox.answers import error_answer, platform_of
from compliance_pipeline.sandbox.guard import Guard
from compliance_pipeline.sandbox.state import Fault, Held, Observation, PlatformState, conversation_id_of

__all__ = ["Fault", "Held", "Observation", "PlatformState", "conversation_id_of", "create_app", "serve"]

_CODES = {400: "bad.request", 401: "invalid_client", 404: "not.found", 405: "not.supported", 409: "conflict"}


def create_app(state: PlatformState) -> ASGIApp:
    """The platform as an ASGI application over `state`."""
    if state.profile == "cloud":
        from compliance_pipeline.sandbox import cloud

        profile = cloud.routes()
    else:
        profile = guide.routes()
    app = Starlette(
        routes=[
            Route("/oauth/token", _token, methods=["POST"]),
            *profile,
            *media.routes(),
            *admin.routes(),
            Route("/healthz", _health, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _refuse},
    )
    app.state.platform = state
    return Guard(app, state)


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


async def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, media.S3Error):
        return error.answer
    if not isinstance(error, HTTPException):
        raise error
    code = _CODES.get(error.status_code, f"http.{error.status_code}")
    return error_answer(error.status_code, code, error.detail)


async def _token(request: Request) -> Response:
    state = platform_of(request)
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


async def _health(_: Request) -> Response:
    return Response("ok")
