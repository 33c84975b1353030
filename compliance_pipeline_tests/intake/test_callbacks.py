"""Verdicts that come back, in both databases: applied once, and whoever waits for one is due again."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy.exc import DataError

from compliance_pipeline.contracts.verdict import RecommendedAction, Verdict, VerdictValue
from compliance_pipeline.intake.callbacks import (
    Message,
    MessageIdReused,
    StoredVerdict,
    UnknownRecording,
    callback_url,
    take,
    verdict_for,
    wake,
)
from compliance_pipeline.intake.inbox import Inbox, State
from compliance_pipeline_tests.intake.samples import HOUR, LEASE, NOON, after, incoming

LATER = after(3600)


def saying(value: VerdictValue = VerdictValue.NO_VIOLATION, recording_id: str = "rec-1", at_ms: int = 1) -> Verdict:
    found = value is VerdictValue.VIOLATION_DETECTED
    return Verdict(
        recording_id=recording_id,
        verdict=value,
        violation_type="PCI_MID_CAPTURE" if found else None,
        confidence_score=0.9 if found else None,
        timestamp_offset_ms=at_ms if found else None,
        recommended_action=RecommendedAction.NONE,
        correlation_id="msg-1",
    )


def waiting(inbox: Inbox, recording_id: str = "rec-1") -> None:
    """A recording that a run has asked an engine about and put back for an hour."""
    inbox.store([incoming(recording_id)], NOON)
    inbox.claim(HOUR, "run-1", NOON, LEASE, 10)
    assert inbox.defer(recording_id, "run-1", LATER, "waits for the engine's verdict", NOON, tried=False)


def due(inbox: Inbox, at_s: float) -> bool:
    return bool(inbox.pending(after(at_s)))


def test_a_verdict_is_kept_and_its_recording_is_due_at_once(inbox: Inbox) -> None:
    waiting(inbox)
    assert not due(inbox, 20)
    assert verdict_for(inbox.engine, "rec-1", "msg-1") is None
    assert take(inbox.engine, Message("id-1", "digest"), saying(), after(10)) is False
    assert verdict_for(inbox.engine, "rec-1", "msg-1") == StoredVerdict(saying(), after(10))
    assert verdict_for(inbox.engine, "rec-1", "msg-2") is None
    assert due(inbox, 20)
    [item] = inbox.claim(HOUR, "run-2", after(20), LEASE, 10)
    assert item.attempts == 1


def test_a_verdict_counts_for_the_policy_that_it_was_asked_for_under_only(inbox: Inbox) -> None:
    waiting(inbox)
    take(inbox.engine, Message("id-1", "digest", "pack@1"), saying(), after(10))
    assert verdict_for(inbox.engine, "rec-1", "msg-1", "pack@1")
    assert verdict_for(inbox.engine, "rec-1", "msg-1", "pack@2") is None
    assert callback_url("https://here/", "pack@1+ab") == "https://here/api/v1/callback/genesys?policy=pack%401%2Bab"


def test_a_message_that_comes_again_is_applied_once(inbox: Inbox) -> None:
    waiting(inbox)
    take(inbox.engine, Message("id-1", "digest"), saying(), after(10))
    inbox.claim(HOUR, "run-2", after(11), LEASE, 10)
    inbox.defer("rec-1", "run-2", LATER, "for another reason", after(11))
    assert take(inbox.engine, Message("id-1", "digest"), saying(), after(20)) is True
    assert verdict_for(inbox.engine, "rec-1", "msg-1") == StoredVerdict(saying(), after(10))
    assert not due(inbox, 30)


def test_the_same_verdict_in_another_message_says_nothing_new(inbox: Inbox) -> None:
    waiting(inbox)
    take(inbox.engine, Message("id-1", "digest"), saying(), after(10))
    assert take(inbox.engine, Message("id-2", "digest"), saying(), after(20)) is True


def test_another_body_under_a_known_id_is_refused_and_changes_nothing(inbox: Inbox) -> None:
    waiting(inbox)
    take(inbox.engine, Message("id-1", "digest"), saying(), after(10))
    other = saying(VerdictValue.VIOLATION_DETECTED)
    with pytest.raises(MessageIdReused):
        take(inbox.engine, Message("id-1", "other"), other, after(20))
    assert verdict_for(inbox.engine, "rec-1", "msg-1") == StoredVerdict(saying(), after(10))


def test_a_corrected_verdict_replaces_the_first_one(inbox: Inbox) -> None:
    waiting(inbox)
    take(inbox.engine, Message("id-1", "digest"), saying(), after(10))
    other = saying(VerdictValue.VIOLATION_DETECTED)
    assert take(inbox.engine, Message("id-2", "other"), other, after(20)) is False
    assert verdict_for(inbox.engine, "rec-1", "msg-1") == StoredVerdict(other, after(20))


def test_a_verdict_on_a_recording_that_nobody_announced_is_refused_and_its_id_stays_free(inbox: Inbox) -> None:
    with pytest.raises(UnknownRecording):
        take(inbox.engine, Message("id-1", "digest"), saying(), NOON)
    assert verdict_for(inbox.engine, "rec-1", "msg-1") is None
    waiting(inbox)
    assert take(inbox.engine, Message("id-1", "digest"), saying(), after(10)) is False


def test_a_late_verdict_leaves_what_is_settled_and_what_a_run_holds(inbox: Inbox) -> None:
    waiting(inbox)
    inbox.claim(HOUR, "run-2", LATER, LEASE, 10)
    take(inbox.engine, Message("id-1", "digest"), saying(), LATER)
    held = inbox.get("rec-1")
    assert held is not None
    assert (held.state, held.claimed_by, held.due_at) == (State.CLAIMED, "run-2", LATER + LEASE)
    inbox.done(["rec-1"], "run-2", LATER)
    take(inbox.engine, Message("id-2", "other"), saying(VerdictValue.VIOLATION_DETECTED), LATER)
    settled = inbox.get("rec-1")
    assert settled is not None
    assert settled.state is State.DONE


def test_a_late_verdict_revives_what_was_given_up_on(inbox: Inbox) -> None:
    waiting(inbox)
    inbox.claim(HOUR, "run-2", LATER, LEASE, 10)
    inbox.dead("rec-1", "run-2", "no verdict came", LATER)
    take(inbox.engine, Message("id-1", "digest"), saying(), LATER)
    item = inbox.get("rec-1")
    assert item is not None
    assert (item.state, item.attempts, item.due_at) == (State.NEW, 0, LATER)


def test_a_verdict_that_comes_between_the_answer_and_the_deferral_is_not_lost(inbox: Inbox) -> None:
    """The callback finds the row still claimed; the run defers it, looks once more, and wakes it."""
    inbox.store([incoming()], NOON)
    inbox.claim(HOUR, "run-1", NOON, LEASE, 10)
    take(inbox.engine, Message("id-1", "digest"), saying(), after(1))
    inbox.defer("rec-1", "run-1", LATER, "waits for the engine's verdict", after(2), tried=False)
    assert not due(inbox, 3)
    assert verdict_for(inbox.engine, "rec-1", "msg-1")
    wake(inbox.engine, "rec-1", after(3))
    assert due(inbox, 3)


def test_one_message_delivered_many_times_at_once_is_new_once(inbox: Inbox) -> None:
    waiting(inbox)

    def deliver(_: int) -> bool:
        return take(inbox.engine, Message("id-1", "digest"), saying(), after(10))

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(deliver, range(16))) == [False] + [True] * 15


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=8))
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_messages_repeat_the_last_new_one_stands(
    tmp_path_factory: pytest.TempPathFactory, deliveries: list[tuple[int, int]]
) -> None:
    """Each is a pair of message id and content; an id stands for the content that it came with first."""
    inbox = Inbox(f"sqlite:///{tmp_path_factory.mktemp('inbox')}/inbox.db")
    inbox.create()
    waiting(inbox)
    first: dict[int, int] = {}
    stands: int | None = None
    for second, (message, content) in enumerate(deliveries):
        said = saying(VerdictValue.VIOLATION_DETECTED, at_ms=content)
        arrival = Message(f"id-{message}", str(content))
        if first.get(message, content) != content:
            with pytest.raises(MessageIdReused):
                take(inbox.engine, arrival, said, after(second))
            continue
        repeat = message in first or content == stands
        assert take(inbox.engine, arrival, said, after(second)) is repeat
        first.setdefault(message, content)
        stands = content if not repeat else stands
    kept = verdict_for(inbox.engine, "rec-1", "msg-1")
    assert (kept.verdict.timestamp_offset_ms if kept else None) == stands
    inbox.close()


@pytest.mark.parametrize("inbox_url", ["postgres"], indirect=True)
def test_a_text_that_postgres_can_not_hold_is_the_verdicts_fault_not_the_databases(inbox: Inbox) -> None:
    """The receiver refuses it for good; any other database error it answers with 'send again'."""
    waiting(inbox)
    with pytest.raises(DataError):
        take(inbox.engine, Message("id-1", "digest"), saying().model_copy(update={"correlation_id": "a\0b"}), after(1))
