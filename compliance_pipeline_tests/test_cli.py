"""The command line: help that teaches, errors in one line, exit codes. What scanning says is in test_scan."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from compliance_pipeline.cli import app, offset
from compliance_pipeline.clock import utc_now
from compliance_pipeline.contracts.event import EventType
from compliance_pipeline.intake.inbox import Inbox, State
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline_tests.workshop import incoming, recording

COMMANDS = ("up", "receiver", "sandbox", "scan", "demo", "inbox")
runner = CliRunner()


@pytest.fixture
def inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inbox:
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    inbox = Inbox(f"sqlite:///{tmp_path / 'inbox.db'}")
    inbox.create()
    return inbox


def test_help_lists_every_command_and_says_where_to_begin() -> None:
    shown = runner.invoke(app, ["--help"])
    assert shown.exit_code == 0
    for name in COMMANDS:
        assert name in shown.output
    assert "compliance scan" in shown.output
    assert "COMPLIANCE_HOME" in shown.output


def test_without_a_command_the_help_is_shown() -> None:
    assert "compliance scan" in runner.invoke(app, []).output


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_an_example_of_it(name: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert f"compliance {name}" in commands[name].help


def test_a_path_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    shown = runner.invoke(app, ["scan", str(tmp_path / "nowhere")])
    assert shown.exit_code == 2
    assert "nowhere" in re.sub(r"[\s│]", "", shown.output)


def test_the_inbox_is_counted_by_state_and_dead_letters_come_with_their_reason(inbox: Inbox) -> None:
    now = utc_now()
    chats = [recording(Kind.CHAT_CLEAN, seed) for seed in range(1, 4)]
    inbox.store([incoming(chat, EventType.AVAILABLE, now) for chat in chats], now)
    [work] = inbox.pending(now)
    first, second, _ = inbox.claim(work.partition_hour, "run", now, timedelta(minutes=2), 3)
    inbox.done([first.recording_id], "run", now)
    inbox.dead(second.recording_id, "run", "gave up after 3 tries: no", now)
    shown = runner.invoke(app, ["inbox"])
    assert shown.exit_code == 0
    counts = dict(line.split()[:2] for line in shown.output.splitlines() if line.split()[0] in set(State))
    assert {state: int(count) for state, count in counts.items() if state != "dead"} == {
        "new": 0, "claimed": 1, "deferred": 0, "done": 1, "listed": 0,
    }  # fmt: skip
    assert f"{second.recording_id}  gave up after 3 tries: no" in shown.output


def test_retrying_gives_dead_letters_another_set_of_tries(inbox: Inbox) -> None:
    now = utc_now()
    chat = recording(Kind.CHAT_CLEAN)
    inbox.store([incoming(chat, EventType.AVAILABLE, now)], now)
    inbox.claim(inbox.pending(now)[0].partition_hour, "run", now, timedelta(minutes=2), 1)
    inbox.dead(chat.recording_id, "run", "no", now)
    assert "1 recordings will be tried again" in runner.invoke(app, ["inbox", "--retry"]).output
    item = inbox.get(chat.recording_id)
    assert item is not None
    assert (item.state, item.attempts) == (State.NEW, 0)


@pytest.mark.parametrize(
    ("milliseconds", "shown"), [(0, "0:00.0"), (999, "0:00.9"), (61_250, "1:01.2"), (3_600_000, "60:00.0")]
)
def test_an_offset_is_shown_in_minutes_and_seconds(milliseconds: int, shown: str) -> None:
    assert offset(milliseconds) == shown
