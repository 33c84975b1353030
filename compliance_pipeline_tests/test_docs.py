"""The README says what is true."""

import re
import subprocess
from pathlib import Path

from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline.settings import Settings
from compliance_pipeline_tests.faults import table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_configuration_table_names_every_setting_and_no_other() -> None:
    named = set(re.findall(r"^\| `COMPLIANCE_(\w+)`", README, re.MULTILINE))
    assert named == {name.upper() for name in Settings.model_fields}


def test_the_table_of_rules_is_the_default_pack() -> None:
    assert re.findall(r"^\| ([A-Z][A-Z0-9]*-[A-Z0-9]+-\d+) \|", README, re.MULTILINE) == [
        rule.id for rule in sorted(load_policy().rules, key=lambda rule: README.find(f"| {rule.id} |"))
    ]


def test_every_link_to_a_file_leads_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_make_target_of_the_readme_exists() -> None:
    for target in set(re.findall(r"make ([\w-]+)", README)):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = set(re.findall(r"`([\w/]*test_\w+\.py)`", (ROOT / "docs" / "threat-model.md").read_text()))
    assert len(named) > 10
    there = {path.name for path in (ROOT / "compliance_pipeline_tests").rglob("test_*.py")}
    assert {Path(name).name for name in named} <= there


def test_the_table_of_faults_is_what_their_tests_say_of_themselves() -> None:
    said = table.PAGE.read_text()
    assert table.page(said) == said, "python -m compliance_pipeline_tests.faults.table makes it anew"
