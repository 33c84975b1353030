"""Remediating batches: each action has its own tries and dead letter, and is done once whenever the process ends."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from compliance_pipeline import notify, steps
from compliance_pipeline.contracts.policy import RuleAction
from compliance_pipeline.intake.inbox import State
from compliance_pipeline.platforms.guide import CALLBACKS, RECORDS
from compliance_pipeline.platforms.port import PlatformError, PlatformHeld, Refused, Unavailable
from compliance_pipeline.quality import every_violation_is_remediated
from compliance_pipeline.remediate import MESSAGE_UNSURE
from compliance_pipeline.remediation.execute import WORKERS
from compliance_pipeline.remediation.undone import Retried, retry, undone
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.sandbox.platform import PlatformState
from compliance_pipeline.warehouse.tables import Row
from compliance_pipeline.warehouse.warehouse import Warehouse, sql
from compliance_pipeline_tests.platforms.loopback import Asked, Reply, Server
from compliance_pipeline_tests.workshop import CLIENT, Failing, Workshop, recording, workshop

CVV = recording(Kind.CHAT_CVV)
ID = CVV.recording_id
TRIES = 3


class Killed(BaseException):
    """The end of the process, as far as code can tell: nothing catches it."""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path, max_attempts=TRIES) as shop:
        yield shop


def want(shop: Workshop, *actions: str | dict[str, Any]) -> None:
    """Make every rule ask for these."""
    wanted = tuple(RuleAction.model_validate(action) for action in actions)
    policy = shop.pipeline.policy
    rules = tuple(rule.model_copy(update={"actions": wanted}) for rule in policy.rules)
    shop.pipeline.policy = policy.model_copy(update={"rules": rules})


def change_policy(shop: Workshop, version: str, *actions: str | dict[str, Any]) -> None:
    shop.pipeline.policy = shop.pipeline.policy.model_copy(update={"version": version})
    want(shop, *actions)


def statuses(shop: Workshop) -> dict[str, str]:
    return {row["action"]: row["status"] for row in shop.rows("latest_remediations")}


def until_settled(shop: Workshop, *, runs: int = 20) -> None:
    for _ in range(runs):
        if set(shop.states().values()) <= {State.DONE, State.DEAD}:
            return
        shop.clock.wait(130)
        shop.run()
    raise AssertionError("not settled")


def hook(shop: Workshop, server: Server, *replies: Reply | Callable[[Asked], Reply]) -> None:
    server.plan("POST", "/hook", *replies)
    url = SecretStr(server.url.replace("http://", "json://") + "/hook")
    shop.pipeline.settings = shop.pipeline.settings.model_copy(update={"notify_urls": {"team": url}})


def test_an_action_is_given_up_on_after_its_tries_and_its_recording_is_settled_all_the_same(shop: Workshop) -> None:
    shop.announce(CVV)
    shop.state.fail_next(RECORDS, 403, method="POST", times=100)
    shop.run()
    until_settled(shop)
    assert shop.states() == {ID: State.DONE}
    assert statuses(shop) == {"tag_recording": "done", "create_work_item": "dead", "supervisor_callback": "done"}
    [dead] = undone(shop.warehouse)
    assert (dead.key, dead.attempts) == (f"{ID}/PCI-SAD-01/create_work_item", TRIES)
    assert (dead.error or "").startswith(f"gave up after {TRIES} tries: POST {RECORDS}: 403")
    assert not every_violation_is_remediated(shop.pipeline, shop.at).passed


def test_what_fails_waits_twice_as_long_each_time(shop: Workshop) -> None:
    shop.announce(CVV)
    shop.state.fail_next(RECORDS, 403, method="POST", times=100)
    shop.run()
    until_settled(shop)
    failed = [row for row in shop.rows("remediations") if row["status"] == "failed"]
    waits = {row["attempts"]: (row["due_at"] - row["revised_at"]).total_seconds() for row in failed}
    assert waits == {1: 1, 2: 2}


def test_a_run_that_comes_early_does_what_is_due_and_waits_with_the_rest(shop: Workshop) -> None:
    shop.announce(CVV)
    shop.state.fail_next(RECORDS, 403, method="POST")
    late = Unavailable("busy", after_s=100)
    platform = shop.pipeline.platform
    shop.pipeline.platform = Failing(platform, {("tag", "*"): late})
    shop.run()
    shop.pipeline.platform = platform
    shop.clock.wait(2)
    shop.run()
    assert statuses(shop) == {"tag_recording": "failed", "create_work_item": "done", "supervisor_callback": "done"}
    item = shop.inbox.get(ID)
    assert item is not None
    assert (item.state, item.attempts, item.reason) == (State.DEFERRED, 0, "tag_recording failed: busy")
    shop.clock.wait(100)
    shop.run()
    assert set(statuses(shop).values()) == {"done"}
    assert len(shop.rows("verdicts")) == 1


def test_a_try_that_was_held_back_is_none(shop: Workshop) -> None:
    shop.announce(CVV)
    platform = shop.pipeline.platform
    shop.pipeline.platform = Failing(platform, {("tag", "*"): PlatformHeld("budget spent", 5)})
    for _ in range(TRIES + 2):
        shop.run()
        shop.clock.wait(6)
    [tag] = undone(shop.warehouse)
    assert (tag.action, tag.status, tag.attempts) == ("tag_recording", "failed", 0)
    shop.pipeline.platform = platform
    shop.run()
    assert shop.states() == {ID: State.DONE}


def test_a_retry_by_hand_gives_a_full_set_of_tries_and_makes_nothing_double(shop: Workshop) -> None:
    shop.announce(CVV)
    shop.state.fail_next(RECORDS, 403, method="POST", times=2 * TRIES)
    shop.run()
    until_settled(shop)
    assert shop.state.counts["work item"] == 0
    assert retry(shop.warehouse, shop.inbox, None, shop.clock()) == (again := Retried(1, 1))
    shop.run()
    [action] = undone(shop.warehouse)
    assert (action.status, action.attempts) == ("failed", 1)
    until_settled(shop)
    shop.state.faults.clear()
    assert retry(shop.warehouse, shop.inbox, [action.key], shop.clock()) == again
    shop.run()
    assert undone(shop.warehouse) == []
    counts = shop.state.counts
    assert (counts["tags written"], counts["work item"], counts["callback"]) == (1, 1, 1)
    assert every_violation_is_remediated(shop.pipeline, shop.at).passed


def test_a_retry_that_died_before_the_recordings_were_reopened_can_be_run_again(shop: Workshop) -> None:
    class NoInbox:
        def reopen(self, *_: Any) -> int:
            raise Killed

    shop.announce(CVV)
    shop.state.fail_next(RECORDS, 403, method="POST", times=TRIES)
    shop.run()
    until_settled(shop)
    with pytest.raises(Killed):
        retry(shop.warehouse, NoInbox(), None, shop.clock())  # type: ignore[arg-type]
    assert retry(shop.warehouse, shop.inbox, None, shop.clock()) == Retried(0, 1)
    shop.run()
    assert undone(shop.warehouse) == []


class Meanwhile(Warehouse):
    """Something happens right after a run has looked at what was done so far."""

    def __init__(self, path: Path, happens: Callable[[], object]) -> None:
        super().__init__(path)
        self.happens = happens
        self.has_looked = False

    def select(self, query: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        self.has_looked |= query == sql("pending_remediations")
        return super().select(query, parameters)

    @contextmanager
    def together(self) -> Iterator[None]:
        with super().together():
            yield
        if self.has_looked:
            self.has_looked = False
            self.happens()


def test_a_retry_that_is_asked_for_while_a_run_has_the_recording_is_done_by_a_later_one(shop: Workshop) -> None:
    shop.announce(CVV)
    shop.state.fail_next(RECORDS, 403, method="POST", times=TRIES)
    shop.run()
    until_settled(shop)
    warehouse, asked = shop.warehouse, []
    shop.pipeline.warehouse = Meanwhile(
        warehouse.path, lambda: asked.append(retry(warehouse, shop.inbox, None, shop.clock()))
    )
    shop.inbox.reopen([ID], shop.clock())
    shop.run()
    shop.pipeline.warehouse = warehouse
    assert asked == [Retried(1, 0)]
    item = shop.inbox.get(ID)
    assert item is not None
    assert (item.state, item.attempts, item.reason) == (State.DEFERRED, 0, "create_work_item is to be tried again")
    until_settled(shop)
    assert set(statuses(shop).values()) == {"done"}
    assert shop.state.counts["work item"] == 1


@pytest.mark.parametrize("left", ["planned", "failed", "dead"])
def test_what_a_later_policy_does_not_ask_for_is_dropped_and_done_where_a_still_later_one_does(
    shop: Workshop, left: str
) -> None:
    want(shop, "tag_recording", "create_work_item")
    shop.announce(CVV)
    platform = shop.pipeline.platform
    if left == "planned":
        shop.pipeline.platform = Failing(platform, {("open_work_item", "*"): Killed()})
        with pytest.raises(Killed):
            shop.run()
        shop.pipeline.platform = platform
    else:
        shop.state.fail_next(RECORDS, 403, method="POST", times=TRIES if left == "dead" else 1)
        shop.run()
    if left == "dead":
        until_settled(shop)
    assert statuses(shop)["create_work_item"] == left
    change_policy(shop, "99.0.0", "tag_recording")
    shop.run(shop.batch(whole_partition=True))
    until_settled(shop)
    assert statuses(shop) == {"tag_recording": "done", "create_work_item": "dropped"}
    assert undone(shop.warehouse) == []
    assert every_violation_is_remediated(shop.pipeline, shop.at).passed
    assert retry(shop.warehouse, shop.inbox, None, shop.clock()) == Retried(0, 0)
    assert shop.state.counts["work item"] == 0
    change_policy(shop, "99.1.0", "tag_recording", "create_work_item")
    shop.run(shop.batch(whole_partition=True))
    assert statuses(shop) == {"tag_recording": "done", "create_work_item": "done"}


def test_a_retry_of_what_is_not_undone_is_refused(shop: Workshop) -> None:
    with pytest.raises(KeyError, match="rec-9"):
        retry(shop.warehouse, shop.inbox, ["rec-9/PCI-SAD-01/tag_recording"], shop.clock())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a day of no answer: each try counts."""
    monkeypatch.setattr(steps, "OUTAGE_PATIENCE", timedelta(0))


