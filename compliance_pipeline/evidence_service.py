"""The evidence service (ASGI): plays masked clips to whoever holds a short-lived signed link, and writes down who.

There is one route with audio, and it knows only clips that the evidence table calls verified. How such a clip is read
and answered (`content_of`, `played`) is the dashboard's way too.
"""

import asyncio
import hashlib
import logging
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import sqlalchemy as sa
from itsdangerous import BadData, URLSafeTimedSerializer
from prometheus_client import CollectorRegistry, Counter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from compliance_pipeline import asgi, database, ledger
from compliance_pipeline.asgi import Handler, Rejected, figures, healthz, line, refusing
from compliance_pipeline.clock import Clock, utc_now
from compliance_pipeline.evidence import FOLDER, VERIFIED
from compliance_pipeline.ledger import Entry
from compliance_pipeline.media.vault import NotInVault, Shredded, Tampered, Vault, vault_of
from compliance_pipeline.plain_text import refuse_sensitive
from compliance_pipeline.retention import why_deleted
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.warehouse import Warehouse, warehouse_of

MAX_CLIP_BYTES = 32 * 1024 * 1024
"""A clip is checked whole before its first byte is played; twenty seconds take less than a hundredth of this."""
LOCK_SECONDS = 5.0
CLOCKS_APART = timedelta(seconds=60)

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'",
}
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.IGNORECASE)
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
_log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Playable:
    """A verified clip. name: its own in the vault. sha256: of its clear bytes."""

    recording_id: str
    finding_no: int
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Link:
    """What a token says: which clip, and who it was made for."""

    recording_id: str
    clip: str
    who: str


def clips_of(warehouse: Warehouse, recording_id: str) -> list[Playable]:
    """The verified clips of a recording, those made last first. The table's `uri` is the vault's name of the clip.

    The warehouse is not believed that anything but a clip is one.
    """
    rows = warehouse.select(
        "SELECT finding_no, uri, sha256 FROM evidence WHERE recording_id = $id AND status = $verified "
        "AND starts_with(uri, $folder) AND sha256 IS NOT NULL ORDER BY date_trunc('day', made_at) DESC, finding_no",
        {"id": recording_id, "verified": VERIFIED, "folder": f"{FOLDER}/"},
    )
    return [Playable(recording_id, row["finding_no"], row["uri"], row["sha256"]) for row in rows]


def _signer(settings: Settings) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(
        settings._secret(None, "links"), salt="evidence", signer_kwargs={"digest_method": hashlib.sha256}
    )


def sign(settings: Settings, link: Link) -> str:
    """The URL by which the clip can be played for `settings.link_seconds`. Raises ValueError for a name that is none,
    or that the ledger may not keep."""
    if not _NAME.fullmatch(link.who):
        raise ValueError("a name has 1 to 128 characters, none of them control characters")
    refuse_sensitive(link.who, "the name")
    token = _signer(settings).dumps([link.recording_id, link.clip, link.who])
    host = socket.getfqdn() if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 - compared only
    bound = f"http://{f'[{host}]' if ':' in host else host}:{settings.evidence_port}"
    return f"{(settings.evidence_url or bound).rstrip('/')}/evidence/{token}"


def opened(settings: Settings, token: str, now: datetime) -> Link:
    """What a genuine token says. Raises Rejected: 404 if it is not ours, 410 if its time is over."""
    try:
        said, signed_at = _signer(settings).loads(token, return_timestamp=True)
        link = Link(*said)
    except (BadData, TypeError):
        raise unknown() from None
    if not -CLOCKS_APART <= now - signed_at <= timedelta(seconds=settings.link_seconds):
        raise Rejected(410, "expired", "this link has expired: ask for a new one")
    return link


