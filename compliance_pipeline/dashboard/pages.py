"""How pages are made: the board that all of them read from, templates and their filters, and the answer itself.

A page module has `routes: list[Route]`, whose plain (threaded) handlers end in `render(request, "x.html", view, ...)`.
"""

import json
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import jinja2
import sqlalchemy as sa
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from compliance_pipeline.clock import Clock
from compliance_pipeline.dashboard.access import csrf_token, known_user
from compliance_pipeline.dashboard.view import DIMENSIONS, RANGES, REVIEWS, SEVERITIES, View
from compliance_pipeline.figures.figures import Objective
from compliance_pipeline.figures.snapshots import CURRENT, Manifest, NoSnapshot, Snapshot
from compliance_pipeline.objective import PUBLISHED_EVERY
from compliance_pipeline.settings import Settings

HERE = Path(__file__).parent
STATIC = HERE / "static"
THEMES = ("auto", "light", "dark")
LEAST_REVIEWED = 10
"""Of fewer reviewed findings of a rule a share says nothing, and only their number is told."""
NAV = (
    ("/", "Overview"),
    ("/violations", "Violations"),
    ("/review", "Review"),
    ("/operations", "Operations"),
    ("/policies", "Policies"),
)
STAGES = {
    "platform": ("Platform", "call end to available"),
    "delivery": ("Delivery", "available to received"),
    "queue": ("Queue", "received to run start"),
    "fetch": ("Fetch", "media fetched"),
    "analysis": ("Analysis", "screened and judged"),
    "remediation": ("Remediation", "judged to all done"),
    "first_finding": ("First finding", "within analysis"),
    "judged": ("Judged", "available to judged"),
    "flagged": ("Flagged", "available to flagged"),
    "start": ("Start", "run starts"),
    "batch": ("Batch", "waits for its turn"),
}


@dataclass
class Board:
    """What every page reads from: `request.app.state.board`."""

    settings: Settings
    engine: sa.Engine
    """Of the operational database."""
    clock: Clock
    folder: Path
    """Of the published snapshots."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: Snapshot | None = None
    _seen: tuple[int, int, int] | None = None

    @property
    def objective(self) -> Objective:
        """By which the current snapshot was counted. Raises NoSnapshot."""
        return self.snapshot().manifest.objective or Objective.of_settings(self.settings)

    def snapshot(self) -> Snapshot:
        """The current one; who has the one before keeps it. Raises NoSnapshot."""
        with self._lock:
            try:
                stat = (self.folder / CURRENT).stat()
            except FileNotFoundError:
                raise NoSnapshot("nothing was published yet") from None
            seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if self._open is None or seen != self._seen:
                manifest = Manifest.current(self.folder)
                if self._open is None or self._open.manifest.days != manifest.days:
                    self._open = Snapshot(self.folder, manifest)
                else:
                    self._open.manifest = manifest
                self._seen = seen
            return self._open


def board_of(request: Request) -> Board:
    board: Board = request.app.state.board
    return board


def view_of(request: Request, snapshot: Snapshot, own: tuple[str, ...] = ()) -> View:
    """own: names of the page's own query parameters, which its links keep. `render` tells this snapshot's freshness."""
    request.state.snapshot = snapshot
    return View.of(request.query_params, snapshot.manifest.data_to, request.url.path, own)


@dataclass(frozen=True, slots=True)
class Freshness:
    """How old what is shown is. state: fresh, late (twice as old as what is published) or stale (four times)."""

    data_to: datetime
    age_s: float
    state: str

    @classmethod
    def at(cls, now: datetime, data_to: datetime) -> "Freshness":
        age = max(now - data_to, timedelta())
        state = "stale" if age > 4 * PUBLISHED_EVERY else "late" if age > 2 * PUBLISHED_EVERY else "fresh"
        return cls(data_to, age.total_seconds(), state)

    @property
    def words(self) -> str:
        old = ago(self.age_s)
        return {"fresh": "up to date", "late": f"late, {old} old", "stale": f"stale, {old} old"}[self.state]


def seconds(value: float | None) -> str:
    """850 ms, 4.74 s, 15.8 s, 1 min 07 s, 2 h 05 min."""
    if value is None:
        return "–"
    if value < 0.9995:
        return f"{max(value, 0) * 1000:.0f} ms"
    if value < 9.995:
        return f"{value:.2f} s"
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole // 60 % 60:02d} min"


def seconds_plain(value: float) -> str:
    """Of an objective: 30 s, 2.5 s, 2 min."""
    return f"{value:g} s" if value < 120 or value % 60 else f"{value / 60:g} min"


def ago(age_s: float) -> str:
    if age_s < 120:
        return f"{age_s:.0f} s"
    if age_s < 7200:
        return f"{age_s / 60:.0f} min"
    return f"{age_s / 3600:.0f} h" if age_s < 172_800 else f"{age_s / 86_400:.0f} days"


def bucket(seconds_: float) -> str:
    """Of a bucket: '5 min', 'hour', 'day'."""
    return {300: "5 minutes", 900: "15 minutes", 3600: "hour", 86_400: "day"}.get(int(seconds_), seconds(seconds_))


def count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Never '100%' for what is less, nor '0%' for what is more."""
    if value is None:
        return "–"
    text, least = f"{value * 100:.{digits}f}", 10**-digits
    if text == f"{100:.{digits}f}" and value < 1:
        return f"{100 - least:.{digits}f}%"
    return f"<{least:.{digits}f}%" if value > 0 and float(text) == 0 else f"{text}%"


