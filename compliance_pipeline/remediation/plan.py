"""What to do for the rules that a recording broke: actions as data from the policy. Pure; doing it is `execute`'s."""

from collections.abc import Iterable
from dataclasses import dataclass

from compliance_pipeline.contracts.engine import UNMAPPED_RULE
from compliance_pipeline.contracts.policy import Action, PolicyPack, RuleAction, Severity
from compliance_pipeline.contracts.verdict import VerdictValue


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that a recording broke, as stored; `masked` is what was found, safe to show."""

    recording_id: str
    rule_id: str
    verdict: VerdictValue
    violation_type: str
    severity: Severity
    confidence: float
    start_ms: int
    masked: str


@dataclass(frozen=True, slots=True)
class PlannedAction:
    violation: Violation
    wanted: RuleAction

    @property
    def action(self) -> Action:
        return self.wanted.action

    @property
    def key(self) -> str:
        return idempotency_key(self.violation.recording_id, self.violation.rule_id, self.action)


def idempotency_key(recording_id: str, rule_id: str, action: str) -> str:
    """The same action for the same rule and recording is done once, whoever tries it."""
    return f"{recording_id}/{rule_id}/{action}"


def _gravity(violation: Violation) -> tuple[bool, int, float, int]:
    accuses = violation.verdict is VerdictValue.VIOLATION_DETECTED
    return (accuses, violation.severity.rank, violation.confidence, -violation.start_ms)


def plan(violations: Iterable[Violation], policy: PolicyPack) -> list[PlannedAction]:
    """Each action at most once a recording, for the gravest rule that asks for it; in order of `Action`.

    What an external engine found and no rule of the pack knows is tagged, for a person to review.
    """
    actions = {rule.id: rule.actions for rule in policy.rules}
    unmapped = (Action.TAG_RECORDING, Action.CREATE_WORK_ITEM)
    actions[UNMAPPED_RULE] = tuple(RuleAction(action=action) for action in unmapped)
    gravest_first = sorted(violations, key=_gravity, reverse=True)
    planned: dict[tuple[str, Action], PlannedAction] = {}
    for violation in gravest_first:
        for wanted in actions.get(violation.rule_id, ()):
            planned.setdefault((violation.recording_id, wanted.action), PlannedAction(violation, wanted))
    order = list(Action)
    return sorted(planned.values(), key=lambda p: order.index(p.action))
