"""The overview: whether the promise was kept, where the time went, what was found, and what needs a person."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from compliance_pipeline import breaker
from compliance_pipeline.dashboard.access import Role, needs
from compliance_pipeline.dashboard.pages import (
    STAGES,
    Board,
    Freshness,
    board_of,
    count,
    percent,
    render,
    seconds,
    seconds_plain,
    utc,
    view_of,
    when,
)
from compliance_pipeline.dashboard.view import View
from compliance_pipeline.dashboard.violations import titles
from compliance_pipeline.figures.figures import (
    AgentFigure,
    BudgetSeries,
    BurnSeries,
    Filter,
    Headline,
    Matrix,
    Objective,
    Percentiles,
    Point,
    Rate,
    Series,
    StackSeries,
    actions_series,
    agents,
    breaches,
    budget_series,
    burn_series,
    headline,
    heat,
    latency_series,
    latest,
    losses_series,
    matrix,
    options,
    rates,
    rules,
)
from compliance_pipeline.figures.snapshots import Snapshot

FILTERS = ("queue", "channel", "direction", "rule", "severity", "agent", "policy_version")
MULTIPLES = ("platform", "queue", "fetch", "analysis", "remediation")
"""The stages with a chart of their own; the table below them has all."""
RATES = ("direction", "channel")
AGENTS = 14
MOST_NAMES = 4
"""Of a stack's parts; the rest are one."""
OUTAGES = 4
"""Told one by one, the newest."""
COLOURS = ("cat1", "cat2", "cat3", "cat4")
FATES = {"failed": ("failed, tried again", "cat2"), "dead": ("given up on", "breach")}
"""Of failed deliveries: in words, and its colour."""
SHADES = 9
"""Of the matrix, besides the lightest."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A breaker's outage as far as it lies in the window. start, end: unix seconds."""

    name: str
    start: int
    end: int
    is_open: bool


@dataclass(frozen=True, slots=True)
class Todo:
    """Something that waits for a person."""

    words: str
    href: str
    is_urgent: bool = False


@needs(Role.VIEWER)
def show(request: Request) -> Response:
    board = board_of(request)
    snapshot = board.snapshot()
    view = view_of(request, snapshot)
    # Breakers are not of the snapshot.
    outages = breaker.openings(board.engine, view.chosen.start - breaker.KEEP_OPENINGS)
    states = breaker.states(board.engine, board.clock())
    own = replace(view, chosen=view.having(FILTERS))
    chosen = options(snapshot, own.chosen)
    head = headline(snapshot, own.chosen, board.objective)
    if not head.counts.received:
        return render(
            request, "overview_empty.html", view, options=chosen, choices=FILTERS, data_to=snapshot.manifest.data_to
        )
    shown = _promise(board, snapshot, own, head) | _found(snapshot, own.chosen) | _operations(snapshot, own.chosen)
    clipped = clip_openings(outages, view.chosen.start, min(view.chosen.end, board.clock()))
    series: Series = shown["series"]
    facts = {
        "zone": view.zone,
        "span": [int(view.chosen.start.timestamp()), int(view.chosen.end.timestamp())],
        "grain": series.grain_s,
        "times": series.times,
        "openings": [[one.start, one.end] for one in clipped],
        "objective": _objective_s(board, view),
    }
    lanes = {name: list(its) for name, its in groupby(sorted(clipped, key=_name), key=_name)}
    return render(
        request,
        "overview.html",
        view,
        options=chosen,
        choices=FILTERS,
        facts=facts,
        todos=todos(view, head),
        breakers=states,
        titles=titles(board),
        outages=clipped[::-1][:OUTAGES],
        lanes={one.name: lanes.get(one.name, []) for one in states} | lanes,
        data_to=snapshot.manifest.data_to,
        **shown,
    )


@needs(Role.VIEWER, keeps_alive=False)
def freshness(request: Request) -> Response:
    board = board_of(request)
    manifest = board.snapshot().manifest
    fresh = Freshness.at(board.clock(), manifest.data_to)
    body = {
        "number": manifest.number,
        "data_to": manifest.data_to.isoformat(),
        "age_s": round(fresh.age_s),
        "state": fresh.state,
        "words": fresh.words,
    }
    return JSONResponse(body)


routes = [Route("/", show), Route("/api/freshness", freshness)]


def _name(one: Opening) -> str:
    return one.name


def clip_openings(outages: Sequence[breaker.Opening], start: datetime, end: datetime) -> list[Opening]:
    """Those that overlap [start, end], cut off there; one that lasts ends at `end`."""
    return [
        Opening(
            one.name,
            int(max(one.opened_at, start).timestamp()),
            int(min(one.closed_at or end, end).timestamp()),
            one.closed_at is None,
        )
        for one in outages
        if one.opened_at < end and (one.closed_at or end) > start
    ]


def _objective_s(board: Board, view: View) -> float:
    """Of the chosen channel, where one is chosen."""
    channels = view.chosen.channel
    return board.objective.of(channels[0]) if len(channels) == 1 else board.objective.seconds