@pytest.mark.usefixtures("impatient")
def test_a_retried_callback_waits_until_the_platform_can_show_the_one_of_the_lost_answer(shop: Workshop) -> None:
    shop.announce(CVV)
    platform = shop.pipeline.platform
    lost = Unavailable("the answer was lost", after_s=900)
    shop.pipeline.platform = Failing(platform, {("request_callback", "*"): lost}, after=True)
    for _ in range(TRIES):
        shop.run()
        shop.clock.wait(901)
    shop.clock.wait(-800)
    now = shop.clock()
    assert retry(shop.warehouse, shop.inbox, None, now) == Retried(1, 1)
    [callback] = undone(shop.warehouse)
    assert callback.due_at is not None
    assert callback.due_at > now + timedelta(seconds=700)


def test_a_callback_whose_request_broke_off_unforeseen_is_not_asked_for_again_before_it_can_be_found(
    shop: Workshop,
) -> None:
    want(shop, "supervisor_callback")
    shop.announce(CVV)
    platform = shop.pipeline.platform
    broken = Failing(platform, {("request_callback", "*"): OSError("disk full")}, after=True)
    broken.callback_lag_s = 900
    shop.pipeline.platform = broken
    shop.run()
    shop.pipeline.platform = Failing(platform, {("request_callback", "*"): Killed()})
    shop.clock.wait(800)
    shop.run()
    assert statuses(shop) == {"supervisor_callback": "failed"}
    shop.pipeline.platform = platform
    shop.clock.wait(101)
    shop.run()
    assert statuses(shop) == {"supervisor_callback": "done"}
    assert shop.state.counts["callback"] == 1


