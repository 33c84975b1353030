"""The steps of a batch over real parts: what comes out, and that any step can be killed and run again."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from compliance_pipeline import steps
from compliance_pipeline.contracts.event import EventType
from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.intake.hours import partition_hour
from compliance_pipeline.intake.inbox import State
from compliance_pipeline.platforms.guide import CALLBACKS, RECORDS
from compliance_pipeline.platforms.port import PlatformHeld
from compliance_pipeline.remediate import CALLBACK_UNSURE, remediate_batch
from compliance_pipeline.sandbox.calls import Damage, Kind, SyntheticRecording
from compliance_pipeline.sandbox.platform import Observation, PlatformState
from compliance_pipeline_tests.workshop import CLIENT, Failing, Workshop, recording, workshop

CARD, SSN, CVV, CLEAN = (recording(kind) for kind in (Kind.CHAT_CARD, Kind.CHAT_SSN, Kind.CHAT_CVV, Kind.CHAT_CLEAN))
EMAIL = recording(Kind.EMAIL_CARD)
TONES = recording(Kind.VOICE_TONES)
DAMAGED = recording(Kind.VOICE_CLEAN, damage=Damage.HTML)
MIXED = [CARD, SSN, CVV, CLEAN, EMAIL, TONES, DAMAGED]
BATCH = [CARD, CVV, CLEAN, EMAIL, DAMAGED]
STAGES = ["delivery", "queue", "start", "batch", "fetch", "analysis"]


class Killed(BaseException):
    """The end of the process, as far as code can tell: nothing catches it."""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path) as shop:
        yield shop


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The end state of an undisturbed run over BATCH."""
    with workshop(tmp_path_factory.mktemp("undisturbed")) as shop:
        shop.announce(*BATCH)
        shop.run()
        return shop.end_state()


def test_a_mixed_batch_ends_in_the_verdicts_and_actions_that_its_truth_asks_for(shop: Workshop) -> None:
    shop.announce(*MIXED)
    batch = shop.batch()
    assert [item.recording_id for item in steps.claim(shop.pipeline, batch)] == [
        one.recording_id for one in reversed(MIXED)
    ], "newest first"
    report = steps.screen_batch(shop.pipeline, batch)
    assert report.verdicts == {"VIOLATION_DETECTED": 5, "NO_VIOLATION": 1, "UNSCREENABLE": 1}
    assert (report.known, report.given_back) == (0, {})
    assert report.media_rows == len(MIXED)
    assert report.media_bytes == sum(len(one.media) for one in MIXED)
    remediated = remediate_batch(shop.pipeline, batch)
    assert remediated.done == {"tag_recording": 5, "create_work_item": 5, "supervisor_callback": 1}
    assert remediated.failed == {}
    assert remediated.settled == len(MIXED)

    verdicts = {row["recording_id"]: row for row in shop.rows("verdicts")}
    observed = {seen["recordingId"]: seen for seen in shop.state.observed()["recordings"]}
    for one in MIXED:
        verdict, seen = verdicts[one.recording_id], observed[one.recording_id]
        assert (verdict["verdict"], verdict["violation_type"]) == (one.truth.verdict, one.truth.violation_type)
        assert verdict["run_id"] == batch.run_id
        assert verdict["correlation_id"] == f"msg-{one.recording_id}"
        assert verdict["partition_hour"] == shop.at
        if one.truth.offset_ms is not None:
            assert one.truth.offset_ms - 300 <= verdict["timestamp_offset_ms"] <= (one.truth.end_ms or 0) + 300
            violation_type = one.truth.violation_type
            assert seen["tags"] == {"compliance_status": "VIOLATION_DETECTED", "violation_type": violation_type}
            assert seen["workItems"] == [violation_type]
        else:
            assert (seen["tags"], seen["workItems"]) == ({}, [])
        assert seen["callbacks"] == (one is CVV)
    assert verdicts[DAMAGED.recording_id]["unscreenable_reason"]
    assert set(shop.states().values()) == {State.DONE}
    assert shop.state.counts["sensitive value received"] == 0
    assert shop.state.counts["bearer leaked"] == 0
    everything = str([shop.rows(table) for table in ("recordings", "findings", "violations", "remediations")])
    assert not [value for one in MIXED for value in one.planted if value in everything]


