"""Backfills: several hours in one run, second looks that no two runs share, and nothing done twice."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    BACKFILL_ID_TAG,
    MAX_RUNTIME_SECONDS_TAG,
    PARTITION_NAME_TAG,
)

from compliance_pipeline import steps
from compliance_pipeline.definitions import compliance_pipeline
from compliance_pipeline.intake.hours import partition_hour
from compliance_pipeline.intake.inbox import State
from compliance_pipeline.ledger import ledger_table
from compliance_pipeline.orchestration.backfills import State as BackfillState
from compliance_pipeline.orchestration.backfills import Wanted, state, under_way
from compliance_pipeline.orchestration.checks import QUESTIONS
from compliance_pipeline.orchestration.resources import NICENESS
from compliance_pipeline.orchestration.sensors import partitions_in_flight
from compliance_pipeline.remediate import remediate_batch
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline.steps import TRIGGER_TAG, TRIGGERED_BY_INBOX
from compliance_pipeline_tests.orchestration.test_definitions import EXPECTED
from compliance_pipeline_tests.workshop import CLIENT, Workshop, recording, workshop

CARD, SSN, CLEAN = recording(Kind.CHAT_CARD), recording(Kind.CHAT_SSN), recording(Kind.CHAT_CLEAN)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    with workshop(tmp_path / "home") as shop:
        monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("COMPLIANCE_PLATFORM_URL", shop.state.base_url)
        monkeypatch.setenv("COMPLIANCE_CLIENT_ID", CLIENT[0])
        monkeypatch.setenv("COMPLIANCE_CLIENT_SECRET", CLIENT[1])
        yield shop


def two_hours(shop: Workshop) -> tuple[str, str]:
    """A card in the hour before, a social security number and a clean chat in this one, all done; the two hours."""
    this = shop.hour
    before = partition_hour(shop.at - timedelta(hours=1))
    shop.hour = before
    shop.announce(CARD)
    shop.run()
    shop.hour = this
    shop.announce(SSN, CLEAN)
    shop.run()
    return before, this


def run_range(first: str, last: str, home: Path, **options: Any) -> dg.ExecuteInProcessResult:
    tags = {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        job = compliance_pipeline().resolve_job_def("flag_recordings")
        return job.execute_in_process(instance=instance, tags=tags, **options)


def test_one_run_for_a_range_materialises_each_hour_with_its_own_figures_and_repeats_nothing(
    shop: Workshop, tmp_path: Path
) -> None:
    before, this = two_hours(shop)
    was = shop.end_state()
    result = run_range(before, this, tmp_path / "dagster")
    assert result.success
    rows = {}
    for event in result.get_asset_materialization_events():
        assert event.asset_key
        metadata = event.step_materialization_data.materialization.metadata
        rows[event.asset_key.to_user_string(), event.partition] = metadata["dagster/partition_row_count"].value
    assert rows.keys() == {(asset, hour) for asset in EXPECTED for hour in (before, this)}
    assert (rows["verdicts", before], rows["verdicts", this]) == (1, 2)
    assert (rows["recordings", before], rows["recordings", this]) == (1, 2)
    checks = {(check.check_name, check.partition): check.passed for check in result.get_asset_check_evaluations()}
    late = ("p95_is_within_the_objective", before)
    assert checks == {(q.__name__, hour): (q.__name__, hour) != late for q in QUESTIONS for hour in (before, this)}
    assert shop.end_state() == was


def test_what_another_run_looks_at_again_is_left_out_and_done_when_that_has_ended(shop: Workshop) -> None:
    shop.announce(CARD, SSN)
    shop.run()
    was = shop.end_state()
    with shop.warehouse.write() as connection:
        connection.execute("DELETE FROM remediations")
    first, second = shop.batch(whole_partition=True), shop.batch(whole_partition=True)
    assert len(steps.batch_items(shop.pipeline, first)) == 2
    for step in (steps.screen_batch, remediate_batch):
        with pytest.raises(steps.HeldElsewhere, match="2 recordings of"):
            step(shop.pipeline, second)
    remediate_batch(shop.pipeline, first)
    assert len(steps.batch_items(shop.pipeline, second)) == 2
    assert shop.end_state() == was, "looked up, not made again"


def test_what_is_open_in_a_range_is_left_to_the_sensors_runs(shop: Workshop) -> None:
    shop.announce(CARD)
    batch = replace(shop.batch(whole_partition=True), leaves_open=True)
    shop.run(batch)
    assert shop.states() == {CARD.recording_id: State.NEW}
    shop.run()
    assert shop.states() == {CARD.recording_id: State.DONE}


def test_a_look_of_a_run_that_died_is_another_runs_after_its_lease(shop: Workshop) -> None:
    shop.announce(CARD)
    shop.run()
    steps.batch_items(shop.pipeline, shop.batch(whole_partition=True))
    heir = shop.batch(whole_partition=True)
    with pytest.raises(steps.HeldElsewhere):
        steps.batch_items(shop.pipeline, heir)
    shop.clock.wait(shop.pipeline.lease.total_seconds())
    assert len(steps.batch_items(shop.pipeline, heir)) == 1


def test_verdicts_alone_are_judged_from_what_was_found_before_and_touch_neither_media_nor_platform(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, this = two_hours(shop)
    was = shop.end_state()
    requests = shop.state.observed()["counts"]
    monkeypatch.setenv("COMPLIANCE_POLICY", str(changed_pack(tmp_path)))
    result = run_range(before, this, tmp_path / "dagster", asset_selection=[dg.AssetKey("verdicts")])
    assert result.success
    events = result.get_asset_materialization_events()
    assert {event.partition for event in events} == {before, this}
    of_hour = {event.partition: event.step_materialization_data.materialization.metadata for event in events}
    judged = {hour: metadata["judged from stored findings"].value for hour, metadata in of_hour.items()}
    assert judged == {before: 1, this: 2}, "each hour has its own figures"
    now = shop.end_state()
    assert len(now["verdicts"]) == 2 * len(was["verdicts"])
    assert (now["platform"], now["actions"], now["inbox"]) == (was["platform"], was["actions"], was["inbox"])
    assert shop.state.observed()["counts"] == requests
    row = ledger_table.c
    with shop.inbox.engine.connect() as connection:
        keys = connection.scalars(sa.select(row.key).where(row.kind == "verdict", row.key.contains("@99.0.0"))).all()
    entered = {key.split("/")[1] for key in keys}
    assert entered == {one.recording_id for one in (CARD, SSN, CLEAN)}


def changed_pack(folder: Path) -> Path:
    """The packaged pack under another version: another policy, by which the same is found."""
    path = folder / "changed.yaml"
    pack = load_policy(None)
    path.write_text(pack.model_copy(update={"version": "99.0.0"}).model_dump_json(exclude_unset=True))
    return path


@pytest.mark.parametrize(("tags", "niceness"), [({}, NICENESS), ({TRIGGER_TAG: TRIGGERED_BY_INBOX}, 0)])
def test_a_process_of_a_run_that_is_not_live_gives_way(tags: dict[str, str], niceness: int) -> None:
    code = (
        "import os, sys, json, dagster as dg\n"
        "from compliance_pipeline.orchestration.resources import give_way\n"
        "os.setpriority(os.PRIO_PROCESS, 0, 0)\n"
        "run = dg.DagsterRun('flag_recordings', tags={'.dagster/grpc_info': '{}', **json.loads(sys.argv[1])})\n"
        "give_way(run); give_way(run); print(os.nice(0))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(tags)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == niceness


def test_a_backfills_run_that_waits_does_not_hide_new_work_of_its_hour_from_the_sensor(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        job = compliance_pipeline().resolve_job_def("flag_recordings")
        hour, waiting = {"dagster/partition": "2026-11-20-11:00"}, dg.DagsterRunStatus.NOT_STARTED
        instance.create_run_for_job(job, tags=hour, status=waiting)
        assert partitions_in_flight(instance) == set()
        instance.create_run_for_job(job, tags=hour | {TRIGGER_TAG: TRIGGERED_BY_INBOX}, status=waiting)
        assert partitions_in_flight(instance) == {"2026-11-20-11:00"}


HOURS = ("2026-11-20-11:00", "2026-11-20-12:00", "2026-11-20-13:00")


def backfill_of(
    instance: dg.DagsterInstance,
    backfill_id: str,
    wanted: Wanted,
    status: BulkActionStatus = BulkActionStatus.REQUESTED,
) -> None:
    instance.add_backfill(
        PartitionBackfill(
            backfill_id=backfill_id,
            status=status,
            from_failure=False,
            tags=wanted.tags,
            backfill_timestamp=0.0,
            partition_names=wanted.hours[::-1],
        )
    )


def test_a_backfill_to_now_is_found_again_in_the_next_hour_and_is_of_its_own_hours(tmp_path: Path) -> None:
    was, now = Wanted(HOURS[:2], until_now=True), Wanted(HOURS, until_now=True)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        backfill_of(instance, "aaaa", was)
        assert under_way(instance, now) == ("aaaa", was)
        for other in (
            Wanted(HOURS),
            Wanted(HOURS[1:], until_now=True),
            Wanted(HOURS, "verdicts", until_now=True),
            Wanted(HOURS, single_run=True, until_now=True),
        ):
            assert under_way(instance, other) is None


@pytest.mark.parametrize(
    "status", [BulkActionStatus.CANCELING, BulkActionStatus.FAILING, BulkActionStatus.COMPLETED_SUCCESS]
)
def test_a_backfill_that_is_being_stopped_or_has_ended_is_not_attached_to(
    tmp_path: Path, status: BulkActionStatus
) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        backfill_of(instance, "aaaa", Wanted(HOURS), status)
        assert under_way(instance, Wanted(HOURS)) is None


def test_a_backfills_state_is_that_of_the_newest_run_of_each_hour_alone_or_in_a_range(tmp_path: Path) -> None:
    failed, done, started = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.STARTED
    ranged = {ASSET_PARTITION_RANGE_START_TAG: HOURS[0], ASSET_PARTITION_RANGE_END_TAG: HOURS[1]}
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        backfill_of(instance, "aaaa", Wanted(HOURS))
        job = compliance_pipeline().resolve_job_def("flag_recordings")
        for tags, status in (
            (ranged, failed),
            ({PARTITION_NAME_TAG: HOURS[1]}, done),
            ({PARTITION_NAME_TAG: HOURS[2]}, started),
            ({PARTITION_NAME_TAG: "2026-11-20-14:00"}, done),
        ):
            instance.create_run_for_job(job, tags=tags | {BACKFILL_ID_TAG: "aaaa"}, status=status)
        assert state(instance, "aaaa", HOURS) == BackfillState(
            "aaaa", done=frozenset({HOURS[1]}), failed=frozenset({HOURS[0]}), running=1, ended=False
        )


@pytest.mark.parametrize("single_run", [False, True])
def test_no_run_of_a_backfill_is_cut_off_after_the_time_of_a_live_one(single_run: bool) -> None:
    assert int(Wanted(HOURS, single_run=single_run).tags[MAX_RUNTIME_SECONDS_TAG]) > 24 * 3600