@pytest.mark.parametrize("error", [Unavailable("no answer"), Refused("not allowed")])
def test_an_outage_of_an_hour_kills_no_action_and_a_refusal_does_after_its_tries(
    shop: Workshop, error: PlatformError
) -> None:
    shop.pipeline.settings = shop.pipeline.settings.model_copy(update={"longest_backoff_seconds": 600})
    want(shop, "create_work_item")
    shop.announce(CVV)
    platform = shop.pipeline.platform
    shop.pipeline.platform = Failing(platform, {("open_work_item", "*"): error})
    back_at = shop.clock() + timedelta(hours=1)
    tried = 0
    while shop.clock() < back_at and shop.states() != {ID: State.DONE}:
        shop.run()
        tried += 1
        if due_at := undone(shop.warehouse)[0].due_at:
            shop.clock.wait((due_at - shop.clock()).total_seconds())
    [action] = undone(shop.warehouse)
    if isinstance(error, Refused):
        assert (action.status, action.attempts, tried) == ("dead", TRIES, TRIES)
        return
    assert (action.status, action.attempts) == ("failed", 0), "a refusal after the outage has all its tries"
    assert tried > 2 * TRIES
    shop.pipeline.platform = platform
    shop.run()
    assert statuses(shop) == {"create_work_item": "done"}
    assert shop.states() == {ID: State.DONE}


