"""`compliance report` says what the snapshot holds, in words and as JSON."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compliance_pipeline.cli import app
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline_tests.workshop import Workshop, recording, workshop

runner = CliRunner()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    with workshop(tmp_path) as shop:
        monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
        yield shop


def test_before_anything_was_published_it_says_what_to_do(shop: Workshop) -> None:
    result = runner.invoke(app, ["report"])
    assert result.exit_code == 1
    assert "compliance report --publish" in result.stderr


def test_it_says_whether_the_promise_was_kept_where_the_time_went_and_what_was_found(shop: Workshop) -> None:
    shop.announce(recording(Kind.CHAT_CARD), recording(Kind.CHAT_SSN), recording(Kind.CHAT_CLEAN))
    shop.run()
    shop.announce(recording(Kind.CHAT_CARD, 2))
    shown = runner.invoke(app, ["report", "--publish"])
    assert shown.exit_code == 0, shown.output
    assert "100.00% of 2 were flagged within 30 s" in shown.output
    assert "3 of 4 recordings were judged" in shown.output
    assert "1 waiting" in shown.output
    assert "flagged" in shown.output
    said = json.loads(runner.invoke(app, ["report", "--json"]).output)
    assert (said["attainment"], said["counts"]["received"], said["coverage"]) == (1.0, 4, 0.75)
    found = {row["rule_id"]: (row["recordings"], row["screened"]) for row in said["violations"]}
    [expected] = shop.warehouse.select(
        "SELECT map_from_entries(list((rule_id, recordings))) AS n FROM violations_by_hour"
    )
    assert {rule: recordings for rule, (recordings, _) in found.items()} == expected["n"]


def test_a_filter_that_nothing_has_gives_an_empty_report(shop: Workshop) -> None:
    shop.announce(recording(Kind.CHAT_CARD))
    shop.run()
    shown = runner.invoke(app, ["report", "--publish", "--queue", "nowhere"])
    assert shown.exit_code == 0
    assert "Nothing was to be flagged; 0 of 0 recordings were judged" in shown.output
    assert "No violation was found." in shown.output
