"""The media host of both profiles: signed URLs, no bearer tokens, and all that goes wrong with transfers."""

import asyncio
import hashlib
import io
import wave
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from compliance_pipeline.sandbox.answers import platform_of
from compliance_pipeline.sandbox.faults import FaultKind, PlannedFault
from compliance_pipeline.sandbox.guard import drop
from compliance_pipeline.sandbox.state import Held, PlatformState

_HTML: Final = b"<!doctype html><html><head><title>Sign in</title></head><body>Please sign in</body></html>"
_DRIP_S: Final = 3.0


def routes() -> list[Route]:
    """Signed URLs of media, of one audio channel, of a transcript; and where a redirect must not be followed to."""
    return [
        Route("/media/{recording_id}", _media, methods=["GET"]),
        Route("/media/{recording_id}/moved", _moved, methods=["GET"]),
        Route("/media/{recording_id}/{channel}", _media, methods=["GET"]),
        Route("/transcripts/{recording_id}", _transcript, methods=["GET"]),
        Route("/internal/{recording_id}", _internal, methods=["GET"]),
    ]


class S3Error(HTTPException):
    """Media hosts answer in their own way (S3: XML), not as the API does."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, message)
        self.code = code

    @property
    def answer(self) -> Response:
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{self.code}</Code><Message>{self.detail}</Message></Error>"
        )
        return Response(text, self.status_code, media_type="application/xml")


def _expired() -> S3Error:
    return S3Error(403, "AccessDenied", "Request has expired")


def _signed_for(request: Request) -> Held:
    """The recording of a signed URL, once it is available.

    The media host knows signed URLs and nothing else; a bearer token that comes here has leaked.
    """
    state = platform_of(request)
    recording_id = request.path_params["recording_id"]
    if "authorization" in request.headers:
        raise HTTPException(400, "Only one authentication mechanism allowed")
    if not state.is_media_token(request.url.path, request.query_params.get("token", "")):
        state.saw("media refused", recording_id)
        raise _expired()
    held = state.held.get(recording_id)
    if held is None or held.status_at(datetime.now(UTC)) != "available" or datetime.now(UTC) < held.known_at:
        state.saw("media asked too early", recording_id)
        raise HTTPException(404, "No media")
    return held


async def _media(request: Request) -> Response:
    held, state = _signed_for(request), platform_of(request)
    recording_id = held.recording.recording_id
    if state.passing(FaultKind.MEDIA_EXPIRED, recording_id):
        raise _expired()
    # It is so old that its media was dropped.
    if held.is_dropped or state.passing(FaultKind.MEDIA_NOT_FOUND, recording_id):
        raise S3Error(404, "NoSuchKey", "The specified key does not exist.")
    if state.passing(FaultKind.MEDIA_SLOW_DOWN, recording_id):
        raise S3Error(503, "SlowDown", "Please reduce your request rate.")
    if spoilt := state.spoilt(held):
        state.strikes(spoilt, recording_id)
        state.saw("media fetched", recording_id, spoilt)
        if spoilt is FaultKind.MEDIA_HTML:
            return _file(held, _HTML, "text/html")
        return _file(held, header_only(), "audio/wav")
    content, content_type = held.recording.media, held.recording.content_type
    # A damaged file is no better for being asked for by channel.
    if (channel := request.path_params.get("channel")) is not None and held.recording.truth.damage is None:
        content = await asyncio.to_thread(one_channel, content, channel)
        content_type = "audio/wav"
    if state.strikes(FaultKind.MEDIA_WRONG_TYPE, recording_id):
        content_type = "binary/octet-stream"
    whole = _file(held, content, content_type)
    return _faulty(state, recording_id, whole) or _seen(state, recording_id, whole)


def _seen(state: PlatformState, recording_id: str, answer: Response) -> Response:
    state.saw("media fetched", recording_id)
    return answer


def _faulty(state: PlatformState, recording_id: str, whole: Response) -> Response | None:
    content = bytes(whole.body)
    headers = {key: value for key, value in whole.headers.items() if key != "content-length"}
    for kind, reset in ((FaultKind.MEDIA_SHORT, False), (FaultKind.MEDIA_RESET, True)):
        if state.passing(kind, recording_id):
            return _Broken(content, headers, reset=reset)
    if drip := state.passing(FaultKind.MEDIA_SLOW_DRIP, recording_id):
        state.saw("media fetched", recording_id, drip.kind)
        return _Dripping(content, headers, drip)
    return None


class _Broken(Response):
    """Promises all and gives the first three fifths: then the connection ends, in order or with a reset."""

    def __init__(self, content: bytes, headers: dict[str, str], *, reset: bool) -> None:
        super().__init__(content, headers=headers)
        self._reset = reset

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        part = bytes(self.body)[: len(self.body) * 3 // 5]
        await send({"type": "http.response.body", "body": part, "more_body": True})
        await asyncio.sleep(0.02)
        await drop(scope, receive, flush=not self._reset)


class _Dripping(Response):
    """All of it, in twenty pieces over the fault's `seconds` (3 if it has none)."""

    def __init__(self, content: bytes, headers: dict[str, str], fault: PlannedFault) -> None:
        super().__init__(content, headers=headers)
        self._pause_s = (_DRIP_S if fault.seconds is None else fault.seconds) / 20

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        content = bytes(self.body)
        step = max(1, -(-len(content) // 20))
        for start in range(0, len(content), step):
            await asyncio.sleep(self._pause_s)
            await send({"type": "http.response.body", "body": content[start : start + step], "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _moved(request: Request) -> Response:
    """A redirect into the inside: whoever follows it is seen."""
    recording_id = _signed_for(request).recording.recording_id
    return Response(status_code=302, headers={"Location": f"{platform_of(request).base_url}/internal/{recording_id}"})


async def _internal(request: Request) -> Response:
    platform_of(request).saw("inside reached", request.path_params["recording_id"])
    return Response("a secret of the inside")


async def _transcript(request: Request) -> Response:
    held = _signed_for(request)
    if not held.recording.transcript or platform_of(request).spoilt(held):
        raise HTTPException(404, "No transcript")
    platform_of(request).saw("transcript fetched", held.recording.recording_id)
    return _file(held, held.recording.transcript, "application/json")


def _file(held: Held, content: bytes, content_type: str) -> Response:
    headers = {
        "Content-Type": content_type,
        "Last-Modified": format_datetime(held.available_at, usegmt=True),
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    }
    return Response(content, headers=headers)


def header_only() -> bytes:
    """The 44 bytes of a WAV without a sample (field reports)."""
    return _wav(1, b"")


@lru_cache(maxsize=64)
def one_channel(media: bytes, channel: str) -> bytes:
    """Channel '0' or '1' of a call, or 'mono': both mixed, as a mono 16-bit WAV of the same rate. Raises HTTPException
    404 for any other."""
    import av
    import numpy as np

    if channel not in ("0", "1", "mono"):
        raise HTTPException(404, "No such channel")
    layout, at = ("mono", 0) if channel == "mono" else ("stereo", int(channel))
    try:
        with av.open(io.BytesIO(media), mode="r") as container:
            rate = container.streams.audio[0].rate
            to_planes = av.AudioResampler(format="s16p", layout=layout, rate=rate)
            planes = [
                part.to_ndarray()[at]
                for frame in [*container.decode(audio=0), None]
                for part in to_planes.resample(frame)
            ]
    except (av.FFmpegError, IndexError):
        raise HTTPException(404, "No such channel") from None
    return _wav(1, np.concatenate(planes).tobytes(), rate)


def _wav(channels: int, samples: bytes, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as output:
        output.setparams((channels, 2, rate, 0, "NONE", ""))
        output.writeframes(samples)
    return buffer.getvalue()