def test_a_settled_recording_with_a_failed_action_of_a_run_by_hand_is_opened_again(shop: Workshop) -> None:
    want(shop, "tag_recording")
    shop.announce(CVV)
    shop.run()
    change_policy(shop, "99.0.0", "tag_recording", "create_work_item")
    shop.state.fail_next(RECORDS, 403, method="POST")
    shop.run(shop.batch(whole_partition=True))
    assert statuses(shop)["create_work_item"] == "failed"
    assert shop.states() == {ID: State.NEW}
    until_settled(shop)
    assert set(statuses(shop).values()) == {"done"}


def test_what_cannot_be_taken_back_is_done_after_all_that_can_and_its_results_are_stored(shop: Workshop) -> None:
    shop.announce(CVV)
    platform = shop.pipeline.platform
    shop.pipeline.platform = Failing(platform, {("request_callback", "*"): Killed()})
    with pytest.raises(Killed):
        shop.run()
    assert statuses(shop) == {"tag_recording": "done", "create_work_item": "done", "supervisor_callback": "planned"}


def test_a_platform_that_cannot_quarantine_holds_up_nothing_else(shop: Workshop) -> None:
    want(shop, "quarantine", "create_work_item")
    shop.announce(CVV)
    shop.run()
    assert statuses(shop) == {"quarantine": "dead", "create_work_item": "done"}
    assert shop.states() == {ID: State.DONE}
    [dead] = undone(shop.warehouse)
    assert dead.attempts == 1
    assert "no legal hold" in (dead.error or "")


def test_a_message_is_sent_once_and_again_only_after_a_refusal(shop: Workshop, media_host: Server) -> None:
    want(shop, "tag_recording", {"notify": {"to": "team"}})
    hook(shop, media_host, Reply(500), Reply(200))
    shop.announce(CVV)
    shop.run()
    assert statuses(shop) == {"tag_recording": "done", "notify": "failed"}
    [failed] = undone(shop.warehouse)
    assert "did not take the message" in (failed.error or "")
    shop.run()
    assert len(media_host.calls("POST", "/hook")) == 1, "not before it is due"
    until_settled(shop)
    shop.run(shop.batch(whole_partition=True))
    assert statuses(shop) == {"tag_recording": "done", "notify": "done"}
    assert len(media_host.calls("POST", "/hook")) == 2


def silent(_: Asked) -> Reply:
    time.sleep(1)
    return Reply(200)


@pytest.mark.parametrize("reply", [silent, Reply(drop=True)])
def test_a_message_that_its_service_took_without_an_answer_is_not_sent_again_by_itself(
    shop: Workshop, media_host: Server, monkeypatch: pytest.MonkeyPatch, reply: Reply | Callable[[Asked], Reply]
) -> None:
    monkeypatch.setattr(notify, "SEND_S", 0.4)
    want(shop, {"notify": {"to": "team"}})
    hook(shop, media_host, reply, Reply(200))
    shop.announce(CVV)
    shop.run()
    until_settled(shop)
    shop.run(shop.batch(whole_partition=True))
    [dead] = undone(shop.warehouse)
    assert (dead.status, dead.attempts) == ("dead", 1)
    assert "its service did not answer" in (dead.error or "")
    assert len(media_host.calls("POST", "/hook")) == 1


class Dying(Warehouse):
    """Its process ends just before or after the n-th write (counted from 0) of remediations."""

    def __init__(self, path: Path, dies_at: int, *, after: bool) -> None:
        super().__init__(path)
        self.left, self.after = dies_at, after

    def append(self, rows: Sequence[Row], **how: Any) -> int:
        counts = bool(rows) and rows[0].table == "remediations"
        dies = counts and self.left == 0
        self.left -= counts
        if dies and not self.after:
            raise Killed
        added = super().append(rows, **how)
        if dies:
            raise Killed
        return added


def test_messages_go_out_a_few_at_a_time_so_that_a_run_that_dies_loses_no_more(
    shop: Workshop, media_host: Server
) -> None:
    chats = [recording(Kind.CHAT_CVV, seed) for seed in range(1, WORKERS + 3)]
    want(shop, {"notify": {"to": "team"}})
    hook(shop, media_host, *[Reply(200)] * len(chats))
    shop.announce(*chats)
    warehouse = shop.pipeline.warehouse
    # Its plan, its results, and the second slice's plan, before which it dies.
    shop.pipeline.warehouse = Dying(warehouse.path, 2, after=False)
    with pytest.raises(Killed):
        shop.run()
    shop.pipeline.warehouse = warehouse
    assert len(media_host.calls("POST", "/hook")) == len(shop.rows("latest_remediations")) == WORKERS
    until_settled(shop)
    told = Counter(asked.json["message"].rpartition(" ")[2] for asked in media_host.calls("POST", "/hook"))
    assert told == {chat.recording_id: 1 for chat in chats}
    assert {row["status"] for row in shop.rows("latest_remediations")} == {"done"}


