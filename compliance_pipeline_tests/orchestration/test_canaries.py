"""The sensor that puts canaries in: what it does in a tick, and what it then says."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from compliance_pipeline import quality
from compliance_pipeline.canaries import AT_ONCE, canary_table
from compliance_pipeline.contracts.event import CANARY
from compliance_pipeline.definitions import compliance_pipeline
from compliance_pipeline.intake.hours import hour_of
from compliance_pipeline.intake.inbox import IncomingEvent, State
from compliance_pipeline.orchestration.canaries import canary_sensor, look
from compliance_pipeline.platforms.canary import canaries_of, with_canaries
from compliance_pipeline.steps import TRIGGER_TAG, TRIGGERED_BY_INBOX
from compliance_pipeline_tests.workshop import CLIENT, Workshop, workshop


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path) as shop:
        shop.pipeline.platform = with_canaries(shop.pipeline.platform, shop.pipeline.policy)
        shop.clock.wait((hour_of(shop.hour) + timedelta(minutes=59) - datetime.now(UTC)).total_seconds())
        yield shop


def skipped(found: dg.SensorResult | dg.SkipReason) -> str:
    assert isinstance(found, dg.SkipReason)
    return str(found.skip_message)


def test_a_tick_puts_some_in_and_the_one_after_their_run_says_what_became_of_them(shop: Workshop) -> None:
    settings = shop.pipeline.settings
    assert skipped(look(settings, shop.clock())) == f"{AT_ONCE} canaries put in, none decided on."
    shop.run()
    found = look(settings.model_copy(update={"canaries": False}), shop.clock())
    assert isinstance(found, dg.SensorResult)
    [said] = found.asset_events
    assert isinstance(said, dg.AssetMaterialization)
    assert said.asset_key == dg.AssetKey("canaries")
    assert said.metadata["canaries in 24 hours"].value == said.metadata["flagged"].value == AT_ONCE
    assert said.metadata["recall"].value == 1.0
    answer = quality.every_canary_was_flagged(shop.pipeline, shop.at)
    assert (answer.passed, answer.description) == (True, f"{AT_ONCE} of {AT_ONCE} canaries were flagged in time.")


def test_the_check_fails_and_names_what_was_missed(shop: Workshop) -> None:
    look(shop.pipeline.settings, shop.clock())
    shop.clock.wait(91)
    look(shop.pipeline.settings.model_copy(update={"canaries": False}), shop.clock())
    answer = quality.every_canary_was_flagged(shop.pipeline, shop.at)
    assert not answer.passed
    assert answer.serious
    assert len(answer.facts["missed"]) == AT_ONCE


def test_none_is_put_in_when_they_are_turned_off_or_another_engine_judges(shop: Workshop) -> None:
    off = shop.pipeline.settings.model_copy(update={"canaries": False})
    assert skipped(look(off, shop.clock())).endswith("Canaries are turned off.")
    assert "No canaries" in skipped(look(off.model_copy(update={"engine_url": "http://engine"}), shop.clock()))
    assert shop.inbox.items(shop.hour) == []


def test_the_flagging_job_flags_a_canary_without_the_platform_and_the_sweep_s_check_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dagster").mkdir()
    with workshop(tmp_path / "home") as shop, dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("COMPLIANCE_PLATFORM_URL", shop.state.base_url)
        monkeypatch.setenv("COMPLIANCE_CLIENT_ID", CLIENT[0])
        monkeypatch.setenv("COMPLIANCE_CLIENT_SECRET", CLIENT[1])
        now, definitions = shop.clock(), compliance_pipeline()
        [canary, *_] = canaries_of(shop.pipeline.policy)[0]
        event = canary.event(shop.at)
        shop.inbox.store([IncomingEvent(event, CANARY, event.recording_id, now)], now)
        with shop.inbox.engine.begin() as connection:
            connection.execute(
                canary_table.insert().values(
                    recording_id=event.recording_id, rule_id=canary.rule.id, channel=str(canary.channel), hour=shop.at,
                    injected_at=now,
                )
            )  # fmt: skip
        job = definitions.resolve_job_def("flag_recordings")
        tags = {TRIGGER_TAG: TRIGGERED_BY_INBOX}
        assert job.execute_in_process(partition_key=shop.hour, instance=instance, tags=tags).success
        assert {key: n for key, n in shop.state.counts.items() if n} == {}
        assert shop.states() == {event.recording_id: State.DONE}
        monkeypatch.setenv("COMPLIANCE_CANARIES", "false")
        assert isinstance(canary_sensor(dg.build_sensor_context(instance)), dg.SensorResult)
        swept = definitions.resolve_job_def("reconcile").execute_in_process(instance=instance)
        checks = {check.check_name: check for check in swept.get_asset_check_evaluations()}
        assert checks["every_canary_was_flagged"].passed
        assert checks["every_canary_was_flagged"].metadata["canaries"].value == 1
