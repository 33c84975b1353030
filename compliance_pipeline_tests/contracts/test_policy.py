"""The policy pack's model: what a rule may say. Loading a pack from YAML is screening/policy's."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.contracts.policy import Detector, PolicyPack, Rule, Severity, When

RULE: dict[str, Any] = {
    "id": "PCI-PAN-01",
    "title": "Card number",
    "basis": [{"cite": "PCI DSS 4.0.1, 3.5.1"}],
    "severity": "high",
    "violation_type": "PCI_MID_CAPTURE",
    "when": {"findings": {"kinds": ["card_number"]}},
    "actions": ["tag_recording"],
}
PACK: dict[str, Any] = {"pack": "default", "version": "1.0.0", "notice": "Not legal advice.", "rules": [RULE]}


def test_a_rule_looks_at_every_detector_and_channel_unless_it_says_otherwise() -> None:
    rule = Rule.model_validate(RULE)
    assert rule.when.findings is not None
    assert rule.when.findings.detectors == tuple(Detector)
    assert rule.when.findings.min_confidence == 0.5
    assert rule.channels == tuple(Channel)
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
        {"basis": []},
        {"basis": ["PCI DSS"]},
        {"basis": [{"cite": "PCI DSS", "verified": True}]},
        {"basis": [{"cite": "PCI DSS", "source": "https://example.com"}]},
        {"channels": []},
        {"applies": {"queue": ["a"]}},
        {"unless": {"mood": "good"}},
        {"examples": [{"expect": "maybe"}]},
        {"examples": [{"expect": "fired", "text": "no speaker here"}]},
        {"actions": []},
        {"actions": ["delete_recording"]},
        {"actions": ["tag_recording", "tag_recording"]},
        {"actions": [{"tag_recording": {"queue": "q"}}]},
        {"actions": [{"supervisor_callback": {"priority": "low"}}]},
        {"actions": [{"create_work_item": {"priority": "urgent"}}]},
        {"actions": [{"create_work_item": {"due_hours": 0}}]},
        {"actions": [{"create_work_item": {"due_hours": True}}]},
        {"actions": [{"create_work_item": {"queue": "  "}}]},
        {"actions": [{"notify": {"to": " "}}]},
        {"actions": [{"action": "notify", "to": "oncall"}]},
        {"actions": [{"action": "quarantine"}]},
        {"actions": [{"create_work_item": {"who": "me"}}]},
        {"actions": [{"create_work_item": None}]},
        {"actions": [{"create_work_item": {}, "quarantine": {}}]},
        {"actions": ["notify"]},
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


def test_an_action_is_a_name_or_has_parameters_and_is_written_as_it_was_read() -> None:
    written = [
        "tag_recording",
        "quarantine",
        {"create_work_item": {"queue": "fraud", "priority": "low", "due_hours": 24.0}},
        {"supervisor_callback": {"queue": "night"}},
        {"notify": {"to": "team"}},
    ]
    rule = Rule.model_validate(RULE | {"actions": written})
    assert rule.model_dump(mode="json")["actions"] == written
    assert Rule.model_validate_json(rule.model_dump_json()) == rule


def test_a_pack_without_parameters_keeps_the_version_under_which_verdicts_are_kept() -> None:
    assert '"actions":["tag_recording"]' in PolicyPack.model_validate(PACK).model_dump_json()


def test_two_rules_with_one_id_are_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="rule ids used twice: PCI-PAN-01"):
        PolicyPack.model_validate(PACK | {"rules": [RULE, RULE]})


def test_severities_rank_from_low_to_critical() -> None:
    assert sorted(Severity, key=lambda severity: severity.rank) == ["low", "medium", "high", "critical"]


@pytest.mark.parametrize(
    "when",
    [
        {},
        {"kinds": ["card_number"]},
        {"findings": {}},
        {"findings": {"kinds": ["passport"]}},
        {"findings": {"kinds": ["phrase"]}},
        {"findings": {"kinds": ["card_number"], "min_confidence": 1.5}},
        {"findings": {"kinds": ["card_number"], "speakers": ["robot"]}},
        {"absent": {"phrases": []}},
        {"absent": {"phrases": ["notice"], "within_s": 0}},
        {"together": {"one": {"kinds": ["health_id"]}, "within_s": 60}},
        {"sequence": {"first": {"phrases": ["a"]}, "at_least": 0, "then": {"phrases": ["b"]}}},
        {"metadata": {}},
        {"metadata": {"annotated": ["secure_pause"], "contacts": {"attempts_over": 7, "conversation_within_days": 7}}},
        {"metadata": {"started_outside": {"earliest": "8 in the morning", "latest": "21:00"}}},
        {"script": "findings.any()"},
    ],
)
def test_a_form_outside_the_closed_set_is_refused(when: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        When.model_validate(when)


def test_a_rule_may_name_only_phrases_of_the_lexicon() -> None:
    notice = {"description": "notice", "patterns": ["this call is recorded"]}
    rule = RULE | {"when": {"absent": {"phrases": ["notice"]}}, "unless": {"phrases": ["other"]}}
    with pytest.raises(ValidationError, match="rule PCI-PAN-01 names phrases that are not defined: other"):
        PolicyPack.model_validate(PACK | {"rules": [rule], "phrases": {"notice": notice}})
    PolicyPack.model_validate(PACK | {"rules": [rule], "phrases": {"notice": notice, "other": notice}})


def test_a_phrase_without_words_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs patterns or whole_message"):
        PolicyPack.model_validate(PACK | {"phrases": {"empty": {"description": "nothing"}}})


def test_the_lexicon_version_changes_with_the_phrases_and_not_with_the_rules() -> None:
    phrases = {"notice": {"description": "notice", "patterns": ["this call is recorded"]}}
    pack = PolicyPack.model_validate(PACK | {"phrases": phrases})
    other_rule = PolicyPack.model_validate(PACK | {"phrases": phrases, "rules": [RULE | {"severity": "low"}]})
    assert other_rule.lexicon_version == pack.lexicon_version
    assert other_rule.policy_version != pack.policy_version
    phrases["notice"]["patterns"] = ["this call is taped"]
    assert PolicyPack.model_validate(PACK | {"phrases": phrases}).lexicon_version != pack.lexicon_version
