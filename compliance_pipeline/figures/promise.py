"""Whether the promise was kept: counts, attainment, the budget of 30 days and how fast it is spent."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import accumulate

from compliance_pipeline.figures.chosen import EXACT, HOUR, Filter, Grid, ceil_hour, fine_s, floor_hour, rows, whole
from compliance_pipeline.figures.latency import Percentiles, flagged_p95_s, stages
from compliance_pipeline.figures.operations import actions_total
from compliance_pipeline.figures.snapshots import Snapshot
from compliance_pipeline.figures.violations import broken, wilson
from compliance_pipeline.objective import Objective

BUDGET = timedelta(days=30)
STEP = timedelta(hours=6)
"""Of the budget's series."""
_MIN, _DAY = timedelta(minutes=1), timedelta(days=1)
BURN_WINDOWS = (
    ("1 h / 5 min", 14.4, HOUR, 5 * _MIN),
    ("6 h / 30 min", 6.0, 6 * HOUR, 30 * _MIN),
    ("3 d / 6 h", 1.0, 3 * _DAY, 6 * HOUR),
)
"""Name, factor, long and short window of each alert (Google's SRE workbook, ch. 5, table 5-8)."""


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
    tagged: int
    work_items: int
    reviewed: int
    found_by_sweep: int
    duplicates: int

    @property
    def due(self) -> int:
        return self.flagged + self.overdue

    @property
    def late(self) -> int:
        """Of the due ones: flagged after the objective, or not yet."""
        return self.due - self.in_time

    @property
    def attainment(self) -> float | None:
        """Share of what was to be flagged that was, in time; None where nothing was to be."""
        return self.in_time / self.due if self.due else None

    @property
    def coverage(self) -> float | None:
        return self.judged / self.received if self.received else None


@dataclass(frozen=True, slots=True)
class BurnWindow:
    """A pair of windows up to the end of the chosen one (SRE workbook, ch. 5). firing: both burn above the factor.

    name: of the long one and the short one, e.g. '1 h / 5 min'. Burn is None where nothing was due.
    """

    name: str
    factor: float
    long_burn: float | None
    short_burn: float | None

    @property
    def firing(self) -> bool:
        return all(burn is not None and burn > self.factor for burn in (self.long_burn, self.short_burn))


@dataclass(frozen=True, slots=True)
class Headline:
    """before: of the window before, as long. budget_left: of the 30 days to the window's end; negative: overspent.

    violations: broken rules (recording × rule), as filtered; open, critical: of these. interval: 95%, of
    violating/judged. sent_actions: tried at least once; failed_actions: of these, not done (to be tried again, or given
    up on); retried_actions: tried more than once.
    """

    counts: Counts
    before: Counts
    stages: Mapping[str, Percentiles]
    p95_before_s: float | None
    burn_rate: float | None
    budget_left: float | None
    windows: tuple[BurnWindow, ...]
    violations: int
    violations_before: int
    open: int
    critical: int
    interval: tuple[float, float] | None
    sent_actions: int
    failed_actions: int
    retried_actions: int


@dataclass(frozen=True, slots=True)
class BudgetSeries:
    """The 30 days to the window's end in steps of 6 h. times: where each begins (unix seconds).

    left: of the budget, at the step's end; negative: overspent; None where nothing was due in the 30 days.
    late, due: recordings of the step.
    """

    times: list[int]
    left: list[float | None]
    late: list[int]
    due: list[int]


@dataclass(frozen=True, slots=True)
class BurnSeries:
    """times, grain_s: as Series has them. burn: None where nothing was due."""

    grain_s: int
    times: list[int]
    burn: list[float | None]
    late: list[int]
    due: list[int]


@dataclass(frozen=True, slots=True)
class Breach:
    """Recordings flagged late of which this stage took longest, from available on."""

    stage: str
    recordings: int


def counts(snapshot: Snapshot, chosen: Filter, objective: Objective) -> Counts:
    [row] = rows(snapshot, "counts", chosen, objective.parameters)
    young = sum(number for _, number in _not_due_yet(snapshot, chosen, objective))
    return Counts(**{name: row[name] for name in row if name != "unflagged"}, overdue=row["unflagged"] - young)


def burn_rate(counted: Counts, objective: Objective) -> float | None:
    """How many times as fast as the objective allows its budget is spent; 1 spends it exactly over its period."""
    return _burn(counted.late, counted.due, objective)


def _burn(late: int, due: int, objective: Objective) -> float | None:
    return late / due / (1 - objective.target) if due else None


