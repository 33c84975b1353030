"""The report: the page's figures for one window, in one object."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from compliance_pipeline.figures.figures import (
    BUDGET,
    Counts,
    Filter,
    Objective,
    Percentiles,
    burn_rate,
    counts,
    stages,
    wilson,
)
from compliance_pipeline.figures.snapshots import Snapshot, sql


@dataclass(frozen=True, slots=True)
class Violations:
    """Recordings that broke a rule, and those of which it could be decided, in the channels where it was broken."""

    rule_id: str
    violation_type: str
    severity: str
    recordings: int
    screened: int

    @property
    def interval(self) -> tuple[float, float] | None:
        return wilson(self.recordings, self.screened)


@dataclass(frozen=True, slots=True)
class Report:
    """burn_rate: of the window. budget_left: of the 30 days up to the window's end; negative where it is overspent."""

    snapshot: int
    chosen: Filter
    objective: Objective
    counts: Counts
    stages: Mapping[str, Percentiles]
    violations: tuple[Violations, ...]
    burn_rate: float | None
    budget_left: float | None

    @property
    def sentence(self) -> str:
        attained, counted = self.counts.attainment, self.counts
        if attained is None:
            kept = "Nothing was to be flagged"
        else:
            kept = (
                f"{attained:.2%} of {counted.flagged + counted.overdue:,} were flagged within "
                f"{self.objective.seconds:g} s (promised: {self.objective.target:.0%})"
            )
        judged = f"{counted.judged:,} of {counted.received:,} recordings were judged"
        left = "" if self.budget_left is None else f"; {self.budget_left:.0%} of the 30 days' budget is left"
        return f"{kept}; {judged}{left}."

    def as_json(self) -> dict[str, Any]:
        chosen = asdict(self.chosen) | {"start": self.chosen.start.isoformat(), "end": self.chosen.end.isoformat()}
        return {
            "snapshot": self.snapshot,
            "window": chosen,
            "objective": asdict(self.objective),
            "attainment": self.counts.attainment,
            "burn_rate": self.burn_rate,
            "budget_left": self.budget_left,
            "coverage": self.counts.coverage,
            "counts": asdict(self.counts),
            "stages": {stage: asdict(found) for stage, found in self.stages.items()},
            "violations": [asdict(one) | {"interval": one.interval} for one in self.violations],
        }


def report_of(snapshot: Snapshot, chosen: Filter, objective: Objective) -> Report:
    counted = counts(snapshot, chosen, objective)
    burnt = burn_rate(counts(snapshot, chosen.over(BUDGET), objective), objective)
    rows = snapshot.rows(sql("violations"), chosen.start, chosen.end, **chosen.dimensions)
    found = stages(snapshot, chosen)
    return Report(
        snapshot.manifest.number,
        chosen,
        objective,
        counted,
        {stage: found[stage] for stage in STAGES if stage in found},
        tuple(Violations(**row) for row in rows),
        burn_rate(counted, objective),
        None if burnt is None else 1 - burnt,
    )


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