def test_each_step_may_run_again_and_changes_nothing(shop: Workshop, expected: dict[str, Any]) -> None:
    shop.announce(*BATCH)
    batch = shop.batch()
    for _ in range(2):
        steps.claim(shop.pipeline, batch)
    assert steps.screen_batch(shop.pipeline, batch).known == 0
    fetched = shop.state.counts["media fetched"]
    again = steps.screen_batch(shop.pipeline, batch)
    assert (again.known, again.verdicts) == (len(BATCH), {})
    assert shop.state.counts["media fetched"] == fetched
    remediate_batch(shop.pipeline, batch)
    revisions = shop.rows("remediations")
    assert remediate_batch(shop.pipeline, batch).done == {}
    assert shop.rows("remediations") == revisions
    shop.run(batch)
    assert shop.end_state() == expected


@pytest.mark.parametrize("completed", ["claim", "screen", "remediate"])
def test_a_run_that_ends_between_two_steps_is_finished_by_its_retry(
    shop: Workshop, expected: dict[str, Any], completed: str
) -> None:
    shop.announce(*BATCH)
    batch = shop.batch()
    for name, step in (
        ("claim", steps.claim),
        ("screen", steps.screen_batch),
        ("remediate", remediate_batch),
    ):
        step(shop.pipeline, batch)
        if name == completed:
            break
    shop.run(shop.batch(owner=batch.owner))
    assert shop.end_state() == expected


def test_what_a_dead_run_held_goes_to_the_next_run_when_its_lease_ends(
    shop: Workshop, expected: dict[str, Any]
) -> None:
    shop.announce(*BATCH)
    steps.claim(shop.pipeline, shop.batch())
    shop.run()
    assert set(shop.states().values()) == {State.CLAIMED}, "another run's claims are not to be touched"
    shop.clock.wait(shop.pipeline.settings.claim_seconds + 1)
    shop.run()
    assert shop.end_state() == expected


@pytest.mark.parametrize(
    ("method", "after"),
    [
        ("open_media", False),
        ("tag", True),
        ("open_work_item", False),
        ("open_work_item", True),
        ("request_callback", True),
    ],
)
def test_a_run_that_dies_in_the_middle_of_a_call_leaves_nothing_undone_and_nothing_double(
    shop: Workshop, expected: dict[str, Any], method: str, after: bool
) -> None:
    shop.announce(*BATCH)
    platform = shop.pipeline.platform
    shop.pipeline.platform = Failing(platform, {(method, CVV.recording_id): Killed()}, after)
    with pytest.raises(Killed):
        shop.run(shop.batch("run"))
    shop.pipeline.platform = platform
    shop.run(shop.batch("run"))
    assert shop.end_state() == expected


RUN = """
import sys
from datetime import datetime
from pathlib import Path
from compliance_pipeline import steps
from compliance_pipeline.clock import utc_now
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.platforms.profiles import platform_of
from compliance_pipeline.remediate import remediate_batch
from compliance_pipeline.screening.engine import from_settings
from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.warehouse import Warehouse

settings = Settings()
inbox = Inbox(settings.inbox_database_url)
pipeline = steps.Pipeline(settings, inbox, Warehouse(settings.warehouse_path),
                          platform_of(settings, inbox.engine), load_policy(), from_settings(settings, load_policy()))
batch = steps.Batch(sys.argv[1], "run", "run-1", False, utc_now())
steps.claim(pipeline, batch)
steps.screen_batch(pipeline, batch)
remediate_batch(pipeline, batch)
print("came to its end", flush=True)
"""