def headline(snapshot: Snapshot, chosen: Filter, objective: Objective) -> Headline:
    counted = counts(snapshot, chosen, objective)
    found = stages(snapshot, chosen)
    of_violations = broken(snapshot, chosen)
    sent, failed, retried = actions_total(snapshot, chosen)
    return Headline(
        counts=counted,
        before=counts(snapshot, chosen.before, objective),
        stages=found,
        p95_before_s=flagged_p95_s(snapshot, chosen.before),
        burn_rate=burn_rate(counted, objective),
        budget_left=next(reversed(budget_series(snapshot, chosen, objective).left), None),
        windows=burn_windows(snapshot, chosen, objective),
        violations=of_violations.violations,
        violations_before=broken(snapshot, chosen.before).violations,
        open=of_violations.open,
        critical=of_violations.critical,
        interval=wilson(counted.violating, counted.judged),
        sent_actions=sent,
        failed_actions=failed,
        retried_actions=retried,
    )


def burn_windows(snapshot: Snapshot, chosen: Filter, objective: Objective) -> tuple[BurnWindow, ...]:
    """Of BURN_WINDOWS, up to the window's end, or to the newest data where that is earlier."""
    data_to = snapshot.manifest.data_to
    now = replace(chosen, end=min(chosen.end, data_to))
    short = sorted({length for window in BURN_WINDOWS for length in window[2:] if length <= EXACT})
    asked = {"until": now.end, "data_to": data_to, "lengths": [int(length.total_seconds()) for length in short]}
    found = rows(snapshot, "burns", now.over(short[-1]), asked | objective.parameters)
    burns = {timedelta(seconds=row["length"]): _burn(row["late"], row["due"], objective) for row in found}
    for length in {length for window in BURN_WINDOWS for length in window[2:]} - {*short}:
        kept = _kept(snapshot, now.over(length), objective)
        burns[length] = _burn(sum(late for _, late, _ in kept), sum(due for _, _, due in kept), objective)
    return tuple(
        BurnWindow(name, factor, burns.get(long), burns.get(part)) for name, factor, long, part in BURN_WINDOWS
    )


def budget_series(snapshot: Snapshot, chosen: Filter, objective: Objective) -> BudgetSeries:
    period = chosen.over(BUDGET)
    start, end = (int(at.timestamp()) for at in whole(period))
    step = int(STEP.total_seconds())
    times = list(range(start, end, step))
    late, due = [0] * len(times), [0] * len(times)
    for at, its_late, its_due in _kept(snapshot, period, objective):
        late[(at - start) // step] += its_late
        due[(at - start) // step] += its_due
    allowed = (1 - objective.target) * sum(due)
    left = [1 - spent / allowed if allowed else None for spent in accumulate(late)]
    return BudgetSeries(times, left, late, due)


def burn_series(snapshot: Snapshot, chosen: Filter, objective: Objective) -> BurnSeries:
    grid = Grid.of(chosen)
    kept = _kept(snapshot, chosen, objective)
    late, due = grid.sums((at, late) for at, late, _ in kept), grid.sums((at, due) for at, _, due in kept)
    burn = [_burn(its_late, its_due, objective) for its_late, its_due in zip(late, due, strict=True)]
    return BurnSeries(grid.width_s, grid.times, burn, late, due)


def breaches(snapshot: Snapshot, chosen: Filter) -> list[Breach]:
    """Most first."""
    return [Breach(**row) for row in rows(snapshot, "breaches", chosen)]


def _kept(snapshot: Snapshot, chosen: Filter, objective: Objective) -> list[tuple[int, int, int]]:
    """(time, late, due) of each fine bucket that has any."""
    young = Counter[int]()
    width = fine_s(chosen)
    for at, number in _not_due_yet(snapshot, chosen, objective):
        young[at - at % width] += number
    kept = []
    for row in rows(snapshot, "kept", chosen, objective.parameters):
        due = row["flagged"] + row["unflagged"] - young[row["at"]]
        kept.append((row["at"], due - row["in_time"], due))
    return kept


def _not_due_yet(snapshot: Snapshot, chosen: Filter, objective: Objective) -> list[tuple[int, int]]:
    """(second, recordings): violating ones of the window without a flag that may still get it in time.

    By when they became available; in a long window by the hour. They are looked for in the last hours only.
    """
    data_to = snapshot.manifest.data_to
    since = floor_hour(data_to - timedelta(seconds=max(objective.seconds, *objective.by_channel.values(), 0)))
    lately = replace(chosen, start=since, end=ceil_hour(data_to) + HOUR)
    found = rows(snapshot, "not_due_yet", lately, {"data_to": data_to, **objective.parameters}, facts=True)
    start, end = whole(chosen)
    name = "hour" if chosen.is_long else "at"
    return [(int(row[name].timestamp()), row["recordings"]) for row in found if start <= row[name] < end]
