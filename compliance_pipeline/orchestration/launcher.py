"""Run launchers that can tell whether a run's process still lives: one for processes that the code server starts
(dagster.yaml), one for warm workers (deploy/dagster.server.yaml).
Only that question; when it is asked, and what follows, is Dagster's run monitoring."""

import fcntl
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from time import monotonic, time
from typing import IO, TYPE_CHECKING, Any, Self
from uuid import UUID

import dagster as dg
from dagster._core.launcher import (
    CheckRunHealthResult,
    DefaultRunLauncher,
    LaunchRunContext,
    RunLauncher,
    WorkerStatus,
)
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._serdes import ConfigurableClass, ConfigurableClassData

if TYPE_CHECKING:
    from compliance_pipeline.orchestration.launches import Launches

GRACE_S = 15.0
"""From 'started' in Dagster's log until the run's process must hold its lock."""
SILENT_S = 8.0
"""A worker that has not said for so long that it lives is dead."""
FORGOTTEN_S = 300.0
"""What was heard of a run is kept so long: it has ended, or nobody asks about it."""

_held: list[IO[bytes]] = []


def _lock_file(instance: dg.DagsterInstance) -> Path:
    return Path(instance.root_directory) / "live_runs.lock"


def _place(run_id: str) -> int:
    """The run's byte of the lock file. One file for all runs: nothing to clean up after a killed one."""
    return UUID(run_id).int % 2**62


def hold_alive(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Mark this process as the one of a launched run, until it ends: the OS gives the lock back however it ends.

    Not given back earlier, or a run between its last step and 'success' would look dead.
    """
    if GRPC_INFO_TAG not in run.tags:
        return  # not in a process of its own (a test, `compliance scan`)
    file = _lock_file(instance).open("ab")
    fcntl.lockf(file, fcntl.LOCK_EX, 1, _place(run.run_id))
    _held.append(file)


def is_alive(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether a process on this machine holds the run's lock."""
    with _lock_file(instance).open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(run_id))
        except OSError:
            return True
    return False


class WatchedRunLauncher(DefaultRunLauncher):
    """Dagster's launcher for processes on this machine, which by itself believes a run STARTED for as long as
    `max_runtime_seconds` when the code server died with it; the hour's next run would wait for that."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        record = self._instance.get_run_record_by_id(run.run_id)
        started = record.start_time if record else None
        if started is None or time() - started < GRACE_S or is_alive(self._instance, run.run_id):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "its process is gone")


class WorkerRunLauncher(RunLauncher, ConfigurableClass):
    """Puts runs where `compliance worker` takes them: the operational database of COMPLIANCE_INBOX_URL."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        self._heard: dict[str, tuple[datetime | None, float]] = {}
        self._looked_at = monotonic()
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        return cls(inst_data=inst_data, **config_value)

    @cached_property
    def _launches(self) -> "Launches":
        from compliance_pipeline.orchestration.launches import Launches
        from compliance_pipeline.settings import Settings

        return Launches(Settings().inbox_database_url)

    def launch_run(self, context: LaunchRunContext) -> None:
        from compliance_pipeline.clock import utc_now
        from compliance_pipeline.orchestration.launches import Lane
        from compliance_pipeline.steps import is_triggered_by_inbox

        run = context.dagster_run
        lane = Lane.LIVE if is_triggered_by_inbox(run.tags) else Lane.BACKGROUND
        self._launches.put(run.run_id, lane, utc_now())

    def terminate(self, run_id: str) -> bool:
        from compliance_pipeline.clock import utc_now

        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        if not self._launches.cancel(run_id, utc_now()):
            self._instance.report_run_canceled(run, "No worker had taken it.")
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """By whether the worker's beat moves, as this process sees it: no two machines' clocks are compared."""
        from compliance_pipeline.clock import utc_now

        holder = self._launches.holder(run.run_id)
        if holder is None:
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "its process is gone")
        worker, beat = holder
        now = monotonic()
        # Who did not look (a database outage, say) does not know who was silent: all begin anew.
        since = FORGOTTEN_S if now - self._looked_at <= SILENT_S else 0.0
        self._looked_at = now
        self._heard = {run_id: heard for run_id, heard in self._heard.items() if now - heard[1] < since}
        heard = self._heard.get(run.run_id)
        if heard is None or heard[0] != beat:
            self._heard[run.run_id] = (beat, now)
        elif now - heard[1] > SILENT_S:
            # So that the worker, if it wakes up, ends the run's process.
            self._launches.end(run.run_id, utc_now())
            del self._heard[run.run_id]
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, f"worker {worker} has been silent for {SILENT_S:.0f} s")
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    def dispose(self) -> None:
        if "_launches" in self.__dict__:
            self._launches.close()