@pytest.mark.parametrize("moment", ["media fetched", "work item", "callback"])
def test_a_run_killed_just_after_an_effect_ends_the_same_when_it_is_run_again(
    tmp_path: Path, expected: dict[str, Any], moment: str
) -> None:
    state = PlatformState(*CLIENT)
    with workshop(tmp_path, state) as shop:
        shop.announce(*BATCH)
        variables = {
            "COMPLIANCE_HOME": str(tmp_path),
            "COMPLIANCE_PLATFORM_URL": state.base_url,
            "COMPLIANCE_CLIENT_ID": CLIENT[0],
            "COMPLIANCE_CLIENT_SECRET": CLIENT[1],
        }
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, shop.hour], env=os.environ | variables, stdout=subprocess.PIPE
        )

        def kill(seen: Observation) -> None:
            # In the platform's thread: the effect is there, its answer not yet sent.
            if seen.what == moment:
                process.send_signal(signal.SIGKILL)

        state.listeners.append(kill)
        said, _ = process.communicate(timeout=60)
        state.listeners.clear()
        assert process.returncode == -signal.SIGKILL
        assert said == b""
        shop.run(shop.batch("run"))
        assert shop.end_state() == expected


def due_in(shop: Workshop, one: SyntheticRecording) -> float:
    item = shop.inbox.get(one.recording_id)
    assert item is not None
    assert item.state is State.DEFERRED
    assert item.due_at is not None
    return (item.due_at - item.updated_at).total_seconds()


def reason(shop: Workshop, one: SyntheticRecording) -> str | None:
    item = shop.inbox.get(one.recording_id)
    return item.reason if item else None


def test_what_is_not_ready_yet_waits_twice_as_long_each_time_and_is_then_judged(shop: Workshop) -> None:
    shop.announce(CARD)
    shop.announce(CLEAN)
    shop.state.held[CARD.recording_id].status = "processing"
    waits = []
    for _ in range(9):
        shop.run()
        waits.append(due_in(shop, CARD))
        assert "not available" in (reason(shop, CARD) or "")
        if waits[-1] > 5:  # a busy machine needs the shortest waits for the run itself
            assert steps.claim(shop.pipeline, shop.batch()) == [], "not before it is due"
        shop.clock.wait(waits[-1])
    assert waits == [1, 2, 4, 8, 16, 32, 64, 120, 120]
    assert shop.states()[CLEAN.recording_id] is State.DONE, "another recording's wait is not this one's"
    shop.state.held[CARD.recording_id].status = "available"
    shop.run()
    assert shop.states()[CARD.recording_id] is State.DONE
    assert reason(shop, CARD) is None
    assert len(shop.state.work_items) == 1


def test_an_early_event_is_timed_from_when_the_media_was_there(shop: Workshop) -> None:
    now = shop.clock()
    shop.announce(CARD)
    shop.state.held[CARD.recording_id].available_at = now + timedelta(seconds=2)
    shop.run()
    time.sleep(max(0.0, (now - shop.clock()).total_seconds() + 2.1))
    shop.run()
    [judged] = [row for row in shop.rows("stage_times") if row["stage"] == "judged"]
    # The media host's Last-Modified has whole seconds.
    assert abs(judged["started_at"] - (now + timedelta(seconds=2))) <= timedelta(seconds=1)


def test_a_completed_event_alone_is_enough_once_the_platform_has_the_media(shop: Workshop) -> None:
    shop.announce(CARD, event=EventType.COMPLETED)
    shop.run()
    assert shop.states()[CARD.recording_id] is State.DONE
    assert len(shop.state.work_items) == 1


