"""What is asked for: a window, values of dimensions, a zone; and how the SQL files get to know it.

A query says `{{coverage}}` (or another rollup) where it reads one: that is the rollup's files, or, where the window is
short or a filter is one that the rollup doesn't have, the SQL that makes the rollup, over the chosen facts. So a figure
is defined once. sql/part has the other parts that queries share.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary
from zoneinfo import ZoneInfo

from compliance_pipeline.figures.snapshots import Snapshot, sql

EXACT = timedelta(hours=24)
"""Longer windows are counted by whole hours, and their percentiles come from the histograms."""
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Filter:
    """start, end: aware UTC. Of each dimension the values that count; empty: all.

    rule, severity and review apply to violations only, the others to recordings too. zone: decides where days begin.
    """

    start: datetime
    end: datetime
    queue: tuple[str, ...] = ()
    channel: tuple[str, ...] = ()
    direction: tuple[str, ...] = ()
    rule: tuple[str, ...] = ()
    severity: tuple[str, ...] = ()
    agent: tuple[str, ...] = ()
    policy_version: tuple[str, ...] = ()
    review: tuple[str, ...] = ()
    zone: str = "UTC"

    def over(self, length: timedelta) -> "Filter":
        """The same, over the time before its end."""
        return replace(self, start=self.end - length)

    @property
    def before(self) -> "Filter":
        """The same, over the window of the same length before this one."""
        return replace(self, start=self.start - (self.end - self.start), end=self.start)

    @property
    def length(self) -> timedelta:
        return self.end - self.start

    @property
    def is_long(self) -> bool:
        """Counted by whole hours."""
        return self.length > EXACT

    @property
    def dimensions(self) -> dict[str, list[str]]:
        """The chosen values of what recordings have."""
        return {name: list(getattr(self, name)) for name in OF_RECORDINGS}

    @property
    def grain(self) -> timedelta:
        """Width of a bucket: 5 min up to 6 h, 15 min up to 24 h, an hour up to 10 d, a day of the zone beyond."""
        if not self.is_long:
            return timedelta(minutes=5 if self.length <= timedelta(hours=6) else 15)
        return HOUR if self.length <= timedelta(days=10) else DAY


OF_RECORDINGS = ("queue", "channel", "direction", "agent", "policy_version")
OF_VIOLATIONS = ("rule", "severity", "review")
_DIMENSIONS = ("queue", "channel", "direction")
_KEYS = {
    **dict.fromkeys(("coverage", "rules", "undetermined", "breaches"), (*_DIMENSIONS, "policy_version")),
    **dict.fromkeys(("losses", "actions"), _DIMENSIONS),
    **dict.fromkeys(("agents", "agent_rules"), (*_DIMENSIONS, "policy_version", "agent")),
}
"""Of each rollup, what it can be filtered by."""


def floor_hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def ceil_hour(at: datetime) -> datetime:
    floor = floor_hour(at)
    return floor if floor == at else floor + HOUR


def whole(chosen: Filter) -> tuple[datetime, datetime]:
    """The window as it is counted: a long one has the hours that begin in it."""
    return (ceil_hour(chosen.start), ceil_hour(chosen.end)) if chosen.is_long else (chosen.start, chosen.end)


def whole_days(start: datetime, end: datetime) -> tuple[datetime, datetime]:
    """From the first midnight (UTC) in it to the last one; the first may be the later."""
    return start + (_MIDNIGHT - start) % DAY, end - (end - _MIDNIGHT) % DAY


_MIDNIGHT = datetime(2000, 1, 1, tzinfo=UTC)


def is_raw(chosen: Filter, keys: Iterable[str]) -> bool:
    """Whether a figure that has only these dimensions by the hour is counted from the facts."""
    return not chosen.is_long or any(getattr(chosen, name) for name in OF_RECORDINGS if name not in keys)


def has_histogram(chosen: Filter) -> bool:
    """Whether the histograms know these recordings: all, or those of one dimension."""
    used = [name for name in OF_RECORDINGS if getattr(chosen, name)]
    return not used or (len(used) == 1 and used[0] in _DIMENSIONS)


def fine_s(chosen: Filter) -> int:
    """Width of the buckets that rows come by: an hour, or less in a short window."""
    return int(min(chosen.grain, HOUR).total_seconds())


def rows(
    snapshot: Snapshot,
    name: str,
    chosen: Filter,
    more: Mapping[str, Any] | None = None,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    facts: bool | None = None,
    keep: bool = True,
) -> list[dict[str, Any]]:
    """The rows of sql/<name>.sql for what is chosen.

    more: values of its other parameters (the objective is known); the superfluous go. since, until: of the window
    only this part. facts: count from the facts, or don't; as the filter needs it, unless given. keep: the answer,
    for the other figures that need it; who gets rows doesn't change them.
    """
    raw = {rollup for rollup, keys in _KEYS.items() if (is_raw(chosen, keys) if facts is None else facts)}
    if not has_histogram(chosen):
        raw.add("histogram")
    used = frozenset(dimension for dimension in OF_RECORDINGS + OF_VIOLATIONS if getattr(chosen, dimension))
    query, names = _query(name, frozenset(raw), used)
    start, end = whole(chosen)
    known = {
        **{dimension: list(getattr(chosen, dimension)) for dimension in OF_RECORDINGS + OF_VIOLATIONS},
        "by_hour": chosen.is_long,
        "fine_s": fine_s(chosen),
        **(snapshot.manifest.objective.parameters if snapshot.manifest.objective else {}),
        **(more or {}),
    }
    bound = {parameter: known[parameter] for parameter in names & known.keys()}
    first, last = max(start, since or start), min(end, until or end)
    if not keep:
        return snapshot.rows(query, first, last, **bound)
    return _answer(snapshot, query, first, last, bound)


MOST_ANSWERS = 500
MOST_KEPT = 50_000
"""Rows of a snapshot's answers that are kept: it never changes, so they stay right."""
_kept: WeakKeyDictionary[Snapshot, OrderedDict[tuple[Any, ...], list[dict[str, Any]]]] = WeakKeyDictionary()
_lock = Lock()


