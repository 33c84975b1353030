"""kill -9 in the middle of a backfill of hours that were remediated before: the next one ends it, nothing twice."""

import os
import signal
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import dagster as dg

from compliance_pipeline.intake.hours import partition_hour
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline.settings import Settings
from compliance_pipeline.stack import ROOT, environment, free_port
from compliance_pipeline_tests.end_to_end.demo_run import instance_of
from compliance_pipeline_tests.workshop import CLIENT, recording, workshop

CHAIN = "recordings,media,verdicts,remediations,latency_by_hour,violations_by_hour"
LONGEST_S = 180.0


def started(instance: dg.DagsterInstance, runs: int, step: str) -> bool:
    """Whether the step of the run that came after `runs` others has begun."""
    found = instance.get_runs()
    if len(found) <= runs:
        return False
    return any(one.step_key == step and one.start_time for one in instance.get_run_step_stats(found[0].run_id))


def test_a_backfill_that_is_killed_is_ended_by_the_next_and_does_nothing_twice(tmp_path: Path) -> None:
    """fault: kill -9 of a backfill's runs, twice, under a newer policy; invariant: the next one ends it, and no tag,
    work item or callback is there twice."""
    with workshop(tmp_path / "home") as shop:
        this = shop.hour
        hours = [partition_hour(shop.at - timedelta(hours=ago)) for ago in (2, 1)]
        for hour, kinds in zip(hours, ((Kind.CHAT_CARD, Kind.VOICE_TONES), (Kind.CHAT_SSN,)), strict=True):
            shop.hour = hour
            shop.announce(*(recording(kind) for kind in kinds))
            shop.run()
        was = shop.end_state()
        # What is left of one hour is as if its run had died after it asked, before it could note the answers.
        with shop.warehouse.write() as connection:
            connection.execute(
                "DELETE FROM remediations WHERE recording_id = $1", [recording(Kind.CHAT_SSN).recording_id]
            )
        policy = tmp_path / "newer.yaml"
        policy.write_text(
            load_policy(None).model_copy(update={"version": "99.0.0"}).model_dump_json(exclude_unset=True)
        )
        variables = environment(Settings(home=tmp_path / "home"), code_port=free_port(), web_port=free_port())
        variables |= {
            "COMPLIANCE_PLATFORM_URL": shop.state.base_url,
            "COMPLIANCE_CLIENT_ID": CLIENT[0],
            "COMPLIANCE_CLIENT_SECRET": CLIENT[1],
            "COMPLIANCE_POLICY": str(policy),
            "COMPLIANCE_CLAIM_SECONDS": "1",
        }
        command = (
            "exec dagster asset materialize -m compliance_pipeline.definitions_in_one_run "
            f"--select {CHAIN} --partition-range {'...'.join(hours)}"
        )

        def begin() -> "subprocess.Popen[bytes]":
            return subprocess.Popen(
                ["/bin/sh", "-c", command],
                env=variables,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

        with instance_of(tmp_path / "home") as instance:
            for runs, step in enumerate(("screening", "remediations")):
                process = begin()
                deadline = time.monotonic() + LONGEST_S
                while not started(instance, runs, step):
                    assert process.poll() is None, "it ended before it could be killed"
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            assert begin().wait(LONGEST_S) == 0
            assert instance.get_materialized_partitions(dg.AssetKey("remediations")) == set(hours)
        now = shop.end_state()
        assert (now["platform"], now["actions"], now["inbox"]) == (was["platform"], was["actions"], was["inbox"])
        assert sorted(now["verdicts"]) == sorted(was["verdicts"] * 2), "each was judged once by the newer policy"
        assert len(shop.rows("latest_verdicts")) == 3
        shop.hour = this
