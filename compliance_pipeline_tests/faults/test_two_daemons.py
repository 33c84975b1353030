"""Started twice by mistake: two daemons and two receivers on one instance. Nothing is lost and nothing is double."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from standardwebhooks import Webhook

from compliance_pipeline.contracts.event import EventType
from compliance_pipeline.demo import collect, sandbox_says, wait_until_settled
from compliance_pipeline.sandbox.delivery import INGEST_PATH
from compliance_pipeline.stack import Stack, free_port, procfile, wait_for_port
from compliance_pipeline_tests.end_to_end.demo_run import COUNT, sandbox_options, settle, start_all

PATIENCE_S = 150.0


def test_two_daemons_and_two_receivers_by_mistake_lose_and_double_nothing(tmp_path: Path) -> None:
    """fault: two daemons and two receivers on one instance, by mistake; invariant: nothing lost, nothing double."""
    second = free_port()
    with Stack(tmp_path, sandbox_options=sandbox_options()) as stack:
        start_all(stack)
        stack.run("second daemon", procfile()["daemon"])
        stack.run("second receiver", f"export COMPLIANCE_RECEIVER_PORT={second}; {procfile()['receiver']}")
        wait_for_port(second, timeout_s=60)
        announced: set[str] = set()
        for _ in wait_until_settled(stack, timeout_s=PATIENCE_S):
            # What the platform tells the first receiver, it tells the second too.
            for said in sandbox_says(stack, "truth")["recordings"]:
                if said["recordingId"] not in announced:
                    announce(stack, second, said)
                    announced.add(said["recordingId"])
        settle(stack, timeout_s=PATIENCE_S)
        stack.check()
        result = collect(stack, 0.0)
    assert len(result.outcomes) == COUNT == len(announced)
    assert result.faults == [], f"logs: {tmp_path / 'logs'}"
    assert result.duplicates >= COUNT, "the second receiver took nothing"


def announce(stack: Stack, port: int, said: dict[str, Any]) -> None:
    now = datetime.now(UTC)
    body = json.dumps(
        {
            "recordingId": said["recordingId"],
            "event": EventType.AVAILABLE,
            "eventTime": said["availableAt"],
            "endTime": said["endedAt"],
            "channel": said["channel"],
            "mediaUri": "https://media.test/1",
        }
    )
    message = f"msg_second_{said['recordingId']}"
    headers = {
        "Content-Type": "application/json",
        "X-Genesys-Event-Source": "recording-pipeline",
        "webhook-id": message,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(stack.settings.webhook_signing_secret).sign(message, now, body),
    }
    answer = httpx.post(f"http://127.0.0.1:{port}{INGEST_PATH}", content=body, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
