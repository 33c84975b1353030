"""What the page and `compliance report` say, from one snapshot. Every definition is in docs/metrics.md."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from math import sqrt
from typing import Any

from compliance_pipeline.figures.snapshots import Snapshot, sql

EXACT = timedelta(hours=24)
"""Percentiles of longer windows come from the histograms."""
LEAST_FOR_P95, LEAST_FOR_P99 = 20, 100
"""With fewer recordings such a percentile says nothing, and is None."""
BUDGET = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Filter:
    """start, end: UTC. Of each dimension the values that count; empty: all."""

    start: datetime
    end: datetime
    queue: tuple[str, ...] = ()
    channel: tuple[str, ...] = ()
    direction: tuple[str, ...] = ()
    agent: tuple[str, ...] = ()

    def over(self, length: timedelta) -> "Filter":
        """The same, over the time before its end."""
        return Filter(**asdict(self) | {"start": self.end - length})

    @property
    def dimensions(self) -> dict[str, list[str]]:
        return {name: list(getattr(self, name)) for name in ("queue", "channel", "direction", "agent")}


@dataclass(frozen=True, slots=True)
class Objective:
    """`target` of the flagged recordings are flagged within `seconds`."""

    seconds: float
    target: float = 0.99


@dataclass(frozen=True, slots=True)
class Counts:
    """Recordings of the window. overdue: broke a rule and are not flagged, longer than the objective allows."""

    received: int
    judged: int
    unscreenable: int
    waiting: int
    deferred: int
    dead_letters: int
    violating: int
    flagged: int
    in_time: int
    overdue: int
    work_items: int
    found_by_sweep: int
    duplicates: int
    dead_actions: int

    @property
    def attainment(self) -> float | None:
        """Share of what was to be flagged that was, in time; None where nothing was to be."""
        due = self.flagged + self.overdue
        return self.in_time / due if due else None

    @property
    def coverage(self) -> float | None:
        return self.judged / self.received if self.received else None


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds; None where too few recordings went through the stage."""

    recordings: int
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None


def counts(snapshot: Snapshot, chosen: Filter, objective: Objective) -> Counts:
    [row] = snapshot.rows(
        sql("counts"),
        chosen.start,
        chosen.end,
        objective_s=objective.seconds,
        data_to=snapshot.manifest.data_to,
        **chosen.dimensions,
    )
    return Counts(**row)


def stages(snapshot: Snapshot, chosen: Filter) -> dict[str, Percentiles]:
    """By stage: exact up to EXACT, or where no histogram has the filter; else from the histograms of whole hours."""
    used = [name for name, values in chosen.dimensions.items() if values]
    if chosen.end - chosen.start <= EXACT or len(used) > 1 or used == ["agent"]:
        rows = snapshot.rows(sql("stages_exact"), chosen.start, chosen.end, **chosen.dimensions)
    else:
        dimension = used[0] if used else "all"
        rows = snapshot.rows(
            sql("stages_by_bucket"),
            chosen.start,
            chosen.end,
            dimension=dimension,
            values=list(chosen.dimensions.get(dimension, [])),
        )
    return {row["stage"]: _percentiles(row) for row in rows}


def _percentiles(row: Mapping[str, Any]) -> Percentiles:
    count = row["recordings"]
    return Percentiles(
        count,
        row["p50_s"],
        row["p95_s"] if count >= LEAST_FOR_P95 else None,
        row["p99_s"] if count >= LEAST_FOR_P99 else None,
    )


def burn_rate(counted: Counts, objective: Objective) -> float | None:
    """How many times as fast as the objective allows its budget is spent; 1 spends it exactly over its period."""
    attained = counted.attainment
    return None if attained is None else (1 - attained) / (1 - objective.target)


def wilson(hits: int, of: int, z: float = 1.96) -> tuple[float, float] | None:
    """95% interval of a rate (Wilson 1927); None for no trials."""
    if not of:
        return None
    rate, square = hits / of, z * z
    middle = (rate + square / (2 * of)) / (1 + square / of)
    half = z / (1 + square / of) * sqrt(rate * (1 - rate) / of + square / (4 * of * of))
    return max(middle - half, 0.0), min(middle + half, 1.0)