def test_a_recording_that_never_comes_becomes_a_dead_letter_with_its_reason(tmp_path: Path) -> None:
    with workshop(tmp_path, max_attempts=3) as shop:
        shop.announce(CARD, held=False)
        for _ in range(5):
            shop.run()
            shop.clock.wait(200)
        [dead] = shop.inbox.dead_letters()
        assert dead.attempts == 3
        assert dead.reason == "gave up after 3 tries: not ready: the platform does not know the recording (404)"
        assert shop.rows("verdicts") == [], "not judged, so not clean either"
        shop.inbox.retry_dead(None, shop.clock())
        shop.state.add(CARD)
        shop.run()
        assert shop.states()[CARD.recording_id] is State.DONE


def test_a_recording_whose_run_dies_each_time_becomes_a_dead_letter(tmp_path: Path) -> None:
    with workshop(tmp_path, max_attempts=3) as shop:
        shop.announce(CARD)
        for _ in range(3):
            # What a killed process leaves behind: a claim that runs out.
            [held] = shop.inbox.claim(shop.hour, "a run that dies", shop.clock(), shop.pipeline.lease, 10)
            shop.clock.wait(200)
        shop.run()
        [dead] = shop.inbox.dead_letters()
        assert dead.recording_id == held.recording_id
        assert dead.reason == "gave up after 4 tries: the run that had it died"


def test_a_refusal_waits_for_people_and_ends_as_a_dead_letter_that_says_what_to_do(tmp_path: Path) -> None:
    with workshop(tmp_path, max_attempts=4) as shop:
        shop.state.fail_next("/api/v2/recordings", 403, times=100)
        shop.announce(CARD)
        for tries in range(1, 6):
            shop.run()
            item = shop.inbox.get(CARD.recording_id)
            assert item is not None
            assert item.state is (State.DEFERRED if tries < 4 else State.DEAD)
            if tries == 1:
                assert item.due_at is not None
                assert (item.due_at - shop.clock()).total_seconds() > 60
            shop.clock.wait(200)
        assert item is not None
        assert item.attempts == 4
        assert "the client lacks a permission" in (item.reason or "")


def test_what_runs_died_with_by_no_fault_of_its_own_is_done_in_few_runs_again(tmp_path: Path) -> None:
    with workshop(tmp_path) as shop:
        shop.announce(*(recording(Kind.CHAT_CARD, seed) for seed in range(1, 41)))
        for _ in range(steps.SUSPECT_AFTER):
            steps.claim(shop.pipeline, shop.batch())  # a node that restarts again and again
            shop.clock.wait(200)
        runs = 0
        while set(shop.states().values()) != {State.DONE}:
            runs += 1
            shop.run()
            shop.clock.wait(15)
        assert runs <= 5


def test_what_kills_its_run_is_tried_alone_and_takes_no_other_with_it(tmp_path: Path) -> None:
    with workshop(tmp_path, max_attempts=6) as shop:
        shop.announce(CARD, SSN, CLEAN)
        runs = 0
        while any(state not in (State.DONE, State.DEAD) for state in shop.states().values()):
            runs += 1
            assert runs < 40
            batch = shop.batch()
            held = {item.recording_id for item in steps.claim(shop.pipeline, batch)}
            if CARD.recording_id in held:  # the poison: its run is killed and leaves nothing but its claims
                shop.clock.wait(200)
                continue
            steps.screen_batch(shop.pipeline, batch)
            remediate_batch(shop.pipeline, batch)
            shop.clock.wait(15)
        assert shop.states() == {
            CARD.recording_id: State.DEAD,
            SSN.recording_id: State.DONE,
            CLEAN.recording_id: State.DONE,
        }
        assert reason(shop, CARD) == "gave up after 7 tries: the run that had it died"


def test_a_platform_that_fails_for_now_costs_a_try_and_not_the_engine(shop: Workshop) -> None:
    shop.state.fail_next("/api/v2/recordings", 503, times=100)
    shop.announce(CARD, SSN, CVV, CLEAN, EMAIL, recording(Kind.CHAT_CARD, 2))
    shop.run()
    assert set(shop.states().values()) == {State.DEFERRED}
    shop.state.faults.clear()
    shop.clock.wait(2)
    shop.run()
    assert set(shop.states().values()) == {State.DONE}


