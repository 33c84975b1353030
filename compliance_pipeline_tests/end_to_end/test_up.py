"""Everything started as `compliance up` starts it: the UI answers, and Ctrl-C leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from compliance_pipeline.orchestration.sensors import RECORDING_SENSORS
from compliance_pipeline.stack import Stack, free_port

PATIENCE_S = 120.0
STOPS_WITHIN_S = 15.0

QUESTION = """
{
  workspaceOrError { ... on Workspace { locationEntries {
    loadStatus
    locationOrLoadError {
      __typename
      ... on PythonError { message }
      ... on RepositoryLocation { name repositories {
        sensors { name sensorState { status } }
        assetNodes { assetKey { path } }
      } }
    }
  } } }
}
"""


def until(what: str, happened: Callable[[], bool], logs: Path) -> None:
    begun = time.monotonic()
    while not happened():
        assert time.monotonic() - begun < PATIENCE_S, f"no {what} for {PATIENCE_S:.0f} s; logs: {logs}"
        time.sleep(0.2)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


def ask(port: str, query: str) -> dict[str, Any]:
    answer = httpx.post(f"http://127.0.0.1:{port}/graphql", json={"query": query}, timeout=30).json()
    assert "errors" not in answer, answer
    data: dict[str, Any] = answer["data"]
    return data


def test_the_web_ui_shows_the_assets_and_the_running_sensors(tmp_path: Path) -> None:
    with Stack(tmp_path) as stack:
        stack.start("code", "webserver")
        port = stack.environment["COMPLIANCE_WEB_PORT"]
        until("answer of the web UI", lambda: answers(f"http://127.0.0.1:{port}/server_info"), tmp_path / "logs")
        (entry,) = ask(port, QUESTION)["workspaceOrError"]["locationEntries"]
    location = entry["locationOrLoadError"]
    assert location["__typename"] == "RepositoryLocation", location
    assert location["name"] == "compliance_pipeline"
    (repository,) = location["repositories"]
    running = {"status": "RUNNING"}
    assert sorted(repository["sensors"], key=lambda sensor: str(sensor["name"])) == [
        {"name": "alert_sensor", "sensorState": running},
        {"name": "canary_sensor", "sensorState": running},
        {"name": "evidence_sensor", "sensorState": running},
        {"name": "recording_sensor", "sensorState": running},
        *({"name": f"recording_sensor_{number}", "sensorState": running} for number in range(2, RECORDING_SENSORS + 1)),
        {"name": "snapshot_sensor", "sensorState": running},
    ]
    assets = {"/".join(node["assetKey"]["path"]) for node in repository["assetNodes"]}
    assert assets == {
        *("recordings", "media", "verdicts", "remediations", "evidence"),
        *("latency_by_hour", "violations_by_hour", "snapshot", "reconciliation", "redaction", "ledger", "retention"),
        "canaries",
    }


def processes_of(home: Path) -> set[int]:
    """Processes of this machine that work on `home`."""
    return {
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/environ")
        if f"COMPLIANCE_HOME={home}\0".encode() in _read(path)
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # gone since, or somebody else's
        return b""


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes that are left through /proc")
def test_ctrl_c_stops_everything_and_is_no_failure(tmp_path: Path) -> None:
    web, receiver, platform, evidence = free_port(), free_port(), free_port(), free_port()
    variables = {
        "COMPLIANCE_HOME": str(tmp_path),
        "COMPLIANCE_RECEIVER_PORT": str(receiver),
        "COMPLIANCE_EVIDENCE_PORT": str(evidence),
        "COMPLIANCE_PLATFORM_URL": f"http://127.0.0.1:{platform}",
    }
    command = [str(Path(sys.executable).with_name("compliance")), "up", "--web-port", str(web), "--interval", "1"]
    log = tmp_path / "up.log"
    with log.open("wb") as output:
        # A group of its own: what a terminal sends Ctrl-C to.
        process = subprocess.Popen(
            command, env=os.environ | variables, stdout=output, stderr=output, start_new_session=True
        )
    try:
        for url in (
            f"http://127.0.0.1:{receiver}/readyz",
            f"http://127.0.0.1:{platform}/healthz",
            f"http://127.0.0.1:{evidence}/healthz",
            f"http://127.0.0.1:{web}/server_info",
        ):
            until(f"answer of {url}", lambda url=url: process.poll() is not None or answers(url), log)  # type: ignore[misc]
        assert process.poll() is None, f"`compliance up` ended by itself: see {log}"
        assert len(processes_of(tmp_path)) >= 5

        begun = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(STOPS_WITHIN_S) == 0, f"see {log}"
        until("end of the last process", lambda: not processes_of(tmp_path), log)
        assert time.monotonic() - begun < STOPS_WITHIN_S
    finally:
        for left in processes_of(tmp_path):
            os.kill(left, signal.SIGKILL)
