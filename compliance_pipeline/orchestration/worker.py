"""A warm worker: a process with all of the pipeline imported, which forks a child for each run that it takes.

The child does what `dagster api execute_run` does. A crash harms one run: the worker sees its child end and tells
Dagster. A child ends with its worker, however that ends.
"""

import multiprocessing as mp
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from logging import getLogger
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from time import monotonic, sleep
from typing import Any

import dagster as dg
from dagster import _check as check

from compliance_pipeline import database
from compliance_pipeline.clock import utc_now
from compliance_pipeline.orchestration.launcher import SILENT_S
from compliance_pipeline.orchestration.launches import Lane, Launches

log = getLogger(__name__)

LOOK_EVERY_S = 0.05
BEAT_EVERY_S = 1.0
FORGET_EVERY_S = 3600.0
HAND_BACK_AFTER_S = 25.0
"""From SIGTERM until runs that have not ended are interrupted; Kubernetes kills after 30 s."""
KILL_AFTER_S = 30.0
"""From a run's interruption until its process is killed."""
BACKGROUND_NICENESS = 10
OUTAGE_PAUSE_S = 1.0
USED_BY_RUNS = (
    "_strptime",
    "av",
    "compliance_pipeline.definitions",
    "compliance_pipeline.media.vault",
    "compliance_pipeline.purge",
    "compliance_pipeline.remediate",
    "compliance_pipeline.screening.dictation",
    "compliance_pipeline.screening.digits",
    "compliance_pipeline.screening.listener",
    "compliance_pipeline.screening.text",
    "dagster._cli.api",
    "dagster._core.definitions.repository_definition.repository_data_builder",
    "dagster._core.executor.in_process",
    "dagster._core.workspace.autodiscovery",
    "duckdb",
    "encodings.idna",
    "onnxruntime",
    "phonenumbers.data.alt_format_49",
    "websockets.client",
)
"""What is loaded where it is first used, so as not to burden the code server."""


@dataclass(slots=True)
class _Child:
    process: ForkProcess
    lane: Lane
    interrupted_at: float | None = None
    """By the monotonic clock."""


class Worker:
    """Takes runs from `launches` until it is told to stop; at most `runs` at a time, of which one is left for live."""

    def __init__(self, instance: dg.DagsterInstance, launches: Launches, runs: int) -> None:
        self.name = f"{socket.gethostname()[:80]}/{os.getpid()}/{secrets.token_hex(4)}"
        self._instance = instance
        self._launches = launches
        self._runs = runs
        self._children: dict[str, _Child] = {}
        self._stop_at: float | None = None
        self._next_beat = 0.0
        self._next_forget = 0.0
        self._looked_at = 0.0
        self._heard: dict[str, tuple[datetime | None, float]] = {}

    def stop(self) -> None:
        """Take no more; `work` returns when what runs has ended or was handed back."""
        self._stop_at = self._stop_at or monotonic()

    def work(self) -> None:
        while True:
            try:
                self._turn(utc_now())
                if self._stop_at is not None and not self._children:
                    return
            except Exception as error:
                # The database is away, by the inbox's exception or by Dagster's own. The children work on; they have
                # connections of their own. Its text may quote the statement.
                log.warning("the database does not answer: %s", type(error).__qualname__)
                # Not `_pause`: a child that has ended would cut it short until the database hears of it.
                sleep(OUTAGE_PAUSE_S)

    def _turn(self, now: datetime) -> None:
        if self._children and monotonic() >= self._next_beat:
            self._beat(now)
        for run_id, child in list(self._children.items()):
            if not child.process.is_alive():
                self._ended(run_id, child.process, now)
        if monotonic() >= self._looked_at + BEAT_EVERY_S:
            self._put_back_what_never_began()
        if monotonic() >= self._next_forget:
            self._launches.forget(now)
            self._next_forget = monotonic() + FORGET_EVERY_S
        if self._stop_at is None and (taken := self._take(now)):
            self._begin(*taken)
            return
        if self._stop_at is not None and monotonic() > self._stop_at + HAND_BACK_AFTER_S:
            for child in self._children.values():
                _interrupt(child)
        # The more a worker has to do, the later it looks: others with less come first.
        self._pause(LOOK_EVERY_S * (1 + len(self._children)))

    def _put_back_what_never_began(self) -> None:
        """Let runs wait again that a worker took which died before they began: Dagster's monitoring asks only about
        those that have. Silence is what this process sees of it: no two machines' clocks are compared."""
        now = monotonic()
        if now > self._looked_at + SILENT_S / 2:
            self._heard.clear()  # this process stood still: nothing is known of the others
        self._looked_at = now
        held = self._launches.of_others(self.name)
        self._heard = {run_id: heard for run_id, heard in self._heard.items() if run_id in held}
        for run_id, (worker, beat) in held.items():
            last, since = self._heard.setdefault(run_id, (beat, now))
            if last != beat:
                self._heard[run_id] = (beat, now)
            elif now - since > SILENT_S:
                run = self._instance.get_run_by_id(run_id)
                waits = run is not None and run.status is dg.DagsterRunStatus.STARTING
                if waits and self._launches.put_back(run_id, worker, beat):
                    log.warning("run %s waits again: worker %s has been silent for %.0f s", run_id, worker, SILENT_S)

    def _pause(self, seconds: float) -> None:
        wait([child.process.sentinel for child in self._children.values()], seconds)

    def _take(self, now: datetime) -> tuple[str, Lane] | None:
        if len(self._children) >= self._runs:
            return None
        behind = sum(child.lane is Lane.BACKGROUND for child in self._children.values())
        lanes = tuple(Lane) if behind < max(1, self._runs - 1) else (Lane.LIVE,)
        return self._launches.take(self.name, now, lanes)

    def _begin(self, run_id: str, lane: Lane) -> None:
        self._launches.before_fork()
        process = mp.get_context("fork").Process(target=_execute, args=(self._instance, self._launches, run_id, lane))
        process.start()
        self._children[run_id] = _Child(process, lane)
        log.info("run %s (%s): process %d", run_id, lane, process.pid)

    def _ended(self, run_id: str, process: ForkProcess, now: datetime) -> None:
        if process.exitcode:
            run = self._instance.get_run_by_id(run_id)
            how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"
            if run and run.status is dg.DagsterRunStatus.CANCELING:
                self._instance.report_run_canceled(run, f"Its process ended by {how} (worker {self.name}).")
            elif run and not run.is_finished:
                self._instance.report_run_failed(run, f"Its process ended by {how} (worker {self.name}).")
            log.warning("run %s: its process ended by %s", run_id, how)
        self._launches.end(run_id, now)
        del self._children[run_id]
        process.close()

    def _beat(self, now: datetime) -> None:
        held = self._launches.beat(self.name, now)
        for run_id, child in self._children.items():
            if run_id not in held:
                # Given up as dead, and perhaps tried again elsewhere.
                child.process.kill()
            elif held[run_id]:
                _interrupt(child)
        for run_id in held.keys() - self._children.keys():
            # Taken, but the answer was lost or no process could be made: for Dagster to try again.
            self._launches.end(run_id, now)
        self._next_beat = monotonic() + BEAT_EVERY_S


