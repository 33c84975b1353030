"""What people are told of besides breakers: each once, by the same notifier."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.events import DagsterEvent, DagsterEventType
from pydantic import SecretStr

from compliance_pipeline import canaries, database
from compliance_pipeline.alerts import Alert, by_figures, due_alerts, given_up, missed_canaries, send_due
from compliance_pipeline.canaries import Outcome, canary_table
from compliance_pipeline.contracts.event import CANARY, EventType
from compliance_pipeline.figures.snapshots import Snapshot, folder_of, publish
from compliance_pipeline.intake.hours import hour_of, partition_hour
from compliance_pipeline.intake.inbox import Inbox, IncomingEvent
from compliance_pipeline.objective import Objective
from compliance_pipeline.orchestration.alerting import WILL_RETRY, failed_runs, others
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.tables import SweepRow
from compliance_pipeline_tests.platforms.loopback import Reply, Server
from compliance_pipeline_tests.workshop import Workshop, incoming, recording, workshop

NOW = datetime(2026, 3, 1, 12, 10, tzinfo=UTC)


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    inbox = Inbox(f"sqlite:///{tmp_path / 'inbox.db'}")
    inbox.create()
    yield inbox
    inbox.close()


def put_in(engine: sa.Engine, number: int, at: datetime, outcome: Outcome | None, channel: str = "chat") -> None:
    database.ensure(engine, canary_table)
    with engine.begin() as connection:
        connection.execute(
            canary_table.insert().values(
                recording_id=f"canary-{number}", rule_id="PCI-PAN-01", channel=channel, hour=at, injected_at=at,
                outcome=outcome, seconds=120.0 if outcome is Outcome.LATE else None,
            )
        )  # fmt: skip


def test_a_missed_canary_is_told_once_a_day_for_its_rule_and_channel(inbox: Inbox, media_host: Server) -> None:
    urls = {"alerts": SecretStr(f"json://{media_host.url.removeprefix('http://')}/hook")}
    media_host.plan("POST", "/hook", Reply(200), Reply(200))
    put_in(inbox.engine, 1, NOW - timedelta(hours=2), Outcome.FLAGGED)
    put_in(inbox.engine, 2, NOW - timedelta(hours=1), None)
    assert send_due(inbox.engine, urls, NOW) == "Nothing to tell."
    put_in(inbox.engine, 3, NOW - timedelta(minutes=30), Outcome.MISSED)
    put_in(inbox.engine, 4, NOW - timedelta(minutes=20), Outcome.WRONG)
    assert send_due(inbox.engine, urls, NOW) == "1 alerts told."
    put_in(inbox.engine, 5, NOW - timedelta(minutes=10), Outcome.LATE)
    assert send_due(inbox.engine, urls, NOW) == "Nothing to tell."
    put_in(inbox.engine, 6, NOW - timedelta(minutes=5), Outcome.LATE, "voice")
    assert send_due(inbox.engine, urls, NOW) == "1 alerts told."
    first, second = media_host.asked
    assert first.json["title"] == "Canary of PCI-PAN-01 missed (chat)"
    assert "was flagged after 120 s" in second.json["message"]
    assert missed_canaries(inbox.engine, NOW + timedelta(days=2)) == [], "of use to somebody yesterday"
    assert len(canaries.missed(inbox.engine, NOW - timedelta(hours=1))) == 4


def test_dead_letters_are_told_once_in_half_an_hour_and_those_of_canaries_not_at_all(inbox: Inbox) -> None:
    assert given_up(inbox.engine, NOW) == []
    for seed in (1, 2, 3):
        event = incoming(recording(Kind.CHAT_CLEAN, seed), EventType.AVAILABLE, NOW)
        inbox.store([IncomingEvent(event.event, CANARY, "x", NOW) if seed == 3 else event], NOW)
    for item in inbox.claim(partition_hour(NOW), "run", NOW, timedelta(minutes=1), 9):
        inbox.dead(item.recording_id, "run", "gave up after 12 tries: 404", NOW)
    [alert] = given_up(inbox.engine, NOW)
    assert alert.title == "Recordings were given up on"
    assert alert.text.startswith("2 since 2026-03-01 12:00 UTC. Of most: gave up after 12 tries: 404.")
    assert due_alerts(inbox.engine, NOW) == [alert]
    assert due_alerts(inbox.engine, NOW) == [], "claimed"
    later = NOW + timedelta(minutes=45)
    inbox.store([incoming(recording(Kind.CHAT_CLEAN, 1), EventType.AVAILABLE, NOW)], later)
    assert given_up(inbox.engine, later) == [alert], "a repeat of its event is no news"


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path) as shop:
        yield shop


def of_figures(shop: Workshop, objective: Objective, share: float = 0.01) -> list[Alert]:
    folder, now = folder_of(shop.pipeline.settings.home), shop.clock()
    publish(shop.warehouse, shop.inbox, folder, objective, now)
    snapshot = Snapshot.current(folder)
    try:
        return by_figures(snapshot, objective, share, now)
    finally:
        snapshot.close()


def test_a_budget_that_burns_is_told_by_its_window_and_one_that_does_not_is_not(shop: Workshop) -> None:
    shop.announce(recording(Kind.CHAT_CARD), recording(Kind.CHAT_SSN))
    shop.run()
    assert of_figures(shop, Objective(3600.0)) == []
    told = of_figures(shop, Objective(0.0001))
    assert {alert.key.partition("@")[0] for alert in told} >= {"burn:1 h / 5 min", "burn:6 h / 30 min"}
    assert {alert.key for alert in of_figures(shop, Objective(0.0001))} == {alert.key for alert in told}
    assert "100.0 times too fast" in told[0].title


def test_what_the_sweep_alone_found_is_told_from_the_share_on_that_was_set(shop: Workshop) -> None:
    hour = hour_of(partition_hour(shop.clock())) - timedelta(hours=1)
    swept = SweepRow(
        partition_hour=hour, swept_at=shop.clock(), at_source=200, judged=200, in_the_works=0, not_recorded=0,
        given_up=0, missing=0, found_by_sweep=3, run_id="run",
    )  # fmt: skip
    shop.warehouse.append([swept])
    assert of_figures(shop, Objective(30.0), 0.015) == []
    [alert] = of_figures(shop, Objective(30.0), 0.0149)
    assert alert.key == f"sweep:{hour.isoformat()}"
    assert "3 of 200 recordings" in alert.text


def test_a_run_that_failed_for_good_is_told_and_one_that_will_be_retried_is_not(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:

        def fail(job: str, retried: str | None) -> str:
            tags = {} if retried is None else {WILL_RETRY: retried}
            run = dg.DagsterRun(job_name=job, run_id=str(uuid.uuid4()), tags=tags, status=dg.DagsterRunStatus.STARTED)
            instance.add_run(run)
            event = DagsterEvent(event_type_value=DagsterEventType.RUN_FAILURE.value, job_name=job)
            instance.report_dagster_event(event, run.run_id)
            if tags:
                instance.add_run_tags(run.run_id, tags)
            return run.run_id

        fail("flag_recordings", "true")
        now = datetime.now(UTC)
        assert failed_runs(instance, "http://dagster", now) == []
        fail("reconcile", "false")
        newest = fail("reconcile", None)
        assert failed_runs(instance, "http://dagster", now) == [], "whether it will be retried is not said yet"
        now += timedelta(seconds=10)
        found = failed_runs(instance, "http://dagster", now)
        assert {alert.title for alert in found} == {"reconcile failed"}
        assert found[0].text.endswith(f"http://dagster/runs/{newest}")
        assert failed_runs(instance, "http://dagster", now + timedelta(days=2)) == []


def test_what_cannot_be_asked_keeps_nobody_from_being_told_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(home=tmp_path)
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "current.json").write_text("{4111 1111 1111 1111")
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        run = dg.DagsterRun(job_name="reconcile", run_id=str(uuid.uuid4()), status=dg.DagsterRunStatus.STARTED)
        instance.add_run(run)
        event = DagsterEvent(event_type_value=DagsterEventType.RUN_FAILURE.value, job_name=run.job_name)
        instance.report_dagster_event(event, run.run_id)
        told = others(instance, settings, datetime.now(UTC) + timedelta(seconds=10))
        assert [alert.title for alert in told] == ["reconcile failed"]
    assert "alerts of figures can't be had: JSONDecodeError" in caplog.text
    assert "4111" not in caplog.text