def _promise(board: Board, snapshot: Snapshot, view: View, head: Headline) -> dict[str, Any]:
    chosen, objective = view.chosen, board.objective
    series = latency_series(snapshot, chosen)
    flagged = series.stages.get("flagged", [])
    budget, burn = budget_series(snapshot, chosen, objective), burn_series(snapshot, chosen, objective)
    late = {one.stage: one.recordings for one in breaches(snapshot, chosen)}
    objective_s = _objective_s(board, view)
    points = columns(series, "flagged")
    span = (int(chosen.start.timestamp()), int(chosen.end.timestamp()))
    highest = max((value for value in points[2] if value is not None), default=0.0)
    top = max(highest, objective_s) * 1.1
    shown = {
        "head": head,
        "is_comparable": head.before.received * 2 >= head.counts.received,
        "sketch": sketch(span, points[0], points[2], 0, top),
        "sketch_objective": 100 - objective_s / top * 100,
        "objective_s": objective_s,
        "objective_words": objective_words(objective, chosen.channel),
        "series": series,
        "flagged": points,
        "flagged_words": flagged_words(head.stages.get("flagged"), flagged, objective_s),
        "cells": None,
        "budget": [budget.times, rounded(budget.left, 4), budget.late, budget.due],
        "budget_words": budget_words(head, budget),
        "burn": [burn.times, rounded(burn.burn, 3), burn.late, burn.due],
        "burn_words": burn_words(burn, view.zone, snapshot.manifest.data_to),
        "multiples": [(stage, columns(series, stage), head.stages.get(stage)) for stage in MULTIPLES],
        "late_by": late,
        "late_total": sum(late.values()),
        "stage_rows": stage_rows(head),
        "is_exact": not chosen.is_long,
    }
    if view.chart == "heat":
        cells = [
            [one.time, round(one.seconds_from, 4), round(one.seconds_to, 4), one.recordings]
            for one in heat(snapshot, chosen)
        ]
        shown["cells"] = {"times": series.times, "cells": cells}
    return shown


def _found(snapshot: Snapshot, chosen: Filter) -> dict[str, Any]:
    # No chart is filtered by what it shows: its other rows are the way to choose another.
    broken = rules(snapshot, replace(chosen, rule=()))
    table = matrix(snapshot, replace(chosen, rule=()))
    people = agents(snapshot, replace(chosen, agent=()), AGENTS)
    return {
        "broken": broken,
        "types": {one.rule_id: one.violation_type for one in broken},
        "most_broken": max((one.recordings for one in broken), default=1),
        "table": table,
        "shades": shades(table),
        "rates": [(name, its, most_of(its)) for name in RATES if (its := rates(snapshot, chosen, name))],
        "newest": latest(snapshot, chosen),
        "agents": people,
        "agent_most": agent_scale(people)[-1],
        "agent_scale": agent_scale(people),
    }


def _operations(snapshot: Snapshot, chosen: Filter) -> dict[str, Any]:
    return {"lost": stack(losses_series(snapshot, chosen)), "undone": undone(actions_series(snapshot, chosen))}


def objective_words(objective: Objective, channels: Sequence[str]) -> str:
    """'30 s', or where the channels of the window have several: '30 s (chat 10 s)'."""
    if len(channels) == 1:
        return seconds_plain(objective.of(channels[0]))
    others = {name: its for name, its in objective.by_channel.items() if its != objective.seconds}
    told = ", ".join(f"{name} {seconds_plain(its)}" for name, its in sorted(others.items()))
    return seconds_plain(objective.seconds) + (f" ({told})" if told else "")


def rounded(values: Sequence[float | None], digits: int) -> list[float | None]:
    return [None if value is None else round(value, digits) for value in values]


def columns(series: Series, stage: str) -> list[list[Any]]:
    """Times, P50, P95, P99 and recordings, as the charts take them."""
    points: Sequence[Point] = series.stages.get(stage) or [(None, None, None, 0)] * len(series.times)
    p50, p95, p99, recordings = zip(*points, strict=True) if points else ((), (), (), ())
    return [series.times, rounded(p50, 3), rounded(p95, 3), rounded(p99, 3), list(recordings)]


def sketch(span: tuple[int, int], times: Sequence[int], values: Sequence[float | None], low: float, high: float) -> str:
    """An SVG path in a box of 1000 by 100, for those without JavaScript; where there is no value, there is no line, and
    a value between two such is a point."""
    start, end = span
    path, pen = [], "M"
    for at, value in zip(times, values, strict=True):
        if value is None:
            pen = "M"
            continue
        place = f"{(at - start) / (end - start) * 1000:.0f} {100 - (value - low) / (high - low) * 100:.1f}"
        path.append(f"M{place}h0" if pen == "M" else f"L{place}")
        pen = "L"
    return "".join(path)


