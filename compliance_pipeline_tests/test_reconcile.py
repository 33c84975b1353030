from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from compliance_pipeline import quality, tallies
from compliance_pipeline.contracts.event import EventType, RecordingEvent
from compliance_pipeline.intake.inbox import IncomingEvent, State
from compliance_pipeline.reconcile import GRACE, LIST_AGAIN_AFTER, Sweep, reconcile, window
from compliance_pipeline.sandbox.calls import Kind, make_recording
from compliance_pipeline.sandbox.cloud import cloud_state
from compliance_pipeline.sandbox.platform import PlatformState
from compliance_pipeline_tests.workshop import CLIENT, Failing, Workshop, recording, workshop

CONVERSATION = "8a4a5b52-5d0c-4f0a-9a3e-2f1f3f1b7a11"
CARD, SSN, CLEAN = (recording(kind) for kind in (Kind.CHAT_CARD, Kind.CHAT_SSN, Kind.CHAT_CLEAN))


@pytest.fixture(params=["guide", "cloud"])
def shop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Workshop]:
    with workshop(tmp_path, PlatformState(*CLIENT, profile=request.param)) as opened:
        yield opened


def sweep(shop: Workshop) -> Sweep:
    now = shop.clock()
    return reconcile(shop.pipeline, "run-sweep", now - timedelta(days=400), now + timedelta(seconds=5))


def run_all(shop: Workshop) -> None:
    """Every hour that has work, as the sensor would ask for them."""
    hour = shop.hour
    for work in shop.inbox.pending(shop.clock()):
        shop.hour = work.partition_hour
        shop.run()
    shop.hour = hour


def test_what_no_event_announced_is_taken_in_marked_and_judged(shop: Workshop) -> None:
    held = [shop.state.add(one) for one in (CARD, CLEAN)]
    found = sweep(shop)
    assert (found.found_now, found.total("at_source"), found.total("found_by_sweep")) == (2, 2, 2)
    assert found.total("in_the_works") == 2
    run_all(shop)
    again = sweep(shop)
    assert (again.found_now, again.total("judged"), again.total("missing")) == (0, 2, 0)
    assert {row["recording_id"] for row in shop.rows("verdicts")} == {one.address for one in held}
    assert {row["found_by_sweep"] for row in shop.rows("recordings")} == {True}
    assert quality.nothing_is_missing(shop.pipeline, shop.clock() - timedelta(days=401)).passed


def test_a_sweep_adds_nothing_to_what_its_event_brought(shop: Workshop) -> None:
    held = shop.state.add(CARD)
    if shop.state.profile == "guide":
        shop.announce(CARD, held=False)
    else:
        shop.announce_conversation(held.conversation_id)
    shop.run()
    found = sweep(shop)
    assert (found.found_now, found.total("judged"), found.total("found_by_sweep")) == (0, 1, 0)
    assert len(shop.rows("verdicts")) == 1


def test_a_recording_that_is_settled_without_a_verdict_is_missing_and_the_check_says_so(shop: Workshop) -> None:
    held = shop.state.add(CLEAN)
    sweep(shop)
    run_all(shop)
    with shop.warehouse.write() as connection:
        connection.execute("DELETE FROM verdicts WHERE recording_id = $id", {"id": held.address})
    assert sweep(shop).total("missing") == 1
    answer = quality.nothing_is_missing(shop.pipeline, shop.clock() - timedelta(days=401))
    assert (answer.passed, answer.serious, answer.facts["missing"]) == (False, True, 1)


def test_a_dead_letter_is_given_up_on_not_missing(shop: Workshop) -> None:
    shop.state.add(CLEAN)
    sweep(shop)
    [work] = shop.inbox.pending(shop.clock())
    for item in shop.inbox.claim(work.partition_hour, "run", shop.clock(), timedelta(minutes=1), 10):
        shop.inbox.dead(item.recording_id, "run", "gave up", shop.clock())
    found = sweep(shop)
    assert (found.total("given_up"), found.total("missing")) == (1, 0)
    answer = quality.nothing_is_missing(shop.pipeline, shop.clock() - timedelta(days=401))
    assert (answer.passed, answer.serious) == (False, False)


