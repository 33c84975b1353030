"""Dead messages at rest: sealed, counted, and never in the clear in any file."""

import stat
from base64 import b64encode
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from compliance_pipeline.intake.dead_messages import (
    DeadMessages,
    SealBroken,
    Unread,
    dead_table,
    sealing_secret,
)
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.settings import Settings
from compliance_pipeline_tests.intake.samples import NOON

SECRET = b64encode(b"k" * 32).decode()
BODY = b'{"ani": "+14155550123", "name": "Jane Canary"}'


def test_a_message_comes_back_as_it_came_and_its_reason_and_size_are_listed(inbox: Inbox) -> None:
    dead = DeadMessages(inbox.engine, SECRET)
    dead.store([Unread(BODY, "unknown topic v2.x"), Unread(b"", "empty")], "sqs://host/1/q", NOON)
    found = {letter.reason: letter for letter in dead.all()}
    letter = found["unknown topic v2.x"]
    assert (letter.queue, letter.received_at, letter.size, letter.attempts) == ("sqs://host/1/q", NOON, len(BODY), 1)
    assert dead.body(letter.key) == BODY
    assert dead.body(found["empty"].key) == b""
    assert dead.body("unknown") is None


def test_the_same_message_again_is_one_row_that_counts(inbox: Inbox) -> None:
    dead = DeadMessages(inbox.engine, SECRET)
    dead.store([Unread(BODY, "not JSON"), Unread(BODY, "not JSON")], "q", NOON)
    dead.store([Unread(BODY, "a newer reason")], "q", NOON + timedelta(hours=1))
    (letter,) = dead.all()
    assert (letter.attempts, letter.received_at, letter.reason) == (3, NOON, "a newer reason")
    dead.forget(letter.key)
    assert dead.all() == []


def test_nothing_of_a_message_is_in_the_clear_and_its_key_is_no_plain_digest(tmp_path: Path) -> None:
    from hashlib import sha256

    inbox = Inbox(f"sqlite:///{tmp_path / 'inbox.db'}")
    inbox.create()
    dead = DeadMessages(inbox.engine, SECRET)
    dead.store([Unread(BODY, "not JSON")], "q", NOON)
    (letter,) = dead.all()
    assert letter.key != sha256(BODY).hexdigest()
    assert "Canary" not in repr(Unread(BODY, "x")) + repr(letter)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(letter.key.encode() in path.read_bytes() for path in files)
    assert not any(word in path.read_bytes() for path in files for word in (b"Canary", b"4155550123"))
    inbox.close()


def test_a_body_sealed_under_another_key_or_changed_says_which_key_is_needed(inbox: Inbox) -> None:
    dead = DeadMessages(inbox.engine, SECRET)
    dead.store([Unread(BODY, "not JSON")], "q", NOON)
    (letter,) = dead.all()
    with pytest.raises(SealBroken, match="dead_messages file of the secrets folder"):
        DeadMessages(inbox.engine, b64encode(b"o" * 32).decode()).body(letter.key)
    with inbox.engine.execution_options(writes=True).begin() as connection:
        connection.execute(sa.update(dead_table).values(body=b"changed"))
    with pytest.raises(SealBroken):
        dead.body(letter.key)


def test_the_sealing_secret_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, home=tmp_path)
    assert sealing_secret(settings) == sealing_secret(Settings(_env_file=None, home=tmp_path))
    file = tmp_path / "secrets" / "dead_messages"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
