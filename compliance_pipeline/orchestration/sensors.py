"""The sensor: watches the inbox and asks for runs. It takes nothing itself: what a run claims, the run gives back."""

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from threading import Lock
from time import monotonic, sleep
from typing import TYPE_CHECKING

import dagster as dg

from compliance_pipeline.clock import utc_now
from compliance_pipeline.objective import PUBLISHED_EVERY
from compliance_pipeline.screening.engine import ENGINE_BREAKER
from compliance_pipeline.steps import TRIGGER_TAG, TRIGGERED_BY_INBOX

if TYPE_CHECKING:
    from compliance_pipeline.intake.inbox import Inbox, PartitionWork

LOOK_EVERY_S = 0.05
HOLD_S = 25.0
"""Dagster ends a tick after 60 s. Holding it hides that the daemon starts ticks 5 s apart."""
OFFER_AGAIN = timedelta(minutes=2)
LIVE_PRIORITY = "10"
LIVE_HOUR_TAG = "compliance/live_hour"
"""Of the sensor's runs alone: dagster.yaml limits how many of an hour run at once, and a backfill holds up none."""
JUST_STARTED_S = 3.0
RECORDING_SENSORS = 6
"""The daemon starts ticks 5 s apart: while one asks for its run, the next watches already."""
ASKED_S = 5.0
"""Within this, Dagster makes the run that a tick has asked for."""
EVIDENCE_LOOK_BACK = timedelta(days=2)
RETRY_FROM_THE_CLAIM = {"dagster/retry_strategy": "ALL_STEPS"}
"""A retry claims anew, so that each death of a run is counted against the recordings that it had."""

_WAITING = (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING)
UNDER_WAY = [*_WAITING, dg.DagsterRunStatus.STARTED]

PUBLISH_WAIT_S = 20.0
"""For the warehouse, while a run writes to it: a tick must end within a minute."""

flag_recordings = dg.define_asset_job(
    "flag_recordings",
    selection=dg.AssetSelection.all()
    - dg.AssetSelection.groups("assurance")
    - dg.AssetSelection.assets("evidence", "snapshot")
    - dg.AssetSelection.checks_for_assets("snapshot", "canaries"),
    executor_def=dg.in_process_executor,
    description="One micro-batch of an hour: from newly available recordings to flags, remediation and figures.",
)


keep_evidence = dg.define_asset_job(
    "keep_evidence",
    selection=dg.AssetSelection.assets("evidence"),
    executor_def=dg.in_process_executor,
    description="Masked clips of what was found in an hour. After the flags, so that no recording waits for it.",
)


reconcile = dg.define_asset_job(
    "reconcile",
    selection=dg.AssetSelection.assets("reconciliation") | dg.AssetSelection.checks_for_assets("snapshot", "canaries"),
    executor_def=dg.in_process_executor,
    description="Asks the platform what became available in the last hours, and takes in what no event announced.",
)


check_redaction = dg.define_asset_job(
    "check_redaction",
    selection=dg.AssetSelection.assets("redaction"),
    executor_def=dg.in_process_executor,
    description="Reads the sample interactions with planted numbers as the platform gives them out.",
)


seal_ledger = dg.define_asset_job(
    "seal_ledger",
    selection=dg.AssetSelection.assets("ledger"),
    executor_def=dg.in_process_executor,
    description="Verifies the audit trail and signs its head.",
)


apply_retention = dg.define_asset_job(
    "apply_retention",
    selection=dg.AssetSelection.assets("retention"),
    executor_def=dg.in_process_executor,
    description="Deletes from the vault what may no longer be kept, unless a legal hold has it.",
)


