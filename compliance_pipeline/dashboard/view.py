"""What a page shows, as its URL says it: the window, the filters, the zone. A link is a changed view, written out."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from urllib.parse import urlencode
from zoneinfo import ZoneInfo, available_timezones

from starlette.datastructures import QueryParams

from compliance_pipeline.figures.figures import Filter

RANGES = {
    "6h": (timedelta(hours=6), "6 h"),
    "24h": (timedelta(hours=24), "24 h"),
    "7d": (timedelta(days=7), "7 d"),
    "30d": (timedelta(days=30), "30 d"),
}
DEFAULT_RANGE = "7d"
DIMENSIONS = {
    "queue": "Queue",
    "channel": "Channel",
    "direction": "Direction",
    "rule": "Rule",
    "severity": "Severity",
    "agent": "Agent",
    "policy_version": "Policy",
    "review": "Review",
}
SEVERITIES = ("critical", "high", "medium", "low")
REVIEWS = ("open", "confirmed", "dismissed")
CHARTS = ("bands", "heat")

_KNOWN = {"severity": SEVERITIES, "review": REVIEWS}
_MOST_VALUES, _LONGEST_VALUE = 50, 200
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_LONGEST = timedelta(days=400)


@cache
def zones() -> frozenset[str]:
    """Those that browsers know too."""
    others = ("posix/", "right/", "posixrules", "localtime", "Factory")
    return frozenset(name for name in available_timezones() if not name.startswith(others))


def step_of(length: timedelta) -> timedelta:
    """Windows end at a multiple of this: the width of their charts' buckets, an hour at most."""
    hours = length / timedelta(hours=1)
    return timedelta(minutes=5 if hours <= 6 else 15 if hours <= 24 else 60)


def _up(at: datetime, step: timedelta) -> datetime:
    return at + (_EARLIEST - at) % step


def _instant(text: str | None, zone: str) -> datetime | None:
    """A time without offset is one of the zone."""
    try:
        at = datetime.fromisoformat(text or "")
        at = (at if at.tzinfo else at.replace(tzinfo=ZoneInfo(zone))).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return at if at >= _EARLIEST else None


@dataclass(frozen=True, slots=True)
class View:
    """path: of the page. span: one of RANGES, or 'custom'. chart: of CHARTS. extra: a page's own parameters."""

    path: str
    span: str
    chosen: Filter
    chart: str = "bands"
    extra: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, params: QueryParams, data_to: datetime, path: str = "/", own: tuple[str, ...] = ()) -> "View":
        """What can't be understood is as if it weren't there. own: names of the page's own parameters."""
        zone = params.get("tz") or "UTC"
        zone = zone if zone in zones() else "UTC"
        span = params.get("range", DEFAULT_RANGE)
        span = span if span in RANGES else DEFAULT_RANGE
        start, end = _instant(params.get("from"), zone), _instant(params.get("to"), zone)
        latest = _up(data_to, timedelta(days=1)) + timedelta(days=1)
        if start and end and start < end and end - start <= _LONGEST and start < latest:
            span, end = "custom", min(end, latest)
        else:
            length = RANGES[span][0]
            end = _up(max(data_to, _EARLIEST + 2 * _LONGEST), step_of(length))
            start = end - length
        chosen = Filter(start, end, zone=zone, **{name: _values(params, name) for name in DIMENSIONS})
        chart = params.get("chart", "bands")
        extra = {name: params[name] for name in own if name in params}
        return cls(path, span, chosen, chart if chart in CHARTS else "bands", extra)

    @property
    def zone(self) -> str:
        return self.chosen.zone

    @property
    def active(self) -> list[tuple[str, str]]:
        """Each chosen value with its dimension, in the order of DIMENSIONS."""
        return [(name, value) for name in DIMENSIONS for value in getattr(self.chosen, name)]

    def values(self, dimension: str) -> tuple[str, ...]:
        values: tuple[str, ...] = getattr(self.chosen, dimension)
        return values

    def having(self, dimensions: tuple[str, ...]) -> Filter:
        """What is chosen, as far as it is of these dimensions: a page's figures have only its own filters."""
        return replace(self.chosen, **{name: () for name in DIMENSIONS if name not in dimensions})  # type: ignore[arg-type]

    @property
    def parts(self) -> list[tuple[str, str]]:
        """The parameters that say this view; none for the default."""
        parts: list[tuple[str, str]] = []
        if self.span == "custom":
            parts += [("from", _written(self.chosen.start)), ("to", _written(self.chosen.end))]
        elif self.span != DEFAULT_RANGE:
            parts.append(("range", self.span))
        parts += self.active
        if self.zone != "UTC":
            parts.append(("tz", self.zone))
        if self.chart != "bands":
            parts.append(("chart", self.chart))
        return [*parts, *self.extra.items()]

    @property
    def query(self) -> str:
        """The query string that says this view, without '?'; empty for the default."""
        return urlencode(self.parts, safe=":/")

    def link(self, path: str | None = None, **extra: str | int | None) -> str:
        """URL of this view, on another page if `path` says so, with the page's own parameters set or (None) left out.

        Another page doesn't get this one's own parameters.
        """
        own = dict(self.extra) if path in (None, self.path) else {}
        for name, value in extra.items():
            own.pop(name, None)
            if value is not None:
                own[name] = str(value)
        query = replace(self, extra=own).query
        where = self.path if path is None else path
        return f"{where}?{query}" if query else where

    def toggle(self, dimension: str, value: str) -> str:
        """The same with the value chosen, or no longer."""
        now = self.values(dimension)
        return self._with(dimension, tuple(one for one in now if one != value) if value in now else (*now, value))

    def only(self, dimension: str, value: str) -> str:
        return self._with(dimension, (value,))

    def without(self, dimension: str) -> str:
        return self._with(dimension, ())

    def ranged(self, span: str) -> str:
        """The newest window of that length."""
        return replace(self, span=span, extra={}).link()

    def within(self, start: datetime, end: datetime) -> str:
        return replace(self, span="custom", chosen=replace(self.chosen, start=start, end=end), extra={}).link()

    def drawn(self, chart: str) -> str:
        return replace(self, chart=chart).link()

    def in_zone(self, zone: str) -> str:
        return replace(self, chosen=replace(self.chosen, zone=zone)).link()

    @property
    def reset(self) -> str:
        """The page with nothing chosen but the zone."""
        plain = Filter(self.chosen.start, self.chosen.end, zone=self.zone)
        return View(self.path, DEFAULT_RANGE, plain, self.chart).link()

    def _with(self, dimension: str, values: tuple[str, ...]) -> str:
        chosen = replace(self.chosen, **{dimension: values})  # type: ignore[arg-type]
        return replace(self, chosen=chosen, extra={}).link()


def _values(params: QueryParams, dimension: str) -> tuple[str, ...]:
    said = dict.fromkeys(params.getlist(dimension))
    known = _KNOWN.get(dimension)
    fits = (one for one in said if 0 < len(one) <= _LONGEST_VALUE and one.isprintable() and (not known or one in known))
    return tuple(fits)[:_MOST_VALUES]


def _written(at: datetime) -> str:
    text = at.astimezone(UTC).isoformat(timespec="seconds").removesuffix("+00:00").removesuffix(":00")
    return f"{text}Z"