@pytest.mark.parametrize(
    ("write", "after"), [(0, True), (1, False), (2, False), (2, True), (3, False), (4, False), (4, True), (5, False)]
)
def test_a_run_that_dies_beside_any_of_its_writes_leaves_nothing_undone_and_nothing_double(
    shop: Workshop, media_host: Server, write: int, after: bool
) -> None:
    want(shop, "tag_recording", "create_work_item", "supervisor_callback", {"notify": {"to": "team"}})
    hook(shop, media_host, *[Reply(200)] * 3)
    shop.announce(CVV)
    warehouse = shop.pipeline.warehouse
    shop.pipeline.warehouse = Dying(warehouse.path, write, after=after)
    with pytest.raises(Killed):
        shop.run()
    shop.pipeline.warehouse = warehouse
    until_settled(shop)
    counts = shop.state.counts
    assert (counts["tags written"], counts["work item"], counts["callback"]) == (1, 1, 1)
    # From its plan's write until its result's, nobody can know whether the message was sent: at most once.
    unsure = (write, after) in ((4, True), (5, False))
    assert statuses(shop)["notify"] == ("dead" if unsure else "done")
    assert len(media_host.calls("POST", "/hook")) == ((write, after) != (4, True))
    assert [action.error for action in undone(shop.warehouse)] == [MESSAGE_UNSURE] * unsure
    if unsure:
        retry(shop.warehouse, shop.inbox, None, shop.clock())
        shop.run()
        assert statuses(shop)["notify"] == "done"


FAULTS = {
    "refused": None,
    "lost": Unavailable("the answer was lost", after_s=2),
    "held": PlatformHeld("budget spent", 2),
    "killed": Killed(),
}
METHODS = {"tag_recording": "tag", "create_work_item": "open_work_item", "supervisor_callback": "request_callback"}
PATHS = {"open_work_item": RECORDS, "request_callback": CALLBACKS}
faults = st.lists(
    st.tuples(st.sampled_from(sorted(METHODS.values())), st.sampled_from(sorted(FAULTS)), st.booleans()), max_size=3
)


@pytest.fixture(scope="module")
def one_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with workshop(tmp_path_factory.mktemp("any"), PlatformState(*CLIENT), max_attempts=TRIES) as shop:
        yield shop


SEEDS = count(1_000)


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults)
def test_any_faults_at_the_platform_end_with_each_action_done_once_or_dead(
    one_shop: Workshop, plan: list[tuple[str, str, bool]]
) -> None:
    shop = one_shop
    platform = shop.pipeline.platform
    one = recording(Kind.CHAT_CVV, next(SEEDS))
    shop.announce(one)
    before = Counter(shop.state.counts)
    for step in [*plan, None]:
        if step:
            method, fault, after = step
            if error := FAULTS[fault]:
                # Held means that nothing was asked.
                happened = after and fault != "held"
                shop.pipeline.platform = Failing(platform, {(method, one.recording_id): error}, happened)
            else:
                shop.state.fail_next(
                    PATHS.get(method, f"/api/v2/recordings/{one.recording_id}"),
                    403,
                    method="POST" if method in PATHS else "PATCH",
                )
        try:
            shop.run()
        except Killed:
            pass
        finally:
            shop.pipeline.platform = platform
            shop.state.faults.clear()
        shop.clock.wait(130)
    until_settled(shop)
    rows = shop.warehouse.select(
        "SELECT action, status FROM latest_remediations WHERE recording_id = $id", {"id": one.recording_id}
    )
    made = Counter(shop.state.counts) - before
    done = {row["action"] for row in rows if row["status"] == "done"}
    dead = {row["action"] for row in rows if row["status"] == "dead"}
    assert done | dead == METHODS.keys()
    assert all(made[what] <= 1 for what in ("tags written", "work item", "callback"))
    seen = next(o for o in shop.state.observed()["recordings"] if o["recordingId"] == one.recording_id)
    if "tag_recording" in done:
        assert seen["tags"]["compliance_status"] == "VIOLATION_DETECTED"
    if "create_work_item" in done:
        assert made["work item"] == 1
    if "supervisor_callback" in done:
        assert made["callback"] == 1
