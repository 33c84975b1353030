"""Where the time went: percentiles and histograms by stage. Percentiles are never averaged (docs/metrics.md)."""

from dataclasses import dataclass
from typing import Any

from compliance_pipeline.figures.chosen import HOUR, OF_RECORDINGS, Filter, Grid, has_histogram, rows, whole, whole_days
from compliance_pipeline.figures.snapshots import Snapshot

STAGES = (
    "platform",
    "delivery",
    "queue",
    "start",
    "batch",
    "fetch",
    "analysis",
    "first_finding",
    "remediation",
    "judged",
    "flagged",
)
LEAST_FOR_P95, LEAST_FOR_P99 = 20, 100
"""With fewer recordings such a percentile says nothing, and is None."""

Point = tuple[float | None, float | None, float | None, int]
"""P50, P95, P99 in seconds, and recordings; None as Percentiles has it, and P50 of no recording."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds; None where too few recordings went through the stage."""

    recordings: int
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None


@dataclass(frozen=True, slots=True)
class Series:
    """times: where each bucket begins (unix seconds), every bucket of the window, empty ones too.

    grain_s: their width; 86,400 stands for a day of the zone, which may have 23 or 25 hours. stages: of each stage that
    the window has, a point a bucket.
    """

    grain_s: int
    times: list[int]
    stages: dict[str, list[Point]]


@dataclass(frozen=True, slots=True)
class HeatCell:
    """time: where the bucket begins (unix seconds). recordings: flagged within (seconds_from, seconds_to]."""

    time: int
    seconds_from: float
    seconds_to: float
    recordings: int


def stages(snapshot: Snapshot, chosen: Filter) -> dict[str, Percentiles]:
    """By stage, in the order of STAGES, those that recordings of the window went through."""
    if _name(chosen) == "percentiles_by_hour":
        whole = rows(snapshot, "percentiles_whole", chosen, _histogram(chosen))
    else:
        whole = [row for row in _by_bucket(snapshot, chosen) if row["time"] is None]
    found = {row["stage"]: Percentiles(*_point(row)) for row in whole}
    return {stage: found[stage] for stage in STAGES if stage in found}


def latency_series(snapshot: Snapshot, chosen: Filter) -> Series:
    """Percentiles of each stage by bucket."""
    grid = Grid.of(chosen)
    nothing: Point = (None, None, None, 0)
    points: dict[str, dict[int, Point]] = {}
    for row in _by_bucket(snapshot, chosen):
        recordings, p50, p95, p99 = _point(row)
        points.setdefault(row["stage"], {})[row["time"]] = (p50, p95, p99, recordings)
    series = {stage: [points[stage].get(time, nothing) for time in grid.times] for stage in STAGES if stage in points}
    return Series(grid.width_s, grid.times, series)


def heat(snapshot: Snapshot, chosen: Filter) -> list[HeatCell]:
    """How long flagging took: recordings by bucket of time and a third of a doubling of seconds; none that is empty."""
    name = "heat" if chosen.is_long else "heat_exact"
    grid = Grid.of(chosen)
    found = rows(snapshot, name, chosen, _histogram(chosen, grid) | grid.pairs)
    return [
        HeatCell(row["time"], 2 ** ((third - 1) / 3), 2 ** (third / 3), row["recordings"])
        for row in found
        for third in [row["third"]]
    ]


def flagged_p95_s(snapshot: Snapshot, chosen: Filter) -> float | None:
    """Of `flagged` alone."""
    [row] = rows(snapshot, "flagged_p95" if chosen.is_long else "flagged_p95_exact", chosen, _histogram(chosen))
    return row["p95_s"] if (row["recordings"] or 0) >= LEAST_FOR_P95 else None


def _by_bucket(snapshot: Snapshot, chosen: Filter) -> list[dict[str, Any]]:
    """stage, time (None: the whole window; not by the hour), recordings, seconds (P50, P95, P99)."""
    grid = Grid.of(chosen)
    return rows(snapshot, _name(chosen), chosen, _histogram(chosen, grid) | grid.pairs)


def _name(chosen: Filter) -> str:
    if not chosen.is_long:
        return "percentiles_exact"
    by_hour = chosen.grain == HOUR and has_histogram(chosen) and len(_values(chosen)) <= 1
    return "percentiles_by_hour" if by_hour else "percentiles_by_bucket"


def _point(row: dict[str, Any]) -> tuple[int, float | None, float | None, float | None]:
    recordings, (p50, p95, p99) = row["recordings"], row["seconds"]
    return (
        recordings,
        p50,
        p95 if recordings >= LEAST_FOR_P95 else None,
        p99 if recordings >= LEAST_FOR_P99 else None,
    )


def _values(chosen: Filter) -> list[str]:
    return [value for name in OF_RECORDINGS for value in getattr(chosen, name)]


def _histogram(chosen: Filter, grid: Grid | None = None) -> dict[str, Any]:
    """By whole UTC days where the buckets of the grid, if there is one, are such days too."""
    used = [name for name in OF_RECORDINGS if getattr(chosen, name)]
    dimension = used[0] if used else "all"
    start, end = whole(chosen)
    first, last = whole_days(start, end)
    if first >= last or (grid and (grid.width_s < 86_400 or any(time % 86_400 for time in grid.times))):
        first = last = end
    return {"dimension": dimension, "values": list(getattr(chosen, dimension, ())), "first": first, "last": last}