def flagged_words(over_all: Percentiles | None, points: Sequence[Point], objective_s: float) -> str:
    if over_all is None or not over_all.recordings:
        return "Nothing was flagged in this window."
    told = [p95 for _, p95, _, _ in points if p95 is not None]
    over = sum(p95 > objective_s for p95 in told)
    text = (
        f"Of {count(over_all.recordings)} recordings P50 is {seconds(over_all.p50_s)}, P95 {seconds(over_all.p95_s)}, "
        f"P99 {seconds(over_all.p99_s)}."
    )
    if told:
        text += f" P95 was above the objective in {over} of the {len(told)} times with recordings enough to tell it;"
        text += f" its highest was {seconds(max(told))}."
    return text


def budget_words(head: Headline, budget: BudgetSeries) -> str:
    if head.budget_left is None:
        return "Nothing was due in these 30 days."
    left = f"{percent(head.budget_left, 0)} is left" if head.budget_left >= 0 else "It is overspent"
    return f"{left} after {count(sum(budget.late))} late of {count(sum(budget.due))} recordings that were due."


def burn_words(burn: BurnSeries, zone: str, data_to: datetime) -> str:
    told = [(rate, at) for rate, at in zip(burn.burn, burn.times, strict=True) if rate is not None]
    if not told:
        return "Nothing was due in this window."
    worst, at = max(told)
    over = sum(rate > 1 for rate, _ in told)
    then = f"{when(utc(at), zone, data_to)} {zone}"
    return f"Above 1× in {over} of {len(told)} times; the highest was {worst:.2f}× at {then}."


def todos(view: View, head: Headline) -> list[Todo]:
    """What needs a person, the most urgent first; empty where nothing does."""
    found: list[Todo] = []
    firing = [window for window in head.windows if window.firing]
    if firing:
        names = " and ".join(f"{window.name} above {window.factor:g}×" for window in firing)
        found.append(Todo(f"budget burns fast ({names})", "#burn", is_urgent=True))
    if head.open:
        found.append(Todo(f"{plural(head.open, 'violation')} to review", view.link("/review")))
    if head.counts.overdue:
        found.append(
            Todo(
                f"{count(head.counts.overdue)} overdue and not flagged", view.link("/recordings", state="overdue"), True
            )
        )
    if head.counts.dead_letters:
        found.append(
            Todo(
                f"{plural(head.counts.dead_letters, 'recording')} given up on",
                view.link("/recordings", state="dead_letter"),
            )
        )
    if head.failed_actions:
        found.append(Todo(f"{plural(head.failed_actions, 'delivery', 'deliveries')} failed", view.link("/operations")))
    return found


def plural(number: int, one: str, many: str = "") -> str:
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def shades(table: Matrix) -> dict[tuple[str, str], tuple[float, int, int]]:
    """Of each cell: violations per 1,000 judged, violations, and its shade from 0 to SHADES."""
    per = {key: 1000 * found / judged for key, (found, judged) in table.cells.items() if judged}
    top = max(per.values(), default=0.0)
    return {
        key: (rate, table.cells[key][0], round((rate / top) ** 0.6 * SHADES) if top else 0) for key, rate in per.items()
    }


def most_of(its: Sequence[Rate]) -> float:
    """What intervals are a share of: the highest end of one."""
    return max(one.interval[1] for one in its if one.interval)


def agent_scale(people: Sequence[AgentFigure]) -> list[float]:
    """At most four round marks from 0 on, the last not below the highest interval."""
    highest = max((one.high for one in people), default=0.1)
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5):
        marks = [step * number for number in range(1 + -(-int(highest * 1e6) // int(step * 1e6)))]
        if len(marks) <= 4 and marks[-1] > 0:
            return marks
    return [0.0, 0.5, 1.0]


def stack(series: StackSeries, only: Sequence[str] | None = None) -> dict[str, Any]:
    """For a stacked chart; of many names the last are one, 'other'."""
    parts = [
        (name, list(values))
        for name, values in zip(series.names, series.values, strict=True)
        if (only is None or name in only) and any(values)
    ]
    if len(parts) > MOST_NAMES:
        rest = [values for _, values in parts[MOST_NAMES - 1 :]]
        parts = [*parts[: MOST_NAMES - 1], ("other", [sum(one) for one in zip(*rest, strict=True)])]
    return {
        "names": [name for name, _ in parts],
        "totals": [sum(values) for _, values in parts],
        "colours": COLOURS[: len(parts)],
        "times": series.times,
        "values": [values for _, values in parts],
    }


def undone(series: StackSeries) -> dict[str, Any]:
    """Of deliveries, those that failed."""
    shown = stack(series, tuple(FATES))
    fates = [FATES[name] for name in shown["names"]]
    return shown | {"names": [words for words, _ in fates], "colours": [colour for _, colour in fates]}


def stage_rows(head: Headline) -> list[tuple[str, str, str, Percentiles]]:
    """Of all stages that the window has: key, name, what it is."""
    return [(key, *STAGES[key], head.stages[key]) for key in STAGES if key in head.stages]
