"""The default pack and packs that are wrong; rules firing; the verdict that comes of it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.contracts.policy import Action, Detector, FindingKind, Severity
from compliance_pipeline.contracts.verdict import RecommendedAction, VerdictValue
from compliance_pipeline.screening.findings import Finding
from compliance_pipeline.screening.policy import DEFAULT_PACK, PolicyError, evaluate, judge, load_policy

PACK = load_policy(None)


def finding(
    kind: FindingKind = FindingKind.CARD_NUMBER,
    detector: Detector = Detector.TEXT,
    start_ms: int = 0,
    end_ms: int = 0,
    confidence: float = 0.97,
) -> Finding:
    return Finding(kind, detector, "customer", start_ms, end_ms, confidence, "****")


def fired(*findings: Finding, channel: Channel = Channel.VOICE) -> list[str]:
    return [hit.rule.id for hit in evaluate(findings, channel, PACK)]


@pytest.mark.parametrize(
    ("kind", "detector", "confidence", "rule"),
    [
        (FindingKind.CARD_NUMBER, Detector.TEXT, 0.9, "PCI-PAN-01"),
        (FindingKind.CARD_NUMBER, Detector.DIGITS, 0.95, "PCI-PAN-01"),
        (FindingKind.CARD_NUMBER, Detector.TONES, 0.99, "PCI-DTMF-01"),
        (FindingKind.CARD_NUMBER, Detector.TEXT, 0.6, "PCI-PAN-02"),
        (FindingKind.CARD_LENGTH_NUMBER, Detector.DIGITS, 0.6, "PCI-PAN-02"),
        (FindingKind.CARD_VERIFICATION_CODE, Detector.TONES, 0.95, "PCI-SAD-01"),
        (FindingKind.CARD_VERIFICATION_CODE, Detector.TONES, 0.6, "PCI-SAD-03"),
        (FindingKind.GOVERNMENT_ID, Detector.TEXT, 0.97, "PII-GOV-01"),
        (FindingKind.GOVERNMENT_ID, Detector.TEXT, 0.6, "PII-GOV-02"),
    ],
)
def test_each_kind_of_finding_fires_exactly_its_rule(
    kind: FindingKind, detector: Detector, confidence: float, rule: str
) -> None:
    assert fired(finding(kind, detector, confidence=confidence)) == [rule]


def test_a_finding_below_every_threshold_fires_nothing() -> None:
    assert fired(*(finding(kind, confidence=0.49) for kind in FindingKind)) == []


def test_the_default_pack_says_what_it_is_not_and_what_it_rests_on() -> None:
    assert PACK.policy_version.startswith("default-us-eu@0.1.0+")
    assert "not legal advice" in PACK.notice.lower()
    assert all(rule.basis for rule in PACK.rules)


def test_only_critical_rules_call_a_supervisor() -> None:
    calling = {rule.id for rule in PACK.rules if Action.SUPERVISOR_CALLBACK in rule.actions}
    assert calling == {rule.id for rule in PACK.rules if rule.severity is Severity.CRITICAL} == {"PCI-SAD-01"}


def test_a_hit_names_the_best_finding_and_counts_them_all() -> None:
    late, best, early = (
        finding(start_ms=9_000),
        finding(start_ms=4_000),
        finding(start_ms=1_000, confidence=0.9),
    )
    (hit,) = evaluate([late, best, early], Channel.CHAT, PACK)
    assert hit.finding is best
    assert hit.count == 3


def test_rules_look_at_their_channels_only(tmp_path: Path) -> None:
    content = yaml.safe_load(DEFAULT_PACK.read_text())
    content["rules"] = [content["rules"][0] | {"when": {"kinds": ["card_number"], "channels": ["email"]}}]
    pack = load_policy(written(tmp_path, content))
    assert evaluate([finding()], Channel.VOICE, pack) == []
    assert len(evaluate([finding()], Channel.EMAIL, pack)) == 1


def test_the_verdict_names_the_gravest_hit() -> None:
    card = finding(start_ms=1_000, end_ms=5_500, confidence=0.99)
    code = finding(FindingKind.CARD_VERIFICATION_CODE, Detector.TONES, 70_250, 71_500, 0.95)
    doubtful = finding(FindingKind.GOVERNMENT_ID, confidence=0.6)
    verdict = judge("rec-1", "corr-1", evaluate([card, doubtful, code], Channel.VOICE, PACK), None)
    assert verdict.model_dump(mode="json", by_alias=True) == {
        "recordingId": "rec-1",
        "verdict": "VIOLATION_DETECTED",
        "violationType": "PCI_SAD_CAPTURE",
        "confidenceScore": 0.95,
        "timestampOffsetMs": 70_250,
        "evidenceSnippet": "recording:rec-1#t=70.250,71.500",
        "recommendedAction": "ROUTE_TO_COMPLIANCE_QUEUE",
        "correlationId": "corr-1",
    }


def test_among_equals_the_surer_then_the_earlier_is_named() -> None:
    sure = finding(FindingKind.GOVERNMENT_ID, start_ms=9_000, confidence=0.99)
    verdict = judge("r", "c", evaluate([finding(confidence=0.9), sure], Channel.CHAT, PACK), None)
    assert verdict.violation_type == "PII_GOVERNMENT_ID"
    even = finding(FindingKind.GOVERNMENT_ID, start_ms=9_000, confidence=0.97)
    verdict = judge("r", "c", evaluate([finding(start_ms=10_000), even], Channel.CHAT, PACK), None)
    assert verdict.timestamp_offset_ms == 9_000


def test_a_violation_stands_though_the_media_was_incomplete() -> None:
    assert (
        judge("r", "c", evaluate([finding()], Channel.CHAT, PACK), "cut off").verdict is VerdictValue.VIOLATION_DETECTED
    )


def test_a_doubt_asks_for_review() -> None:
    hits = evaluate([finding(FindingKind.CARD_LENGTH_NUMBER, Detector.DIGITS, confidence=0.7)], Channel.VOICE, PACK)
    verdict = judge("r", "c", hits, None)
    assert (verdict.verdict, verdict.recommended_action) == (
        VerdictValue.REVIEW_REQUIRED,
        RecommendedAction.ROUTE_TO_COMPLIANCE_QUEUE,
    )


def test_nothing_found_is_clean_only_if_all_was_screened() -> None:
    assert judge("r", "c", [], None).verdict is VerdictValue.NO_VIOLATION
    for reason in ("", "the audio ends after 12 of 90 s"):
        verdict = judge("r", "c", [], reason)
        assert verdict.verdict is VerdictValue.UNSCREENABLE
        assert verdict.recommended_action is RecommendedAction.CHECK_MEDIA


def test_the_evidence_of_a_single_moment_has_no_end() -> None:
    (hit,) = evaluate([finding(start_ms=12_000, end_ms=12_000)], Channel.CHAT, PACK)
    assert judge("r", "c", [hit], None).evidence_snippet == "recording:r#t=12.000"


def written(folder: Path, content: Any) -> Path:
    path = folder / "pack.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("severity", "awful", ["rule PCI-SAD-01", "severity"]),
        ("verdict", "NO_VIOLATION", ["rule PCI-SAD-01", "VIOLATION_DETECTED or REVIEW_REQUIRED"]),
        ("violation_type", "pci", ["rule PCI-SAD-01", "violation_type"]),
        ("when", {"kinds": ["card_number"], "min_confidence": 2}, ["rule PCI-SAD-01", "when.min_confidence"]),
        ("when", {"kinds": []}, ["rule PCI-SAD-01", "when.kinds"]),
        ("when", {"kinds": ["card_numbr"]}, ["rule PCI-SAD-01", "when.kinds.0"]),
        ("actions", ["tag"], ["rule PCI-SAD-01", "actions.0"]),
        ("color", "red", ["rule PCI-SAD-01", "color"]),
        ("id", "PCI-PAN-01", ["rule ids used twice: PCI-PAN-01"]),
        ("id", "lower", ["rule lower", "id"]),
        ("id", None, ["rule number 1", "id"]),
    ],
)
def test_a_wrong_rule_is_refused_by_name_and_field(tmp_path: Path, field: str, value: Any, says: list[str]) -> None:
    content = yaml.safe_load(DEFAULT_PACK.read_text())
    content["rules"][0][field] = value
    path = written(tmp_path, content)
    with pytest.raises(PolicyError) as refused:
        load_policy(path)
    assert all(word in str(refused.value) for word in [*says, str(path)])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("rules: [", "is not YAML"),
        ("", "refused"),
        ("- a\n- b", "refused"),
        ("rules: 3", "rules"),
        ("rules: [3]", "rule number 1"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("pack: p\nversion: one\nnotice: n\nrules: []", "version"),
    ],
)
def test_a_file_that_is_no_pack_is_refused(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        load_policy(written(tmp_path, content))


def test_a_missing_pack_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"absent\.yaml"):
        load_policy(tmp_path / "absent.yaml")
