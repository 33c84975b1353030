"""Purging at the platform: only after a person's decision, never under a legal hold, last of all, and once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from compliance_pipeline import retention, reviews, steps
from compliance_pipeline.cli import app
from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.contracts.policy import PolicyPack
from compliance_pipeline.intake.hours import partition_hour
from compliance_pipeline.intake.inbox import State
from compliance_pipeline.ledger import ledger_table
from compliance_pipeline.platforms.cloud import WORK_ITEMS
from compliance_pipeline.platforms.port import Gone, PlatformHeld, Ready, Refused, Unavailable
from compliance_pipeline.purge import OTHERS_NEED_PROTECTION, PLATFORM_TAKES, reopen_due
from compliance_pipeline.quality import every_violation_is_remediated
from compliance_pipeline.remediate import remediate_batch
from compliance_pipeline.remediation.undone import Retried, retry, undone
from compliance_pipeline.retention import LEGAL_HOLD, NOT_REVIEWED, NotHeld
from compliance_pipeline.reviews import Decision
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.sandbox.cloud import CloudState, cloud_state
from compliance_pipeline.sandbox.platform import PlatformState
from compliance_pipeline.sandbox.state import Held
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.remediation.test_remediate import (
    Dying,
    Killed,
    change_policy,
    statuses,
    until_settled,
    want,
)
from compliance_pipeline_tests.remediation.test_remediate import (
    impatient as impatient,
)
from compliance_pipeline_tests.workshop import CLIENT, Failing, Workshop, recording, workshop

CONVERSATION = "8a4a5b52-5d0c-4f0a-9a3e-2f1f3f1b7a11"
CARD, SSN = recording(Kind.CHAT_CARD), recording(Kind.CHAT_SSN)
TRIES = 3


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path, PlatformState(*CLIENT, profile="cloud"), max_attempts=TRIES) as shop:
        yield shop


def announce(shop: Workshop) -> Held:
    held = shop.state.add(CARD, conversation_id=CONVERSATION)
    shop.announce_conversation(CONVERSATION)
    return held


def review(shop: Workshop, recording_id: str) -> None:
    """Of every rule: before the first run nobody knows which it will break."""
    decide(shop, recording_id, [rule.id for rule in shop.pipeline.policy.rules])


def decide(shop: Workshop, recording_id: str, rules: Sequence[str]) -> None:
    reviews.decide(
        shop.inbox.engine, recording_id, partition_hour(shop.at), rules, Decision.CONFIRMED, "read out", "D. Ansah",
        shop.clock(), broken=rules, request_key=token_hex(8),
    )  # fmt: skip


def hold(shop: Workshop, recording_id: str) -> None:
    retention.hold(shop.inbox.engine, recording_id, "case 4711", "D. Ansah", shop.clock())


def reopen(shop: Workshop) -> int:
    return reopen_due(shop.warehouse, shop.inbox, shop.pipeline.policy, shop.clock())


def cloud(shop: Workshop) -> CloudState:
    return cloud_state(shop.state)


def is_gone(shop: Workshop, held: Held) -> bool:
    return isinstance(shop.pipeline.platform.locate(held.address), Gone)


def purges(shop: Workshop) -> int:
    """Requests that the platform took."""
    return shop.state.counts["retention changed"]


def entries(shop: Workshop, kind: str) -> int:
    with shop.inbox.engine.connect() as connection:
        query = sa.select(sa.func.count()).where(ledger_table.c.kind == kind)
        return connection.execute(query).scalar_one()


def waiting(shop: Workshop) -> list[str | None]:
    return [action.error for action in undone(shop.warehouse) if action.status == "waiting"]


def test_a_purge_waits_for_the_review_and_its_recording_is_settled_all_the_same(shop: Workshop) -> None:
    want(shop, "tag_recording", "purge_after_review")
    held = announce(shop)
    shop.run()
    assert statuses(shop) == {"tag_recording": "done", "purge_after_review": "waiting"}
    assert shop.states()[held.address] is State.DONE
    assert waiting(shop) == [NOT_REVIEWED]
    assert every_violation_is_remediated(shop.pipeline, shop.at).passed
    assert (reopen(shop), purges(shop)) == (0, 0)
    assert isinstance(shop.pipeline.platform.locate(held.address), Ready)


def test_after_the_review_the_platform_deletes_it_and_the_ledger_says_so_once(shop: Workshop) -> None:
    want(shop, "purge_after_review")
    held = announce(shop)
    shop.run()
    review(shop, held.address)
    assert reopen(shop) == 1
    assert reopen(shop) == 0, "it is open already"
    shop.run()
    assert statuses(shop) == {"purge_after_review": "done"}
    assert is_gone(shop, held)
    assert (purges(shop), entries(shop, "purge"), len(shop.rows("verdicts"))) == (1, 1, 1)
    assert shop.states()[held.address] is State.DONE
    assert reopen(shop) == 0


def test_a_review_before_the_first_run_needs_no_second_one(shop: Workshop) -> None:
    want(shop, "purge_after_review")
    held = announce(shop)
    review(shop, held.address)
    shop.run()
    assert statuses(shop) == {"purge_after_review": "done"}


def with_its_double(policy: PolicyPack, version: str, rule_id: str) -> PolicyPack:
    """The policy with a rule more, which is broken where `rule_id` is."""
    rule = next(rule for rule in policy.rules if rule.id == rule_id)
    double = rule.model_copy(update={"id": f"{rule_id}-TOO"})
    return policy.model_copy(update={"version": version, "rules": (*policy.rules, double)})


def test_a_purge_waits_until_every_rule_is_decided_and_for_what_a_later_verdict_finds_besides(shop: Workshop) -> None:
    want(shop, "purge_after_review")
    held = announce(shop)
    shop.run()
    broke = reviews.broken(shop.warehouse, [held.address])[held.address]
    assert broke.partition_hour == partition_hour(shop.at)
    [first] = broke.rule_ids
    shop.pipeline.policy = with_its_double(shop.pipeline.policy, "99.0.0", first)
    decide(shop, held.address, [first])
    shop.run(shop.batch(whole_partition=True))
    assert reviews.broken(shop.warehouse, [held.address])[held.address].rule_ids == (first, f"{first}-TOO")
    assert set(waiting(shop)) == {NOT_REVIEWED}
    assert (reopen(shop), purges(shop)) == (0, 0)
    decide(shop, held.address, [f"{first}-TOO"])
    assert reopen(shop) == 1
    shop.run()
    assert is_gone(shop, held)


def test_a_legal_hold_beats_the_purge_until_it_is_lifted(shop: Workshop) -> None:
    want(shop, "purge_after_review")
    held = announce(shop)
    hold(shop, held.address)
    review(shop, held.address)
    shop.run()
    assert waiting(shop) == [LEGAL_HOLD]
    assert (reopen(shop), purges(shop)) == (0, 0)
    retention.lift(shop.inbox.engine, held.address, "closed", "D. Ansah", shop.clock())
    assert reopen(shop) == 1
    shop.run()
    assert statuses(shop) == {"purge_after_review": "done"}


def test_a_hold_that_comes_after_the_recording_was_reopened_is_heeded(shop: Workshop) -> None:
    want(shop, "purge_after_review")
    held = announce(shop)
    shop.run()
    review(shop, held.address)
    reopen(shop)
    hold(shop, held.address)
    shop.run()
    assert waiting(shop) == [LEGAL_HOLD]
    assert shop.states()[held.address] is State.DONE
    assert not is_gone(shop, held)


def test_no_hold_can_be_had_while_nobody_knows_whether_it_was_purged_and_one_can_after_a_refusal(
    shop: Workshop,
) -> None:
    want(shop, "purge_after_review")
    held = announce(shop)
    review(shop, held.address)
    platform = shop.pipeline.platform
    shop.pipeline.platform = Failing(platform, {("purge", "*"): Unavailable("the answer was lost")})
    shop.run()
    with pytest.raises(NotHeld, match="is being deleted"):
        hold(shop, held.address)
    shop.pipeline.platform = Failing(platform, {("purge", "*"): Refused("not allowed")})
    shop.clock.wait(5)
    shop.run()
    assert statuses(shop) == {"purge_after_review": "failed"}
    hold(shop, held.address)
    shop.pipeline.platform = platform
    until_settled_cloud(shop, held)
    assert waiting(shop) == [LEGAL_HOLD]
    assert purges(shop) == 0


def until_settled_cloud(shop: Workshop, held: Held) -> None:
    for _ in range(10):
        if shop.states()[held.address] is State.DONE:
            return
        shop.clock.wait(130)
        shop.run()
    raise AssertionError("not settled")


def test_a_purge_comes_after_all_else_is_done_or_given_up_on(shop: Workshop) -> None:
    want(shop, "create_work_item", "purge_after_review")
    held = announce(shop)
    review(shop, held.address)
    shop.state.fail_next(WORK_ITEMS, 403, method="POST")
    shop.run()
    assert statuses(shop) == {"create_work_item": "failed"}
    until_settled_cloud(shop, held)
    assert statuses(shop) == {"create_work_item": "done", "purge_after_review": "done"}


def test_a_quarantine_reaches_the_platform_and_is_lifted_for_the_purge(shop: Workshop) -> None:
    want(shop, "quarantine", "purge_after_review")
    held = announce(shop)
    shop.run()
    assert statuses(shop) == {"quarantine": "done", "purge_after_review": "waiting"}
    assert cloud(shop).protected == {CONVERSATION}
    review(shop, held.address)
    reopen(shop)
    shop.run()
    assert cloud(shop).protected == set()
    assert is_gone(shop, held)


def test_a_purge_that_is_refused_leaves_the_quarantine_and_one_that_is_taken_lifts_it(shop: Workshop) -> None:
    want(shop, "quarantine", "purge_after_review")
    held = announce(shop)
    review(shop, held.address)
    shop.state.fail_next("/api/v2/conversations/", 403, method="PUT")
    shop.run()
    assert statuses(shop) == {"quarantine": "done", "purge_after_review": "failed"}
    assert cloud(shop).protected == {CONVERSATION}
    until_settled_cloud(shop, held)
    assert (statuses(shop)["purge_after_review"], cloud(shop).protected) == ("done", set())
    assert is_gone(shop, held)


def test_a_purge_whose_quarantine_cannot_be_lifted_is_not_done_and_no_hold_is_promised_on_it(shop: Workshop) -> None:
    want(shop, "quarantine", "purge_after_review")
    held = announce(shop)
    shop.run()
    review(shop, held.address)
    assert reopen(shop) == 1
    shop.state.fail_next("/api/v2/recordings/deletionprotection", 403, method="PUT")
    shop.run()
    assert statuses(shop)["purge_after_review"] == "failed"
    with pytest.raises(NotHeld, match="is being deleted"):
        hold(shop, held.address)
    until_settled_cloud(shop, held)
    assert (statuses(shop)["purge_after_review"], is_gone(shop, held), purges(shop)) == ("done", True, 1)


def test_a_quarantine_stays_while_the_purge_of_another_recording_under_it_is_refused(shop: Workshop) -> None:
    want(shop, "quarantine", "purge_after_review")
    held, other = (shop.state.add(one, conversation_id=CONVERSATION) for one in (CARD, SSN))
    shop.announce_conversation(CONVERSATION)
    shop.run()
    for one in (held, other):
        review(shop, one.address)
    assert reopen(shop) == 2
    platform = shop.pipeline.platform
    shop.pipeline.platform = Failing(platform, {("purge", other.address): Refused("no")})
    shop.run()
    assert cloud(shop).protected == {CONVERSATION}
    shop.pipeline.platform = platform
    until_settled_cloud(shop, held)
    until_settled_cloud(shop, other)
    assert (cloud(shop).protected, is_gone(shop, held), is_gone(shop, other)) == (set(), True, True)


def test_protection_that_is_not_ours_is_left(shop: Workshop) -> None:
    want(shop, "purge_after_review")
    held = announce(shop)
    cloud(shop).protected.add(CONVERSATION)
    review(shop, held.address)
    shop.run()
    assert cloud(shop).protected == {CONVERSATION}
    assert isinstance(shop.pipeline.platform.locate(held.address), Ready), "kept until the platform's hold is lifted"


def test_a_quarantine_stays_while_it_protects_another_recording_of_the_conversation(shop: Workshop) -> None:
    want(shop, "quarantine", "purge_after_review")
    held, other = (shop.state.add(one, conversation_id=CONVERSATION) for one in (CARD, SSN))
    shop.announce_conversation(CONVERSATION)
    shop.run()
    review(shop, held.address)
    assert reopen(shop) == 0
    hold(shop, other.address)
    review(shop, other.address)
    assert reopen(shop) == 0
    shop.run(shop.batch(whole_partition=True))
    assert sorted(map(str, waiting(shop))) == [LEGAL_HOLD, OTHERS_NEED_PROTECTION]
    assert cloud(shop).protected == {CONVERSATION}
    retention.lift(shop.inbox.engine, other.address, "closed", "D. Ansah", shop.clock())
    assert reopen(shop) == 2
    shop.run()
    assert (cloud(shop).protected, is_gone(shop, held), is_gone(shop, other)) == (set(), True, True)


def test_a_purge_that_waits_is_not_written_again_by_every_run(shop: Workshop) -> None:
    want(shop, "purge_after_review")
    announce(shop)
    shop.run()
    for _ in range(2):
        shop.run(shop.batch(whole_partition=True))
    assert len(shop.rows("remediations")) == 1


def test_a_purge_that_waits_is_no_matter_for_a_retry(shop: Workshop) -> None:
    want(shop, "purge_after_review")
    announce(shop)
    shop.run()
    assert retry(shop.warehouse, shop.inbox, None, shop.clock()) == Retried(0, 0)
    [action] = undone(shop.warehouse)
    assert action.status == "waiting"
    with pytest.raises(KeyError):
        retry(shop.warehouse, shop.inbox, [action.key], shop.clock())


def test_a_purge_of_a_rule_that_a_later_policy_does_not_see_broken_is_dropped_and_reopens_nothing(
    shop: Workshop,
) -> None:
    want(shop, "purge_after_review")
    held = announce(shop)
    shop.run()
    change_policy(shop, "99.0.0", "purge_after_review")
    policy = shop.pipeline.policy
    calls_only = tuple(rule.model_copy(update={"channels": (Channel.VOICE,)}) for rule in policy.rules)
    shop.pipeline.policy = policy.model_copy(update={"rules": calls_only})
    shop.run(shop.batch(whole_partition=True))
    assert statuses(shop) == {"purge_after_review": "dropped"}
    assert every_violation_is_remediated(shop.pipeline, shop.at).passed
    review(shop, held.address)
    assert reopen(shop) == 0
    assert not is_gone(shop, held)


def test_a_policy_that_asks_for_no_purge_any_more_reopens_nothing(shop: Workshop) -> None:
    want(shop, "purge_after_review")
    held = announce(shop)
    shop.run()
    review(shop, held.address)
    want(shop, "tag_recording")
    assert reopen(shop) == 0


@pytest.mark.parametrize(("write", "after"), [(0, False), (0, True), (1, False), (1, True)])
def test_a_run_that_dies_beside_any_write_purges_all_the_same_and_once(shop: Workshop, write: int, after: bool) -> None:
    want(shop, "purge_after_review")
    held = announce(shop)
    review(shop, held.address)
    warehouse = shop.pipeline.warehouse
    with dying(shop, Dying(warehouse.path, write, after=after)):
        shop.run()
    until_settled_cloud(shop, held)
    assert statuses(shop) == {"purge_after_review": "done"}
    assert (purges(shop), entries(shop, "purge")) == (1, 1)
    assert retention.unfinished_purges(shop.inbox.engine) == []
    with pytest.raises(NotHeld, match="was deleted at"):
        hold(shop, held.address)


@contextmanager
def dying(shop: Workshop, warehouse: Dying) -> Iterator[None]:
    before = shop.pipeline.warehouse
    shop.pipeline.warehouse = warehouse
    with pytest.raises(Killed):
        yield
    shop.pipeline.warehouse = before


def test_a_lost_answer_leads_to_a_look_and_to_no_second_request(shop: Workshop) -> None:
    want(shop, "purge_after_review")
    held = announce(shop)
    review(shop, held.address)
    platform = shop.pipeline.platform
    shop.pipeline.platform = Failing(platform, {("purge", "*"): Unavailable("the answer was lost")}, after=True)
    shop.run()
    assert statuses(shop) == {"purge_after_review": "failed"}
    shop.pipeline.platform = platform
    until_settled_cloud(shop, held)
    assert (statuses(shop), purges(shop)) == ({"purge_after_review": "done"}, 1)


@pytest.mark.usefixtures("impatient")
def test_a_purge_that_was_given_up_on_is_entered_where_the_platform_deleted_it(shop: Workshop) -> None:
    want(shop, "purge_after_review")
    held = announce(shop)
    review(shop, held.address)
    platform = shop.pipeline.platform
    shop.pipeline.platform = Failing(platform, {("purge", "*"): Unavailable("the answer was lost")}, after=True)
    shop.run()
    until_settled_cloud(shop, held)
    assert statuses(shop) == {"purge_after_review": "dead"}
    assert is_gone(shop, held)
    with pytest.raises(NotHeld, match="was deleted at"):
        hold(shop, held.address)
    assert entries(shop, "purge") == 1
    shop.pipeline.platform = platform
    retry(shop.warehouse, shop.inbox, None, shop.clock())
    shop.run()
    assert statuses(shop) == {"purge_after_review": "done"}
    assert (purges(shop), entries(shop, "purge")) == (1, 1)


@pytest.mark.usefixtures("impatient")
def test_a_purge_that_was_given_up_on_can_be_held_again_once_the_platform_had_its_time(shop: Workshop) -> None:
    want(shop, "purge_after_review")
    held = announce(shop)
    review(shop, held.address)
    platform = shop.pipeline.platform
    unknown = Unavailable("no answer")
    shop.pipeline.platform = Failing(platform, {("purge", "*"): unknown, ("locate", held.address): unknown})
    # It is judged before, by the platform as it is.
    steps.claim(shop.pipeline, batch := shop.batch())
    shop.pipeline.platform, failing = platform, shop.pipeline.platform
    steps.screen_batch(shop.pipeline, batch)
    shop.pipeline.platform = failing
    remediate_batch(shop.pipeline, batch)
    until_settled_cloud(shop, held)
    assert statuses(shop) == {"purge_after_review": "dead"}
    later(shop)
    with pytest.raises(NotHeld, match="is being deleted"):
        hold(shop, held.address)
    shop.pipeline.platform = platform
    shop.run()
    hold(shop, held.address)
    assert (purges(shop), entries(shop, "purge")) == (0, 0)


def later(shop: Workshop) -> None:
    """When what the platform still shows was not taken by it."""
    shop.clock.wait(PLATFORM_TAKES.total_seconds())


@pytest.mark.parametrize("deleted", [True, False])
def test_a_purge_that_was_begun_is_settled_though_the_policy_asks_for_none_any_more(
    shop: Workshop, deleted: bool
) -> None:
    want(shop, "purge_after_review")
    held = announce(shop)
    review(shop, held.address)
    platform = shop.pipeline.platform
    shop.pipeline.platform = Failing(platform, {("purge", "*"): Unavailable("the answer was lost")}, after=deleted)
    shop.run()
    change_policy(shop, "99.0.0", "tag_recording")
    shop.pipeline.platform = platform
    with pytest.raises(NotHeld, match="is being deleted"):
        hold(shop, held.address)
    later(shop)
    shop.run()
    until_settled_cloud(shop, held)
    assert statuses(shop)["purge_after_review"] == "dropped"
    assert retention.unfinished_purges(shop.inbox.engine) == []
    if deleted:
        with pytest.raises(NotHeld, match="was deleted"):
            hold(shop, held.address)
    else:
        hold(shop, held.address)
    assert entries(shop, "purge") == deleted


def test_a_try_that_was_held_back_says_nothing_of_the_one_whose_answer_was_lost(shop: Workshop) -> None:
    want(shop, "purge_after_review")
    held = announce(shop)
    review(shop, held.address)
    platform = shop.pipeline.platform
    for error in (Unavailable("the answer was lost"), PlatformHeld("budget spent", 1)):
        shop.pipeline.platform = Failing(platform, {("purge", "*"): error}, after=True)
        shop.run()
        shop.clock.wait(5)
    with pytest.raises(NotHeld, match="is being deleted"):
        hold(shop, held.address)


class Racing(Warehouse):
    """A hold is taken on a recording right after the second look at the conversations of what is to be purged."""

    def __init__(self, path: Path, shop: Workshop, recording_id: str) -> None:
        super().__init__(path)
        self.shop, self.recording_id, self.looks = shop, recording_id, 0

    def select(self, query: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        found = super().select(query, parameters)
        if "o.conversation_id" in query:
            self.looks += 1
            if self.looks == 2:
                hold(self.shop, self.recording_id)
        return found


def test_a_hold_on_another_recording_that_comes_after_the_look_keeps_its_protection(shop: Workshop) -> None:
    want(shop, "quarantine", "purge_after_review")
    held, other = (shop.state.add(one, conversation_id=CONVERSATION) for one in (CARD, SSN))
    shop.announce_conversation(CONVERSATION)
    shop.run()
    review(shop, held.address)
    review(shop, other.address)
    warehouse = shop.pipeline.warehouse
    shop.pipeline.warehouse = racing = Racing(warehouse.path, shop, other.address)
    shop.inbox.reopen([held.address], shop.clock())
    shop.run()
    assert racing.looks == 2
    shop.pipeline.warehouse = warehouse
    assert cloud(shop).protected == {CONVERSATION}
    assert not is_gone(shop, held)
    assert LEGAL_HOLD in waiting(shop)


def test_on_a_platform_that_deletes_nothing_it_is_given_up_at_once_with_the_reason(tmp_path: Path) -> None:
    with workshop(tmp_path, max_attempts=TRIES) as shop:
        want(shop, "tag_recording", "purge_after_review")
        shop.announce(CARD)
        review(shop, CARD.recording_id)
        shop.run()
        assert statuses(shop) == {"tag_recording": "done", "purge_after_review": "dead"}
        [dead] = undone(shop.warehouse)
        assert dead.attempts == 1
        assert (dead.error or "").startswith("the guide prints no request that deletes")
        until_settled(shop, runs=1)
        hold(shop, CARD.recording_id)


def test_a_review_by_command_opens_the_recording_again(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Path("compliance_pipeline/screening/policies/default-us-eu.yaml").read_text()
    asked = tmp_path / "pack.yaml"
    asked.write_text(pack.replace("actions: [tag_recording", "actions: [purge_after_review, tag_recording"))
    want(shop, "purge_after_review")
    held = announce(shop)
    shop.run()
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    monkeypatch.setenv("COMPLIANCE_POLICY", str(asked))
    result = CliRunner().invoke(app, ["review", held.address, "--decision", "confirmed", "--reason", "read out"])
    assert result.exit_code == 0, result.output
    assert "1 recordings will be purged" in result.output
    assert shop.states()[held.address] is State.NEW
    shop.run()
    assert is_gone(shop, held)
