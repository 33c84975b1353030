"""Live recall where people look for it: on the operations page and in the terminal."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from compliance_pipeline import database
from compliance_pipeline.canaries import Outcome, canary_table
from compliance_pipeline.canary_cli import canaries
from compliance_pipeline.clock import utc_now
from compliance_pipeline.dashboard.operations import live_recall
from compliance_pipeline_tests.dashboard.boards import END
from compliance_pipeline_tests.dashboard.lists import Home, home_at, text

app = typer.Typer()
app.command()(canaries)


def fill(url: str, end: datetime) -> None:
    """Of 48 hours: a rule that missed an e-mail in either day, and a rule without fault."""
    engine = database.connect(url)
    database.ensure(engine, canary_table)
    rows: list[dict[str, object]] = [
        {
            "recording_id": f"canary-{rule}-{channel}-{number}", "rule_id": rule, "channel": channel,
            "hour": end - timedelta(hours=number + 1), "injected_at": end - timedelta(hours=number + 1),
            "outcome": Outcome.FLAGGED, "seconds": 2.0 + number / 100,
        }
        for rule, channels in (("PCI-PAN-01", ("voice", "chat", "email")), ("CALL-TIME-01", ("voice",)))
        for channel in channels
        for number in range(48)
    ]  # fmt: skip
    for row in rows:
        if row["recording_id"] in ("canary-PCI-PAN-01-email-3", "canary-PCI-PAN-01-email-30"):
            row |= {"outcome": Outcome.MISSED, "seconds": None}
    with engine.begin() as connection:
        connection.execute(canary_table.insert(), rows)
    engine.dispose()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with home_at(tmp_path_factory.mktemp("canaries") / "home") as made:
        yield made


def test_the_page_says_so_while_there_are_none_and_then_what_each_rule_missed(home: Home) -> None:
    assert "None was put in during the last seven days." in text(home.get("/operations"))
    url = home.settings.inbox_database_url
    fill(url, END)
    engine = database.connect(url)
    worst, best = live_recall(engine, END)
    engine.dispose()
    assert (worst.rule_id, best.rule_id) == ("PCI-PAN-01", "CALL-TIME-01"), "those with a miss come first"
    assert (worst.day.canaries, worst.day.flagged) == (72, 71)
    assert (worst.week.canaries, worst.week.flagged) == (144, 142)
    assert worst.week.newest_miss == END - timedelta(hours=4)
    assert (best.week.p95_s, best.day.p95_s) == (2.45, 2.22)
    page = text(home.get("/operations"))
    assert "PCI-PAN-01 24 of 24 24 of 24 23 of 24 98.6%" in page
    assert "CALL-TIME-01 24 of 24 – – 100.0% 2.22 s 100.0% 2.45 s none" in page


def test_the_terminal_says_the_same_and_fails_where_one_was_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    runner = CliRunner()
    nothing = runner.invoke(app, [])
    assert nothing.exit_code == 0, nothing.output
    assert "0 of 0 canaries were flagged in time." in nothing.output
    assert "FDCPA-7IN7-01/voice" in nothing.output
    fill(f"sqlite:///{tmp_path / 'inbox.db'}", utc_now())
    shown = runner.invoke(app, [])
    assert shown.exit_code == 1
    assert "91 of 92 canaries" in shown.output
    document = json.loads(runner.invoke(app, ["--json", "--hours", "168"]).output)
    assert document["canaries"] == 192
    assert document["recall"] == pytest.approx(190 / 192)
    assert document["rules"]["PCI-PAN-01"]["channels"]["email"]["flagged"] == 46
    assert document["rules"]["CALL-TIME-01"]["newest_miss"] is None