def _answer(
    snapshot: Snapshot, query: str, start: datetime, end: datetime, bound: Mapping[str, Any]
) -> list[dict[str, Any]]:
    key = (query, start, end, repr(sorted(bound.items())))
    with _lock:
        kept = _kept.setdefault(snapshot, OrderedDict())
        if key in kept:
            kept.move_to_end(key)
            return kept[key]
    found = snapshot.rows(query, start, end, **bound)
    if len(found) > MOST_KEPT // 10:
        return found
    with _lock:
        kept[key] = found
        while sum(1 + len(one) for one in kept.values()) > MOST_KEPT or len(kept) > MOST_ANSWERS:
            kept.popitem(last=False)
    return found


@cache
def _query(name: str, raw: frozenset[str], used: frozenset[str]) -> tuple[str, frozenset[str]]:
    """The text with its parts in place, and the names of its parameters. Only what is filtered by is compared."""

    def one_of(dimensions: Iterable[str]) -> str:
        named = {dimension: "rule_id" if dimension == "rule" else dimension for dimension in dimensions}
        return (
            " AND ".join(f"list_contains(${one}, {column})" for one, column in named.items() if one in used) or "true"
        )

    def part(found: re.Match[str]) -> str:
        what = found[1]
        if what in ("interactions", "violations"):
            return sql("part/facts").replace("$table", f"${what}")
        if what == "histogram" and what in raw:
            return sql("part/histogram_facts")
        if what not in _KEYS:
            return one_of(_CONDITIONS[what]) if what in _CONDITIONS else sql(f"part/{what}")
        if what not in raw:
            return f"(FROM read_parquet(${what}) WHERE {{{{hours}}}} AND {one_of(_KEYS[what])})"
        facts = sql(f"snapshot/{what}")
        for table in ("interactions", "violations"):
            facts = facts.replace(f"read_parquet(${table})", f"{{{{{table}}}}}")
        return f"({facts})"

    text = re.sub(r"--.*", "", sql(name))
    while (filled := re.sub(r"\{\{(\w+)\}\}", part, text)) != text:
        text = re.sub(r"--.*", "", filled)
    return text, frozenset(re.findall(r"\$(\w+)", text))


_CONDITIONS = {"of_recordings": OF_RECORDINGS, "of_violations": OF_VIOLATIONS}


@dataclass(frozen=True, slots=True)
class Grid:
    """The buckets of a series.

    times: where each begins (unix seconds). width_s: 86,400 for a day of the zone, which may have 23 or 25 hours.
    """

    width_s: int
    times: list[int]
    _of: dict[int, int]

    @classmethod
    def of(cls, chosen: Filter) -> "Grid":
        start, end = (int(at.timestamp()) for at in whole(chosen))
        width, fine = int(chosen.grain.total_seconds()), fine_s(chosen)
        zone = ZoneInfo(chosen.zone)
        index: dict[int, int] = {}
        times: list[int] = []
        for at in range(start - start % fine, end, fine):
            time = at
            if width > fine:
                local = datetime.fromtimestamp(at, zone)
                time = int(datetime(local.year, local.month, local.day, tzinfo=zone).timestamp())
            if not times or times[-1] != time:
                times.append(time)
            index[at] = len(times) - 1
        return cls(width, times, index)

    def sums(self, values: Iterable[tuple[int, int]]) -> list[int]:
        """Of (time of a fine bucket, number): the sum in each bucket."""
        totals = [0] * len(self.times)
        for at, number in values:
            totals[self._of[at]] += number
        return totals

    @property
    def pairs(self) -> dict[str, list[int]]:
        """What SQL calls $fine and $coarse: of each fine bucket, the one that it belongs to."""
        return {"fine": list(self._of), "coarse": [self.times[which] for which in self._of.values()]}
