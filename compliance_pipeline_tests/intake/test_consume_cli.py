"""`compliance consume` as a user meets it: a real process on a real queue, its figures, errors and dead letters."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from compliance_pipeline.clock import utc_now
from compliance_pipeline.consume_cli import consume
from compliance_pipeline.intake.dead_messages import DeadMessages, Unread, sealing_secret
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.settings import Settings
from compliance_pipeline_tests.intake.brokers import broker
from compliance_pipeline_tests.intake.messages import an_id, conversation_ended

PROCESS = """
import typer
from compliance_pipeline.consume_cli import consume
app = typer.Typer(pretty_exceptions_enable=False)
app.command()(consume)
app()
"""

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(consume)
runner = CliRunner()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COMPLIANCE_INBOX_URL", raising=False)
    return tmp_path / "home"


def inbox_of(home: Path) -> Inbox:
    inbox = Inbox(f"sqlite:///{home / 'inbox.db'}")
    inbox.create()
    return inbox


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stores_what_the_queue_has_and_on_a_signal_finishes_and_says_what_it_did(
    number: signal.Signals, home: Path, tmp_path: Path, moto_port: Any
) -> None:
    with broker("sqs", tmp_path, moto_port) as sqs:
        sqs.send(*(conversation_ended(an_id(index)) for index in range(12)), b"poison")
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, sqs.url],
            env=os.environ | sqs.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: sqs.left() == 0)
        process.send_signal(number)
        _, said = process.communicate(timeout=15)
    assert process.returncode == 0
    assert "stopped: 13 messages: 12 events stored, 0 duplicates, 0 about nothing" in " ".join(said.split())
    assert '"reason": "not JSON"' in said
    inbox = inbox_of(home)
    assert sum(inbox.counts().values()) == 12
    inbox.close()
    listed = runner.invoke(app, ["--dead"])
    assert "not JSON" in listed.output
    assert "poison" not in listed.output.replace(sqs.url, "")
    assert "1 messages not understood" in listed.output


def test_what_is_understood_after_an_upgrade_is_stored_on_retry(home: Path) -> None:
    inbox = inbox_of(home)
    dead = DeadMessages(inbox.engine, sealing_secret(Settings(_env_file=None, home=home)))
    dead.store([Unread(conversation_ended(), "too new"), Unread(b"[]", "too old")], "sqs://host/1/q", utc_now())
    retried = runner.invoke(app, ["--retry-dead"])
    assert "1 are understood now and stored; 1 still are not." in " ".join(retried.output.split())
    assert sum(inbox.counts().values()) == 1
    assert [letter.reason for letter in dead.all()] == ["not a JSON object"]
    inbox.close()


def test_without_the_key_that_sealed_them_a_retry_says_which_file_to_put_back(home: Path) -> None:
    inbox = inbox_of(home)
    DeadMessages(inbox.engine, sealing_secret(Settings(_env_file=None, home=home))).store(
        [Unread(b"[]", "x")], "q", utc_now()
    )
    inbox.close()
    (home / "secrets" / "dead_messages").unlink()
    failed = runner.invoke(app, ["--retry-dead"])
    assert failed.exit_code == 1
    assert "put back the dead_messages file" in " ".join(failed.output.split())


@pytest.mark.parametrize("arguments", [[], ["--dead", "--retry-dead"], ["sqs://host/1/q", "--dead"]])
def test_it_wants_one_thing_at_a_time(arguments: list[str], home: Path) -> None:
    assert runner.invoke(app, arguments).exit_code == 2


def test_an_address_that_is_none_fails_in_one_line_and_without_a_traceback(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, "rabbit://host/queue"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "error: the address must begin with sqs://, kafka:// or servicebus://" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_the_help_has_an_example_of_each_queue_and_names_the_variables() -> None:
    shown = " ".join((consume.__doc__ or "").split())
    for example in ("sqs://sqs.", "kafka://", "servicebus://", "--dead", "--retry-dead"):
        assert f"compliance consume {example}" in shown.replace("'", "")
    for variable in ("AWS_PROFILE", "AZURE_SERVICEBUS_CONNECTION_STRING", "sqs:DeleteMessage"):
        assert variable in shown
    assert runner.invoke(app, ["--help"]).exit_code == 0
