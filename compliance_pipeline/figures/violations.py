"""What was found: by rule, by dimension, by agent, by policy; the newest, and those to be reviewed."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import sqrt
from typing import Any

from compliance_pipeline.figures.chosen import HOUR, Filter, fine_s, rows, whole, whole_days
from compliance_pipeline.figures.snapshots import Snapshot

SEVERITIES = ("critical", "high", "medium", "low")
LEAST_OF_AGENT = 30
"""An agent with fewer judged recordings isn't compared with others."""


def wilson(hits: int, of: int, z: float = 1.96) -> tuple[float, float] | None:
    """95% interval of a rate (Wilson 1927); None for no trials."""
    if not of:
        return None
    rate, square = hits / of, z * z
    middle = (rate + square / (2 * of)) / (1 + square / of)
    half = z / (1 + square / of) * sqrt(rate * (1 - rate) / of + square / (4 * of * of))
    return max(middle - half, 0.0), min(middle + half, 1.0)


@dataclass(frozen=True, slots=True)
class Broken:
    """Broken rules of a window (recording × rule), and of these the open and the critical ones."""

    violations: int
    open: int
    critical: int


@dataclass(frozen=True, slots=True)
class RuleFigure:
    """recordings: that broke the rule, as filtered. screened: of which it could be decided (docs/metrics.md).

    open, confirmed, dismissed: of the recordings, by review.
    """

    rule_id: str
    violation_type: str
    severity: str
    recordings: int
    screened: int
    open: int
    confirmed: int
    dismissed: int

    @property
    def rate(self) -> float | None:
        return self.recordings / self.screened if self.screened else None

    @property
    def interval(self) -> tuple[float, float] | None:
        return wilson(self.recordings, self.screened)

    @property
    def precision(self) -> float | None:
        """Share of the reviewed findings that were right."""
        reviewed = self.confirmed + self.dismissed
        return self.confirmed / reviewed if reviewed else None

    @property
    def precision_interval(self) -> tuple[float, float] | None:
        return wilson(self.confirmed, self.confirmed + self.dismissed)


@dataclass(frozen=True, slots=True)
class Rate:
    """value: of the dimension. violating: recordings that broke a rule (a chosen one, where there are any)."""

    value: str
    violating: int
    judged: int

    @property
    def rate(self) -> float | None:
        return self.violating / self.judged if self.judged else None

    @property
    def interval(self) -> tuple[float, float] | None:
        return wilson(self.violating, self.judged)


