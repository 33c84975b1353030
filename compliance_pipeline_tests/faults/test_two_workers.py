"""More than one machine, on loopback: two receivers behind a balancer, two warm workers, Postgres, S3 for the vault.
One of each is killed under load. Nothing is lost and nothing is double."""

import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from compliance_pipeline import audit, database
from compliance_pipeline.demo import collect, sandbox_says, wait_until_settled
from compliance_pipeline.media.vault import vault_of
from compliance_pipeline.orchestration.launches import launch_table
from compliance_pipeline.orchestration.sensors import flag_recordings, keep_evidence
from compliance_pipeline.stack import Stack, free_port, procfile, wait_for_port
from compliance_pipeline.warehouse.warehouse import warehouse_of
from compliance_pipeline_tests.end_to_end.demo_run import instance_of, sandbox_options, settle
from compliance_pipeline_tests.intake.conftest import postgres_uri as postgres_uri  # a fixture
from compliance_pipeline_tests.media.test_vault import s3 as s3  # a fixture

COUNT, SPREAD_S = 40, 30.0
PATIENCE_S = 240.0
DOWN_S = 3.0


@contextmanager
def balancer(port: int, backends: list[int]) -> Iterator[None]:
    """Gives each connection to the next of the backends that listens."""
    listener = socket.create_server(("127.0.0.1", port))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        turn = 0
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                for _ in backends:
                    turn += 1
                    with suppress(ConnectionRefusedError):
                        backend = socket.create_connection(("127.0.0.1", backends[turn % len(backends)]))
                        for pair in ((client, backend), (backend, client)):
                            threading.Thread(target=pump, args=pair, daemon=True).start()
                        break
                else:
                    client.close()

    threading.Thread(target=accept, daemon=True).start()
    yield
    listener.close()


def until(holds: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


def held_by(engine: sa.Engine, pid: int) -> list[str]:
    """The runs that a worker has."""
    row = launch_table.c
    query = sa.select(row.run_id).where(row.worker.contains(f"/{pid}/"), row.ended_at.is_(None))
    with engine.connect() as connection:
        return list(connection.execute(query).scalars())


def test_one_of_two_workers_and_one_of_two_receivers_are_killed_and_nothing_is_lost_or_double(
    tmp_path: Path, postgres_uri: str, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fault: kill -9 of one of two workers and one of two receivers; invariant: nothing lost, nothing double."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    variables = {
        "COMPLIANCE_VAULT_URL": s3,
        "COMPLIANCE_KEEP_ORIGINALS": "true",
        "COMPLIANCE_CANARIES": "false",
    }
    ports = [free_port(), free_port()]
    with Stack(
        tmp_path,
        sandbox_options=sandbox_options(COUNT, SPREAD_S),
        inbox_url=postgres_uri,
        workers=2,
        variables=variables,
    ) as stack:
        monkeypatch.setenv("DAGSTER_POSTGRES_URL", stack.environment["DAGSTER_POSTGRES_URL"])
        receivers = {
            f"receiver-{port}": f"export COMPLIANCE_RECEIVER_PORT={port}; {procfile()['receiver']}" for port in ports
        }
        with balancer(stack.settings.receiver_port, ports):
            for name, command in receivers.items():
                stack.run(name, command)
            stack.start("code", "worker-1", "worker-2")
            for port in ports:
                wait_for_port(port, timeout_s=PATIENCE_S)
            stack.wait_until_up("receiver", "code", timeout_s=PATIENCE_S)
            stack.start("daemon", "sandbox")
            stack.wait_until_up("sandbox", timeout_s=PATIENCE_S)
            engine = database.connect(postgres_uri)
            lost_runs = _kill_some(stack, engine, receivers)
            engine.dispose()
            for _ in wait_until_settled(stack, timeout_s=PATIENCE_S):
                pass
            settle(stack, timeout_s=PATIENCE_S)
            stack.check()
            result = collect(stack, 0.0)
        with instance_of(tmp_path) as instance:
            runs = {run.run_id: run for run in instance.get_runs(dg.RunsFilter(job_name=flag_recordings.name))}
        kept = _keep_evidence(stack)
        found = _trail(stack)
    assert result.faults == [], f"logs: {tmp_path / 'logs'}"
    assert len(result.outcomes) == COUNT
    for run_id in lost_runs:
        # One that had not begun when its worker died waits for another worker, and succeeds under its own id.
        failed = runs[run_id].status is dg.DagsterRunStatus.FAILURE
        assert failed or runs[run_id].status is dg.DagsterRunStatus.SUCCESS
        assert failed == any(run.parent_run_id == run_id for run in runs.values()), "a lost run was not tried again"
    assert found.is_unbroken
    assert kept, "nothing was kept in the bucket"
    assert not (tmp_path / "vault").exists()


def _kill_some(stack: Stack, engine: sa.Engine, receivers: dict[str, str]) -> list[str]:
    """kill -9 a worker that has a run, and a receiver; both come back. The ids of the runs that died."""
    until(lambda: sandbox_says(stack, "truth?last=0")["count"] >= 4, "no recordings came")
    row = launch_table.c
    busy = sa.select(row.worker).where(row.worker.is_not(None), row.ended_at.is_(None), row.queue == "live")

    def victim() -> str | None:
        with engine.connect() as connection:
            worker = connection.execute(busy).scalars().first()
        return worker and worker.split("/")[1]

    pid = int(until(victim, "no worker took a run"))
    name = next(name for name in ("worker-1", "worker-2") if stack.pid(name) == pid)
    time.sleep(0.3)  # into the run
    lost = held_by(engine, pid)
    stack.kill(name)
    until(lambda: sandbox_says(stack, "truth?last=0")["count"] >= COUNT // 2, "no more recordings came")
    receiver = next(iter(receivers))
    stack.kill(receiver)
    assert not sandbox_says(stack, "truth?last=0")["finished"], "the receiver was killed after the load"
    time.sleep(DOWN_S)
    stack.run(receiver, receivers[receiver])
    stack.start(name)
    return lost


def _keep_evidence(stack: Stack) -> set[str]:
    """Names in the bucket of all that was found, after the job that keeps it."""
    command = f"dagster job execute -m compliance_pipeline.definitions -j {keep_evidence.name}"
    done = subprocess.run(
        ["/bin/sh", "-c", command], env=stack.environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    settings = stack.settings.model_copy(update={"vault_url": stack.environment["COMPLIANCE_VAULT_URL"]})
    engine = database.connect(settings.inbox_database_url)
    vault = vault_of(settings, engine)
    try:
        made = warehouse_of(settings).select("SELECT DISTINCT recording_id FROM evidence WHERE uri IS NOT NULL")
        return {f"{row['recording_id']}/{name}" for row in made for name in vault.names(row["recording_id"])}
    finally:
        vault.close()
        engine.dispose()


def _trail(stack: Stack) -> "audit.Verification":
    engine = database.connect(stack.settings.inbox_database_url)
    try:
        return audit.verify(engine, stack.settings, since_seal=False)
    finally:
        engine.dispose()
