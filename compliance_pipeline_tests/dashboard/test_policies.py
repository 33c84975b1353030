"""Policies: which rules judge, and how often they were right."""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from compliance_pipeline.dashboard import policies
from compliance_pipeline.dashboard.pages import LEAST_REVIEWED
from compliance_pipeline.figures.figures import Filter, wilson
from compliance_pipeline.screening.policy import DEFAULT_PACK, load_policy
from compliance_pipeline_tests.dashboard.boards import END, POLICIES
from compliance_pipeline_tests.dashboard.lists import Home, home_at, link, text

WEEK = Filter(END - timedelta(days=7), END)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("policies")
    with home_at(folder / "home", policy=folder / "pack.yaml") as made:
        yield made


@pytest.fixture(autouse=True)
def pack(home: Home) -> None:
    path = home.settings.policy
    assert path
    path.write_bytes(DEFAULT_PACK.read_bytes())


def test_the_live_pack_is_named_beside_what_judged_last(home: Home) -> None:
    html = home.get("/policies?range=30d")
    page = text(html)
    live = load_policy(home.settings.policy).policy_version
    assert f"{live} is live" in page
    assert "It has judged nothing in this window" in page
    assert f"last was {POLICIES[1]}" in page
    assert link(html, POLICIES[1]) is not None


def test_a_pack_that_changes_is_read_anew_and_one_that_is_broken_is_told(home: Home) -> None:
    path = home.settings.policy
    assert path
    path.write_text(path.read_text().replace("\nversion: 0.3.0", "\nversion: 0.9.9"))
    assert "default-us-eu@0.9.9+" in text(home.get("/policies"))
    path.write_text("rules: [")
    page = text(home.get("/policies"))
    assert "The policy pack can't be used" in page
    assert "PCI-PAN-01" in page


def test_each_rule_has_its_rate_and_its_precision_where_enough_is_reviewed(home: Home) -> None:
    page = text(home.get("/policies?range=30d"))
    for rule_id in ("PCI-PAN-01", "FDCPA-THREAT-01"):
        rows = home.violations(f"rule_id = '{rule_id}'")
        confirmed, dismissed = (sum(row["review"] == word for row in rows) for word in ("confirmed", "dismissed"))
        reviewed = confirmed + dismissed
        assert ("of" if reviewed >= LEAST_REVIEWED else "not yet known") + f" {reviewed:,} reviewed" in page


def test_too_few_reviews_make_no_precision(home: Home) -> None:
    page = text(home.get("/policies?from=2026-05-30T00:00Z&to=2026-05-30T12:00Z"))
    assert "not yet known 0 reviewed" in page


def test_undecided_recordings_are_counted_by_rule(home: Home) -> None:
    html = home.get("/policies?range=30d&channel=email")
    judged = home.snapshot.rows(
        "SELECT count(*) AS n FROM read_parquet($interactions) "
        "WHERE status = 'judged' AND channel = 'email' AND list_contains(undetermined_rules, 'REC-CONSENT-01')",
        home.violations()[-1]["partition_hour"], home.snapshot.manifest.data_to,
    )[0]["n"]  # fmt: skip
    [line] = [row for row in html.split("<tr>") if 'class="id">REC-CONSENT-01<' in row]
    assert judged
    assert text(line.split("<td")[-1].partition(">")[2]).split()[0] == f"{judged:,}"


def test_the_number_of_a_rule_leads_to_its_violations(home: Home) -> None:
    html = home.get("/policies?range=30d&queue=sales")
    rows = home.violations("rule_id = 'PCI-PAN-01' AND queue = 'sales'")
    assert link(html, f"{len(rows)} violations of PCI-PAN-01") == "/violations?range=30d&queue=sales&rule=PCI-PAN-01"


def test_rules_that_found_nothing_are_listed_too() -> None:
    found = policies.lines(load_policy(), [], {}, WEEK, {})
    assert len(found) == len(load_policy().rules)
    assert {line.figure for line in found} == {None}


def test_a_rule_that_found_nothing_is_told_of_how_many_its_version_judged_in_its_channels(home: Home) -> None:
    rule = load_policy().rules[0].model_copy(update={"id": "NEW-01"})
    found = policies.screened(home.snapshot, [rule], POLICIES[1], WEEK)
    judged = home.snapshot.rows(
        "SELECT count(*) AS n FROM read_parquet($interactions) WHERE status = 'judged' AND policy_version = $version "
        "AND list_contains($channels, channel)",
        WEEK.start, WEEK.end, version=POLICIES[1], channels=[str(one) for one in rule.channels],
    )[0]["n"]  # fmt: skip
    assert judged
    assert found == {"NEW-01": judged}
    assert policies.screened(home.snapshot, [rule], POLICIES[1], replace(WEEK, policy_version=(POLICIES[0],))) == {}
    line = policies.Line("NEW-01", "high", "NEW", rule, None, 0, judged)
    interval = wilson(0, judged)
    assert interval
    assert line.highest == interval[1]


def test_what_the_page_cannot_filter_by_changes_nothing_on_it(home: Home) -> None:
    rows = re.compile(r"<tbody>.*</tbody>", re.DOTALL)
    plain, other = (home.get(f"/policies?range=30d{more}") for more in ("", "&rule=PCI-PAN-01&agent=nobody"))
    assert 'class="chips"' not in other
    assert text(rows.findall(plain)[0]) == text(rows.findall(other)[0])
    assert "rule=PCI-PAN-01" in link(other, "Violations")  # type: ignore[operator]
