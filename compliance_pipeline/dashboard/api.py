"""What each chart shows, as JSON: the pages' figures under the pages' own query parameters. `/api` lists them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from compliance_pipeline.asgi import Rejected
from compliance_pipeline.dashboard.access import Role, needs
from compliance_pipeline.dashboard.pages import board_of, view_of
from compliance_pipeline.dashboard.view import DIMENSIONS, RANGES
from compliance_pipeline.figures import figures
from compliance_pipeline.figures.figures import Filter, Matrix, Objective
from compliance_pipeline.figures.snapshots import Snapshot

Make = Callable[[Snapshot, Filter, Objective, Request], Any]
BY = ("queue", "channel", "direction")
"""What `rates` may be asked by."""
MOST = 500
"""Rows of one answer."""
YEARS = (2000, 3000)
"""Of places in a list: before the second."""


@dataclass(frozen=True, slots=True)
class Figure:
    """own: parameters besides those of every page."""

    about: str
    make: Make
    own: Mapping[str, str] | None = None


def _number(request: Request, name: str, default: int, most: int = MOST) -> int:
    said = request.query_params.get(name, str(default))
    if not (said.isascii() and said.isdigit() and 1 <= int(said[:9]) <= most):
        raise Rejected(400, "bad_parameter", f"{name} must be a whole number from 1 to {most}")
    return int(said)


def _rates(snapshot: Snapshot, chosen: Filter, _objective: Objective, request: Request) -> Any:
    by = request.query_params.get("by", BY[0])
    if by not in BY:
        raise Rejected(400, "bad_parameter", f"by must be one of {', '.join(BY)}")
    return figures.rates(snapshot, chosen, by)


def _matrix(snapshot: Snapshot, chosen: Filter, _objective: Objective, _request: Request) -> Any:
    found: Matrix = figures.matrix(snapshot, chosen)
    cells = [
        {"queue": queue, "rule": rule, "violations": violations, "judged": judged}
        for (queue, rule), (violations, judged) in sorted(found.cells.items())
    ]
    return {"queues": found.queues, "rules": found.rules, "cells": cells}


def key_of(text: str | None) -> tuple[datetime, str, str] | None:
    """The place of a violation in the list, as `key_text` writes it; None for what is none."""
    parts = (text or "").split("~")
    if len(parts) != 3:
        return None
    try:
        at = datetime.fromisoformat(parts[0])
        is_one = at.tzinfo is not None and YEARS[0] <= at.astimezone(UTC).year < YEARS[1]
    except (ValueError, OverflowError):
        return None
    return (at.astimezone(UTC), parts[1], parts[2]) if is_one else None


def key_text(key: tuple[datetime, str, str]) -> str:
    at, recording_id, rule_id = key
    return "~".join((instant(at), recording_id, rule_id))


def _latest(snapshot: Snapshot, chosen: Filter, _objective: Objective, request: Request) -> Any:
    before = request.query_params.get("before")
    key = key_of(before)
    if before and key is None:
        raise Rejected(400, "bad_parameter", "before must be the `next` of an answer")
    limit = _number(request, "limit", 50)
    found = figures.latest(snapshot, chosen, limit=limit, before=key)
    last = found[-1] if len(found) == limit else None
    following = key_text((last.available_at, last.recording_id, last.rule_id)) if last else None
    return {"rows": found, "next": following}


_LIMIT = {"limit": f"rows, 1 to {MOST}"}
FIGURES: dict[str, Figure] = {
    "headline": Figure(
        "counts, attainment, burn, percentiles and violations of the window, and of the one before",
        lambda s, f, o, _: figures.headline(s, f, o),
    ),
    "latency": Figure(
        "P50, P95, P99 and recordings of each stage over time; null where too few say nothing",
        lambda s, f, _o, _r: figures.latency_series(s, f),
    ),
    "heat": Figure("recordings by time and by seconds to flag", lambda s, f, _o, _r: figures.heat(s, f)),
    "budget": Figure(
        "share of the 30 days' budget left, over 30 days", lambda s, f, o, _: figures.budget_series(s, f, o)
    ),
    "burn": Figure(
        "how many times as fast as allowed the budget was spent, over time",
        lambda s, f, o, _: figures.burn_series(s, f, o),
    ),
    "breaches": Figure("late recordings by the stage that took longest", lambda s, f, _o, _r: figures.breaches(s, f)),
    "rules": Figure(
        "of each rule: violations, rate, precision by review, with 95% intervals",
        lambda s, f, _o, _r: figures.rules(s, f),
    ),
    "rates": Figure("share of judged recordings that broke a rule, by one dimension", _rates, {"by": ", ".join(BY)}),
    "matrix": Figure("violations and judged recordings by queue and rule", _matrix),
    "agents": Figure(
        "agents with 30 judged recordings or more, by the lower end of the 95% interval",
        lambda s, f, _o, r: figures.agents(s, f, limit=_number(r, "limit", 12)),
        _LIMIT,
    ),
    "funnel": Figure(
        "recordings received, fetched, judged, tagged, with work item, reviewed; what was lost, and why",
        lambda s, f, _o, _r: figures.funnel(s, f),
    ),
    "losses": Figure("recordings not judged, by reason, over time", lambda s, f, _o, _r: figures.losses_series(s, f)),
    "actions": Figure(
        "deliveries that failed, by action, over time", lambda s, f, _o, _r: figures.actions_series(s, f)
    ),
    "ageing": Figure("open violations by severity and age", lambda s, f, _o, _r: figures.ageing(s, f)),
    "latest": Figure(
        "violations, newest first; `next` goes into `before` of the next question",
        _latest,
        _LIMIT | {"before": "`next` of the answer before"},
    ),
    "policies": Figure("policy versions that judged in the window", lambda s, f, _o, _r: figures.policies(s, f)),
    "options": Figure("what can be chosen in the window, by parameter", lambda s, f, _o, _r: figures.options(s, f)),
}
PARAMETERS = {
    "range": f"{', '.join(RANGES)}: up to now; default 7d",
    "from, to": "ISO 8601, instead of range; without offset they are in tz",
    "tz": "IANA time zone of days and of times without offset; default UTC",
    **dict.fromkeys(DIMENSIONS, "repeated: any of these"),
}


def instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """Dataclasses with their properties, and what they hold, as JSON knows it; times as ISO 8601 in UTC."""
    if is_dataclass(value) and not isinstance(value, type):
        computed = [name for name, its in vars(type(value)).items() if isinstance(its, property)]
        names = [*(one.name for one in fields(value)), *computed]
        return {name: plain(getattr(value, name)) for name in names if not name.startswith("_")}
    if isinstance(value, datetime):
        return instant(value)
    if isinstance(value, Mapping):
        return {str(name): plain(its) for name, its in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    return value.value if isinstance(value, Enum) else value


def figure(request: Request) -> Response:
    name = request.path_params["name"]
    known = FIGURES.get(name)
    if known is None:
        raise Rejected(404, "unknown_figure", "there is no such figure: /api lists those that there are")
    board = board_of(request)
    snapshot = board.snapshot()
    view = view_of(request, snapshot)
    found = known.make(snapshot, view.chosen, board.objective, request)
    body = {
        "figure": name,
        "snapshot": snapshot.manifest.number,
        "data_to": instant(snapshot.manifest.data_to),
        "window": {"from": instant(view.chosen.start), "to": instant(view.chosen.end), "tz": view.zone},
        "filter": {dimension: list(view.values(dimension)) for dimension in DIMENSIONS if view.values(dimension)},
        "data": plain(found),
    }
    return JSONResponse(body)


def index(_request: Request) -> Response:
    listed = [
        {"path": f"/api/{name}", "about": one.about, "parameters": dict(one.own or {})} for name, one in FIGURES.items()
    ]
    body = {
        "figures": listed,
        "parameters": PARAMETERS,
        "answers": "{figure, snapshot, data_to, window, filter, data}; times in ISO 8601, UTC; series in Unix seconds",
        "refusals": "{error: what is wrong, reason: one word}",
        "definitions": "docs/metrics.md",
        "files": ["/export.csv", "/export.parquet"],
        "csv": "a text that begins with = + - @ tab or return has an apostrophe before it",
    }
    return JSONResponse(body)


routes = [
    Route("/api", needs(Role.VIEWER)(index)),
    Route("/api/{name}", needs(Role.VIEWER)(figure)),
]
