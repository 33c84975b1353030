"""Several sensors that watch one inbox in turn: each run is asked for once, and the next watches while it is made."""

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, DagsterEventType

from compliance_pipeline.clock import utc_now
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.orchestration import sensors
from compliance_pipeline.orchestration.sensors import Turns, flag_recordings, look
from compliance_pipeline.steps import TRIGGER_TAG, TRIGGERED_BY_INBOX
from compliance_pipeline_tests.orchestration.test_sensors import ORIGIN, announce, dagster, inbox, instance, wanted

__all__ = ["dagster", "inbox", "instance"]  # fixtures
LEASE = timedelta(minutes=2)


def started(instance: dg.DagsterInstance, partition: str) -> dg.DagsterRun:
    """A live run that has just started."""
    run = dg.DagsterRun(
        job_name=flag_recordings.name,
        run_id=str(uuid.uuid4()),
        tags={"dagster/partition": partition, TRIGGER_TAG: TRIGGERED_BY_INBOX},
        remote_job_origin=ORIGIN.get_job_origin(flag_recordings.name),
    )
    instance.add_run(run)
    event = DagsterEvent(event_type_value=DagsterEventType.RUN_START.value, job_name=run.job_name)
    instance.report_dagster_event(event, run.run_id, timestamp=time.time())
    return run


def test_of_sensors_that_watch_at_once_one_asks(inbox: Inbox, instance: dg.DagsterInstance) -> None:
    turns = Turns()
    partition = announce(inbox)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: look(inbox, instance, 0.5, turns), range(3)))
    asked = [one for one in found if isinstance(one, dg.SensorResult)]
    assert [request.partition_key for one in asked for request in one.run_requests or []] == [partition]


def test_the_next_sensor_watches_as_soon_as_the_one_before_has_found_work(
    inbox: Inbox, instance: dg.DagsterInstance
) -> None:
    turns, now = Turns(), utc_now()
    ended: list[float] = []

    def watch() -> dg.SensorResult | dg.SkipReason:
        found = look(inbox, instance, 20, turns)
        ended.append(time.monotonic())
        return found

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(watch) for _ in range(2)]
        time.sleep(0.3)
        first = announce(inbox, 1, now)
        while not ended:
            time.sleep(0.01)
        second = announce(inbox, 2, now - timedelta(hours=1))
        partitions = {wanted(one.result())[0].partition_key for one in both}
    assert partitions == {first, second}
    assert ended[1] - ended[0] < 10


def test_what_was_asked_for_and_never_became_a_run_is_asked_for_again(
    inbox: Inbox, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "ASKED_S", 1.0)
    turns = Turns()
    announce(inbox)
    wanted(look(inbox, instance, 1, turns))
    assert isinstance(look(inbox, instance, 0, turns), dg.SkipReason)
    time.sleep(1.1)
    wanted(look(inbox, instance, 1, turns))


def test_what_comes_after_a_run_has_claimed_is_asked_for_at_once(inbox: Inbox, instance: dg.DagsterInstance) -> None:
    turns, now = Turns(), utc_now()
    partition = announce(inbox, 1, now)
    wanted(look(inbox, instance, 1, turns))
    run = started(instance, partition)
    announce(inbox, 2, now)
    assert isinstance(look(inbox, instance, 0, turns), dg.SkipReason), "the run takes both"
    assert len(inbox.claim(partition, run.run_id, utc_now(), LEASE, 10)) == 2
    announce(inbox, 3, now)
    assert [request.partition_key for request in wanted(look(inbox, instance, 1, turns))] == [partition]


def test_a_sensor_that_gets_no_turn_ends_when_its_time_is_over(
    inbox: Inbox, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    turns = Turns()
    watcher = threading.Thread(target=look, args=(inbox, instance, 3, turns))
    watcher.start()
    time.sleep(0.2)
    assert isinstance(look(inbox, instance, 0.2, turns), dg.SkipReason)
    assert watcher.is_alive()
    watcher.join()
