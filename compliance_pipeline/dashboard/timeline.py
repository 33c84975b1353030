"""The stages of one recording as bars to scale; zero is when it became available. Numbers only, no markup."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

STAGES = {
    "platform": "Platform processing",
    "delivery": "Delivery",
    "queue": "Queue",
    "start": "Start of the run",
    "batch": "Turn in the run",
    "fetch": "Fetch",
    "analysis": "Analysis",
    "remediation": "Remediation",
}
"""In order; they lie end to end (docs/metrics.md)."""
LONGEST_LEAD = 0.6
"""The platform's bar is cut above this share of what is drawn after it, or it would leave no room for ours."""
_ROOM = 1.06


@dataclass(frozen=True, slots=True)
class Bar:
    """x, width, late_x: percent of the drawing; late_x: from where on the objective is passed, if it is.

    label_x, label_side: where its seconds stand: 'start' (to the right of it) or 'end' (to the left of label_x).
    is_cut: longer than drawn.
    """

    stage: str
    name: str
    seconds: float
    from_s: float
    x: float
    width: float
    late_x: float | None
    label_x: float
    label_side: str
    is_cut: bool = False

    @property
    def end(self) -> float:
        return self.x + self.width


@dataclass(frozen=True, slots=True)
class Timeline:
    """zero, objective: percent of the drawing. total_s: available to flagged or, where it isn't, to judged."""

    bars: tuple[Bar, ...]
    available_at: datetime
    zero: float
    objective: float
    objective_s: float
    total_s: float
    is_flagged: bool
    first_finding_s: float | None

    @property
    def late_s(self) -> float:
        return max(self.total_s - self.objective_s, 0)


def timeline(rows: Sequence[Mapping[str, Any]], objective_s: float) -> Timeline | None:
    """Of a recording's `stage_times`; None where it was not judged."""
    by_stage = {row["stage"]: row for row in rows}
    if "judged" not in by_stage:
        return None
    zero_at: datetime = by_stage["judged"]["started_at"]
    total = by_stage.get("flagged", by_stage["judged"])
    spans = [
        (stage, (row["started_at"] - zero_at).total_seconds(), (row["ended_at"] - zero_at).total_seconds())
        for stage in STAGES
        if (row := by_stage.get(stage))
    ]
    until = max(objective_s, *(end for _, _, end in spans), 0.001) * _ROOM
    lead = max([0.0, *(-start for _, start, _ in spans)])
    drawn_lead = min(lead, until * LONGEST_LEAD)
    whole = drawn_lead + until

    def at(seconds: float) -> float:
        share: float = (max(seconds, -drawn_lead) + drawn_lead) / whole
        return round(share * 100, 3)

    bars = []
    for stage, start, end in spans:
        x, width = at(start), max(at(end) - at(start), 0.25)
        late_x = max(at(objective_s), x) if end > objective_s and stage != "platform" else None
        to_the_right = x + width < 80 or x < 20
        label_x = min(x + width, 100) if to_the_right else x
        is_cut = -start > drawn_lead
        side = "start" if to_the_right else "end"
        bars.append(Bar(stage, STAGES[stage], end - start, start, x, width, late_x, label_x, side, is_cut))
    first = by_stage.get("first_finding")
    return Timeline(
        bars=tuple(bars),
        available_at=zero_at,
        zero=at(0),
        objective=at(objective_s),
        objective_s=objective_s,
        total_s=total["seconds"],
        is_flagged="flagged" in by_stage,
        first_finding_s=first["seconds"] if first else None,
    )
