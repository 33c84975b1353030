"""Canaries over real parts: flagged like any recording, and seen by no figure and by nobody outside."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from compliance_pipeline import canaries, ledger, quality
from compliance_pipeline.canaries import Fate, Outcome, inject, recall, settle, slot_of
from compliance_pipeline.contracts.event import CANARY, Channel
from compliance_pipeline.contracts.policy import PolicyPack, RuleAction
from compliance_pipeline.dashboard.operations import held
from compliance_pipeline.evidence import evidence_batch, hours_that_lack_evidence, keep_evidence
from compliance_pipeline.figures.figures import Filter
from compliance_pipeline.figures.report import report_of
from compliance_pipeline.figures.snapshots import TABLES, Snapshot, folder_of, publish
from compliance_pipeline.intake.hours import hour_of, partition_hour
from compliance_pipeline.intake.inbox import IncomingEvent, State
from compliance_pipeline.objective import Objective
from compliance_pipeline.platforms.canary import canaries_of, is_canary, with_canaries
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline_tests.platforms.loopback import Reply, Server
from compliance_pipeline_tests.workshop import Workshop, recording, workshop

OBJECTIVE = Objective(30.0)
CHAT, CLEAN, EMAIL = (recording(kind) for kind in (Kind.CHAT_CARD, Kind.CHAT_CLEAN, Kind.EMAIL_CARD))


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path) as shop:
        shop.pipeline.platform = with_canaries(shop.pipeline.platform, shop.pipeline.policy)
        # The end of an hour, when all of its canaries are due.
        shop.clock.wait((hour_of(shop.hour) + timedelta(minutes=59) - datetime.now(UTC)).total_seconds())
        yield shop


def only(policy: PolicyPack, *rules: str) -> PolicyPack:
    return policy.model_copy(update={"rules": tuple(rule for rule in policy.rules if rule.id in rules)})


def inject_all(shop: Workshop) -> int:
    number = 0
    while put_in := inject(shop.inbox, shop.pipeline.policy, shop.clock()):
        number += put_in
    return number


def test_every_canary_of_the_packaged_policy_is_flagged_for_its_rule_and_nothing_of_it_leaves(shop: Workshop) -> None:
    made, without = canaries_of(shop.pipeline.policy)
    assert without == ["FDCPA-7IN7-01/voice"], "how often somebody was called before no platform tells"
    assert {canary.rule.id for canary in made} == {rule.id for rule in shop.pipeline.policy.rules} - {"FDCPA-7IN7-01"}
    assert inject_all(shop) == len(made)
    shop.run()
    assert settle(shop.inbox.engine, shop.warehouse, shop.pipeline.policy, OBJECTIVE, shop.clock()) == len(made)
    found = canaries.fates(shop.inbox.engine, shop.at)
    assert {fate.name: fate.outcome for fate in found if fate.outcome is not Outcome.FLAGGED} == {}
    assert {fate.name for fate in found} == {canary.name for canary in made}
    assert recall(found).share == 1.0
    assert (recall(found).p95_s or 0) > 0
    assert set(shop.states().values()) == {State.DONE}
    assert shop.state.observed()["recordings"] == []
    assert {key: n for key, n in shop.state.counts.items() if n} == {}, "the platform was not asked at all"
    assert quality.nothing_sensitive_is_stored(shop.pipeline, shop.at).passed


def test_a_canary_is_put_in_once_an_hour_in_a_slot_that_moves(shop: Workshop) -> None:
    [canary, *_] = canaries_of(shop.pipeline.policy)[0]
    slots = {slot_of(canary, shop.at + timedelta(hours=n)).minute for n in range(48)}
    assert slots == set(range(0, 60, 5)), "over the days it comes at any time of the hour"
    policy = only(shop.pipeline.policy, canary.rule.id)
    of_rule = canaries_of(policy)[0]
    hours = (shop.at + timedelta(hours=n) for n in range(48))
    hour = next(hour for hour in hours if all(slot_of(one, hour) > hour for one in of_rule))
    first, last = (which(slot_of(one, hour) for one in of_rule) for which in (min, max))
    assert inject(shop.inbox, policy, first - timedelta(seconds=1)) == 0
    at_first = inject(shop.inbox, policy, first)
    assert at_first >= 1
    assert inject(shop.inbox, policy, first) == 0
    assert at_first + inject(shop.inbox, policy, last) == len(of_rule)
    assert inject(shop.inbox, policy, hour + timedelta(minutes=59)) == 0
    assert {item.source for item in shop.inbox.items(partition_hour(hour))} == {CANARY}
    assert inject(shop.inbox, policy, hour + timedelta(minutes=119)) == len(of_rule), "and again in the next hour"


def test_a_pause_does_not_end_in_a_burst(shop: Workshop) -> None:
    assert inject(shop.inbox, shop.pipeline.policy, shop.clock()) == canaries.AT_ONCE


def test_no_figure_changes_when_canaries_are_among_the_recordings(shop: Workshop) -> None:
    settings, engine, now = shop.pipeline.settings, shop.pipeline.engine.version, shop.clock() + timedelta(minutes=5)

    def figures() -> dict[str, Any]:
        publish(shop.warehouse, shop.inbox, folder_of(settings.home), OBJECTIVE, now)
        snapshot = Snapshot.current(folder_of(settings.home))
        try:
            span = shop.at - timedelta(hours=1), shop.at + timedelta(hours=3)
            return {
                "tables": {
                    table: snapshot.rows(f"FROM read_parquet(${table}) ORDER BY ALL", *span) for table in TABLES
                },
                "report": report_of(snapshot, Filter(*span), OBJECTIVE).as_json() | {"snapshot": None},
                "marts": [shop.rows("violations_by_hour"), shop.rows("latency_by_hour")],
                "inbox": {state: sum(one.recordings for one in its) for state, its in held(shop.inbox.engine).items()},
                "answers": [
                    asked(shop.pipeline, shop.at)
                    for asked in (
                        quality.every_recording_is_accounted_for,
                        quality.every_violation_is_remediated,
                        quality.p95_is_within_the_objective,
                        quality.snapshot_says_what_the_warehouse_says,
                    )
                ],
                "without evidence": hours_that_lack_evidence(shop.warehouse, engine, shop.at, now),
                "evidence": shop.rows("evidence"),
                "ledger": ledger_entries(shop),
                "platform": shop.state.observed()["recordings"],
            }
        finally:
            snapshot.close()

    shop.announce(CHAT, CLEAN, EMAIL)
    shop.run()
    keep_evidence(shop.pipeline, "clips", shop.at)
    before = figures()
    assert before["report"]["counts"]["received"] == 3
    assert before["report"]["counts"]["violating"] == 2
    assert inject(shop.inbox, shop.pipeline.policy, shop.clock()) == 10
    assert figures() == before, "while they wait"
    shop.run()
    inject_all(shop)
    shop.run()
    assert sum(is_canary(row["recording_id"]) for row in shop.rows("violations")) > 40
    evidence_batch(shop.pipeline, shop.batch())
    assert figures() == before, "when they are flagged"
    inject(shop.inbox, shop.pipeline.policy, shop.at + timedelta(minutes=119))
    for item in shop.inbox.claim(
        partition_hour(shop.at + timedelta(hours=1)), "x", now + timedelta(hours=2), timedelta(1), 9
    ):
        shop.inbox.dead(item.recording_id, "x", "given up", now)
    assert figures() == before, "when they are given up on"


def ledger_entries(shop: Workshop) -> list[Any]:
    with shop.inbox.engine.connect() as connection:
        return list(connection.execute(ledger.ledger_table.select()))


def test_a_rule_that_stops_firing_misses_its_canary_and_no_other(shop: Workshop) -> None:
    policy = only(shop.pipeline.policy, "PCI-PAN-01", "GDPR-DSR-01")
    while inject(shop.inbox, policy, shop.clock()):
        pass
    # What judges does not find deletion requests any more; what injects still knows the rule.
    broken = policy.model_copy(
        update={
            "rules": tuple(
                rule.model_copy(update={"channels": (Channel.EMAIL,)}) if rule.id == "GDPR-DSR-01" else rule
                for rule in policy.rules
            )
        }
    )
    shop.pipeline.policy = broken
    shop.run()
    settle(shop.inbox.engine, shop.warehouse, policy, OBJECTIVE, shop.clock())
    missed = canaries.missed(shop.inbox.engine, shop.at)
    assert {(fate.name, fate.outcome) for fate in missed} == {
        ("GDPR-DSR-01/voice", Outcome.WRONG),
        ("GDPR-DSR-01/chat", Outcome.WRONG),
    }


def test_a_canary_of_a_rule_that_was_promoted_away_meanwhile_is_no_miss(shop: Workshop) -> None:
    before = only(shop.pipeline.policy, "PCI-PAN-01", "GDPR-DSR-01")
    while inject(shop.inbox, before, shop.clock()):
        pass
    shop.pipeline.policy = after = only(before, "PCI-PAN-01")
    shop.run()
    settle(shop.inbox.engine, shop.warehouse, after, OBJECTIVE, shop.clock())
    found = canaries.fates(shop.inbox.engine, shop.at)
    assert {(fate.rule_id, fate.outcome) for fate in found} == {("PCI-PAN-01", Outcome.FLAGGED)}


def test_a_canary_that_nobody_judges_is_missed_after_three_times_the_objective_and_late_when_it_is(
    shop: Workshop,
) -> None:
    policy = only(shop.pipeline.policy, "PCI-PAN-01")
    put_in = inject(shop.inbox, policy, shop.clock())

    def outcomes() -> set[Outcome | None]:
        settle(shop.inbox.engine, shop.warehouse, policy, OBJECTIVE, shop.clock())
        return {fate.outcome for fate in canaries.fates(shop.inbox.engine, shop.at)}

    shop.clock.wait(80)
    assert outcomes() == {None}
    shop.clock.wait(15)
    assert outcomes() == {Outcome.MISSED}
    assert recall(canaries.fates(shop.inbox.engine, shop.at)) == canaries.Recall(
        put_in, 0, None, canaries.fates(shop.inbox.engine, shop.at)[0].injected_at
    )
    shop.run()
    assert outcomes() == {Outcome.LATE}
    [first, *_] = canaries.fates(shop.inbox.engine, shop.at)
    assert 95 <= (first.seconds or 0) < 130
    assert recall([first]).p95_s == first.seconds


def test_the_p95_is_that_of_the_nearest_rank_and_none_where_it_was_never_flagged() -> None:
    at = datetime(2026, 3, 1, tzinfo=UTC)

    def fate(seconds: float | None) -> Fate:
        return Fate("canary", "A-1", "chat", at, Outcome.FLAGGED if seconds else Outcome.MISSED, seconds)

    assert recall([fate(float(n)) for n in range(1, 101)]).p95_s == 95.0
    assert recall([*(fate(float(n)) for n in range(1, 96)), *[fate(None)] * 5]).p95_s == 95.0
    assert recall([*(fate(float(n)) for n in range(1, 95)), *[fate(None)] * 6]).p95_s is None
    assert recall([]) == canaries.Recall(0, 0, None, None)
    waiting = Fate("canary", "A-1", "chat", at, None, None)
    assert recall([waiting, fate(1.0)]).canaries == 1


def test_no_message_goes_out_for_a_canary(tmp_path: Path, media_host: Server) -> None:
    media_host.plan("POST", "/hook", Reply(200))
    to_people = {"people": f"json://{media_host.url.removeprefix('http://')}/hook"}
    with workshop(tmp_path, notify_urls=to_people) as shop:
        policy = only(shop.pipeline.policy, "PCI-PAN-01")
        [rule] = policy.rules
        actions = (*rule.actions, RuleAction.model_validate({"notify": {"to": "people"}}))
        policy = policy.model_copy(update={"rules": (rule.model_copy(update={"actions": actions}),)})
        shop.pipeline.policy, shop.pipeline.platform = policy, with_canaries(shop.pipeline.platform, policy)
        canary = canaries_of(policy)[0][0].event(shop.at)
        shop.announce(CHAT)
        shop.inbox.store([IncomingEvent(canary, CANARY, "x", shop.clock())], shop.clock())
        shop.run()
        told = {row["recording_id"]: row["status"] for row in shop.rows("remediations") if row["action"] == "notify"}
    assert told.keys() == {CHAT.recording_id, canary.recording_id}
    [asked] = media_host.asked
    assert CHAT.recording_id in asked.json["message"]
