"""Platforms that announce conversations (Genesys Cloud): from the announcement to the verdicts of its recordings."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from compliance_pipeline import steps
from compliance_pipeline.contracts.event import EventType, RecordingEvent
from compliance_pipeline.intake.inbox import IncomingEvent, State
from compliance_pipeline.platforms.port import NotYet, Platform, PlatformHeld, Unavailable
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.sandbox.platform import PlatformState
from compliance_pipeline_tests.workshop import CLIENT, Failing, Workshop, recording, workshop

CARD, SSN, CLEAN = (recording(kind) for kind in (Kind.CHAT_CARD, Kind.CHAT_SSN, Kind.CHAT_CLEAN))
CONVERSATION = "8a4a5b52-5d0c-4f0a-9a3e-2f1f3f1b7a11"


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path, PlatformState(*CLIENT, profile="cloud")) as opened:
        yield opened


def test_one_run_lists_a_conversation_and_judges_all_its_recordings(shop: Workshop) -> None:
    held = [shop.state.add(one, conversation_id=CONVERSATION) for one in (CARD, CLEAN)]
    shop.announce_conversation(CONVERSATION)
    shop.run()
    assert shop.states() == {CONVERSATION: State.LISTED} | {one.address: State.DONE for one in held}
    verdicts = {row["recording_id"]: row["verdict"] for row in shop.rows("verdicts")}
    assert verdicts == {held[0].address: "VIOLATION_DETECTED", held[1].address: "NO_VIOLATION"}
    assert {row["conversation_id"] for row in shop.rows("recordings")} == {CONVERSATION}
    seen = {row["recordingId"]: row for row in shop.state.observed()["recordings"]}
    assert seen[held[0].address]["workItems"] == ["PCI_MID_CAPTURE"]
    assert seen[held[0].address]["tags"]["compliance_status"] == "VIOLATION_DETECTED"


def test_a_recording_that_comes_after_the_listing_is_found_by_the_next_announcement(shop: Workshop) -> None:
    first = shop.state.add(CLEAN, conversation_id=CONVERSATION)
    shop.announce_conversation(CONVERSATION)
    shop.run()
    second = shop.state.add(SSN, conversation_id=CONVERSATION)
    shop.announce_conversation(CONVERSATION, attempt=2)
    shop.run()
    assert {row["recording_id"] for row in shop.rows("verdicts")} == {first.address, second.address}
    assert len(shop.rows("verdicts")) == 2


def test_a_conversation_that_was_never_recorded_ends_as_such_after_its_last_try(shop: Workshop) -> None:
    shop.announce_conversation(CONVERSATION)
    for _ in range(shop.pipeline.settings.max_attempts):
        shop.run()
        shop.clock.wait(300)
    item = shop.inbox.get(CONVERSATION)
    assert item is not None
    assert (item.state, item.reason) == (State.LISTED, steps.NOT_RECORDED)
    assert shop.rows("verdicts") == []


def test_a_run_killed_between_storing_the_recordings_and_settling_the_conversation_loses_nothing(
    shop: Workshop,
) -> None:
    held = shop.state.add(CARD, conversation_id=CONVERSATION)
    shop.announce_conversation(CONVERSATION)
    killed = shop.batch()
    [conversation] = shop.inbox.claim(shop.hour, killed.owner, shop.clock(), shop.pipeline.lease, 10)
    [event] = shop.pipeline.platform.recordings_of(CONVERSATION)  # type: ignore[misc]
    shop.inbox.store([steps._announced(shop.pipeline, conversation, event, shop.clock())], shop.clock())
    shop.clock.wait(shop.pipeline.settings.claim_seconds + 1)
    shop.run()
    shop.run()
    assert [row["recording_id"] for row in shop.rows("verdicts")] == [held.address]
    assert shop.states() == {CONVERSATION: State.LISTED, held.address: State.DONE}


def test_a_platform_that_holds_us_off_costs_a_conversation_no_try(shop: Workshop) -> None:
    shop.announce_conversation(CONVERSATION)
    shop.pipeline.platform = Failing(
        shop.pipeline.platform, {("recordings_of", "*"): PlatformHeld("the budget is spent", 30)}
    )
    shop.run()
    item = shop.inbox.get(CONVERSATION)
    assert item is not None
    assert (item.state, item.attempts, item.reason) == (State.DEFERRED, 0, "the budget is spent")


def test_a_platform_that_fails_leaves_a_conversation_for_later_with_the_reason(shop: Workshop) -> None:
    shop.announce_conversation(CONVERSATION)
    shop.pipeline.platform = Failing(shop.pipeline.platform, {("recordings_of", "*"): Unavailable("GET x: 503")})
    shop.run()
    item = shop.inbox.get(CONVERSATION)
    assert item is not None
    assert (item.state, item.attempts, item.reason) == (State.DEFERRED, 1, "GET x: 503")


def test_a_conversation_that_comes_while_a_run_lists_is_left_to_the_next(shop: Workshop) -> None:
    shop.state.add(CLEAN, conversation_id=CONVERSATION)
    shop.announce_conversation(CONVERSATION)
    other = "11111111-5d0c-4f0a-9a3e-2f1f3f1b7a11"
    late = shop.state.add(SSN, conversation_id=other)
    shop.pipeline.platform = Announcing(shop.pipeline.platform, lambda: shop.announce_conversation(other))
    shop.run()
    assert shop.states()[other] is State.DEFERRED, "due at once, and taken by nobody yet"
    assert late.address not in {row["recording_id"] for row in shop.rows("verdicts")}
    shop.run()
    assert late.address in {row["recording_id"] for row in shop.rows("verdicts")}
    assert other not in {row["recording_id"] for row in shop.rows("verdicts")}


def test_a_leg_that_still_runs_when_the_other_has_ended_spoils_nothing(shop: Workshop) -> None:
    held = shop.state.add(CLEAN, conversation_id=CONVERSATION)
    ended = held.recording.start_time - timedelta(minutes=1)
    event = RecordingEvent(
        recording_id=CONVERSATION, conversation_id=CONVERSATION, event=EventType.COMPLETED, end_time=ended
    )
    shop.inbox.store([IncomingEvent(event, "cloud", "msg-1", max(shop.at, shop.clock()))], shop.clock())
    shop.run()
    assert [row["recording_id"] for row in shop.rows("verdicts")] == [held.address]


def test_an_unforeseen_failure_in_one_listing_is_that_conversations_own(shop: Workshop) -> None:
    good = shop.state.add(CLEAN, conversation_id=CONVERSATION)
    shop.announce_conversation(CONVERSATION)
    other = "11111111-5d0c-4f0a-9a3e-2f1f3f1b7a11"
    shop.announce_conversation(other)
    shop.pipeline.platform = Failing(shop.pipeline.platform, {("recordings_of", other): RuntimeError("4111 1111")})
    shop.run()
    assert [row["recording_id"] for row in shop.rows("verdicts")] == [good.address]
    item = shop.inbox.get(other)
    assert item is not None
    assert (item.state, item.reason) == (State.DEFERRED, "listing failed with RuntimeError")


class Announcing(Failing):
    """Announces something while the platform is asked for the first conversation's recordings."""

    def __init__(self, inner: Platform, announce: Callable[[], None]) -> None:
        super().__init__(inner, {})
        self._announce: Callable[[], None] | None = announce

    def recordings_of(self, conversation_id: str) -> tuple[RecordingEvent, ...] | NotYet:
        found = super().recordings_of(conversation_id)
        if self._announce:
            self._announce()
            self._announce = None
        return found


def test_a_call_whose_transcript_cant_be_had_for_now_is_tried_again_and_then_judged_by_its_sound(
    shop: Workshop,
) -> None:
    call = next(one for seed in range(1, 40) if (one := recording(Kind.VOICE_DIGITS, seed)).transcript is not None)
    held = shop.state.add(call, conversation_id=CONVERSATION)
    shop.announce_conversation(CONVERSATION)
    shop.state.fail_next("/api/v2/speechandtextanalytics", 503, times=1000)
    for attempt in range(1, shop.pipeline.settings.max_attempts // 2 + 1):
        shop.run()
        item = shop.inbox.get(held.address)
        assert item is not None
        assert (item.state, item.attempts) == (State.DEFERRED, attempt)
        assert item.reason == "its transcript can't be had for now"
        shop.clock.wait(60)
    shop.run()
    [verdict] = shop.rows("verdicts")
    assert verdict["verdict"] in ("VIOLATION_DETECTED", "REVIEW_REQUIRED")
    assert "REC-CONSENT-01" in verdict["undetermined_rules"]
