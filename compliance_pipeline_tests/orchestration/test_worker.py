"""Warm workers: who gets which run, and what becomes of it when its process or its worker is killed. Real processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.launcher import WorkerStatus

from compliance_pipeline.clock import utc_now
from compliance_pipeline.orchestration import launcher
from compliance_pipeline.orchestration.launcher import WorkerRunLauncher
from compliance_pipeline.orchestration.launches import KEEP_FOR, Lane, Launches
from compliance_pipeline.orchestration.worker import BACKGROUND_NICENESS
from compliance_pipeline.settings import Settings
from compliance_pipeline.stack import ROOT, environment
from compliance_pipeline.steps import TRIGGER_TAG, TRIGGERED_BY_INBOX
from compliance_pipeline_tests.intake.conftest import postgres_uri as postgres_uri  # a fixture
from compliance_pipeline_tests.orchestration.small_job import small_job

PATIENCE_S = 60.0
WORKER = """
import logging, sys
import dagster as dg
from compliance_pipeline.orchestration import worker
from compliance_pipeline.orchestration.launches import Launches
from compliance_pipeline.settings import Settings
logging.basicConfig(level="INFO")
worker.warm_up = lambda: None
worker.KILL_AFTER_S = 2.0
with dg.DagsterInstance.get() as instance:
    launches = Launches(Settings().inbox_database_url)
    worker.serve(instance, launches, int(sys.argv[1]), lambda worker: print("ready", flush=True))
"""
LIVE = {TRIGGER_TAG: TRIGGERED_BY_INBOX}
BACKGROUND: dict[str, str] = {}


@pytest.fixture
def launches(tmp_path: Path) -> Iterator[Launches]:
    found = Launches(f"sqlite:///{tmp_path / 'inbox.db'}")
    yield found
    found.close()


# The queue


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_no_run_goes_to_two_workers(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = f"sqlite:///{tmp_path / 'inbox.db'}" if database == "sqlite" else request.getfixturevalue("postgres_uri")
    launches = Launches(url)
    for number in range(40):
        launches.put(f"run-{number}", Lane.LIVE, utc_now())
    launches.close()

    def take_all(name: str) -> list[str]:
        mine = Launches(url)
        try:
            return [taken[0] for taken in iter(lambda: mine.take(name, utc_now()), None)]
        finally:
            mine.close()

    with ThreadPoolExecutor(4) as pool:
        taken = [run_id for its in pool.map(take_all, "abcd") for run_id in its]
    assert sorted(taken) == sorted(f"run-{number}" for number in range(40))


def test_live_runs_go_before_background_ones_and_older_before_newer(launches: Launches) -> None:
    now = utc_now()
    for number, lane in enumerate([Lane.BACKGROUND, Lane.LIVE, Lane.BACKGROUND, Lane.LIVE]):
        launches.put(f"{lane}-{number}", lane, now + timedelta(seconds=number))
    order = [taken[0] for taken in iter(lambda: launches.take("a", now), None)]
    assert order == ["live-1", "live-3", "background-0", "background-2"]


def test_a_worker_that_wants_only_live_runs_gets_no_other(launches: Launches) -> None:
    launches.put("one", Lane.BACKGROUND, utc_now())
    assert launches.take("a", utc_now(), (Lane.LIVE,)) is None
    assert launches.take("a", utc_now()) == ("one", Lane.BACKGROUND)


def test_a_run_that_is_launched_twice_is_there_once(launches: Launches) -> None:
    for _ in range(2):
        launches.put("one", Lane.LIVE, utc_now())
    assert launches.waiting() == 1
    launches.take("a", utc_now())
    launches.end("one", utc_now())
    launches.put("one", Lane.LIVE, utc_now())
    assert launches.take("b", utc_now()) is None


def test_a_worker_hears_of_its_own_runs_only_and_which_to_cancel(launches: Launches) -> None:
    for name in "ab":
        launches.put(f"of {name}", Lane.LIVE, utc_now())
        launches.take(name, utc_now())
    assert launches.beat("a", utc_now()) == {"of a": False}
    assert launches.cancel("of a", utc_now())
    assert launches.beat("a", utc_now()) == {"of a": True}
    launches.end("of a", utc_now())
    assert launches.beat("a", utc_now()) == {}
    assert launches.beat("b", utc_now()) == {"of b": False}


def test_a_cancelled_run_that_waits_goes_to_nobody(launches: Launches) -> None:
    launches.put("one", Lane.LIVE, utc_now())
    assert not launches.cancel("one", utc_now())
    assert launches.take("a", utc_now()) is None


def test_only_what_ended_long_ago_is_forgotten(launches: Launches) -> None:
    now = utc_now()
    for run_id, ended_at in (("old", now - KEEP_FOR - timedelta(hours=1)), ("new", now)):
        launches.put(run_id, Lane.LIVE, now)
        launches.end(run_id, ended_at)
    launches.put("waits", Lane.LIVE, now - KEEP_FOR * 2)
    launches.forget(now)
    with launches.engine.connect() as connection:
        assert set(connection.exec_driver_sql("SELECT run_id FROM launch").scalars()) == {"new", "waits"}


# Workers


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    config = {
        "run_launcher": {"module": WorkerRunLauncher.__module__, "class": WorkerRunLauncher.__name__},
        "storage": {"sqlite": {"base_dir": str(tmp_path)}},
        "compute_logs": {
            "module": "dagster.core.storage.noop_compute_log_manager",
            "class": "NoOpComputeLogManager",
        },
        "telemetry": {"enabled": False},
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(config))
    for name in ("COMPLIANCE_HOME", "DAGSTER_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("COMPLIANCE_INBOX_URL", raising=False)
    with dg.DagsterInstance.get() as found:
        yield found


@contextmanager
def worker(runs: int = 4) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WORKER, str(runs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def launched(instance: dg.DagsterInstance, tmp_path: Path, tags: Mapping[str, str], seconds: float = 0) -> str:
    """The id of a new run."""
    origin = dg.reconstructable(small_job).get_python_origin()
    all_tags = {"folder": str(tmp_path), "seconds": str(seconds), **tags}
    run = instance.create_run_for_job(small_job, tags=all_tags, job_code_origin=origin)
    instance.launch_run(run.run_id, None)  # type: ignore[arg-type] # our launcher needs no workspace
    return run.run_id


def until(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)
    return found


def said(tmp_path: Path, run_id: str) -> dict[str, int]:
    """What the run's process said of itself, as soon as it is at work."""
    file = tmp_path / run_id
    until(lambda: file.exists() and file.read_text())
    found: dict[str, int] = json.loads(file.read_text())
    return found


