"""What Dagster and the published figures know that people should be told. What is done with an alert is `alerts`'s."""

import logging
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from compliance_pipeline.alerts import Alert
    from compliance_pipeline.settings import Settings

WILL_RETRY = "dagster/will_retry"
MOST = 200
SETTLED_S = 5.0

_log = logging.getLogger(__name__)


def others(instance: dg.DagsterInstance, settings: "Settings", now: datetime) -> "list[Alert]":
    """What the operational database does not know of. One that can't be asked keeps nobody from being told the rest."""
    asked = {
        "runs": partial(failed_runs, instance, settings.dagster_url, now),
        "figures": partial(of_figures, settings, now),
    }
    found: list[Alert] = []
    for name, ask in asked.items():
        try:
            found += ask()
        except Exception as error:
            # Its text may quote what was read.
            _log.error("alerts of %s can't be had: %s", name, type(error).__qualname__)
    return found


def failed_runs(instance: dg.DagsterInstance, dagster_url: str, now: datetime) -> "list[Alert]":
    """One for the runs of a job that failed within half an hour and are not tried again, naming the last of them."""
    from compliance_pipeline.alerts import LOOK_BACK, Alert, half_hour

    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=now - LOOK_BACK)
    found: dict[str, list[str]] = {}
    for record in instance.get_run_records(failed, limit=MOST):
        run = record.dagster_run
        # Dagster says that it will be tried again a moment after it says that it failed.
        if run.tags.get(WILL_RETRY) != "true" and record.end_time and record.end_time < now.timestamp() - SETTLED_S:
            at = half_hour(datetime.fromtimestamp(record.end_time, UTC))
            found.setdefault(f"run:{run.job_name}@{at.isoformat()}", []).append(run.run_id)
    return [
        Alert(
            key,
            f"{key.removeprefix('run:').partition('@')[0]} failed",
            f"{len(run_ids)} failed within half an hour and will not be tried again by Dagster. "
            f"What it had is given back, and the next run takes it up. The newest: {dagster_url}/runs/{run_ids[0]}",
        )
        for key, run_ids in found.items()
    ]


def of_figures(settings: "Settings", now: datetime) -> "list[Alert]":
    """By the snapshot that was published last; none before the first."""
    from compliance_pipeline.alerts import by_figures
    from compliance_pipeline.figures.snapshots import NoSnapshot, Snapshot, folder_of
    from compliance_pipeline.objective import Objective

    try:
        snapshot = Snapshot.current(folder_of(settings.home))
    except NoSnapshot:
        return []
    try:
        objective = snapshot.manifest.objective or Objective.of_settings(settings)
        return by_figures(snapshot, objective, settings.alert_found_by_sweep, now)
    finally:
        snapshot.close()
