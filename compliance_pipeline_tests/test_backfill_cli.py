"""`compliance backfill`: what it refuses, and what it says of it. What it does: end_to_end/test_backfill.py."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from compliance_pipeline import backfill_cli
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.orchestration.backfills import hours_between
from compliance_pipeline.settings import Settings
from compliance_pipeline.stack import environment, free_port
from compliance_pipeline_tests.intake.conftest import postgres_uri as postgres_uri  # a fixture
from compliance_pipeline_tests.intake.samples import incoming

NOW = datetime(2026, 11, 20, 14, 20, tzinfo=UTC)


def hours(start: str, end: str | None = None) -> tuple[str, ...]:
    return backfill_cli._hours(start, end, NOW)


@pytest.mark.parametrize(
    "start", ["2026-11-20T11:00Z", "2026-11-20T11:30Z", "2026-11-20T11", "2026-11-20 11:00", "2026-11-20-11:00"]
)
def test_a_time_can_be_written_as_people_and_as_dagster_write_it(start: str) -> None:
    assert hours(start, "2026-11-20T13:00Z") == ("2026-11-20-11:00", "2026-11-20-12:00")


def test_without_an_end_it_goes_up_to_the_hour_under_way_and_not_into_it() -> None:
    assert hours("2026-11-20")[-1] == "2026-11-20-13:00"
    assert len(hours("2026-11-20")) == 14


def test_hours_that_have_begun_count() -> None:
    start, end = datetime(2026, 11, 20, 11, 59, tzinfo=UTC), datetime(2026, 11, 20, 12, 1, tzinfo=UTC)
    assert hours_between(start, end) == ("2026-11-20-11:00", "2026-11-20-12:00")
    assert hours_between(start, start.replace(hour=12, minute=0)) == ("2026-11-20-11:00",)


@pytest.mark.parametrize(
    ("start", "end", "why"),
    [
        ("yesterday", None, "'yesterday' is no time; write it as 2026-11-20T14:00Z"),
        ("2026-11-20", "2026-11-20T15:00Z", "at most 2026-11-20T14:00Z now, 2026-11-20T15:00Z from 15:00 UTC on"),
        ("2026-11-20T14:00Z", None, "no hour that has ended"),
        ("2026-11-20T12:00Z", "2026-11-20T11:00Z", "no hour that has ended"),
        ("2025-12-31", "2026-01-02", "no hours before 2026-01-01T00:00Z"),
    ],
)
def test_a_bad_range_is_refused_with_what_to_write(start: str, end: str | None, why: str) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        hours(start, end)
    assert why in refused.value.message


def test_without_a_running_dagster_it_says_what_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    app = typer.Typer()
    app.command()(backfill_cli.backfill)
    said = CliRunner().invoke(app, ["--from", "2026-11-20", "--to", "2026-11-21"])
    assert said.exit_code == 1
    assert "start it with `compliance up`" in " ".join(said.output.split())


def test_beside_an_inbox_in_postgres_it_finds_dagsters_runs_as_compliance_up_does(
    tmp_path: Path, postgres_uri: str
) -> None:
    up = environment(Settings(home=tmp_path, inbox_url=postgres_uri), code_port=free_port(), web_port=1)
    inbox = Inbox(postgres_uri)
    inbox.create()
    inbox.store([incoming("backfill-1")], NOW)
    inbox.close()
    own = {name: value for name, value in up.items() if not name.startswith("DAGSTER_")}
    command = "import typer; from compliance_pipeline.backfill_cli import backfill; typer.run(backfill)"
    said = subprocess.run(
        [sys.executable, "-c", command, "--from", "2026-03-01T12:00Z", "--to", "2026-03-01T13:00Z", "--no-wait"],
        env=own | {"COMPLIANCE_INBOX_URL": postgres_uri}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "Dagster's code server does not answer" in " ".join(said.stderr.split()), said.stderr
