"""/sandbox: what the platform did and received, for people (a page) and for tests (JSON); faults and plans in.
No bearer token is asked for here, and nothing here is part of a platform."""

from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, RootModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.sandbox.answers import platform_of
from compliance_pipeline.sandbox.cloud_state import cloud_state
from compliance_pipeline.sandbox.faults import FaultPlan
from compliance_pipeline.sandbox.samples import sample
from compliance_pipeline.sandbox.state import Fault

_PAGE: Final = Path(__file__).with_name("admin.html")


class _Sample(BaseModel):
    model_config = ConfigDict(extra="forbid")

    channel: Channel
    text: str = ""


class _Redaction(RootModel[dict[Channel, frozenset[Literal["card", "ssn", "phone", "email"]]]]):
    pass


class _Permissions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    permissions: list[str] | None


_M = TypeVar("_M", bound=BaseModel)


def routes() -> list[Route]:
    return [
        Route("/sandbox", _home, methods=["GET"]),
        Route("/sandbox/", _page, methods=["GET"]),
        Route("/sandbox/truth", _truth, methods=["GET"]),
        Route("/sandbox/state", _state, methods=["GET"]),
        Route("/sandbox/faults", _faults, methods=["POST"]),
        Route("/sandbox/plan", _plan, methods=["GET"]),
        Route("/sandbox/plan", _follow, methods=["PUT"]),
        Route("/sandbox/sample", _sampled, methods=["POST"]),
        Route("/sandbox/redaction", _redact, methods=["PUT"]),
        Route("/sandbox/permissions", _permit, methods=["POST"]),
    ]


async def _home(_: Request) -> Response:
    return RedirectResponse("/sandbox/")


async def _page(_: Request) -> Response:
    return FileResponse(_PAGE, headers={"Content-Security-Policy": "default-src 'self' 'unsafe-inline'"})


async def _truth(request: Request) -> Response:
    return JSONResponse(platform_of(request).truth(_last(request)))


async def _state(request: Request) -> Response:
    return JSONResponse(platform_of(request).observed(_last(request)))


def _last(request: Request) -> int | None:
    """How many recordings are asked for, of the newest; None for all: a page of a long soak has no use for them."""
    last = request.query_params.get("last", "")
    return int(last) if last.isascii() and last.isdigit() else None


async def _faults(request: Request) -> Response:
    platform_of(request).faults.append(await _read(request, Fault))
    return Response(status_code=204)


async def _plan(request: Request) -> Response:
    return JSONResponse(platform_of(request).plan.model_dump(mode="json"))


async def _follow(request: Request) -> Response:
    """Another plan from now on. Recordings that are there keep theirs."""
    platform_of(request).follow(await _read(request, FaultPlan))
    return Response(status_code=204)


async def _sampled(request: Request) -> Response:
    """A sample interaction, put through the platform's redaction: {channel, text} → {recordingId}, available now."""
    asked, state = await _read(request, _Sample), platform_of(request)
    made = sample(asked.channel, asked.text, state.redaction.get(asked.channel, frozenset()))
    held = state.add(made, is_sample=True)
    body = {"recordingId": held.address, "conversationId": held.conversation_id}
    return JSONResponse(body, 201)


async def _redact(request: Request) -> Response:
    """What the platform redacts of samples from now on: {channel: [kind]}, kinds as in `samples.REDACTIONS`."""
    redaction = (await _read(request, _Redaction)).root
    platform_of(request).redaction = {channel: frozenset(kinds) for channel, kinds in redaction.items()}
    return Response(status_code=204)


async def _permit(request: Request) -> Response:
    """What the client may do from now on, for good: {"permissions": ["recording:recording:view", ...]}; null: all."""
    state = platform_of(request)
    if state.profile != "cloud":
        raise HTTPException(404, "Only the cloud profile has permissions")
    permissions = (await _read(request, _Permissions)).permissions
    cloud_state(state).permissions = None if permissions is None else set(permissions)
    return Response(status_code=204)


async def _read(request: Request, model: type[_M]) -> _M:
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise HTTPException(400, f"Not a {model.__name__.strip('_').lower()}: {where or 'not JSON'}") from None