def unknown() -> Rejected:
    return Rejected(404, "unknown", "there is nothing here")


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte wanted, or None for all of it: what is malformed, or asks for several ranges, is left out
    of account (RFC 9110, 14.2). Raises Rejected: 416."""
    said = _RANGE.fullmatch((header or "").strip())
    if said is None or not any(said.groups()):
        return None
    first, last = (int(part) if part else None for part in said.groups())
    if first is None:
        first, last = max(0, size - (last or 0)), size - 1 if last else -1
    elif last is not None and last < first:
        return None
    last = size - 1 if last is None else min(last, size - 1)
    if first > last:
        headers = {"Content-Range": f"bytes */{size}"}
        raise Rejected(416, "range", f"the clip has {size} bytes", headers=headers)
    return first, last


def content_of(vault: Vault, engine: sa.Engine, clip: Playable) -> bytes:
    """The clip, all of it and as it was verified. Raises Rejected: 410 shredded or deleted, 500 tampered."""
    content = bytearray()
    try:
        for part in vault.read(clip.recording_id, clip.name):
            content += part
            if len(content) > MAX_CLIP_BYTES:
                break
    except Shredded:
        raise Rejected(410, "shredded", _no_more(engine, clip, "the recording's key was destroyed")) from None
    except NotInVault:
        raise Rejected(410, "deleted", _no_more(engine, clip, "it is not in the vault")) from None
    except Tampered:
        raise _damaged(clip) from None
    if hashlib.sha256(content).hexdigest() != clip.sha256:
        raise _damaged(clip)
    return bytes(content)


async def played(request: Request, read: Callable[[], bytes], enter: Callable[[], None]) -> Response:
    """The clip, or the part of it that is asked for, once `enter` has written the play down; a HEAD is no play.

    Both are called in threads. Raises Rejected: theirs, 416, or 503 for what they did not foresee.
    """
    content = await _or_unavailable("read", read)
    headers = {"Accept-Ranges": "bytes", "Content-Disposition": "inline"}
    if request.method == "HEAD":
        headers["Content-Length"] = str(len(content))
        return Response(headers=headers, media_type="audio/flac")
    part = byte_range(request.headers.get("range"), len(content))
    if part is not None:
        headers["Content-Range"] = f"bytes {part[0]}-{part[1]}/{len(content)}"
    first, last = part or (0, len(content) - 1)
    await _or_unavailable("ledger", enter)
    return Response(content[first : last + 1], 206 if part else 200, headers, "audio/flac")


def create_app(settings: Settings, *, clock: Clock = utc_now) -> Starlette:
    """The service. A clip is played after the play was entered into the ledger, or not at all."""
    engine = database.connect(settings.inbox_database_url)
    warehouse = warehouse_of(settings, LOCK_SECONDS)
    vault: Vault | None = None
    registry = CollectorRegistry()
    rejected = Counter("evidence_rejected", "Requests not played", ["reason"], "compliance", registry=registry)
    plays = Counter("evidence_plays", "Answers with audio", (), "compliance", registry=registry)

    def content(link: Link) -> bytes:
        nonlocal vault
        clip = next((clip for clip in clips_of(warehouse, link.recording_id) if clip.name == link.clip), None)
        if clip is None:
            raise unknown()
        vault = vault or vault_of(settings, engine)
        return content_of(vault, engine, clip)

    def enter(link: Link, token: str, now: datetime) -> None:
        """Once a minute and link. Not which part: a player asks for many, and the first is not all that was heard."""
        digest = hashlib.sha256(token.encode()).hexdigest()[:32]
        key = f"play/{digest}/{now:%Y-%m-%dT%H:%M}"
        ledger.record(engine, [Entry(key, "play", link.who, link.recording_id, details={"clip": link.clip})], now)

    async def play(request: Request) -> Response:
        token, now = request.path_params["token"], clock()
        link = opened(settings, token, now)
        response = await played(request, lambda: content(link), lambda: enter(link, token, now))
        if request.method == "GET":
            plays.inc()
            _log.info(line("played", recording=link.recording_id, bytes=len(response.body)))
        return response

    async def show_metrics(_request: Request) -> Response:
        return figures(registry)

    return Starlette(
        routes=[
            Route("/evidence/{token}", _closed(refusing(play, rejected, _log)), methods=["GET", "HEAD"]),
            Route("/healthz", healthz),
            Route("/metrics", show_metrics),
        ]
    )


async def _or_unavailable(what: str, work: Callable[[], Result]) -> Result:
    """`work` in a thread. What it did not foresee is logged by type, and answered with 503: nothing is played."""
    try:
        return await asyncio.to_thread(work)
    except Rejected:
        raise
    except Exception as error:
        _log.error(line(what, error=type(error).__name__))
        raise Rejected(503, what, "evidence can't be played now: try again", headers={"Retry-After": "5"}) from None


def _closed(handler: Handler) -> Handler:
    """Every answer, refusals too, kept out of caches and out of other pages' hands."""

    async def answer(request: Request) -> Response:
        response = await handler(request)
        response.headers.update(_HEADERS)
        return response

    return answer


def _no_more(engine: sa.Engine, clip: Playable, otherwise: str) -> str:
    return f"this clip is no longer kept: {why_deleted(engine, clip.recording_id, clip.name) or otherwise}"


def _damaged(clip: Playable) -> Rejected:
    _log.error(line("tampered", recording=clip.recording_id, finding=clip.finding_no))
    return Rejected(500, "tampered", "the clip is not what was verified: it is not played")


def serve(settings: Settings) -> None:
    asgi.serve(create_app(settings), settings.host, settings.evidence_port)
