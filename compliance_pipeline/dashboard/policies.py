"""Which rules judge, what each of them found, and how often persons agreed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from compliance_pipeline.contracts.policy import PolicyPack, Rule
from compliance_pipeline.dashboard.access import Role, needs
from compliance_pipeline.dashboard.pages import LEAST_REVIEWED, board_of, render, view_of
from compliance_pipeline.figures.chosen import rows
from compliance_pipeline.figures.figures import (
    Filter,
    PolicyFigure,
    RuleFigure,
    options,
    policies,
    rates,
    rules,
    wilson,
)
from compliance_pipeline.figures.snapshots import Snapshot
from compliance_pipeline.promotion import last_promoted, live_policy
from compliance_pipeline.screening.policy import PolicyError

CHOICES = ("queue", "channel", "direction", "severity", "policy_version")


@dataclass(frozen=True, slots=True)
class Line:
    """A rule, and what came of it in the window. rule: None where the live pack has it no more. figure: None where it
    found nothing. undetermined: recordings of which it could not be decided. screened: `screened`'s, of a rule that
    found nothing."""

    rule_id: str
    severity: str
    violation_type: str
    rule: Rule | None
    figure: RuleFigure | None
    undetermined: int
    screened: int = 0

    @property
    def reviewed(self) -> int:
        return self.figure.confirmed + self.figure.dismissed if self.figure else 0

    @property
    def is_precision_known(self) -> bool:
        return self.reviewed >= LEAST_REVIEWED

    @property
    def highest(self) -> float | None:
        """Of a rule that found nothing, the upper end of its rate's interval."""
        interval = wilson(0, self.screened)
        return interval[1] if interval else None


def undetermined(snapshot: Snapshot, chosen: Filter) -> dict[str, int]:
    """By rule, the judged recordings of the window of which it could not be decided."""
    return {row["rule_id"]: row["recordings"] for row in rows(snapshot, "undecided", chosen)}


def screened(snapshot: Snapshot, pack: Sequence[Rule], version: str, chosen: Filter) -> dict[str, int]:
    """By rule: recordings that this version of the pack judged in the rule's channels, and could decide."""
    if chosen.policy_version and version not in chosen.policy_version:
        return {}
    own = replace(chosen, policy_version=(version,))
    unclear = undetermined(snapshot, own)
    judged = {
        one.value: one.judged
        for one in rates(snapshot, own, "channel")
        if not chosen.channel or one.value in chosen.channel
    }
    return {
        rule.id: sum(judged.get(str(channel), 0) for channel in rule.channels) - unclear.get(rule.id, 0)
        for rule in pack
    }


def lines(
    pack: PolicyPack | None,
    found: list[RuleFigure],
    open_questions: dict[str, int],
    chosen: Filter,
    screened_by: dict[str, int],
) -> list[Line]:
    """What found most first; then the rules that found nothing, in the pack's order."""
    own = {rule.id: rule for rule in pack.rules} if pack else {}
    made = [
        Line(
            one.rule_id, one.severity, one.violation_type, own.get(one.rule_id), one, open_questions.get(one.rule_id, 0)
        )
        for one in sorted(found, key=lambda one: (-one.recordings, one.rule_id))
    ]
    known = {line.rule_id for line in made}
    quiet = [
        Line(
            rule.id,
            str(rule.severity),
            rule.violation_type,
            rule,
            None,
            open_questions.get(rule.id, 0),
            screened_by.get(rule.id, 0),
        )
        for rule in own.values()
        if rule.id not in known and (not chosen.severity or str(rule.severity) in chosen.severity)
    ]
    return made + quiet


def show(request: Request) -> Response:
    board = board_of(request)
    snapshot = board.snapshot()
    view = view_of(request, snapshot)
    refused: str | None = None
    pack: PolicyPack | None = None
    try:
        pack = live_policy(board.settings, board.engine)
    except PolicyError as error:
        refused = str(error)
    chosen = view.having(CHOICES)
    versions: list[PolicyFigure] = sorted(policies(snapshot, chosen), key=lambda one: one.last_seen, reverse=True)
    shown = lines(
        pack,
        rules(snapshot, chosen),
        undetermined(snapshot, chosen),
        chosen,
        screened(snapshot, pack.rules, pack.policy_version, chosen) if pack else {},
    )
    highest = max((line.figure.interval[1] for line in shown if line.figure and line.figure.interval), default=0.01)
    return render(
        request,
        "policies.html",
        view,
        options=options(snapshot, chosen),
        choices=CHOICES,
        pack=pack,
        source=board.settings.policy,
        promoted=None if board.settings.policy else last_promoted(board.engine),
        refused=refused,
        versions=versions,
        lines=shown,
        highest=highest,
        listing=replace(view, path="/violations"),
    )


routes = [Route("/policies", needs(Role.VIEWER)(show))]