def end_of(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    def ended() -> dg.DagsterRunStatus | None:
        run = instance.get_run_by_id(run_id)
        return run.status if run and run.is_finished else None

    status: dg.DagsterRunStatus = until(ended)
    return status


def is_there(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_a_run_is_executed_in_a_child_of_the_worker_and_background_ones_yield(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    live, background = launched(instance, tmp_path, LIVE), launched(instance, tmp_path, BACKGROUND)
    with worker() as process:
        for run_id, niceness in ((live, 0), (background, BACKGROUND_NICENESS)):
            assert end_of(instance, run_id) is dg.DagsterRunStatus.SUCCESS
            its = said(tmp_path, run_id)
            assert its["parent"] == process.pid != its["pid"]
            assert its["niceness"] == max(niceness, os.getpriority(os.PRIO_PROCESS, 0))


def test_a_crash_fails_its_own_run_at_once_and_no_other(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    other = launched(instance, tmp_path, LIVE, seconds=3)
    with worker():
        said(tmp_path, other)
        crashing = launched(instance, tmp_path, LIVE | {"kill": str(int(signal.SIGKILL))})
        assert end_of(instance, crashing) is dg.DagsterRunStatus.FAILURE
        assert end_of(instance, other) is dg.DagsterRunStatus.SUCCESS
    messages = [event.user_message + str(event.message) for event in instance.all_logs(crashing)]
    assert any("ended by signal 9" in message for message in messages)


def test_a_cancelled_run_is_interrupted_and_ends_as_cancelled(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    with worker():
        run_id = launched(instance, tmp_path, LIVE, seconds=60)
        said(tmp_path, run_id)
        assert instance.run_launcher.terminate(run_id)
        assert end_of(instance, run_id) is dg.DagsterRunStatus.CANCELED


def test_a_cancelled_run_that_does_not_listen_is_killed(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    with worker():
        run_id = launched(instance, tmp_path, LIVE | {"deaf": "yes"}, seconds=60)
        pid = said(tmp_path, run_id)["pid"]
        until(lambda: ignores(pid, signal.SIGINT))
        assert instance.run_launcher.terminate(run_id)
        assert end_of(instance, run_id) is dg.DagsterRunStatus.CANCELED
        assert not is_there(pid)


def ignores(pid: int, number: signal.Signals) -> bool:
    (mask,) = re.findall(r"\nSigIgn:\t(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_worker_outlives_an_outage_of_dagsters_storage_and_so_do_its_runs(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    with worker():
        other = launched(instance, tmp_path, LIVE, seconds=6)
        dying = launched(instance, tmp_path, LIVE | {"kill": str(int(signal.SIGKILL))}, seconds=2)
        for run_id in (other, dying):
            said(tmp_path, run_id)
        runs = tmp_path / "history" / "runs.db"
        runs.rename(tmp_path / "away")
        runs.write_bytes(b"no database" * 1000)
        time.sleep(4)
        (tmp_path / "away").rename(runs)
        assert end_of(instance, dying) is dg.DagsterRunStatus.FAILURE
        assert end_of(instance, other) is dg.DagsterRunStatus.SUCCESS


def test_a_run_that_was_taken_but_has_no_process_is_given_up(
    instance: dg.DagsterInstance, launches: Launches, tmp_path: Path
) -> None:
    with worker():
        first = launched(instance, tmp_path, LIVE, seconds=4)
        said(tmp_path, first)
        (name, _beat) = launches.holder(first) or ("", None)
        assert name
        with launches.engine.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO launch (run_id, queue, at, worker, beat_at) "
                f"SELECT 'lost', queue, at, worker, beat_at FROM launch WHERE run_id = '{first}'"
            )
        until(lambda: launches.holder("lost") is None)
        assert end_of(instance, first) is dg.DagsterRunStatus.SUCCESS


def test_a_run_whose_worker_died_before_it_began_goes_to_another(
    instance: dg.DagsterInstance, launches: Launches, tmp_path: Path
) -> None:
    run_id = launched(instance, tmp_path, LIVE)
    assert launches.take("dead", utc_now()) == (run_id, Lane.LIVE)
    with worker():
        assert end_of(instance, run_id) is dg.DagsterRunStatus.SUCCESS


def test_a_run_whose_worker_has_beaten_meanwhile_stays_its_own(launches: Launches) -> None:
    now = utc_now()
    launches.put("run", Lane.LIVE, now)
    launches.take("slow", now)
    [(name, beat)] = launches.of_others("other").values()
    launches.beat("slow", now + timedelta(seconds=1))
    assert not launches.put_back("run", name, beat)
    assert launches.of_others("slow") == {}
    assert launches.put_back("run", name, now + timedelta(seconds=1))
    assert launches.take("other", now) == ("run", Lane.LIVE)


def test_a_run_that_no_worker_took_is_cancelled_at_once(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run_id = launched(instance, tmp_path, BACKGROUND)
    assert instance.run_launcher.terminate(run_id)
    assert end_of(instance, run_id) is dg.DagsterRunStatus.CANCELED


def test_of_several_places_one_is_kept_for_live_runs(
    instance: dg.DagsterInstance, launches: Launches, tmp_path: Path
) -> None:
    first, second = (launched(instance, tmp_path, BACKGROUND, seconds=3) for _ in range(2))
    with worker(runs=2):
        said(tmp_path, first)
        live = launched(instance, tmp_path, LIVE)
        assert end_of(instance, live) is dg.DagsterRunStatus.SUCCESS
        assert launches.waiting() == 1, "the second background run took the live run's place"
        assert end_of(instance, second) is dg.DagsterRunStatus.SUCCESS


def test_a_worker_that_is_told_to_stop_finishes_its_run_and_takes_no_other(
    instance: dg.DagsterInstance, launches: Launches, tmp_path: Path
) -> None:
    with worker() as process:
        run_id = launched(instance, tmp_path, LIVE, seconds=2)
        said(tmp_path, run_id)
        os.killpg(process.pid, signal.SIGTERM)  # as a supervisor does, to all that it started
        later = launched(instance, tmp_path, LIVE)
        assert process.wait(PATIENCE_S) == 0
    assert end_of(instance, run_id) is dg.DagsterRunStatus.SUCCESS
    assert launches.waiting() == 1
    with worker():
        assert end_of(instance, later) is dg.DagsterRunStatus.SUCCESS


def health(instance: dg.DagsterInstance, run_id: str) -> WorkerStatus:
    run = instance.get_run_by_id(run_id)
    assert run
    return instance.run_launcher.check_run_worker_health(run).status


def test_a_run_dies_with_its_worker_and_dagster_hears_of_it(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "SILENT_S", 2.0)
    with worker() as process:
        run_id = launched(instance, tmp_path, LIVE, seconds=60)
        pid = said(tmp_path, run_id)["pid"]
        for _ in range(30):  # longer than the worker may be silent
            assert health(instance, run_id) is WorkerStatus.RUNNING
            time.sleep(0.1)
        process.kill()
        process.wait()
        until(lambda: not is_there(pid))
        until(lambda: health(instance, run_id) is WorkerStatus.NOT_FOUND)


def test_who_did_not_look_for_long_does_not_call_a_worker_silent(
    instance: dg.DagsterInstance, launches: Launches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "SILENT_S", 0.5)
    run_id = launched(instance, tmp_path, LIVE)
    launches.take("a", utc_now())
    assert health(instance, run_id) is WorkerStatus.RUNNING
    time.sleep(1)
    assert health(instance, run_id) is WorkerStatus.RUNNING
    until(lambda: health(instance, run_id) is WorkerStatus.NOT_FOUND)


def test_a_worker_that_stood_still_for_long_ends_the_run_that_was_given_up_meanwhile(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "SILENT_S", 2.0)
    with worker() as process:
        run_id = launched(instance, tmp_path, LIVE, seconds=60)
        pid = said(tmp_path, run_id)["pid"]
        process.send_signal(signal.SIGSTOP)
        until(lambda: health(instance, run_id) is WorkerStatus.NOT_FOUND)
        assert is_there(pid)
        process.send_signal(signal.SIGCONT)
        until(lambda: not is_there(pid))


# The profiles


def profile(settings: Settings) -> tuple[dict[str, Any], dict[str, str]]:
    """The instance that the stack makes, and the variables."""
    variables = environment(settings, code_port=1, web_port=2)
    return yaml.safe_load((settings.home / "dagster" / "dagster.yaml").read_text()), variables


def test_settings_choose_the_launcher_and_where_dagster_keeps_its_runs(tmp_path: Path) -> None:
    local, _ = profile(Settings(home=tmp_path, inbox_url=None))
    assert "sqlite" in local["storage"]
    assert local["run_launcher"]["class"] == "WatchedRunLauncher"
    warm, _ = profile(Settings(home=tmp_path, inbox_url=None, workers=2))
    assert "sqlite" in warm["storage"]
    assert warm["run_launcher"]["class"] == "WorkerRunLauncher"
    url = "postgresql+psycopg://u:p%40w@host:5433/compliance?sslmode=require"
    served, variables = profile(Settings(home=tmp_path, inbox_url=url, workers=2))
    assert served["storage"]["custom"]["class"] == "PooledPostgresStorage"
    assert served["run_launcher"]["class"] == "WorkerRunLauncher"
    assert variables["DAGSTER_POSTGRES_URL"] == url.replace("psycopg", "psycopg2")
    without, _ = profile(Settings(home=tmp_path, inbox_url=url))
    # A run that waits for a worker is not failed within a minute; no more begin than can be executed.
    said = [
        (each["run_monitoring"]["start_timeout_seconds"], each["concurrency"]["runs"]["max_concurrent_runs"])
        for each in (local, warm, without, served)
    ]
    assert said == [(60, 4), (900, 4), (60, 4), (900, 8)]


@pytest.mark.parametrize("workers", [0, 1])
def test_dagster_accepts_the_local_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    _, variables = profile(Settings(home=tmp_path, inbox_url=None, workers=workers))
    monkeypatch.setenv("DAGSTER_HOME", variables["DAGSTER_HOME"])
    with dg.DagsterInstance.get() as found:
        assert isinstance(found.run_launcher, WorkerRunLauncher) is bool(workers)
