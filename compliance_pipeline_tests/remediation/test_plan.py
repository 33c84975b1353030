"""Planning: each action once a recording, for the gravest rule that asks for it."""

from hypothesis import given
from hypothesis import strategies as st

from compliance_pipeline.contracts.engine import UNMAPPED_RULE
from compliance_pipeline.contracts.policy import Action, PolicyPack, RuleAction, Severity
from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.remediation.plan import PlannedAction, Violation, plan
from compliance_pipeline.screening.policy import load_policy

POLICY = load_policy()
RULES = {rule.id: rule for rule in POLICY.rules}


def violation(rule_id: str, recording_id: str = "rec-1", confidence: float = 0.9, start_ms: int = 1_000) -> Violation:
    rule = RULES[rule_id]
    return Violation(
        recording_id, rule_id, rule.verdict, rule.violation_type, rule.severity, confidence, start_ms, "****"
    )


def shown(planned: list[PlannedAction]) -> list[tuple[str, str]]:
    return [(p.violation.rule_id, p.action.value) for p in planned]


def test_the_gravest_rule_gets_each_action_and_lesser_ones_none() -> None:
    planned = plan([violation("PCI-PAN-01"), violation("PCI-SAD-01"), violation("PII-GOV-02")], POLICY)
    assert shown(planned) == [
        ("PCI-SAD-01", "tag_recording"),
        ("PCI-SAD-01", "create_work_item"),
        ("PCI-SAD-01", "supervisor_callback"),
    ]


def test_an_action_that_only_a_lesser_rule_asks_for_is_done_for_that_rule() -> None:
    only_tag = RULES["PCI-SAD-01"].model_copy(update={"actions": (RuleAction(action=Action.TAG_RECORDING),)})
    policy = POLICY.model_copy(update={"rules": (only_tag, RULES["PCI-PAN-01"])})
    planned = plan([violation("PCI-PAN-01"), violation("PCI-SAD-01")], policy)
    assert shown(planned) == [("PCI-SAD-01", "tag_recording"), ("PCI-PAN-01", "create_work_item")]


def test_what_another_engine_found_and_no_rule_of_the_pack_knows_is_put_before_a_person() -> None:
    found = Violation("rec-1", UNMAPPED_RULE, VerdictValue.REVIEW_REQUIRED, "OTHER", Severity.MEDIUM, 0.9, 0, "")
    assert [p.action for p in plan([found], POLICY)] == [Action.TAG_RECORDING, Action.CREATE_WORK_ITEM]


def test_a_violation_goes_before_a_review_whatever_their_confidence() -> None:
    planned = plan([violation("PCI-PAN-02", confidence=1.0), violation("PII-GOV-01", confidence=0.8)], POLICY)
    assert {p.violation.rule_id for p in planned} == {"PII-GOV-01"}


def test_of_two_rules_of_one_severity_the_surer_then_the_earlier_decides() -> None:
    surer = plan([violation("PCI-PAN-01", confidence=0.9), violation("PII-GOV-01", confidence=0.95)], POLICY)
    assert {p.violation.rule_id for p in surer} == {"PII-GOV-01"}
    earlier = plan([violation("PCI-PAN-01", start_ms=900), violation("PII-GOV-01", start_ms=901)], POLICY)
    assert {p.violation.rule_id for p in earlier} == {"PCI-PAN-01"}


def test_a_rule_that_the_policy_no_longer_has_asks_for_nothing() -> None:
    policy = POLICY.model_copy(update={"rules": (RULES["PII-GOV-01"],)})
    assert plan([violation("PCI-PAN-01")], policy) == []


def test_the_key_of_an_action_is_recording_rule_and_action() -> None:
    assert plan([violation("PCI-PAN-01")], POLICY)[1].key == "rec-1/PCI-PAN-01/create_work_item"


violations = st.lists(
    st.builds(
        violation,
        rule_id=st.sampled_from(sorted(RULES)),
        recording_id=st.sampled_from(["rec-1", "rec-2", "rec-3"]),
        confidence=st.floats(0, 1),
        start_ms=st.integers(0, 10_000),
    ),
    max_size=12,
    unique_by=lambda v: (v.recording_id, v.rule_id),
)


@given(violations, st.randoms())
def test_any_violations_in_any_order_give_each_wanted_action_once_for_a_gravest_rule(
    found: list[Violation], random: object
) -> None:
    planned = plan(found, POLICY)
    got = [(p.violation.recording_id, p.action) for p in planned]
    wanted = {(v.recording_id, wanted.action) for v in found for wanted in RULES[v.rule_id].actions}
    assert sorted(got) == sorted(wanted)
    assert [list(Action).index(p.action) for p in planned] == sorted(list(Action).index(p.action) for p in planned)
    for p in planned:
        for rival in found:
            if rival.recording_id == p.violation.recording_id and RULES[rival.rule_id].wants(p.action):
                assert grave(p.violation) >= grave(rival)


@given(violations, st.data())
def test_the_plan_does_not_depend_on_the_order_of_the_violations(found: list[Violation], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(found))
    ties = len({(v.recording_id, grave(v)) for v in found}) < len(found)
    if not ties:
        assert sorted(p.key for p in plan(shuffled, POLICY)) == sorted(p.key for p in plan(found, POLICY))


def grave(v: Violation) -> tuple[bool, int, float, int]:
    """Written anew, not taken from `plan`: accusing, then severity, then confidence, then earliness."""
    ladder = [Severity.LOW, Severity.MEDIUM, Severity.HIGH, Severity.CRITICAL]
    return (v.verdict is VerdictValue.VIOLATION_DETECTED, ladder.index(v.severity), v.confidence, -v.start_ms)


def test_the_packaged_policy_always_tags_and_opens_a_work_item() -> None:
    assert isinstance(POLICY, PolicyPack)
    for rule in POLICY.rules:
        assert rule.wants(Action.TAG_RECORDING), rule.id
        assert rule.wants(Action.CREATE_WORK_ITEM), rule.id
