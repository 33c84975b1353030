"""Backfills through every door, on real processes: ours, and those of Dagster's commands and of its page."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import dagster as dg
import httpx
import pytest

from compliance_pipeline.intake.hours import partition_hour
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.stack import ROOT, Stack, wait_for_port
from compliance_pipeline_tests.end_to_end.demo_run import instance_of
from compliance_pipeline_tests.workshop import CLIENT, Workshop, recording, workshop

OURS = f"{sys.executable} -c 'import typer; from compliance_pipeline.backfill_cli import backfill; typer.run(backfill)'"
CHAIN = "recordings,media,verdicts,remediations,latency_by_hour,violations_by_hour"
LONGEST_S = 240.0


@dataclass
class History:
    """Two hours that ended before this one; all their recordings are done."""

    shop: Workshop
    stack: Stack
    hours: tuple[str, str]
    was: dict[str, Any]
    instance: dg.DagsterInstance

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", "-c", command],
            env=self.stack.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )

    @property
    def between(self) -> str:
        """The options of our command."""
        first, last = (hour[:10] + "T" + hour[11:] + "Z" for hour in (self.hours[0], partition_hour(self.shop.at)))
        return f"--from {first} --to {last}"

    def runs(self) -> list[dg.DagsterRun]:
        """Those of hours or ranges, newest first; not what is done by the clock."""
        return [run for run in self.instance.get_runs() if "dagster/partition" in run.tags or RANGE in run.tags]

    def settle(self, count: int) -> None:
        """Until there are so many runs, and each has ended."""
        deadline = time.monotonic() + LONGEST_S
        while len(runs := self.runs()) < count or not all(run.is_finished for run in runs):
            assert time.monotonic() < deadline, [(run.status, run.tags) for run in runs]
            time.sleep(0.5)


RANGE = "dagster/asset_partition_range_start"


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    home = tmp_path_factory.mktemp("backfill")
    with workshop(home) as shop:
        this = shop.hour
        hours = tuple(partition_hour(shop.at - timedelta(hours=ago)) for ago in (2, 1))
        for hour, kinds in zip(hours, ((Kind.CHAT_CARD,), (Kind.CHAT_SSN, Kind.CHAT_CLEAN)), strict=True):
            shop.hour = hour
            shop.announce(*(recording(kind) for kind in kinds))
            shop.run()
        shop.hour = this
        variables = {
            "COMPLIANCE_PLATFORM_URL": shop.state.base_url,
            "COMPLIANCE_CLIENT_ID": CLIENT[0],
            "COMPLIANCE_CLIENT_SECRET": CLIENT[1],
            "COMPLIANCE_CANARIES": "false",
        }
        with Stack(home, variables=variables) as stack:
            stack.start("code")
            stack.wait_until_up("code")
            stack.start("daemon", "webserver")
            wait_for_port(int(stack.environment["COMPLIANCE_WEB_PORT"]), LONGEST_S)
            with instance_of(home) as instance:
                yield History(shop, stack, (hours[0], hours[1]), shop.end_state(), instance)


def ended(history: History, before: int) -> list[dg.DagsterRun]:
    """The runs since; each materialised its hours, and nothing was done twice."""
    runs = history.runs()
    new = runs[: len(runs) - before]
    assert {run.status for run in new} == {dg.DagsterRunStatus.SUCCESS}
    assert history.shop.end_state() == history.was
    assert history.instance.get_materialized_partitions(dg.AssetKey("remediations")) == set(history.hours)
    return new


def test_ours_makes_a_run_of_each_hour_and_shows_the_end(history: History) -> None:
    done = history.run(f"{OURS} {history.between}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 hours done, 0 failed, 0 left; 3 of 3 recordings" in done.stdout
    runs = ended(history, 0)
    assert sorted(run.tags["dagster/partition"] for run in runs) == list(history.hours)
    assert {run.tags["dagster/priority"] for run in runs} == {"-1"}


def test_ours_for_a_range_makes_one_run_and_the_same_command_attaches_to_it(history: History) -> None:
    before = len(history.runs())
    first = history.run(f"{OURS} {history.between} --single-run --no-wait")
    assert first.returncode == 0, first.stdout + first.stderr
    again = history.run(f"{OURS} {history.between} --single-run")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "is under way already" in again.stdout
    assert "2 hours done" in again.stdout
    [run] = ended(history, before)
    assert run.tags[RANGE] == history.hours[0]


def test_dagsters_job_backfill_does_the_same(history: History) -> None:
    before = len(history.runs())
    workspace = history.stack.environment["COMPLIANCE_WORKSPACE"]
    done = history.run(
        f"dagster job backfill -w {workspace} -j flag_recordings --partitions {','.join(history.hours)} --noprompt"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    history.settle(before + 2)
    assert len(ended(history, before)) == 2


def test_dagsters_materialize_of_a_range_does_the_same(history: History) -> None:
    before = len(history.runs())
    done = history.run(
        "dagster asset materialize -m compliance_pipeline.definitions_in_one_run "
        f"--select {CHAIN} --partition-range {'...'.join(history.hours)}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(ended(history, before)) == 1


def test_what_dagsters_page_asks_for_does_the_same(history: History) -> None:
    before = len(history.runs())
    url = f"http://127.0.0.1:{history.stack.environment['COMPLIANCE_WEB_PORT']}/graphql"
    query = """mutation ($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {
        __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
    assets = [{"path": [name]} for name in CHAIN.split(",")]
    parameters = {"assetSelection": assets, "partitionNames": list(history.hours)}
    answer = httpx.post(url, json={"query": query, "variables": {"p": parameters}}, timeout=60).json()
    assert answer["data"]["launchPartitionBackfill"]["__typename"] == "LaunchBackfillSuccess", json.dumps(answer)
    history.settle(before + 2)
    assert len(ended(history, before)) == 2
