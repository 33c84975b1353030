"""The policy pack's model: what a rule may say. Loading a pack from YAML is screening/policy's."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.contracts.policy import Detector, PolicyPack, Rule, Severity

RULE: dict[str, Any] = {
    "id": "PCI-PAN-01",
    "title": "Card number",
    "basis": "PCI DSS 4.0.1, 3.5.1",
    "severity": "high",
    "violation_type": "PCI_MID_CAPTURE",
    "when": {"kinds": ["card_number"]},
    "actions": ["tag_recording"],
}
PACK: dict[str, Any] = {"pack": "default", "version": "1.0.0", "notice": "Not legal advice.", "rules": [RULE]}


def test_a_rule_looks_at_every_detector_and_channel_unless_it_says_otherwise() -> None:
    rule = Rule.model_validate(RULE)
    assert rule.when.detectors == tuple(Detector)
    assert rule.when.channels == tuple(Channel)
    assert rule.when.min_confidence == 0.5
    assert rule.verdict == "VIOLATION_DETECTED"


def test_the_policy_version_names_pack_and_version_and_changes_with_the_content() -> None:
    version = PolicyPack.model_validate(PACK).policy_version
    assert re.fullmatch(r"default@1\.0\.0\+[0-9a-f]{8}", version)
    assert PolicyPack.model_validate(PACK).policy_version == version
    assert PolicyPack.model_validate(PACK | {"notice": "another"}).policy_version != version


@pytest.mark.parametrize(
    "change",
    [
        {"id": "PAN"},
        {"id": "pci-pan-01"},
        {"severity": "dreadful"},
        {"violation_type": "pci"},
        {"when": {"kinds": []}},
        {"when": {"kinds": ["passport"]}},
        {"when": {"kinds": ["card_number"], "min_confidence": 1.5}},
        {"when": {"kinds": ["card_number"], "chanels": ["voice"]}},
        {"actions": []},
        {"actions": ["delete_recording"]},
        {"verdict": "NO_VIOLATION"},
        {"verdict": "UNSCREENABLE"},
        {"weight": 3},
    ],
)
def test_a_rule_outside_the_model_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rule.model_validate(RULE | change)


@pytest.mark.parametrize("change", [{"version": "1.0"}, {"pack": "My Pack"}, {"rules": []}, {"notice": None}])
def test_a_pack_outside_the_model_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PolicyPack.model_validate(PACK | change)


def test_two_rules_with_one_id_are_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="rule ids used twice: PCI-PAN-01"):
        PolicyPack.model_validate(PACK | {"rules": [RULE, RULE]})


def test_severities_rank_from_low_to_critical() -> None:
    assert sorted(Severity, key=lambda severity: severity.rank) == ["low", "medium", "high", "critical"]
