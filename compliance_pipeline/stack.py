"""The processes of deploy/Procfile on this machine: their environment, starting, killing and stopping them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

import httpx
from sqlalchemy import make_url

from compliance_pipeline.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PROCFILE = ROOT / "deploy" / "Procfile"
SERVER_PROFILE = ROOT / "deploy" / "dagster.server.yaml"
WORKER = "exec compliance worker"
STOP_TIMEOUT_S = 10.0


class StackError(Exception):
    """A process of the stack did not come up, or went away."""


def procfile() -> dict[str, str]:
    lines = PROCFILE.read_text().splitlines()
    return {name.strip(): command.strip() for name, _, command in (line.partition(":") for line in lines if line)}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for_port(port: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_open(port):
        if time.monotonic() > deadline:
            raise StackError(f"nothing listens on port {port} after {timeout_s:.0f} s")
        time.sleep(0.1)


def environment(settings: Settings, *, code_port: int, web_port: int, sandbox_options: str = "") -> dict[str, str]:
    """Lay out the data folder and return the variables that the Procfile's commands need."""
    home = settings.home
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    dagster_home = home / "dagster"
    dagster_home.mkdir(parents=True, exist_ok=True)
    postgres = dagster_postgres_url(settings)
    instance = (SERVER_PROFILE if postgres else ROOT / "dagster.yaml").read_text()
    launchers = ("WatchedRunLauncher", "WorkerRunLauncher")
    # Runs wait for a worker as long as it takes; a process of its own begins at once or not at all.
    timeouts = ("start_timeout_seconds: 60,", "start_timeout_seconds: 900,")
    for pair in (launchers, timeouts):
        instance = instance.replace(*pair if settings.workers else pair[::-1])
    instance = instance.replace("max_concurrent_runs: 16", f"max_concurrent_runs: {4 * max(1, settings.workers)}")
    (dagster_home / "dagster.yaml").write_text(instance)
    workspace = home / "workspace.yaml"
    workspace.write_text((ROOT / "workspace.yaml").read_text().replace("port: 4266", f"port: {code_port}"))
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
        "DAGSTER_HOME": str(dagster_home),
        "COMPLIANCE_HOME": str(home),
        "COMPLIANCE_PLATFORM_URL": settings.platform_url,
        "COMPLIANCE_PLATFORM_PROFILE": settings.platform_profile,
        "COMPLIANCE_QUEUE_URL": settings.queue_url or "",
        "COMPLIANCE_RECEIVER_PORT": str(settings.receiver_port),
        "COMPLIANCE_DASHBOARD_PORT": str(settings.dashboard_port),
        "COMPLIANCE_CODE_PORT": str(code_port),
        "COMPLIANCE_WEB_PORT": str(web_port),
        "COMPLIANCE_DAGSTER_URL": os.environ.get("COMPLIANCE_DAGSTER_URL", f"http://127.0.0.1:{web_port}"),
        "COMPLIANCE_WORKSPACE": str(workspace),
        "COMPLIANCE_WORKERS": str(settings.workers),
        "COMPLIANCE_SANDBOX_OPTIONS": sandbox_options,
        # Each recording sensor holds one while it waits for work; by default there are four more than cores.
        "DAGSTER_CODE_SERVER_MAX_WORKERS": "16",
        "DAGSTER_GRPC_MAX_WORKERS": "16",
        **({"DAGSTER_POSTGRES_URL": postgres} if postgres else {}),
    }


def dagster_postgres_url(settings: Settings) -> str | None:
    """Where Dagster keeps its runs when the inbox is in Postgres: there too, if nothing else is said."""
    url = make_url(settings.inbox_database_url)
    if url.get_backend_name() != "postgresql":
        return None
    # Dagster's own driver: of a URL that names none, SQLAlchemy takes another.
    beside = url.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
    return os.environ.get("DAGSTER_POSTGRES_URL") or beside


def worker_commands(settings: Settings) -> dict[str, str]:
    """Name and command of each warm worker, as lines of the Procfile."""
    return {f"worker-{number}": WORKER for number in range(1, settings.workers + 1)}


class Stack:
    """Some of the Procfile's processes on ports of their own, each with its output in `<home>/logs/<name>.log`.

    A context manager: whatever still runs is stopped at the end.
    """

    def __init__(
        self,
        home: Path,
        *,
        sandbox_options: str = "",
        profile: Literal["guide", "cloud"] = "guide",
        queue_url: str | None = None,
        inbox_url: str | None = None,
        workers: int = 0,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.settings = Settings(
            home=home,
            inbox_url=inbox_url,
            workers=workers,
            warehouse_url=None,
            host="127.0.0.1",
            platform_profile=profile,
            platform_url=f"http://127.0.0.1:{free_port()}",
            queue_url=queue_url,
            receiver_port=free_port(),
            dashboard_port=free_port(),
        )
        self._code_port = free_port()
        self.environment = environment(
            self.settings, code_port=self._code_port, web_port=free_port(), sandbox_options=sandbox_options
        )
        # Never the user's own inbox: the processes read the repository's .env, and a variable overrides it.
        self.environment |= {"COMPLIANCE_INBOX_URL": inbox_url or "", "COMPLIANCE_WAREHOUSE_URL": ""}
        self.environment |= {"COMPLIANCE_HOST": "127.0.0.1", "COMPLIANCE_CANARIES": "false", **(variables or {})}
        self._commands = procfile() | worker_commands(self.settings)
        self._logs = home / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *names: str) -> None:
        for name in names:
            self.run(name, self._commands[name])

    def run(self, name: str, command: str) -> None:
        """Start a process that the Procfile does not have, as if it had."""
        with (self._logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(  # noqa: S603 - the commands are the Procfile's or ours
                ["/bin/sh", "-c", command],
                env=self.environment,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def kill(self, name: str) -> None:
        """kill -9 the process and its children."""
        process = self._processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def pause(self, name: str) -> None:
        """Let the process and its children stand still, as on a machine that hangs; `resume` lets them go on."""
        _signal_group(self._processes[name], signal.SIGSTOP)

    def resume(self, name: str) -> None:
        _signal_group(self._processes[name], signal.SIGCONT)

    def stop(self) -> None:
        for process in self._processes.values():
            _signal_group(process, signal.SIGTERM)
            # A process that stands still would not hear it.
            _signal_group(process, signal.SIGCONT)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in self._processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
            # Children of a process that is gone would live on in its group.
            _signal_group(process, signal.SIGKILL)
        self._processes.clear()

    def check(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise StackError(
                    f"{name} stopped with exit code {process.returncode}; its output is in {self._logs / name}.log"
                )

    def wait_until_up(self, *names: str, timeout_s: float = 90.0) -> None:
        """Until the named ones of receiver, sandbox and code answer."""
        deadline = time.monotonic() + timeout_s
        for name in names:
            while not self._is_up(name):
                self.check()
                if time.monotonic() > deadline:
                    raise StackError(f"{name} did not answer within {timeout_s:.0f} s; see {self._logs / name}.log")
                time.sleep(0.1)

    def _is_up(self, name: str) -> bool:
        if name == "code":
            return is_open(self._code_port)
        url = {
            "receiver": f"http://127.0.0.1:{self.settings.receiver_port}/readyz",
            "sandbox": f"{self.settings.platform_url}/healthz",
        }[name]
        try:
            return httpx.get(url, timeout=2).is_success
        except httpx.TransportError:
            return False


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