def when(value: datetime, zone: str = "UTC", data_to: datetime | None = None) -> str:
    """30 May 21:43, without the zone, which the page says once; 30 May 2025 21:43 where that is not data_to's year."""
    at = value.astimezone(ZoneInfo(zone))
    is_year_clear = data_to is None or data_to.astimezone(ZoneInfo(zone)).year == at.year
    return f"{at:%-d %b %H:%M}" if is_year_clear else f"{at:%-d %b %Y %H:%M}"


@jinja2.pass_context
def _when(context: jinja2.runtime.Context, value: datetime, zone: str = "UTC") -> str:
    freshness: Freshness | None = context.get("freshness")
    return when(value, zone, freshness.data_to if freshness else None)


def local(value: datetime, zone: str = "UTC") -> str:
    """As an <input type="datetime-local"> has it."""
    return f"{value.astimezone(ZoneInfo(zone)):%Y-%m-%dT%H:%M}"


def exactly(value: datetime, zone: str = "UTC") -> str:
    """2026-05-30 21:43:07 UTC."""
    return f"{value.astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M:%S} {zone}"


def clock(milliseconds: float | None) -> str:
    """Into a recording: 1:07."""
    return "–" if milliseconds is None else f"{int(milliseconds // 60_000)}:{int(milliseconds // 1000 % 60):02d}"


def plain(value: str | None) -> str:
    """PCI_MID_CAPTURE as 'PCI mid capture'."""
    if not value:
        return "–"
    words = value.replace("-", " ").split("_") if "_" in value else [value]
    kept = {"PCI", "SAD", "SSN", "PII", "PHI", "CVV", "PIN", "DTMF", "ID", "IBAN", "GDPR", "HIPAA", "TCPA", "FDCPA"}
    said = " ".join(word if word in kept else word.lower() for word in words)
    return said[:1].upper() + said[1:]


def short(value: str | None) -> str:
    """Of ids that nobody reads to their end: tok_9f3a21bc…"""
    if not value:
        return "–"
    return value if len(value) <= 24 else f"{value[:12]}…{value[-6:]}"


def data(value: Any) -> Markup:
    """JSON for a <script type="application/json">, which nothing in it can end."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, default=str)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))  # noqa: S704


@cache
def assets() -> str:
    """Changes with any of our files, so that browsers may keep them for ever."""
    digest = sha256()
    for path in sorted(STATIC.rglob("*")) + sorted((HERE / "templates").rglob("*.html")):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@cache
def templates() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "seconds": seconds,
        "seconds_plain": seconds_plain,
        "ago": ago,
        "bucket": bucket,
        "count": count,
        "percent": percent,
        "when": _when,
        "exactly": exactly,
        "local": local,
        "clock": clock,
        "plain": plain,
        "short": short,
        "data": data,
        "utc": utc,
    }
    env.globals |= {
        "NAV": NAV,
        "RANGES": RANGES,
        "DIMENSIONS": DIMENSIONS,
        "SEVERITIES": SEVERITIES,
        "REVIEWS": REVIEWS,
        "STAGES": STAGES,
        "LEAST_REVIEWED": LEAST_REVIEWED,
    }
    return env


def render(
    request: Request,
    template: str,
    view: View | None = None,
    *,
    status: int = 200,
    **context: Any,
) -> Response:
    """The page. view: None where it has no window (an error, a recording)."""
    board, user = board_of(request), known_user(request)
    freshness, number = None, 0
    if user is not None:  # strangers learn nothing
        with suppress(NoSnapshot):
            manifest = (getattr(request.state, "snapshot", None) or board.snapshot()).manifest
            freshness, number = Freshness.at(board.clock(), manifest.data_to), manifest.number
    shown = context | {
        "view": view,
        "zone": view.zone if view else "UTC",
        "home": (view or View.of(request.query_params, board.clock())).link("/"),
        "path": request.url.path,
        "user": user,
        "csrf": csrf_token(request) if user else "",
        "theme": _theme(request),
        "assets": assets(),
        "freshness": freshness,
        "snapshot_no": number,
        "objective": board.objective,
    }
    return HTMLResponse(templates().get_template(template).render(shown), status)


def _theme(request: Request) -> str:
    theme = request.cookies.get("theme", "auto")
    return theme if theme in THEMES else "auto"


def utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
