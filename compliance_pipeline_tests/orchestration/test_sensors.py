"""The sensor over a real inbox and a real Dagster instance: which runs it asks for, and when it holds."""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteRepositoryOrigin
from hypothesis import given
from hypothesis import strategies as st

from compliance_pipeline.breaker import PROBES, RESET_S, admitted, circuit_breaker, tell
from compliance_pipeline.clock import utc_now
from compliance_pipeline.contracts.event import EventType
from compliance_pipeline.definitions import compliance_pipeline
from compliance_pipeline.intake.hours import partition_hour
from compliance_pipeline.intake.inbox import Inbox, PartitionWork
from compliance_pipeline.orchestration.partitions import hourly
from compliance_pipeline.orchestration.sensors import (
    OFFER_AGAIN,
    alert_sensor,
    flag_recordings,
    look,
    recording_sensor,
    run_key,
)
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.screening.engine import ENGINE_BREAKER
from compliance_pipeline.steps import TRIGGER_TAG, TRIGGERED_BY_INBOX
from compliance_pipeline_tests.intake.test_breaker import shifted
from compliance_pipeline_tests.platforms.loopback import Reply, Server
from compliance_pipeline_tests.workshop import incoming, recording

SHORT_S = 0.2
LEASE = timedelta(minutes=2)
ORIGIN = RemoteRepositoryOrigin(GrpcServerCodeLocationOrigin(host="127.0.0.1", port=4266), "__repository__")


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    inbox = Inbox(f"sqlite:///{tmp_path / 'inbox.db'}")
    inbox.create()
    yield inbox
    inbox.close()


@pytest.fixture(scope="module")
def dagster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("dagster"))) as instance:
        yield instance


@pytest.fixture
def instance(dagster: dg.DagsterInstance) -> dg.DagsterInstance:
    """An instance without runs."""
    for record in dagster.get_run_records():
        dagster.delete_run(record.dagster_run.run_id)
    return dagster


def announce(
    inbox: Inbox, seed: int = 1, available_at: datetime | None = None, stored_at: datetime | None = None
) -> str:
    """One recording's event; returns its partition."""
    now = stored_at or utc_now()
    event = incoming(recording(Kind.CHAT_CLEAN, seed), EventType.AVAILABLE, available_at or now)
    inbox.store([event], now)
    return partition_hour(event.available_at)


def wanted(found: dg.SensorResult | dg.SkipReason) -> list[dg.RunRequest]:
    assert isinstance(found, dg.SensorResult), found
    return list(found.run_requests or [])


def in_flight(
    instance: dg.DagsterInstance, partition: str, status: dg.DagsterRunStatus, started_s_ago: float | None = None
) -> None:
    """A run of the job for the partition, as the instance's storage knows it."""
    run = dg.DagsterRun(
        job_name=flag_recordings.name,
        run_id=str(uuid.uuid4()),
        status=dg.DagsterRunStatus.NOT_STARTED if started_s_ago is not None else status,
        tags={"dagster/partition": partition, TRIGGER_TAG: TRIGGERED_BY_INBOX},
        remote_job_origin=ORIGIN.get_job_origin(flag_recordings.name),
    )
    instance.add_run(run)
    if started_s_ago is not None:
        event = DagsterEvent(event_type_value=DagsterEventType.RUN_START.value, job_name=run.job_name)
        instance.report_dagster_event(event, run.run_id, timestamp=time.time() - started_s_ago)


def test_it_asks_for_one_run_a_partition_newest_first(inbox: Inbox, instance: dg.DagsterInstance) -> None:
    now = utc_now()
    hours = [announce(inbox, seed, now - timedelta(hours=seed)) for seed in (3, 1, 2)]
    announce(inbox, 4, now - timedelta(hours=2))
    requests = wanted(look(inbox, instance, SHORT_S))
    assert [request.partition_key for request in requests] == sorted(hours, reverse=True)
    for request in requests:
        assert request.tags[TRIGGER_TAG] == TRIGGERED_BY_INBOX
        assert int(request.tags["dagster/priority"]) > 0
        assert hourly.has_partition_key(request.partition_key or "")
    assert len({request.run_key for request in requests}) == 3