def run_key(work: "PartitionWork", now: datetime) -> str:
    """The same for the same work: a tick that is evaluated twice asks for one run.

    Dagster remembers a run key for ever, also when the run failed before it claimed anything: work that nobody took
    for OFFER_AGAIN is offered under a new key.
    """
    waited = now - max(work.latest_change, work.oldest_since)
    again = max(0, waited // OFFER_AGAIN)
    change = round(work.latest_change.timestamp() * 1_000_000)
    return f"{work.partition_hour}@{work.highest_seq}+{work.attempts}.{change}" + (f"~{again}" if again else "")


def wanted_runs(
    pending: "Sequence[PartitionWork]", in_flight: Collection[str], now: datetime
) -> "list[tuple[str, PartitionWork]]":
    """(run key, work) for each partition with work that no waiting run will take, newest hour first."""
    return [(run_key(work, now), work) for work in pending if work.partition_hour not in in_flight]


def partitions_in_flight(
    instance: dg.DagsterInstance, has_claimed: Callable[[str], bool] = lambda _owner: False
) -> set[str]:
    """Partitions with a live run that has yet to claim: it will take what arrives until then. A backfill's run may wait
    for hours, so nothing waits for it."""
    live = {TRIGGER_TAG: TRIGGERED_BY_INBOX}
    records = instance.get_run_records(dg.RunsFilter(job_name=flag_recordings.name, statuses=UNDER_WAY, tags=live))
    just_now = utc_now().timestamp() - JUST_STARTED_S
    return {
        record.dagster_run.tags["dagster/partition"]
        for record in records
        if "dagster/partition" in record.dagster_run.tags
        and (
            record.dagster_run.status in _WAITING
            or ((record.start_time or 0) > just_now and not has_claimed(owner_of(record.dagster_run)))
        )
    }


def owner_of(run: dg.DagsterRun) -> str:
    """Whose claims a run's are: those of the run that it is a retry of."""
    return run.root_run_id or run.run_id


class Turns:
    """The sensors of this process watch in turn. What one has asked for, the next does not ask for again: a run key
    is known to one sensor only, and Dagster's run is there a moment later."""

    def __init__(self) -> None:
        self._watches = Lock()
        self._asked: dict[str, float] = {}

    def wait_for_work(
        self, inbox: "Inbox", in_flight: Callable[[], Collection[str]], hold_s: float
    ) -> "list[tuple[str, PartitionWork]]":
        """Wait for the turn, then look every 50 ms until a run is wanted or `hold_s` have passed."""
        deadline = monotonic() + hold_s
        if not self._watches.acquire(timeout=max(0.0, hold_s)):
            return []
        try:
            while True:
                now = utc_now()
                pending = inbox.pending(now)
                if pending and (wanted := wanted_runs(pending, self._taken_care_of(in_flight()), now)):
                    self._asked |= {work.partition_hour: monotonic() for _, work in wanted}
                    return wanted
                if monotonic() >= deadline:
                    return []
                # In-flight runs are Dagster's to tell and cost a query: asked only while something is pending.
                sleep(LOOK_EVERY_S * 5 if pending else LOOK_EVERY_S)
        finally:
            self._watches.release()

    def _taken_care_of(self, in_flight: Collection[str]) -> set[str]:
        since = monotonic() - ASKED_S
        self._asked = {hour: at for hour, at in self._asked.items() if at > since and hour not in in_flight}
        return {*in_flight, *self._asked}


_turns = Turns()


def _recording_sensor(name: str) -> dg.SensorDefinition:
    @dg.sensor(
        name=name,
        job=flag_recordings,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        """Watches the inbox for recordings to flag and asks for one run per hour that has some, newest first.

        Holds while the circuit breaker of the engine or of the platform is open. There are several, which take turns:
        a tick that found work ends, and Dagster starts the next one up to 5 s later.
        """
        from compliance_pipeline.intake.inbox import Inbox
        from compliance_pipeline.settings import Settings

        inbox = Inbox(Settings().inbox_database_url)
        try:
            inbox.create()
            return look(inbox, context.instance, turns=_turns)
        finally:
            inbox.close()

    return watch


recording_sensors = [
    _recording_sensor("recording_sensor" + (f"_{number}" if number > 1 else ""))
    for number in range(1, RECORDING_SENSORS + 1)
]
recording_sensor = recording_sensors[0]


def holds_runs(breaker: str) -> bool:
    """Whether no recording can be screened while it is open. A media host has some recordings' media only; what the
    platform has of its own under `host/part` is for what the pipeline can do without."""
    return breaker == ENGINE_BREAKER or (breaker.startswith("platform:") and "/" not in breaker)


def look(
    inbox: "Inbox", instance: dg.DagsterInstance, hold_s: float = HOLD_S, turns: Turns | None = None
) -> dg.SensorResult | dg.SkipReason:
    """One tick: the runs that are wanted, or why none is, after at most `hold_s`. Holds while a breaker is open that
    `holds_runs`; goes on when it is due for its probes, for only runs make them."""
    from compliance_pipeline.breaker import states

    def held() -> dg.SkipReason | None:
        now = utc_now()
        for one in states(inbox.engine, now):
            if one.held_until and holds_runs(one.name):
                return dg.SkipReason(f"{one.name} has failed: its circuit breaker holds until {one.held_until:%T} UTC.")
        return None

    def in_flight() -> set[str]:
        return partitions_in_flight(instance, has_claimed=lambda owner: bool(inbox.claimed(owner)))

    wanted = [] if held() else (turns or Turns()).wait_for_work(inbox, in_flight, hold_s)
    if skip := held():
        return skip
    if not wanted:
        return dg.SkipReason("No recording is due.")
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=key,
                partition_key=work.partition_hour,
                tags={
                    "dagster/priority": LIVE_PRIORITY,
                    TRIGGER_TAG: TRIGGERED_BY_INBOX,
                    LIVE_HOUR_TAG: work.partition_hour,
                    **RETRY_FROM_THE_CLAIM,
                },
            )
            for key, work in wanted
        ],
    )


