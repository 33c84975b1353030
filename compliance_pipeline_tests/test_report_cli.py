"""`compliance report` says what the snapshot holds, in words and as JSON."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from compliance_pipeline.cli import app
from compliance_pipeline.ledger import ledger_table
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline_tests.workshop import Workshop, recording, workshop

runner = CliRunner()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    with workshop(tmp_path) as shop:
        monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
        yield shop


def ledger_rows(shop: Workshop) -> list[dict[str, Any]]:
    with shop.inbox.engine.connect() as connection:
        return [dict(row) for row in connection.execute(sa.select(ledger_table)).mappings()]


def test_before_anything_was_published_it_says_what_to_do(shop: Workshop) -> None:
    result = runner.invoke(app, ["report"])
    assert result.exit_code == 1
    assert "`compliance report --publish`" in " ".join(result.stderr.split())


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


def test_the_violations_shown_are_written_as_csv_and_parquet_and_the_ledger_knows(
    shop: Workshop, tmp_path: Path
) -> None:
    shop.announce(recording(Kind.CHAT_CARD), recording(Kind.CHAT_SSN), recording(Kind.CHAT_CLEAN))
    shop.run()
    text, table = tmp_path / "shown.csv", tmp_path / "shown.parquet"
    files = ["--csv", str(text), "--parquet", str(table)]
    shown = runner.invoke(app, ["report", "--publish", "--json", *files])
    assert shown.exit_code == 0, shown.output
    said = json.loads(shown.stdout)
    with text.open(newline="") as lines:
        written = list(csv.DictReader(lines))
    expected = sorted((row["rule_id"], row["recordings"]) for row in said["violations"])
    rules = [row["rule_id"] for row in written]
    assert sorted((rule, rules.count(rule)) for rule in set(rules)) == expected
    with duckdb.connect() as connection:
        query = f"SELECT recording_id, rule_id, masked FROM '{table}' ORDER BY ALL"
        found = connection.execute(query).fetchall()
    assert found == sorted((row["recording_id"], row["rule_id"], row["masked"]) for row in written)
    assert len(found) == len(written) > 0
    entries = [row for row in ledger_rows(shop) if row["kind"] == "export"]
    assert sorted(json.loads(row["details"])["rows"] for row in entries) == [len(written)] * 2
    assert {path.name for path in tmp_path.glob(".shown*")} == set()


def test_filters_are_the_pages(shop: Workshop, tmp_path: Path) -> None:
    shop.announce(recording(Kind.CHAT_CARD), recording(Kind.CHAT_SSN))
    shop.run()
    runner.invoke(app, ["report", "--publish"])

    def said(*options: str) -> dict[str, Any]:
        shown = runner.invoke(app, ["report", "--json", *options])
        assert shown.exit_code == 0, shown.output
        found: dict[str, Any] = json.loads(shown.stdout)
        return found

    everything = said()["violations"]
    first = everything[0]
    assert [row["rule_id"] for row in said("--rule", first["rule_id"])["violations"]] == [first["rule_id"]]
    of_severity = [row["rule_id"] for row in everything if row["severity"] == first["severity"]]
    assert [row["rule_id"] for row in said("--severity", first["severity"])["violations"]] == of_severity
    assert said("--agent", "tok_nobody")["counts"]["received"] == 0
    both = [said("--direction", direction)["counts"]["received"] for direction in ("inbound", "outbound")]
    assert sum(both) == said()["counts"]["received"] == 2


def test_a_folder_that_is_not_there_is_told_in_a_line(shop: Workshop, tmp_path: Path) -> None:
    shop.announce(recording(Kind.CHAT_CARD))
    shop.run()
    shown = runner.invoke(app, ["report", "--publish", "--csv", str(tmp_path / "nowhere" / "shown.csv")])
    assert shown.exit_code == 1
    assert "can't be read or written" in shown.stderr
