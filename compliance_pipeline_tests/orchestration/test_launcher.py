"""Whether Dagster can tell a run whose process was killed from one that works: real processes, real kill -9."""

import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

from compliance_pipeline.orchestration.launcher import GRACE_S, WatchedRunLauncher, is_alive

WORK = """
import sys, time
import dagster as dg
from compliance_pipeline.orchestration.launcher import hold_alive
with dg.DagsterInstance.local_temp(sys.argv[1]) as instance:
    for run_id in sys.argv[2:]:
        hold_alive(instance, instance.get_run_by_id(run_id))
    print("at work", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    launcher = {"module": WatchedRunLauncher.__module__, "class": WatchedRunLauncher.__name__}
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides={"run_launcher": launcher}) as instance:
        yield instance


def started_run(instance: dg.DagsterInstance, seconds_ago: float, launched: bool = True) -> dg.DagsterRun:
    tags = {GRPC_INFO_TAG: "{}"} if launched else {}
    run = instance.add_run(dg.DagsterRun(job_name="flag_recordings", run_id=str(uuid.uuid4()), tags=tags))
    event = DagsterEvent(event_type_value=DagsterEventType.RUN_START.value, job_name=run.job_name)
    instance.report_dagster_event(event, run.run_id, timestamp=time.time() - seconds_ago)
    return run


@contextmanager
def at_work(instance: dg.DagsterInstance, *runs: dg.DagsterRun) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WORK, instance.root_directory, *(run.run_id for run in runs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "at work\n"
        try:
            yield process
        finally:
            process.kill()


def health(instance: dg.DagsterInstance, run: dg.DagsterRun) -> WorkerStatus:
    assert instance.run_launcher.supports_check_run_worker_health
    return instance.run_launcher.check_run_worker_health(run).status


def test_a_run_is_running_until_its_process_is_killed(instance: dg.DagsterInstance) -> None:
    run, other = started_run(instance, GRACE_S + 1), started_run(instance, GRACE_S + 1)
    with at_work(instance, run) as process:
        assert health(instance, run) is WorkerStatus.RUNNING
        assert health(instance, other) is WorkerStatus.NOT_FOUND
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert health(instance, run) is WorkerStatus.NOT_FOUND


def test_asking_does_not_take_the_lock_away(instance: dg.DagsterInstance) -> None:
    run = started_run(instance, GRACE_S + 1)
    assert not is_alive(instance, run.run_id)
    with at_work(instance, run):
        assert [is_alive(instance, run.run_id) for _ in range(3)] == [True] * 3


def test_a_run_that_only_just_started_is_given_time_to_take_its_lock(instance: dg.DagsterInstance) -> None:
    assert health(instance, started_run(instance, 0)) is WorkerStatus.RUNNING


def test_a_run_inside_another_process_holds_no_lock(instance: dg.DagsterInstance) -> None:
    run = started_run(instance, 0, launched=False)
    with at_work(instance, run):
        assert not is_alive(instance, run.run_id)