@dg.sensor(
    job=keep_evidence,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def evidence_sensor(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Asks for masked clips where something was found and has none yet; one run at a time."""
    from compliance_pipeline.evidence import hours_that_lack_evidence
    from compliance_pipeline.promotion import live_policy_of
    from compliance_pipeline.screening.engine import from_settings
    from compliance_pipeline.settings import Settings
    from compliance_pipeline.warehouse.warehouse import warehouse_of

    settings = Settings()
    if settings.engine_url or not warehouse_of(settings).exists():
        return dg.SkipReason("The embedded engine has found nothing yet.")
    under_way = dg.RunsFilter(job_name=keep_evidence.name, statuses=UNDER_WAY)
    if context.instance.get_runs_count(under_way):
        return dg.SkipReason("A run makes clips already.")
    engine, now = from_settings(settings, live_policy_of(settings)), utc_now()
    warehouse = warehouse_of(settings)
    if not hours_that_lack_evidence(warehouse, engine.version, now - EVIDENCE_LOOK_BACK, now):
        return dg.SkipReason("Every finding has its clip, or a reason why there is none.")
    return dg.RunRequest()


@dg.sensor(minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING)
def alert_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Tells people what needs them: to the channel `alerts`, and to the log. Starts no run."""
    from compliance_pipeline.alerts import send_due
    from compliance_pipeline.database import connect
    from compliance_pipeline.orchestration.alerting import others
    from compliance_pipeline.settings import Settings

    settings, now = Settings(), utc_now()
    operational = connect(settings.inbox_database_url)
    try:
        report = send_due(operational, settings.notify_urls, now, others(context.instance, settings, now))
    finally:
        operational.dispose()
    return dg.SkipReason(report)


@dg.sensor(minimum_interval_seconds=int(PUBLISHED_EVERY.total_seconds()), default_status=dg.DefaultSensorStatus.RUNNING)
def snapshot_sensor(_context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Publishes the hours that changed, for reports and pages. Starts no run: that would cost more than the work."""
    from filelock import Timeout

    from compliance_pipeline.figures.snapshots import folder_of, publish
    from compliance_pipeline.intake.inbox import Inbox
    from compliance_pipeline.objective import Objective
    from compliance_pipeline.settings import Settings
    from compliance_pipeline.warehouse.warehouse import WarehouseBusy, warehouse_of

    settings = Settings()
    warehouse = warehouse_of(settings, lock_timeout_s=PUBLISH_WAIT_S)
    inbox = Inbox(settings.inbox_database_url)
    try:
        inbox.create()
        done = publish(warehouse, inbox, folder_of(settings.home), Objective.of_settings(settings), utc_now())
    except WarehouseBusy as busy:
        return dg.SkipReason(str(busy))
    except Timeout:
        return dg.SkipReason("Another publication is under way.")
    finally:
        inbox.close()
    if not done.hours:
        return dg.SkipReason("No hour has changed.")
    metadata: dict[str, int | str] = {
        "snapshot": done.manifest.number,
        "hours written": len(done.hours),
        "days in all": len(done.manifest.days) - 1,
        "data to": f"{done.manifest.data_to:%F %T} UTC",
    }
    return dg.SensorResult(asset_events=[dg.AssetMaterialization("snapshot", metadata=metadata)])
