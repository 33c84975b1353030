"""What the database won't take must not hold up the rest of a queue."""

from base64 import b64encode
from pathlib import Path

from compliance_pipeline import tallies
from compliance_pipeline.clock import utc_now
from compliance_pipeline.intake.consumer import Counts, Message, _store
from compliance_pipeline.intake.dead_messages import DeadMessages
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.intake.tokens import Tokenizer
from compliance_pipeline_tests.intake.messages import guide_event

SECRET = b64encode(b"the key of the tests' dead letters"[:32]).decode()


def test_a_row_that_the_database_refuses_is_set_aside_and_its_neighbours_are_stored(tmp_path: Path) -> None:
    inbox = Inbox(f"sqlite:///{tmp_path / 'inbox.db'}")
    inbox.create()
    with inbox.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER no BEFORE INSERT ON inbox WHEN NEW.recording_id = 'bad' "
            "BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    dead = DeadMessages(inbox.engine, SECRET)
    messages = [Message(guide_event(name), name, None) for name in ("rec-1", "bad", "rec-2")]
    counts = Counts()
    before = utc_now()
    _store(messages, "q", inbox, dead, Tokenizer("key"), utc_now, counts)
    assert (counts.received, counts.stored, counts.dead) == (3, 2, 1)
    assert [letter.reason for letter in dead.all()] == ["the inbox refuses it (IntegrityError)"]
    assert inbox.get("rec-1") is not None
    assert inbox.get("rec-2") is not None
    assert tallies.counted(inbox.engine, "", before) == {"received:accepted": 2, "rejected:poison": 1}
    inbox.close()
