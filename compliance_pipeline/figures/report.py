"""The report: the page's figures for one window, in one object."""

from dataclasses import asdict, dataclass
from typing import Any

from compliance_pipeline.figures.chosen import Filter
from compliance_pipeline.figures.promise import Counts, Headline, headline
from compliance_pipeline.figures.snapshots import Snapshot
from compliance_pipeline.figures.violations import RuleFigure, rules
from compliance_pipeline.objective import Objective


@dataclass(frozen=True, slots=True)
class Report:
    """snapshot: its number."""

    snapshot: int
    chosen: Filter
    objective: Objective
    headline: Headline
    violations: tuple[RuleFigure, ...]

    @property
    def counts(self) -> Counts:
        return self.headline.counts

    @property
    def sentence(self) -> str:
        counted, left = self.counts, self.headline.budget_left
        if counted.attainment is None:
            kept = "Nothing was to be flagged"
        else:
            by_channel = "".join(f", {channel} {limit:g} s" for channel, limit in self.objective.by_channel.items())
            kept = (
                f"{counted.attainment:.2%} of {counted.due:,} were flagged within "
                f"{self.objective.seconds:g} s{by_channel} (promised: {100 * self.objective.target:g}%)"
            )
        judged = f"{counted.judged:,} of {counted.received:,} recordings were judged"
        budget = "" if left is None else f"; {left:.0%} of the 30 days' budget is left"
        return f"{kept}; {judged}{budget}."

    def as_json(self) -> dict[str, Any]:
        head = self.headline
        chosen = asdict(self.chosen) | {"start": self.chosen.start.isoformat(), "end": self.chosen.end.isoformat()}
        return {
            "snapshot": self.snapshot,
            "window": chosen,
            "objective": asdict(self.objective),
            "attainment": head.counts.attainment,
            "burn_rate": head.burn_rate,
            "burn_windows": [asdict(one) | {"firing": one.firing} for one in head.windows],
            "budget_left": head.budget_left,
            "coverage": head.counts.coverage,
            "counts": asdict(head.counts),
            "actions": {"sent": head.sent_actions, "failed": head.failed_actions, "retried": head.retried_actions},
            "stages": {stage: asdict(found) for stage, found in head.stages.items()},
            "violations": [
                asdict(one) | {"interval": one.interval, "precision": one.precision} for one in self.violations
            ],
        }


def report_of(snapshot: Snapshot, chosen: Filter, objective: Objective) -> Report:
    return Report(
        snapshot.manifest.number,
        chosen,
        objective,
        headline(snapshot, chosen, objective),
        tuple(rules(snapshot, chosen)),
    )
