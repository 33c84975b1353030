"""Whether the machinery keeps up: what was lost and why, what waits now, and what a person has to do next."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from compliance_pipeline import breaker, canaries, database, tallies
from compliance_pipeline.contracts.event import CANARY
from compliance_pipeline.dashboard.access import Role, needs
from compliance_pipeline.dashboard.overview import stack, undone
from compliance_pipeline.dashboard.pages import Board, board_of, bucket, count, render, view_of, when
from compliance_pipeline.dashboard.view import View
from compliance_pipeline.dashboard.violations import table_of
from compliance_pipeline.figures.chosen import HOUR, floor_hour, rows
from compliance_pipeline.figures.figures import (
    AGES,
    Filter,
    StackSeries,
    actions_series,
    ageing,
    counts,
    funnel,
    losses_series,
    options,
)
from compliance_pipeline.figures.snapshots import Snapshot, sql
from compliance_pipeline.intake.inbox import State, inbox_table

CHOICES = ("queue", "channel", "direction", "policy_version")
DAYS_SHOWN = 35
"""Of completeness, the newest of the window."""
FAILING_SHOWN = 20
REASONS_SHOWN = 20
_NEAR = 1 / 400
"""Of the window: openings of a breaker that are closer than this are drawn as one."""


@dataclass(frozen=True, slots=True)
class Hour:
    """What the source said of an hour when it was asked last (the sweep's), beside what became of it here."""

    hour: datetime
    swept_at: datetime
    at_source: int
    judged: int
    in_the_works: int
    not_recorded: int
    given_up: int
    missing: int
    found_by_sweep: int

    @property
    def state(self) -> str:
        if self.missing:
            return "missing"
        if self.given_up:
            return "given-up"
        return "waiting" if self.in_the_works else "complete"

    @property
    def words(self) -> str:
        said = [f"{self.judged:,} of {self.at_source:,} judged"]
        said += [f"{n:,} {what}" for n, what in (
            (self.missing, "missing"), (self.given_up, "given up"), (self.in_the_works, "under way"),
            (self.not_recorded, "not recorded"),
        ) if n]  # fmt: skip
        return ", ".join(said)


WORST = ("missing", "given-up", "waiting", "complete")


@dataclass(frozen=True, slots=True)
class Completeness:
    """hours: oldest first. days: of the zone, newest first, each with 24 hours as (state, words) or None."""

    hours: tuple[Hour, ...]
    days: tuple[tuple[date, tuple[tuple[str, str] | None, ...]], ...]

    def total(self, name: str) -> int:
        return sum(getattr(hour, name) for hour in self.hours)

    @property
    def not_complete(self) -> list[Hour]:
        """The worst first, of these the newest."""
        found = [hour for hour in reversed(self.hours) if hour.state != "complete"]
        return sorted(found, key=lambda hour: WORST.index(hour.state))


@dataclass(frozen=True, slots=True)
class Span:
    """A time in which a breaker was open, or several close together. left, width: shares of the window."""

    left: float
    width: float
    opened_at: datetime
    closed_at: datetime | None
    openings: int


@dataclass(frozen=True, slots=True)
class Lane:
    state: breaker.BreakerState
    spans: tuple[Span, ...]
    openings: int
    open_s: float


@dataclass(frozen=True, slots=True)
class Held:
    """Recordings of the inbox that wait or were given up on, for one reason."""

    state: str
    reason: str
    recordings: int
    due_at: datetime | None
    since: datetime
    example: str


def completeness(snapshot: Snapshot, chosen: Filter) -> Completeness:
    hours = tuple(Hour(**row) for row in snapshot.rows(sql("completeness"), floor_hour(chosen.start), chosen.end))
    zone = ZoneInfo(chosen.zone)
    cells: dict[date, list[Hour | None]] = {}
    for hour in hours:
        local = hour.hour.astimezone(zone)
        day = cells.setdefault(local.date(), [None] * 24)
        there = day[local.hour]  # twice on the day that has 25 hours
        if there is None or WORST.index(hour.state) < WORST.index(there.state):
            day[local.hour] = hour
    days = sorted(cells, reverse=True)[:DAYS_SHOWN]
    drawn = ((day, tuple((hour.state, hour.words) if hour else None for hour in cells[day])) for day in days)
    return Completeness(hours, tuple(drawn))


def lanes(engine: sa.Engine, start: datetime, end: datetime, now: datetime) -> list[Lane]:
    """Of each breaker: its state now, and when it was open within [start, end)."""
    end = max(min(end, now), start + timedelta(seconds=1))
    by_name: dict[str, list[breaker.Opening]] = {}
    for opening in breaker.openings(engine, start - breaker.KEEP_OPENINGS):
        if opening.opened_at < end and (opening.closed_at or end) > start:
            by_name.setdefault(opening.name, []).append(opening)
    found = []
    for state in breaker.states(engine, now):
        its = by_name.get(state.name, [])
        spans = [_span(opening, start, end) for opening in its]
        open_s = sum(span.width for span in spans) * (end - start).total_seconds()
        found.append(Lane(state, tuple(_joined(spans)), len(its), open_s))
    return sorted(found, key=lambda lane: (lane.state.state == "closed", -lane.openings, lane.state.name))


def _span(opening: breaker.Opening, start: datetime, end: datetime) -> Span:
    left = max((opening.opened_at - start) / (end - start), 0)
    right = min(((opening.closed_at or end) - start) / (end - start), 1)
    return Span(left, max(right - left, 0), opening.opened_at, opening.closed_at, 1)


def _joined(spans: Sequence[Span]) -> list[Span]:
    joined: list[Span] = []
    for span in spans:
        before = joined[-1] if joined else None
        if before and span.left - (before.left + before.width) < _NEAR:
            width = max(span.left + span.width - before.left, before.width)
            joined[-1] = Span(
                before.left, width, before.opened_at, span.closed_at, before.openings + span.openings
            )  # fmt: skip
        else:
            joined.append(span)
    return joined


def held(engine: sa.Engine) -> dict[str, list[Held]]:
    """By state (dead, deferred, new, claimed) what the inbox holds now, the most frequent reasons first."""
    database.ensure(engine, inbox_table)
    row = inbox_table.c
    reason = sa.func.coalesce(row.reason, "")
    recordings = sa.func.count()
    query = (
        sa.select(
            row.state,
            reason,
            recordings,
            sa.func.min(row.due_at, type_=database.UtcTime),
            sa.func.max(row.updated_at, type_=database.UtcTime),
            sa.func.min(row.recording_id),
        )
        .where(row.state.in_((State.DEAD, State.DEFERRED, State.NEW, State.CLAIMED)), row.source != CANARY)
        .group_by(row.state, reason)
        .order_by(recordings.desc(), reason)
    )
    found: dict[str, list[Held]] = {str(state): [] for state in State}
    with engine.connect() as connection:
        for state, why, count, due_at, since, example in connection.execute(query):
            found[str(state)].append(Held(str(state), why, count, due_at, since, example))
    return found


def failing(snapshot: Snapshot, chosen: Filter) -> list[dict[str, Any]]:
    """Deliveries that failed and wait for their next try, or were given up on; the latter first, FAILING_SHOWN at most.

    Reaches back over the hours that have any until filled.
    """
    found: list[dict[str, Any]] = []
    for row in rows(snapshot, "failing_hours", chosen, {"most": FAILING_SHOWN}):
        found += rows(snapshot, "failing", chosen, since=row["hour"], until=row["hour"] + HOUR)
        if len(found) >= FAILING_SHOWN:
            break
    return sorted(found, key=lambda one: one["status"] != "dead")[:FAILING_SHOWN]


@dataclass(frozen=True, slots=True)
class OfRule:
    """channels: of the last day, by channel. day, week: of all channels."""

    rule_id: str
    channels: dict[str, canaries.Recall]
    day: canaries.Recall
    week: canaries.Recall


def live_recall(engine: sa.Engine, now: datetime) -> list[OfRule]:
    """What became of the canaries of the last seven days, by rule; those with a miss in them first."""
    found = []
    for rule_id, channels in canaries.by_rule(canaries.fates(engine, now - canaries.WEEK)).items():
        lately = {
            channel: [fate for fate in its if fate.injected_at >= now - canaries.DAY]
            for channel, its in channels.items()
        }
        day, week = (canaries.recall(fate for its in of.values() for fate in its) for of in (lately, channels))
        found.append(OfRule(rule_id, {name: canaries.recall(its) for name, its in lately.items()}, day, week))
    return sorted(found, key=lambda one: (1 if one.week.share is None else one.week.share, one.rule_id))


def refused(engine: sa.Engine, since: datetime) -> list[tuple[str, int]]:
    """What was not even taken in, by reason, from the hour of `since` on."""
    counts = tallies.counted(engine, tallies.REJECTED, since) | tallies.counted(engine, tallies.URL_REFUSED, since)
    return sorted(((name.partition(":")[2], n) for name, n in counts.items()), key=lambda one: (-one[1], one[0]))


def to_do(
    deliveries: Sequence[dict[str, Any]], whole: Completeness, found: Sequence[Lane], dead: int, zone: str
) -> list[tuple[str, str]]:
    """What waits for a person, each with the command that goes on from there."""
    todo = []
    if missing := whole.total("missing"):
        todo.append((f"{count(missing)} recordings of the source are missing here", "compliance doctor"))
    if dead:
        todo.append((f"{count(dead)} recordings were given up on", "compliance inbox --retry"))
    if lost := sum(one["dead"] for one in deliveries):
        todo.append((f"{count(lost)} deliveries were given up on", "compliance remediation retry"))
    for lane in found:
        if lane.state.state != "closed":
            since = f" since {when(lane.state.since, zone)}" if lane.state.since else ""
            todo.append((f"{lane.state.name} is held back{since}; it is asked again by itself", "compliance doctor"))
    return todo


def page_of(board: Board, view: View, series: StackSeries, found: Sequence[Lane]) -> dict[str, Any]:
    """What all charts of the page share."""
    start, end = view.chosen.start.timestamp(), view.chosen.end.timestamp()
    spans = [span for lane in found for span in lane.spans]
    return {
        "zone": view.zone,
        "span": [start, end],
        "grain": series.grain_s,
        "times": series.times,
        "openings": [
            [span.opened_at.timestamp(), span.closed_at.timestamp() if span.closed_at else end] for span in spans
        ],
        "objective": board.objective.seconds,
    }


def show(request: Request) -> Response:
    board = board_of(request)
    snapshot = board.snapshot()
    view = view_of(request, snapshot)
    chosen, now = view.having(CHOICES), board.clock()
    deliveries = rows(snapshot, "deliveries", chosen)
    whole = completeness(snapshot, chosen)
    found = lanes(board.engine, chosen.start, chosen.end, now)
    losses, failures = losses_series(snapshot, chosen), actions_series(snapshot, chosen)
    inbox = held(board.engine)
    totals = {state: sum(one.recordings for one in its) for state, its in inbox.items()}
    return render(
        request,
        "operations.html",
        view,
        options=options(snapshot, chosen),
        is_filtered=any(view.values(name) for name in CHOICES),
        choices=CHOICES,
        page=page_of(board, view, losses, found),
        counts=counts(snapshot, chosen, board.objective),
        todo=to_do(deliveries, whole, found, totals["dead"], view.zone),
        steps=funnel(snapshot, chosen),
        completeness=whole,
        hour_long=HOUR,
        lost=stack(losses),
        undone=undone(failures),
        per=bucket(losses.grain_s),
        deliveries=deliveries,
        failing=failing(snapshot, chosen),
        lanes=found,
        ages=table_of(ageing(snapshot, chosen)),
        AGES=AGES,
        review=replace(view, path="/review"),
        listed=replace(view, chosen=chosen),
        inbox=inbox,
        totals=totals,
        reasons_shown=REASONS_SHOWN,
        refused=refused(board.engine, chosen.start),
        recall=live_recall(board.engine, now),
        missed_after=canaries.MISSED_AFTER,
        now=now.astimezone(UTC),
    )


routes = [Route("/operations", needs(Role.VIEWER)(show))]
