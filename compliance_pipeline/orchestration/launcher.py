"""The run launcher of dagster.yaml: Dagster's own, and it can tell whether a run's process still lives.
Only that question; when it is asked, and what follows, is Dagster's run monitoring."""

import fcntl
from pathlib import Path
from time import time
from typing import IO
from uuid import UUID

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

GRACE_S = 15.0
"""From 'started' in Dagster's log until the run's process must hold its lock."""

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
