"""kill -9 of each process in the middle of the job, then started again: same verdicts, one work item each."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import sqlalchemy as sa

from compliance_pipeline.demo import collect
from compliance_pipeline.intake.inbox import Inbox, State, inbox_table
from compliance_pipeline.orchestration.launcher import is_alive
from compliance_pipeline.sandbox.calls import demo_plan
from compliance_pipeline.stack import Stack
from compliance_pipeline_tests.end_to_end.demo_run import instance_of, sandbox_options, settle, start_all

SEED = 5
COUNT = 16
SPREAD_S = 30.0
PATIENCE_S = 150.0
STARTED = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])


class Watch:
    """What the test waits for, and how long it took; says where the logs are when it does not come."""

    def __init__(self, stack: Stack, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.inbox = Inbox(stack.settings.inbox_database_url)
        self._logs = stack.settings.home / "logs"

    def until(self, what: str, happened: Callable[[], bool]) -> None:
        begun = time.monotonic()
        while not happened():
            assert time.monotonic() - begun < PATIENCE_S, f"no {what} for {PATIENCE_S:.0f} s; logs: {self._logs}"
            time.sleep(0.02)
        print(f"{what}: {time.monotonic() - begun:.1f} s")

    def held(self) -> set[str]:
        """Recordings that a run has claimed and not settled yet."""
        claimed = sa.select(inbox_table.c.recording_id).where(inbox_table.c.state == State.CLAIMED)
        with self.inbox.engine.connect() as connection:
            return set(connection.scalars(claimed))

    def live_run(self) -> str | None:
        """A run that Dagster believes started, and whose process lives."""
        runs = (run.run_id for run in self.instance.get_runs(STARTED))
        return next((run_id for run_id in runs if is_alive(self.instance, run_id)), None)

    def run_at_work(self) -> str:
        """A live run, once there is one while recordings are claimed."""
        self.until("run at work", lambda: bool(self.held()) and self.live_run() is not None)
        run_id = self.live_run()
        assert run_id, "the run ended at once: the kill would show nothing"
        return run_id

    def is_failed(self, run_id: str) -> bool:
        run = self.instance.get_run_by_id(run_id)
        return run is not None and run.status is dg.DagsterRunStatus.FAILURE

    def process_of(self, run_id: str) -> int:
        said = (re.search(r"Started process for run \(pid: (\d+)\)", e.message) for e in self.instance.all_logs(run_id))
        return int(next(match for match in said if match).group(1))


def test_killing_receiver_code_server_run_and_daemon_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """fault: kill -9 of receiver, code server, run and daemon in the middle of the job; invariant: same verdicts, one
    work item each."""
    with Stack(tmp_path, sandbox_options=sandbox_options(COUNT, SPREAD_S, SEED)) as stack:
        start_all(stack)
        with instance_of(tmp_path) as instance:
            watch = Watch(stack, instance)
            begun = time.monotonic()

            watch.until("first events", lambda: sum(watch.inbox.counts().values()) > 1)
            stack.kill("receiver")
            stack.start("receiver")

            # With the code server its run goes, and nobody is left to tell Dagster.
            with_server = watch.run_at_work()
            stack.kill("code")
            assert watch.held(), "the run was through already: the kill showed nothing"
            stack.start("code")
            watch.until("failure of the code server's run noticed", lambda: watch.is_failed(with_server))

            alone = watch.run_at_work()
            os.kill(watch.process_of(alone), signal.SIGKILL)
            assert watch.held(), "the run was through already: the kill showed nothing"
            watch.until("failure of the killed run noticed", lambda: watch.is_failed(alone))

            watch.run_at_work()
            stack.kill("daemon")
            stack.start("daemon")

            settle(stack, timeout_s=PATIENCE_S)
            seconds = time.monotonic() - begun
            print(f"settled: {seconds:.1f} s after the first event")
            result = collect(stack, seconds)
            watch.inbox.close()
    planned = {p.recording_id: p for p in demo_plan(SEED, count=COUNT, spread_s=SPREAD_S)}
    assert {o.recording_id for o in result.outcomes} == planned.keys()
    assert result.faults == [], f"logs: {tmp_path / 'logs'}"
    assert result.unscreenable == {id_: p.damage for id_, p in planned.items() if p.damage}
