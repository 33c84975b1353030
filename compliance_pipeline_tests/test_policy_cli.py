"""`compliance policy`: check, explain, test; faults in one line each, exit codes, help that teaches."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from compliance_pipeline.policy_cli import app
from compliance_pipeline.screening.policy import DEFAULT_PACK, load_policy

runner = CliRunner()


def written(folder: Path, content: Any) -> str:
    path = folder / "pack.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def packaged() -> Any:
    return yaml.safe_load(DEFAULT_PACK.read_text())


@pytest.mark.parametrize("name", ["check", "explain", "test", "diff", "promote", "history"])
def test_the_help_of_a_command_has_an_example_of_it(name: str) -> None:
    assert f"compliance policy {name}" in get_command(app).commands[name].help  # type: ignore[attr-defined]
    assert name in runner.invoke(app, ["--help"]).output


def test_the_packaged_pack_is_well_formed_and_its_unverified_citations_are_counted() -> None:
    shown = runner.invoke(app, ["check"])
    assert shown.exit_code == 0
    pack = load_policy()
    citations = [citation for rule in pack.rules for citation in rule.basis]
    unverified = sum(not citation.verified for citation in citations)
    assert pack.policy_version in shown.output
    assert f"{unverified} of {len(citations)} citations unverified" in " ".join(shown.output.split())


def test_each_fault_of_a_pack_is_a_line_with_rule_and_field(tmp_path: Path) -> None:
    content = packaged()
    content["rules"][0]["severity"] = "awful"
    content["rules"][3]["when"]["findings"]["min_confidence"] = 2
    content["phrases"]["threat"]["patterns"] = 3
    shown = runner.invoke(app, ["check", written(tmp_path, content)])
    assert shown.exit_code == 1
    lines = [line for line in shown.output.splitlines() if line.startswith("error:")]
    assert len(lines) == 3
    assert any("rule PCI-SAD-01, severity:" in line for line in lines)
    assert any("rule PCI-PAN-01, when.findings.min_confidence:" in line for line in lines)
    assert any("phrase threat, patterns:" in line for line in lines)


def test_a_pattern_that_cannot_be_read_is_a_fault_of_its_phrase(tmp_path: Path) -> None:
    content = packaged()
    content["phrases"]["threat"]["patterns"] = ["we will (sue|arrest you"]
    shown = runner.invoke(app, ["check", written(tmp_path, content)])
    assert shown.exit_code == 1
    assert "phrase threat: pattern 'we will (sue|arrest you': ) is missing" in shown.output


def test_explaining_shows_every_rule_the_mark_of_unverified_citations_and_the_notice() -> None:
    shown = runner.invoke(app, ["explain"])
    assert shown.exit_code == 0
    for rule in load_policy().rules:
        assert rule.id in shown.output
    assert "(unverified)" in shown.output
    assert "Not legal advice" in shown.output


def test_explaining_one_rule_shows_it_alone_in_words() -> None:
    shown = runner.invoke(app, ["explain", "rec-consent-01"])
    assert shown.exit_code == 0
    assert "PCI-PAN-01" not in shown.output
    words = " ".join(word for word in shown.output.split() if word != "│")
    assert "30 s of the" in words
    assert "notice that the" in words


def test_a_rule_for_some_queues_says_which_and_what_else_makes_it_apply(tmp_path: Path) -> None:
    content = packaged()
    rule = next(rule for rule in content["rules"] if rule["id"] == "FDCPA-THREAT-01")
    rule["applies"] = {"queues": ["a*"], "except_queues": ["ab*"], "or_said": ["debt_talk"]}
    content["rules"] = [rule]
    shown = runner.invoke(app, ["explain", written(tmp_path, content)])
    when = " ".join(line.split("│")[3].strip() for line in shown.output.splitlines() if line.startswith("│"))
    assert "queues a*; not queues ab*, or talk of a debt" in when


def test_a_verified_citation_is_not_marked() -> None:
    assert "(unverified)" not in runner.invoke(app, ["explain", "FDCPA-7IN7-01"]).output


def test_another_pack_and_a_rule_of_it_can_be_explained(tmp_path: Path) -> None:
    content = packaged()
    content["rules"] = content["rules"][:2]
    content["pack"] = "mine"
    path = written(tmp_path, content)
    shown = runner.invoke(app, ["explain", path, "PCI-SAD-02"])
    assert shown.exit_code == 0
    assert "mine@" in shown.output
    assert "PCI-SAD-01" not in shown.output
    assert runner.invoke(app, ["explain", path, "PCI-PAN-01"]).exit_code == 2
    assert runner.invoke(app, ["explain", path, path + "2"]).exit_code == 2


def test_the_examples_of_the_packaged_pack_hold() -> None:
    shown = runner.invoke(app, ["test"])
    assert shown.exit_code == 0, shown.output
    assert " 0 failed" in shown.output
    assert "no examples" not in shown.output


def test_an_example_that_does_not_hold_is_told_and_fails(tmp_path: Path) -> None:
    content = packaged()
    rule = next(rule for rule in content["rules"] if rule["id"] == "FDCPA-THREAT-01")
    rule["examples"] = [{"expect": "fired", "text": "agent: we will not sue you", "facts": {"queue": "Collections"}}]
    content["rules"] = [rule, {**content["rules"][0], "examples": []}]
    shown = runner.invoke(app, ["test", written(tmp_path, content)])
    assert shown.exit_code == 1
    assert "FDCPA-THREAT-01, example 1: expected fired, was passed" in shown.output
    assert "no examples  PCI-SAD-01" in shown.output
    assert "1 examples, 1 failed" in shown.output


def test_a_missing_pack_is_one_line(tmp_path: Path) -> None:
    shown = runner.invoke(app, ["test", str(tmp_path / "absent.yaml")])
    assert shown.exit_code == 1
    assert "absent.yaml" in shown.output


def test_a_what_if_and_a_reason_for_none_are_not_both_taken() -> None:
    refused = runner.invoke(app, ["promote", "any.yaml", "--diff", "1f2e3d4c5b6a", "--without-diff", "in haste"])
    assert refused.exit_code == 2
    assert "not both" in " ".join(refused.output.split())
