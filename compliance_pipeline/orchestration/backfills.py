"""Backfills as Dagster knows them: made like those of its page and of `dagster job backfill`, then watched."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import dagster as dg
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus, PartitionBackfill
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    BACKFILL_ID_TAG,
    MAX_RUNTIME_SECONDS_TAG,
    PARTITION_NAME_TAG,
    PRIORITY_TAG,
)
from dagster._core.utils import make_new_backfill_id

from compliance_pipeline.intake.hours import partition_hour
from compliance_pipeline.warehouse.warehouse import MARTS

if TYPE_CHECKING:
    from dagster._core.workspace.context import WorkspaceProcessContext

JOB = "flag_recordings"
LOCATION = "compliance_pipeline"
WHAT_TAG = "compliance/backfill"
"""Says what a backfill is of, so that the same one is not made twice."""
PRIORITY = "-1"
"""Below live runs and below what is done by the clock."""
LONGEST_S = 7 * 24 * 3600
UNDER_WAY = [BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING]

Only = Literal["verdicts"]


class BackfillError(Exception):
    """A backfill can't be made; says why and what to do."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The hours (keys of partitions, oldest first) of a backfill, and what is done of each: all, or verdicts from what
    was found before, with the figures that follow from them.

    until_now: the last hour is the last that has ended, so it is another one in the next hour."""

    hours: tuple[str, ...]
    only: Only | None = None
    single_run: bool = False
    until_now: bool = False

    @property
    def what(self) -> str:
        runs = "one run" if self.single_run else "a run an hour"
        last = "now" if self.until_now else self.hours[-1]
        return f"{self.hours[0]}...{last} {self.only or 'all'} {runs}"

    @property
    def selection(self) -> list[dg.AssetKey] | None:
        return [dg.AssetKey(name) for name in (self.only, *MARTS)] if self.only else None

    @property
    def tags(self) -> dict[str, str]:
        return {WHAT_TAG: self.what, PRIORITY_TAG: PRIORITY, MAX_RUNTIME_SECONDS_TAG: str(LONGEST_S)}


@dataclass(frozen=True, slots=True)
class State:
    """How far a backfill is: keys of partitions whose newest run succeeded or failed, and how many are under way."""

    backfill_id: str
    done: frozenset[str]
    failed: frozenset[str]
    running: int
    ended: bool


def hours_between(start: datetime, end: datetime) -> tuple[str, ...]:
    """Keys of the hours that lie in [start, end), oldest first; an hour that has begun counts."""
    first = start.replace(minute=0, second=0, microsecond=0)
    count = -((first - end) // timedelta(hours=1))
    return tuple(partition_hour(first + timedelta(hours=number)) for number in range(count))


@contextmanager
def workspace(instance: dg.DagsterInstance, path: Path) -> "Iterator[WorkspaceProcessContext]":
    """The code that Dagster's processes have loaded. Raises BackfillError if it does not answer."""
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget

    with WorkspaceProcessContext(instance, WorkspaceFileTarget([str(path)])) as context:
        request = context.create_request_context()
        if not request.has_code_location(LOCATION):
            raise BackfillError(f"Dagster's code server does not answer (of {path}): start it with `compliance up`")
        yield context


def under_way(instance: dg.DagsterInstance, wanted: Wanted) -> tuple[str, Wanted] | None:
    """The id and the hours of a backfill of the same, if one is under way and not about to be stopped."""
    filters = BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED], tags={WHAT_TAG: wanted.what})
    for found in instance.get_backfills(filters=filters, limit=1):
        return found.backfill_id, replace(wanted, hours=tuple(sorted(found.partition_names or wanted.hours)))
    return None


def request(context: "WorkspaceProcessContext", wanted: Wanted, now: datetime) -> str:
    """Make the backfill, and return its id. The daemon starts its runs, and notes when they have ended."""
    from dagster._core.execution.job_backfill import submit_backfill_runs

    instance = context.instance
    location = context.create_request_context().get_code_location(LOCATION)
    [repository] = location.get_repositories().values()
    partitions = repository.get_partition_set(f"{JOB}_partition_set")
    backfill = PartitionBackfill(
        backfill_id=make_new_backfill_id(),
        partition_set_origin=partitions.get_remote_origin(),
        status=BulkActionStatus.REQUESTED,
        # Newest first, as the runs are asked for.
        partition_names=wanted.hours[::-1],
        from_failure=False,
        reexecution_steps=None,
        asset_selection=wanted.selection,
        tags=wanted.tags,
        backfill_timestamp=now.timestamp(),
        title=f"{wanted.only or 'All'} of {wanted.hours[0]} to {wanted.hours[-1]}",
    )
    if wanted.single_run:
        # Before the backfill is known: the daemon starts a run of each hour that no run of the backfill has.
        range_ = dg.PartitionKeyRange(wanted.hours[0], wanted.hours[-1])
        list(submit_backfill_runs(instance, context.create_request_context, backfill, [range_]))
    instance.add_backfill(backfill)
    return backfill.backfill_id


def state(instance: dg.DagsterInstance, backfill_id: str, hours: Sequence[str]) -> State:
    """Raises BackfillError where Dagster has no such backfill."""
    backfill = instance.get_backfill(backfill_id)
    if backfill is None:
        raise BackfillError(f"Dagster knows no backfill {backfill_id} any more")
    status: dict[str, dg.DagsterRunStatus] = {}
    wanted = set(hours)
    # Newest first: a retry stands for what it retries.
    for run in instance.get_runs(dg.RunsFilter(tags={BACKFILL_ID_TAG: backfill_id})):
        if first := run.tags.get(ASSET_PARTITION_RANGE_START_TAG):
            last = run.tags.get(ASSET_PARTITION_RANGE_END_TAG, first)
            of_run = [hour for hour in hours if first <= hour <= last]
        else:
            hour = run.tags.get(PARTITION_NAME_TAG, "")
            of_run = [hour] if hour in wanted else []
        for hour in of_run:
            status.setdefault(hour, run.status)
    counts = Counter(status.values())
    bad = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
    return State(
        backfill_id,
        done=frozenset(hour for hour, is_ in status.items() if is_ is dg.DagsterRunStatus.SUCCESS),
        failed=frozenset(hour for hour, is_ in status.items() if is_ in bad),
        running=counts[dg.DagsterRunStatus.STARTED],
        ended=backfill.status not in UNDER_WAY,
    )