def _interrupt(child: _Child) -> None:
    """Dagster ends the run as CANCELED where someone asked for that, else as failed, to be tried again. Who has not
    ended long after is killed."""
    if child.process.pid is None or not child.process.is_alive():
        return
    if child.interrupted_at is None:
        os.kill(child.process.pid, signal.SIGINT)
        child.interrupted_at = monotonic()
    elif monotonic() > child.interrupted_at + KILL_AFTER_S:
        child.process.kill()


def _execute(instance: dg.DagsterInstance, launches: Launches, run_id: str, lane: Lane) -> None:
    """In the child: the body of `dagster api execute_run`. The instance is the worker's, whose connections stay its own
    (`storage`, `Launches`): to make another one costs more than the rest of the start."""
    from dagster._cli.api import _execute_run_command_body
    from dagster._utils.interrupts import capture_interrupts

    # SIGTERM and Ctrl-C go to the worker's whole group, and Dagster ends a run by them: here the worker decides.
    os.setpgrp()
    launches.in_child()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if lane is Lane.BACKGROUND:
        os.setpriority(os.PRIO_PROCESS, 0, BACKGROUND_NICENESS)
    with capture_interrupts():
        _execute_run_command_body(run_id, instance, lambda _event: None, set_exit_code_on_failure=False)


def _die_with_parent() -> None:
    if parent := mp.parent_process():
        wait([parent.sentinel])
    os._exit(1)


def warm_up() -> None:
    """Import what runs use, and make and close what every run opens: nothing may be open when the process is forked."""
    from compliance_pipeline.orchestration.resources import PipelineResource

    for name in USED_BY_RUNS:
        import_module(name)
    with dg.build_init_resource_context() as context, PipelineResource().yield_for_execution(context):
        pass


def serve(instance: dg.DagsterInstance, launches: Launches, runs: int, ready: Callable[[Worker], None]) -> None:
    """Work until SIGTERM or SIGINT."""
    warm_up()
    if hasattr(instance.run_storage, "postgres_url"):
        # Where the instance is Dagster's chart's, its storage is Dagster's own.
        from compliance_pipeline.orchestration.storage import keep_open

        keep_open(instance.run_storage, instance.event_log_storage, check.not_none(instance.schedule_storage))
    database.create(launches.engine)  # of all tables that are known by now, so that no run needs to ask for them
    worker = Worker(instance, launches, runs)

    def asked_to_stop(number: int, _frame: Any) -> None:
        worker.stop()
        signal.signal(number, signal.SIG_DFL)  # who asks twice does not want to wait

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, asked_to_stop)
    ready(worker)
    worker.work()
