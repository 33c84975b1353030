"""Kill -9 of a real receiver under load: whatever was acknowledged is stored."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline_tests.intake.test_receiver import PATH, SECRET, body_of, signed

SERVE = """
from compliance_pipeline.intake.receiver import serve
from compliance_pipeline.settings import Settings
serve(Settings())
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def launch(home: Path, port: int) -> subprocess.Popen[bytes]:
    settings = {
        "COMPLIANCE_HOME": str(home),
        "COMPLIANCE_RECEIVER_PORT": str(port),
        "COMPLIANCE_WEBHOOK_SECRET": SECRET.get_secret_value(),
    }
    with (home / "receiver.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-c", SERVE], env=os.environ | settings, cwd=home, stderr=log)
    for _ in range(200):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return process
        except httpx.TransportError:
            time.sleep(0.05)
    process.kill()
    raise AssertionError((home / "receiver.log").read_text())


def test_what_a_killed_receiver_acknowledged_is_stored(tmp_path: Path) -> None:
    port = free_port()
    acknowledged: set[str] = set()
    unanswered: set[str] = set()
    stop = threading.Event()

    def send(sender: int) -> None:
        number = 0
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5) as http:
            while not stop.is_set():
                recording_id = f"rec-{sender}-{number}"
                number += 1
                body = body_of(recording_id)
                try:
                    answer = http.post(PATH, content=body, headers=signed(body))
                except httpx.TransportError:
                    unanswered.add(recording_id)
                    time.sleep(0.02)
                    continue
                assert answer.status_code == 200
                acknowledged.add(recording_id)

    process = launch(tmp_path, port)
    senders = [threading.Thread(target=send, args=(number,)) for number in range(6)]
    for sender in senders:
        sender.start()
    for _ in range(2):
        time.sleep(0.7)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = launch(tmp_path, port)
    stop.set()
    for sender in senders:
        sender.join()
    process.terminate()
    assert process.wait(15) in (0, -signal.SIGTERM)

    inbox = Inbox(f"sqlite:///{tmp_path / 'inbox.db'}")
    with inbox.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        rows = connection.exec_driver_sql("SELECT recording_id FROM inbox").scalars().all()
    assert len(acknowledged) > 100
    assert unanswered, "no kill hit a request: the test showed nothing"
    assert acknowledged <= set(rows) <= acknowledged | unanswered
    assert len(rows) == len(set(rows))