def test_a_conversation_listed_soon_after_its_end_is_listed_once_more(tmp_path: Path) -> None:
    with workshop(tmp_path, PlatformState(*CLIENT, profile="cloud")) as shop:
        cloud_state(shop.state).analytics_lag_s = 0
        just_now = shop.clock()
        held = shop.state.add(make_recording(1, Kind.CHAT_CLEAN, ended_at=just_now))
        sweep(shop)
        run_all(shop)
        late = shop.state.add(make_recording(2, Kind.CHAT_SSN, ended_at=just_now), conversation_id=held.conversation_id)
        assert sweep(shop).listed_again == 0, "its recordings may still come by themselves"
        shop.clock.wait(LIST_AGAIN_AFTER[0].total_seconds() + 60)
        assert sweep(shop).listed_again == 1
        run_all(shop)
        assert late.address in {row["recording_id"] for row in shop.rows("verdicts")}
        assert sweep(shop).listed_again == 0
        item = shop.inbox.get(held.conversation_id)
        assert item is not None
        assert item.state is State.LISTED


def test_failing_deliveries_warn_before_they_cascade(shop: Workshop) -> None:
    since = shop.clock() - timedelta(hours=1)
    engine = shop.inbox.engine
    tallies.count(engine, {"received:accepted": 100}, shop.clock())
    assert quality.deliveries_arrive(shop.pipeline, since).passed
    tallies.count(engine, {"rejected:signature": 2, "rejected:schema": 50}, shop.clock())
    few = quality.deliveries_arrive(shop.pipeline, since)
    assert (few.passed, few.serious) == (False, False)
    tallies.count(engine, {f"rejected:{tallies.POISON}": 9}, shop.clock())
    many = quality.deliveries_arrive(shop.pipeline, since)
    assert (many.passed, many.serious) == (False, True)
    assert many.facts["refused, by reason"] == {"poison": 9, "schema": 50, "signature": 2}


def test_a_sweep_lists_a_conversation_of_which_only_one_recording_was_announced(tmp_path: Path) -> None:
    with workshop(tmp_path, PlatformState(*CLIENT, profile="cloud")) as shop:
        cloud_state(shop.state).analytics_lag_s = 0
        first, second = (shop.state.add(one, conversation_id=CONVERSATION) for one in (CLEAN, SSN))
        event = RecordingEvent(recording_id=first.address, conversation_id=CONVERSATION, event=EventType.COMPLETED)
        shop.inbox.store([IncomingEvent(event, "cloud", "msg-1", shop.clock())], shop.clock())
        run_all(shop)
        found = sweep(shop)
        assert found.found_now == 0, "the conversation was heard of"
        run_all(shop)
        assert {row["recording_id"] for row in shop.rows("verdicts")} == {first.address, second.address}
        assert {row["found_by_sweep"] for row in shop.rows("recordings")} == {False}
        assert sweep(shop).total("judged") == 1


def test_a_recording_whose_last_event_was_lost_moves_on_with_the_sweep(tmp_path: Path) -> None:
    with workshop(tmp_path) as shop:
        shop.state.add(CLEAN)
        shop.announce(CLEAN, event=EventType.STARTED, held=False)
        assert shop.inbox.pending(shop.clock()) == []
        sweep(shop)
        run_all(shop)
        assert [row["verdict"] for row in shop.rows("verdicts")] == ["NO_VIOLATION"]
        item = shop.inbox.get(CLEAN.recording_id)
        assert item is not None
        assert not item.found_by_sweep


def test_a_sweep_after_an_outage_reaches_back_to_the_one_before_it(tmp_path: Path) -> None:
    with workshop(tmp_path) as shop:
        now = shop.clock()
        floor = (now - timedelta(hours=6)).replace(minute=0, second=0, microsecond=0)
        assert window(shop.pipeline, 6, now) == (floor, now - GRACE)
        shop.state.add(CLEAN)
        sweep(shop)
        later = now + timedelta(days=2)
        assert window(shop.pipeline, 1, later)[0] <= now
        assert window(shop.pipeline, 1, now + timedelta(days=30))[0] >= now + timedelta(days=22)


def test_a_listed_address_that_is_none_stops_no_sweep(tmp_path: Path) -> None:
    with workshop(tmp_path) as shop:
        shop.state.add(CLEAN)
        shop.pipeline.platform = Misnaming(shop.pipeline.platform, {})
        assert sweep(shop).found_now == 1
        run_all(shop)
        assert [row["verdict"] for row in shop.rows("verdicts")] == ["NO_VIOLATION"]


class Misnaming(Failing):
    """Lists a media address that is none."""

    def list_available(self, since: datetime, until: datetime) -> Iterator[RecordingEvent]:
        for event in super().list_available(since, until):
            yield event.model_copy(update={"media_uri": "//"})