@dataclass(frozen=True, slots=True)
class Matrix:
    """queues, rules (ids): with violations; by name, and most first. cells: violations, and judged of the queue."""

    queues: list[str]
    rules: list[str]
    cells: dict[tuple[str, str], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class AgentFigure:
    """agent: a token. low, high: 95% interval of violating/judged. mostly: the rule broken most; None: none was."""

    agent: str
    judged: int
    violating: int
    low: float
    high: float
    mostly: str | None


@dataclass(frozen=True, slots=True)
class ViolationRow:
    """A rule that the newest verdict of a recording broke. masked: what was found, masked.

    actions: of each its action, status, attempts and time (at). review: open, confirmed or dismissed. flagged_s:
    available to flagged.
    """

    recording_id: str
    rule_id: str
    partition_hour: datetime
    available_at: datetime
    judged_at: datetime
    channel: str
    direction: str
    queue: str
    agent: str | None
    policy_version: str
    engine_version: str
    verdict: str
    violation_type: str
    severity: str
    detector: str
    speaker: str
    start_ms: int
    confidence: float
    masked: str
    hits: int
    finding_no: int | None
    has_clip: bool
    actions: list[dict[str, Any]]
    review: str
    reviewed_at: datetime | None
    flagged_s: float | None


@dataclass(frozen=True, slots=True)
class PolicyFigure:
    """first_seen, last_seen: hours of the first and the last recording in the window that it judged last."""

    policy_version: str
    first_seen: datetime
    last_seen: datetime
    judged: int
    violating: int


def broken(snapshot: Snapshot, chosen: Filter) -> Broken:
    [row] = rows(snapshot, "broken", chosen)
    return Broken(**row)


def rules(snapshot: Snapshot, chosen: Filter) -> list[RuleFigure]:
    """Rules broken in the window, most first."""
    return [RuleFigure(**row) for row in rows(snapshot, "rules", chosen)]


def rates(snapshot: Snapshot, chosen: Filter, dimension: str) -> list[Rate]:
    """By queue, channel, direction or policy_version, in the order of its values; not filtered by this dimension."""
    chosen = replace(chosen, **{dimension: ()})  # type: ignore[arg-type]
    judged, violating = _judged_by(snapshot, chosen, dimension)
    if not _is_plain(chosen):
        violating = _violating_by(snapshot, chosen, dimension)
    return [Rate(value, violating[value], judged[value]) for value in sorted(judged) if judged[value]]


def cells(snapshot: Snapshot, chosen: Filter) -> list[dict[str, Any]]:
    """queue, channel, direction, policy_version, judged, violating: of all values, whichever are chosen of these. One
    query answers for every dimension."""
    return rows(snapshot, "judged_by", replace(chosen, queue=(), channel=(), direction=(), policy_version=()))


CELLS = ("queue", "channel", "direction", "policy_version")


def _judged_by(snapshot: Snapshot, chosen: Filter, dimension: str) -> tuple[Counter[str], Counter[str]]:
    judged, violating = Counter[str](), Counter[str]()
    wanted = {name: values for name in CELLS if (values := getattr(chosen, name))}
    for row in cells(snapshot, chosen):
        if all(row[name] in values for name, values in wanted.items()):
            judged[row[dimension]] += row["judged"]
            violating[row[dimension]] += row["violating"]
    return judged, violating


def _is_plain(chosen: Filter) -> bool:
    """Violations aren't filtered."""
    return not (chosen.rule or chosen.severity or chosen.review)


def _violating_by(snapshot: Snapshot, chosen: Filter, dimension: str) -> Counter[str]:
    """Recordings that broke a chosen rule. Of one rule, a recording has one violation; else they are told apart."""
    if len(chosen.rule) == 1:
        found = rows(snapshot, "broken_by", chosen, {"dimension": dimension})
        return Counter({row["value"]: row["violations"] for row in found})
    found = rows(snapshot, "violating_by", chosen, {"dimension": dimension})
    return Counter({row["value"]: row["violating"] for row in found})


def matrix(snapshot: Snapshot, chosen: Filter) -> Matrix:
    """Queue × rule; not filtered by queue."""
    chosen = replace(chosen, queue=())
    judged, _ = _judged_by(snapshot, chosen, "queue")
    found = rows(snapshot, "broken_by", chosen, {"dimension": "queue"})
    by_rule: Counter[str] = Counter()
    for row in found:
        by_rule[row["rule_id"]] += row["violations"]
    return Matrix(
        sorted({row["value"] for row in found}),
        sorted(by_rule, key=lambda rule: (-by_rule[rule], rule)),
        {(row["value"], row["rule_id"]): (row["violations"], judged[row["value"]]) for row in found},
    )


def agents(snapshot: Snapshot, chosen: Filter, limit: int = 12) -> list[AgentFigure]:
    """Those with LEAST_OF_AGENT recordings judged or more and some that broke a rule, highest lower bound first."""
    judged, violating = Counter[str](), Counter[str]()
    for row in _over_days(snapshot, "agents", chosen):
        judged[row["agent"]] += row["judged"]
        violating[row["agent"]] += row["violating"]
    if len(chosen.rule) == 1 and not (chosen.severity or chosen.review):
        violating = Counter()
        for row in _over_days(snapshot, "agent_rules", chosen):
            violating[row["agent"]] += row["violations"]
    elif not _is_plain(chosen):
        found = rows(snapshot, "violating_by", chosen, {"dimension": "agent"})
        violating = Counter({row["value"]: row["violating"] for row in found})
    known = [
        (interval, agent)
        for agent, of in judged.items()
        if of >= LEAST_OF_AGENT and violating[agent] and (interval := wilson(violating[agent], of))
    ]
    first = sorted(known, key=lambda one: (-one[0][0], one[1]))[:limit]
    broken_most = _mostly(snapshot, replace(chosen, agent=tuple(agent for _, agent in first))) if first else {}
    return [
        AgentFigure(agent, judged[agent], violating[agent], low, high, broken_most.get(agent))
        for (low, high), agent in first
    ]


def _mostly(snapshot: Snapshot, chosen: Filter) -> dict[str, str]:
    """Of each chosen agent the rule broken by most recordings; of equals the first by name."""
    by_agent: dict[str, Counter[str]] = {}
    for row in _over_days(snapshot, "agent_rules", chosen):
        by_agent.setdefault(row["agent"], Counter())[row["rule_id"]] += row["violations"]
    return {agent: min(found, key=lambda rule: (-found[rule], rule)) for agent, found in by_agent.items()}


def _over_days(snapshot: Snapshot, name: str, chosen: Filter) -> Iterator[dict[str, Any]]:
    """Rows of a query over rollups by UTC day: whole days from these, the window's ends from the facts."""
    start, end = whole(chosen)
    first, last = whole_days(start, end)
    if not chosen.is_long or first >= last:
        yield from rows(snapshot, name, chosen, facts=True)
        return
    yield from rows(snapshot, name, chosen, since=first, until=last)
    if start < first:
        yield from rows(snapshot, name, chosen, until=first, facts=True)
    if last < end:
        yield from rows(snapshot, name, chosen, since=last, facts=True)


def policies(snapshot: Snapshot, chosen: Filter) -> list[PolicyFigure]:
    """Policy packs whose verdicts are the newest of recordings in the window, the one seen last first."""
    return [PolicyFigure(**row) for row in rows(snapshot, "policies", chosen)]


def latest(
    snapshot: Snapshot, chosen: Filter, limit: int = 15, before: tuple[datetime, str, str] | None = None
) -> list[ViolationRow]:
    """Newest first. before: available_at, recording_id and rule_id of the last row of the page before."""
    start, end = whole(chosen)
    at, recording_id, rule_id = before or (None, None, None)
    if at:
        end = min(end, at + HOUR)
    hours = snapshot.hours(start, end)
    found: list[dict[str, Any]] = []
    reach = 1
    while hours and len(found) < limit:
        part, hours = hours[-reach:], hours[:-reach]
        found += rows(
            snapshot,
            "latest",
            chosen,
            {"at": at, "id": recording_id, "after_rule": rule_id, "most": limit - len(found)},
            since=part[0],
            until=part[-1] + HOUR,
        )
        reach *= 4
    return [ViolationRow(**row) for row in found]


def review_queue(snapshot: Snapshot, chosen: Filter, limit: int = 25, offset: int = 0) -> list[ViolationRow]:
    """What waits for a review: critical first, then the oldest first. What `chosen` says of reviews doesn't count.

    Reads only the hours that hold what is shown.
    """
    chosen = replace(chosen, review=("open",))
    width = timedelta(seconds=fine_s(chosen))
    waiting: dict[str, list[tuple[datetime, int]]] = {}
    for row in rows(snapshot, "open_by_hour", chosen):
        waiting.setdefault(row["severity"], []).append((row["partition_hour"], row["open"]))
    found: list[ViolationRow] = []
    for severity in sorted(waiting, key=_rank):
        hours: list[tuple[datetime, int]] = []
        most = limit - len(found)
        for at, number in sorted(waiting[severity]):
            if not hours and offset >= number:
                offset -= number
            elif sum(its for _, its in hours) < offset + most:
                hours.append((at, number))
        if hours and most:
            shown = {"of": severity, "most": most, "skip": offset}
            part = rows(snapshot, "to_review", chosen, shown, since=hours[0][0], until=hours[-1][0] + width)
            found += [ViolationRow(**row) for row in part]
            offset = 0
    return found


def _rank(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


def violations_table(snapshot: Snapshot, chosen: Filter) -> list[dict[str, Any]]:
    """What an export holds: the window's violations, newest first, a plain column each."""
    return rows(snapshot, "export", chosen, keep=False)
