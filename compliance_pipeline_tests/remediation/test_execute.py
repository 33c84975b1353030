"""Executing a plan against a real platform: each action stands alone and happens once, tags come first."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from compliance_pipeline.contracts.policy import Action, RuleAction
from compliance_pipeline.platforms.guide import CALLBACKS, RECORDS, GuidePlatform
from compliance_pipeline.platforms.transport import Transport
from compliance_pipeline.remediation.execute import WORKERS, ActionResult, Means, execute
from compliance_pipeline.remediation.plan import PlannedAction, plan
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.sandbox.platform import Observation, PlatformState, serve
from compliance_pipeline_tests.platforms.loopback import Reply, Server
from compliance_pipeline_tests.remediation.test_plan import POLICY, violation
from compliance_pipeline_tests.workshop import CLIENT, Failing, recording

MEANS = Means("compliance_review_queue", "supervisor_callback_queue", {})
CHATS = [recording(Kind.CHAT_CLEAN, seed) for seed in range(1, 4)]
IDS = [chat.recording_id for chat in CHATS]


@pytest.fixture
def state() -> PlatformState:
    state = PlatformState(*CLIENT)
    for chat in CHATS:
        state.add(chat)
    return state


@pytest.fixture
def platform(state: PlatformState) -> Iterator[GuidePlatform]:
    with serve(state) as url:
        platform = GuidePlatform(Transport(url, *CLIENT, backoff_s=0.001))
        yield platform
        platform.close()


def planned(*ids: str, rule_id: str = "PCI-SAD-01") -> list[PlannedAction]:
    return plan([violation(rule_id, recording_id) for recording_id in ids], POLICY)


def do(platform: GuidePlatform | Failing, actions: list[PlannedAction]) -> list[ActionResult]:
    return list(execute(platform, actions, MEANS, lambda: datetime.now(UTC)))


def errors(results: list[ActionResult]) -> dict[tuple[str, str], str]:
    return {(r.planned.violation.recording_id, r.planned.action.value): r.error for r in results if r.error}


def test_tag_work_item_and_callback_say_what_was_found_and_where_to(
    state: PlatformState, platform: GuidePlatform
) -> None:
    results = do(platform, planned(IDS[0]))
    assert state.held[IDS[0]].tags == [
        {"key": "compliance_status", "value": "VIOLATION_DETECTED"},
        {"key": "violation_type", "value": "PCI_SAD_CAPTURE"},
    ]
    [item] = state.work_items
    assert item["record"] == {
        "recordingId": IDS[0],
        "violationType": "PCI_SAD_CAPTURE",
        "assignedQueue": "compliance_review_queue",
        "priority": "high",
        "key": f"{IDS[0]}/PCI-SAD-01/create_work_item",
        "summary": "PCI-SAD-01 at 1.0 s: ****",
    }
    [callback] = state.callbacks
    assert callback["queueName"] == "supervisor_callback_queue"
    assert callback["data"]["reason"] == "PCI-SAD-01 at 1.0 s: ****"
    assert [r.planned.action for r in results] == [
        Action.TAG_RECORDING,
        Action.CREATE_WORK_ITEM,
        Action.SUPERVISOR_CALLBACK,
    ]
    assert [r.external_id for r in results] == [None, item["id"], callback["id"]]
    assert errors(results) == {}


@pytest.mark.parametrize(
    ("rule_id", "priority"), [("PCI-SAD-01", "high"), ("PCI-PAN-01", "high"), ("PCI-PAN-02", "normal")]
)
def test_the_priority_of_a_work_item_follows_the_severity(
    state: PlatformState, platform: GuidePlatform, rule_id: str, priority: str
) -> None:
    do(platform, planned(IDS[0], rule_id=rule_id))
    assert [item["record"]["priority"] for item in state.work_items] == [priority]


def test_results_come_in_the_order_of_the_plan_with_their_time(platform: GuidePlatform) -> None:
    actions = planned(*IDS)
    before = datetime.now(UTC)
    results = do(platform, actions)
    assert [r.planned for r in results] == actions
    assert all(before <= r.at <= datetime.now(UTC) for r in results)


def test_every_tag_is_begun_before_the_first_work_item(state: PlatformState, platform: GuidePlatform) -> None:
    seen: list[str] = []
    state.listeners.append(lambda o: seen.append(o.what))
    recordings = [recording(Kind.CHAT_CLEAN, seed) for seed in range(10, 10 + 2 * WORKERS)]
    for one in recordings:
        state.add(one)
    do(platform, planned(*(one.recording_id for one in recordings)))
    wrote = [what for what in seen if what in ("tags written", "work item", "callback")]
    # At most WORKERS are under way at once, so at most so many tags can still be so when a work item is there.
    assert wrote.index("work item") > len(recordings) - WORKERS
    assert wrote.index("callback") > 2 * len(recordings) - WORKERS


@pytest.mark.parametrize("path", [f"/api/v2/recordings/{IDS[1]}", RECORDS, CALLBACKS])
def test_an_action_that_is_refused_stops_no_other(state: PlatformState, platform: GuidePlatform, path: str) -> None:
    method = "PATCH" if path.startswith("/api/v2/recordings") else "POST"
    state.fail_next(path, 403, method=method)
    results = do(platform, planned(*IDS))
    [((_, action), error)] = errors(results).items()
    assert f"{method} {path}: 403" in error
    assert action == {"PATCH": "tag_recording"}.get(
        method, "create_work_item" if path == RECORDS else "supervisor_callback"
    )
    done = (state.counts["tags written"], state.counts["work item"], state.counts["callback"])
    assert sum(done) == 8


def test_an_unforeseen_failure_stops_no_other_and_its_text_is_not_kept(
    state: PlatformState, platform: GuidePlatform
) -> None:
    failing = Failing(platform, {("tag", IDS[0]): OSError("disk full at 4111 1111 1111 1111")})
    results = do(failing, planned(*IDS))
    assert errors(results) == {(IDS[0], "tag_recording"): "unforeseen OSError"}
    assert state.counts["work item"] == 3


def test_a_recording_that_is_gone_fails_alone(state: PlatformState, platform: GuidePlatform) -> None:
    del state.held[IDS[0]]
    results = do(platform, planned(*IDS))
    assert list(errors(results)) == [(IDS[0], "tag_recording")]


@pytest.mark.parametrize(("path", "count"), [(RECORDS, "work item"), (CALLBACKS, "callback")])
@pytest.mark.parametrize("status", [None, 503])
def test_an_answer_lost_after_the_effect_still_makes_exactly_one(
    state: PlatformState, platform: GuidePlatform, path: str, count: str, status: int | None
) -> None:
    state.fail_next(path, status, after_effect=True, method="POST")
    results = do(platform, planned(IDS[0]))
    assert errors(results) == {}
    assert state.counts[count] == 1
    assert state.counts["fault"] == 1


def test_a_plan_that_is_carried_out_again_creates_nothing_and_writes_no_tag_again(
    state: PlatformState, platform: GuidePlatform
) -> None:
    first = do(platform, planned(*IDS))
    again = do(platform, planned(*IDS))
    assert [r.external_id for r in again] == [r.external_id for r in first]
    assert (state.counts["tags written"], state.counts["work item"], state.counts["callback"]) == (3, 3, 3)


def test_nothing_planned_is_nothing_asked(state: PlatformState, platform: GuidePlatform) -> None:
    seen: list[Observation] = []
    state.listeners.append(seen.append)
    assert do(platform, []) == []
    assert seen == []


def wanted(action: str | dict[str, dict[str, object]], recording_id: str = IDS[0]) -> list[PlannedAction]:
    return [PlannedAction(violation("PCI-PAN-02", recording_id), RuleAction.model_validate(action))]


def test_a_work_item_goes_where_the_policy_says_with_its_priority_and_due_date(
    state: PlatformState, platform: GuidePlatform
) -> None:
    do(platform, wanted({"create_work_item": {"queue": "fraud", "priority": "high", "due_hours": 24}}))
    [item] = state.work_items
    record = item["record"]
    assert (record["assignedQueue"], record["priority"]) == ("fraud", "high")
    in_s = (datetime.fromisoformat(record["dueAt"]) - datetime.now(UTC)).total_seconds()
    assert 24 * 3600 - 30 < in_s <= 24 * 3600


def test_a_callback_goes_to_the_queue_that_the_policy_names(state: PlatformState, platform: GuidePlatform) -> None:
    do(platform, wanted({"supervisor_callback": {"queue": "night_shift"}}))
    assert [callback["queueName"] for callback in state.callbacks] == ["night_shift"]


def test_a_platform_that_cannot_quarantine_says_so(platform: GuidePlatform) -> None:
    [error] = errors(do(platform, wanted("quarantine"))).values()
    assert "no legal hold" in error


def test_a_message_says_what_was_found_masked_and_an_unknown_channel_is_an_error(
    platform: GuidePlatform, media_host: Server
) -> None:
    media_host.plan("POST", "/hook", Reply(200))
    means = Means("q", "s", {"team": SecretStr(media_host.url.replace("http://", "json://") + "/hook")})
    actions = wanted({"notify": {"to": "team"}}) + wanted({"notify": {"to": "nobody"}}, IDS[1])
    sent, failed = execute(platform, actions, means, lambda: datetime.now(UTC))
    [asked] = media_host.calls("POST", "/hook")
    assert asked.json["title"] == "REVIEW_REQUIRED: " + actions[0].violation.violation_type
    assert asked.json["message"] == f"PCI-PAN-02 at 1.0 s: ****\nRecording {IDS[0]}"
    assert sent.error is None
    assert failed.error is not None
    assert "channel nobody" in failed.error