def test_a_recording_deleted_on_the_platform_is_unscreenable_and_not_clean(shop: Workshop) -> None:
    shop.announce(CARD)
    shop.state.held[CARD.recording_id].status = "deleted"
    shop.run()
    [verdict] = shop.rows("verdicts")
    assert (verdict["verdict"], verdict["unscreenable_reason"]) == (VerdictValue.UNSCREENABLE, "gone")
    assert shop.rows("media") == []
    assert shop.states()[CARD.recording_id] is State.DONE


def test_an_engine_failure_harms_no_other_recording_and_its_text_is_kept_nowhere(
    shop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    shop.announce(*BATCH)
    secret = f"could not parse {CARD.planted[-1]}"
    inner = shop.pipeline.platform
    shop.pipeline.platform = Failing(inner, {("open_media", CARD.recording_id): ValueError(secret)})
    shop.run()
    states = shop.states()
    assert states.pop(CARD.recording_id) is State.DEFERRED
    assert set(states.values()) == {State.DONE}
    assert reason(shop, CARD) == "engine failed with ValueError"
    assert "ValueError in the engine" in caplog.text
    assert secret not in caplog.text
    shop.pipeline.platform = inner
    shop.clock.wait(2)
    shop.run()
    assert shop.states()[CARD.recording_id] is State.DONE


def test_a_recording_that_breaks_the_engine_each_time_becomes_a_dead_letter_and_holds_nobody_up(tmp_path: Path) -> None:
    with workshop(tmp_path, max_attempts=7) as shop:
        always = RuntimeError("always")
        inner = shop.pipeline.platform
        shop.pipeline.platform = Failing(inner, {("open_media", CARD.recording_id): always})
        shop.announce(CARD)
        for _ in range(7):
            shop.run()
            shop.clock.wait(200)
        assert reason(shop, CARD) == "gave up after 7 tries: engine failed with RuntimeError"
        assert shop.states()[CARD.recording_id] is State.DEAD


def test_stages_lie_end_to_end_from_available_and_add_up(shop: Workshop) -> None:
    shop.announce(CARD, CLEAN)
    shop.clock.wait(3)
    shop.run()
    for one in (CARD, CLEAN):
        rows = shop.warehouse.select("FROM stage_times WHERE recording_id = $id", {"id": one.recording_id})
        of = {row["stage"]: row for row in rows}
        item = shop.inbox.get(one.recording_id)
        assert item is not None
        assert of["platform"]["started_at"] == one.end_time
        assert of["platform"]["ended_at"] == of["delivery"]["started_at"] == item.available_at
        for earlier, later in pairwise(STAGES):
            assert of[earlier]["ended_at"] == of[later]["started_at"]
        assert of["judged"]["started_at"] == item.available_at
        assert of["judged"]["ended_at"] == of["analysis"]["ended_at"]
        assert sum(of[name]["seconds"] for name in STAGES) == pytest.approx(of["judged"]["seconds"], abs=1e-6)
        assert all(row["seconds"] >= 0 for row in rows)
        assert all(
            row["seconds"] == pytest.approx((row["ended_at"] - row["started_at"]).total_seconds()) for row in rows
        )
        if one is CARD:
            assert of["remediation"]["started_at"] == of["judged"]["ended_at"]
            assert of["flagged"]["seconds"] == pytest.approx(
                of["judged"]["seconds"] + of["remediation"]["seconds"], abs=1e-6
            )
        else:
            assert of.keys() - {"first_finding"} == {*STAGES, "platform", "judged"}, (
                "what was not flagged has no time to flag"
            )


def test_a_platform_whose_clock_is_ahead_makes_no_negative_times(shop: Workshop) -> None:
    shop.announce(CARD)
    with shop.inbox.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE inbox SET available_at = available_at + 600000000")
    shop.run()
    assert all(row["seconds"] >= 0 for row in shop.rows("stage_times"))


def test_a_whole_partition_run_judges_nothing_twice_and_repeats_no_action(
    shop: Workshop, expected: dict[str, Any]
) -> None:
    shop.announce(*BATCH)
    shop.run()
    before = (shop.state.counts["media fetched"], shop.rows("verdicts"), shop.rows("remediations"))
    batch = shop.batch(whole_partition=True)
    steps.claim(shop.pipeline, batch)
    report = steps.screen_batch(shop.pipeline, batch)
    assert (report.known, report.verdicts) == (len(BATCH), {})
    assert remediate_batch(shop.pipeline, batch).done == {}
    assert (shop.state.counts["media fetched"], shop.rows("verdicts"), shop.rows("remediations")) == before
    assert shop.end_state() == expected


def newer_policy(shop: Workshop) -> None:
    shop.pipeline.policy = shop.pipeline.policy.model_copy(update={"version": "99.0.0"})


def forget_screenings(shop: Workshop) -> None:
    """As of recordings that were screened before screenings were kept: another policy needs their media."""
    with shop.warehouse.write() as connection:
        connection.execute("DELETE FROM screenings")


def test_a_whole_partition_run_under_a_new_policy_judges_settled_recordings_again(shop: Workshop) -> None:
    shop.announce(CARD, CLEAN)
    shop.run()
    newer_policy(shop)
    shop.run()
    assert len(shop.rows("verdicts")) == 2, "an ordinary run looks at what is new only"
    shop.run(shop.batch(whole_partition=True))
    assert len(shop.rows("verdicts")) == 4
    assert len(shop.rows("latest_verdicts")) == 2
    assert len(shop.state.work_items) == 1, "the rule's key is the same, and so is its work item"
    assert [row["recordings"] for row in shop.rows("violations_by_hour")] == [1]


def test_a_settled_recording_that_cannot_be_judged_again_keeps_its_verdict_and_its_state(shop: Workshop) -> None:
    shop.announce(CARD)
    shop.run()
    newer_policy(shop)
    forget_screenings(shop)
    shop.state.held[CARD.recording_id].status = "processing"
    batch = shop.batch(whole_partition=True)
    report = steps.screen_batch(shop.pipeline, batch)
    remediate_batch(shop.pipeline, batch)
    assert report.given_back == {"left": 1}
    assert shop.states()[CARD.recording_id] is State.DONE
    assert len(shop.rows("verdicts")) == 1


@pytest.mark.parametrize(
    ("path", "method", "action"),
    [
        (f"/api/v2/recordings/{CVV.recording_id}", "PATCH", "tag_recording"),
        (RECORDS, "POST", "create_work_item"),
        (CALLBACKS, "POST", "supervisor_callback"),
    ],
)
def test_an_action_that_fails_is_tried_again_alone_and_keeps_its_recording_open(
    shop: Workshop, path: str, method: str, action: str
) -> None:
    shop.announce(CVV, CLEAN)
    shop.state.fail_next(path, 403, method=method)
    shop.run()
    assert shop.states() == {CVV.recording_id: State.DEFERRED, CLEAN.recording_id: State.DONE}
    assert f"{action} failed: {method} {path}: 403" in (reason(shop, CVV) or "")
    status = {row["action"]: row["status"] for row in shop.rows("latest_remediations")}
    assert status.pop(action) == "failed"
    assert set(status.values()) == {"done"}
    written = shop.state.counts["tags written"], shop.state.counts["work item"], shop.state.counts["callback"]
    assert sum(written) == 2
    shop.clock.wait(2)
    shop.run()
    assert shop.states()[CVV.recording_id] is State.DONE
    revisions = [(row["action"], row["revision"], row["status"]) for row in shop.rows("remediations")]
    assert [(r, s) for a, r, s in sorted(revisions) if a == action] == [
        (1, "planned"),
        (2, "failed"),
        (3, "planned"),
        (4, "done"),
    ]
    assert len(revisions) == 8
    assert len(shop.rows("verdicts")) == 2, "judged once"


def test_a_claim_without_a_verdict_is_given_back_and_not_held_for_ever(shop: Workshop) -> None:
    shop.announce(CARD)
    batch = shop.batch()
    steps.claim(shop.pipeline, batch)
    remediate_batch(shop.pipeline, batch)
    assert due_in(shop, CARD) == 1
    assert "no verdict" in (reason(shop, CARD) or "")


class Slow:
    """Holds a run's media back until a test lets go."""

    def __init__(self, shop: Workshop) -> None:
        self.let_go = threading.Event()
        self.asked = threading.Event()
        shop.state.listeners.append(self._seen)

    def _seen(self, seen: Observation) -> None:
        if seen.what == "media fetched":
            self.asked.set()
            self.let_go.wait(20)


def until(true: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def test_claims_are_kept_while_one_recording_takes_longer_than_the_lease(tmp_path: Path) -> None:
    with workshop(tmp_path, claim_seconds=1.0) as shop:
        shop.announce(CARD)
        slow = Slow(shop)
        batch = shop.batch()
        steps.claim(shop.pipeline, batch)
        run = threading.Thread(target=steps.screen_batch, args=(shop.pipeline, batch))
        run.start()
        assert slow.asked.wait(10)
        claimed = shop.inbox.get(CARD.recording_id)
        assert claimed is not None
        assert claimed.due_at is not None
        first = claimed.due_at
        until(lambda: (item := shop.inbox.get(CARD.recording_id)) is not None and (item.due_at or first) > first)
        until(lambda: shop.clock() > first + timedelta(seconds=0.2))
        rival = shop.inbox.claim(shop.hour, "another run", shop.clock(), timedelta(seconds=5), 10)
        slow.let_go.set()
        run.join()
        assert rival == []
        remediate_batch(shop.pipeline, batch)
        assert shop.states()[CARD.recording_id] is State.DONE


def test_a_run_that_is_told_to_stop_does_not_screen_the_rest_of_its_batch_first(tmp_path: Path) -> None:
    with workshop(tmp_path, fetch_workers=1) as shop:
        chats = [recording(Kind.CHAT_CLEAN, seed) for seed in range(1, 31)]
        shop.announce(*chats)
        newest = chats[-1].recording_id
        shop.pipeline.platform = Failing(shop.pipeline.platform, {("open_media", newest): Killed()})
        with pytest.raises(Killed):
            shop.run()
        assert shop.state.counts["media fetched"] < 10


def test_a_batch_takes_no_more_than_its_limit_and_leaves_the_rest_to_the_next_run(shop: Workshop) -> None:
    chats = [recording(Kind.CHAT_CLEAN, seed) for seed in range(1, steps.BATCH_LIMIT + 6)]
    shop.announce(*chats)
    assert len(steps.claim(shop.pipeline, shop.batch())) == steps.BATCH_LIMIT
    assert len(steps.claim(shop.pipeline, shop.batch())) == 5
    assert steps.claim(shop.pipeline, shop.batch()) == []
    assert shop.warehouse.select("SELECT count(*) AS rows FROM recordings") == [{"rows": len(chats)}]


def test_a_recording_is_written_down_once_with_participants_as_they_came(shop: Workshop) -> None:
    shop.announce(CARD)
    shop.run()
    shop.run(shop.batch(whole_partition=True))
    [row] = shop.rows("recordings")
    item = shop.inbox.get(CARD.recording_id)
    assert item is not None
    assert row["available_at"] == item.available_at
    assert row["partition_hour"] == shop.at
    assert partition_hour(row["available_at"]) == shop.hour
    assert row["direction"] == CARD.direction


def test_the_headline_is_that_of_the_mart(shop: Workshop) -> None:
    assert steps.headline(shop.pipeline, "latency_by_hour", shop.at) == {}
    shop.announce(CARD)
    shop.run()
    figures = steps.headline(shop.pipeline, "latency_by_hour", shop.at)
    percentiles = {f"{stage} {name} seconds" for stage in ("flagged", "judged") for name in ("P50", "P95")}
    assert set(figures) == percentiles | {"flagged", "flagged within the objective"}
    [row] = shop.warehouse.select("FROM latency_by_hour WHERE channel = 'all' AND stage = 'flagged'")
    assert figures["flagged P95 seconds"] == round(row["p95_s"], 3)
    assert steps.headline(shop.pipeline, "violations_by_hour", shop.at)["violations"] == 1


def test_a_recording_that_is_screened_anew_for_another_policy_has_one_set_of_findings(shop: Workshop) -> None:
    shop.announce(CARD)
    shop.run()
    before = shop.rows("findings")
    with shop.warehouse.write() as connection:
        connection.execute("UPDATE findings SET start_ms = 1")
    forget_screenings(shop)
    shop.pipeline.policy = shop.pipeline.policy.model_copy(update={"version": "9.9.9"})
    shop.run(shop.batch(whole_partition=True))
    assert shop.rows("findings") == before, "what was found last stands"
    assert len(shop.rows("verdicts")) == 2
    violations = shop.warehouse.select(
        "SELECT v.masked = f.masked AS same FROM violations v JOIN findings f USING (recording_id, finding_no)"
    )
    assert [row["same"] for row in violations] == [True] * 2


def test_verdicts_name_the_engine_and_the_policy_that_judged(shop: Workshop) -> None:
    shop.announce(CARD)
    shop.run()
    [verdict] = shop.rows("verdicts")
    assert verdict["engine_version"] == shop.pipeline.engine.version
    assert verdict["policy_version"] == shop.pipeline.policy.policy_version


def test_a_spent_budget_costs_a_violation_no_try(tmp_path: Path) -> None:
    with workshop(tmp_path) as shop:
        shop.announce(CARD)
        platform = shop.pipeline.platform
        held = PlatformHeld("the budget of requests is spent", 30)
        shop.pipeline.platform = Failing(
            platform, {("tag", "*"): held, ("open_work_item", "*"): held, ("request_callback", "*"): held}
        )
        for _ in range(3):
            shop.run()
            item = shop.inbox.get(CARD.recording_id)
            assert item is not None
            assert (item.state, item.attempts) == (State.DEFERRED, 0)
            shop.clock.wait(31)
        shop.pipeline.platform = platform
        shop.run()
        assert shop.states() == {CARD.recording_id: State.DONE}
        assert len(shop.state.work_items) == 1


def test_a_callback_that_a_dead_run_may_have_asked_for_waits_until_the_platform_can_show_it(tmp_path: Path) -> None:
    with workshop(tmp_path) as shop:
        shop.announce(CVV)
        platform = shop.pipeline.platform
        dying = Failing(platform, {("request_callback", "*"): SystemExit()}, after=True)
        dying.callback_lag_s = platform.callback_lag_s = 900
        shop.pipeline.platform = dying
        with pytest.raises(SystemExit):
            shop.run()
        assert len(shop.state.callbacks) == 1
        shop.pipeline.platform = platform
        shop.clock.wait(shop.pipeline.settings.claim_seconds + 1)
        shop.state.fail_next(CALLBACKS, 500, times=100)
        shop.run()
        item = shop.inbox.get(CVV.recording_id)
        assert item is not None
        assert (item.state, item.reason) == (State.DEFERRED, CALLBACK_UNSURE)
        shop.state.faults.clear()
        shop.clock.wait(900)
        shop.run()
        assert shop.states() == {CVV.recording_id: State.DONE}
        assert len(shop.state.callbacks) == 1
        assert len(shop.state.work_items) == 1