def test_the_sensor_itself_finds_the_inbox_by_the_settings(
    inbox: Inbox, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    partition = announce(inbox)
    repository = compliance_pipeline().get_repository_def()
    with dg.build_sensor_context(instance=instance, repository_def=repository) as context:
        tick = recording_sensor.evaluate_tick(context)
    assert [request.partition_key for request in tick.run_requests or []] == [partition]


def test_a_tick_that_is_evaluated_twice_asks_for_the_same_run(inbox: Inbox, instance: dg.DagsterInstance) -> None:
    announce(inbox)
    first, second = (wanted(look(inbox, instance, SHORT_S)) for _ in range(2))
    assert [request.run_key for request in first] == [request.run_key for request in second]


def test_it_takes_nothing_itself(inbox: Inbox, instance: dg.DagsterInstance) -> None:
    partition = announce(inbox)
    wanted(look(inbox, instance, SHORT_S))
    assert len(inbox.claim(partition, "run", utc_now(), LEASE, 10)) == 1


def test_nothing_due_is_a_skip_with_a_reason_after_the_hold(inbox: Inbox, instance: dg.DagsterInstance) -> None:
    before = time.monotonic()
    found = look(inbox, instance, SHORT_S)
    assert isinstance(found, dg.SkipReason)
    assert found.skip_message == "No recording is due."
    assert SHORT_S <= time.monotonic() - before < SHORT_S + 5


def test_what_is_claimed_deferred_or_settled_is_not_due(inbox: Inbox, instance: dg.DagsterInstance) -> None:
    now = utc_now()
    partition = {announce(inbox, seed, now, now) for seed in range(1, 5)}.pop()
    ids = [item.recording_id for item in inbox.claim(partition, "run", now, LEASE, 10)]
    inbox.defer(ids[0], "run", now + timedelta(hours=1), "not ready", now)
    inbox.done([ids[1]], "run", now)
    inbox.dead(ids[2], "run", "gave up", now)
    assert isinstance(look(inbox, instance, 0), dg.SkipReason)


def test_what_became_due_again_is_asked_for_under_a_new_key(inbox: Inbox, instance: dg.DagsterInstance) -> None:
    now = utc_now()
    partition = announce(inbox, 1, now, now)
    [first] = wanted(look(inbox, instance, SHORT_S))
    [item] = inbox.claim(partition, "run", now, LEASE, 10)
    inbox.defer(item.recording_id, "run", now, "not ready", now + timedelta(seconds=1))
    [second] = wanted(look(inbox, instance, SHORT_S))
    assert first.run_key != second.run_key


def test_what_arrives_while_it_looks_is_found_at_once(inbox: Inbox, instance: dg.DagsterInstance) -> None:
    arrived: list[float] = []

    def arrive() -> None:
        announce(inbox)
        arrived.append(time.monotonic())

    timer = threading.Timer(0.3, arrive)
    timer.start()
    wanted(look(inbox, instance, 20))
    assert time.monotonic() - arrived[0] < 3
    timer.join()


@pytest.mark.parametrize(
    "status", [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING]
)
def test_a_run_that_waits_will_take_what_came_so_no_other_is_asked_for(
    inbox: Inbox, instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    now = utc_now()
    waiting = announce(inbox, 1, now - timedelta(hours=1))
    free = announce(inbox, 2, now - timedelta(hours=2))
    in_flight(instance, waiting, status)
    assert [request.partition_key for request in wanted(look(inbox, instance, SHORT_S))] == [free]


@pytest.mark.parametrize(("started_s_ago", "asks"), [(0.0, False), (60.0, True)])
def test_a_run_that_has_claimed_already_does_not_keep_what_came_later_waiting(
    inbox: Inbox, instance: dg.DagsterInstance, started_s_ago: float, asks: bool
) -> None:
    partition = announce(inbox)
    in_flight(instance, partition, dg.DagsterRunStatus.STARTED, started_s_ago)
    assert isinstance(look(inbox, instance, 0), dg.SensorResult) is asks


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE])
def test_a_run_that_is_over_does_not_count(
    inbox: Inbox, instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    in_flight(instance, announce(inbox), status)
    assert len(wanted(look(inbox, instance, SHORT_S))) == 1


def test_it_holds_while_the_engines_breaker_is_open_and_goes_on_when_it_would_let_through(
    inbox: Inbox, instance: dg.DagsterInstance
) -> None:
    announce(inbox)
    breaker = circuit_breaker(inbox.engine, ENGINE_BREAKER)
    breaker.open()
    before = time.monotonic()
    found = look(inbox, instance, 20)
    assert isinstance(found, dg.SkipReason)
    assert "circuit breaker holds until" in (found.skip_message or "")
    assert time.monotonic() - before < 5, "a tick that waits for the breaker would be ended by Dagster"
    with inbox.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE breaker SET opened_at = opened_at - 31000000")
    assert len(wanted(look(inbox, instance, SHORT_S))) == 1, "half open: a run must try"


@pytest.mark.parametrize(
    ("name", "holds"),
    [("platform:api.test", True), ("media:cdn.test", False), ("platform:api.test/callbacks", False), ("other", False)],
)
def test_it_holds_for_the_api_and_not_for_what_some_recordings_need_or_all_can_do_without(
    inbox: Inbox, instance: dg.DagsterInstance, name: str, holds: bool
) -> None:
    announce(inbox)
    circuit_breaker(inbox.engine, name).open()
    found = look(inbox, instance, SHORT_S)
    assert isinstance(found, dg.SkipReason) is holds
    assert not isinstance(found, dg.SkipReason) or name in (found.skip_message or "")


def test_while_the_probes_are_under_way_it_launches_nothing_into_them(
    inbox: Inbox, instance: dg.DagsterInstance
) -> None:
    announce(inbox)
    breaker = circuit_breaker(inbox.engine, ENGINE_BREAKER)
    breaker.open()
    shifted(inbox, "breaker", "opened_at", RESET_S + 1)
    for _ in range(PROBES):
        assert admitted(breaker, utc_now()) is None
    assert isinstance(look(inbox, instance, 0), dg.SkipReason)
    tell(breaker, failed=False)
    assert len(wanted(look(inbox, instance, SHORT_S))) == 1


def test_the_alert_sensor_tells_of_an_opening_once(
    inbox: Inbox,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    media_host: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    monkeypatch.setenv("COMPLIANCE_NOTIFY_URLS", json.dumps({"alerts": f"json{media_host.url.removeprefix('http')}/h"}))
    media_host.plan("POST", "/h", Reply(200))
    breaker = circuit_breaker(inbox.engine, ENGINE_BREAKER)
    breaker.open()
    told = [alert_sensor(dg.build_sensor_context(instance)) for _ in range(2)]
    assert [one.skip_message for one in told if isinstance(one, dg.SkipReason)] == [
        "1 alerts told.",
        "Nothing to tell.",
    ]
    assert [asked.json["title"] for asked in media_host.asked] == ["engine fails"]


def test_what_nobody_took_for_two_minutes_is_offered_again_under_a_new_key(
    inbox: Inbox, instance: dg.DagsterInstance
) -> None:
    stored_at = utc_now() - OFFER_AGAIN - timedelta(seconds=1)
    announce(inbox, 1, stored_at, stored_at)
    [work] = inbox.pending(utc_now())
    [request] = wanted(look(inbox, instance, SHORT_S))
    assert request.run_key != run_key(work, stored_at)
    assert request.run_key == run_key(work, stored_at + OFFER_AGAIN)


NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@given(st.integers(0, 3_600), st.integers(0, 3_600))
def test_work_that_nobody_takes_is_offered_once_in_two_minutes(early: int, late: int) -> None:
    work = PartitionWork("2026-03-01-12:00", 3, 7, 2, NOW, NOW)
    keys = [run_key(work, NOW + timedelta(seconds=s)) for s in (early, late)]
    assert (keys[0] == keys[1]) is (early // 120 == late // 120)


@given(st.integers(1, 10**9), st.integers(0, 1_000))
def test_any_change_of_the_work_makes_another_key(microseconds: int, waited: int) -> None:
    work = PartitionWork("2026-03-01-12:00", 3, 7, 2, NOW, NOW)
    changed = replace(work, latest_change=NOW + timedelta(microseconds=microseconds))
    now = changed.latest_change + timedelta(seconds=waited)
    assert len({run_key(w, now) for w in (work, changed, replace(changed, highest_seq=8))}) == 3
    assert run_key(replace(work, partition_hour="2026-03-01-13:00"), now) != run_key(work, now)
