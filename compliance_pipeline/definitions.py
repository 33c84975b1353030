"""All that Dagster loads."""

import dagster as dg

from compliance_pipeline.orchestration import assets, canaries, checks, resources, schedules, sensors, what_if


@dg.definitions
def compliance_pipeline() -> dg.Definitions:
    return dg.Definitions(
        assets=[
            assets.recordings,
            assets.screening,
            assets.remediations,
            assets.evidence,
            assets.reconciliation,
            assets.redaction,
            assets.ledger,
            assets.retention,
            assets.marts,
            assets.snapshot,
            canaries.canaries,
        ],
        asset_checks=[checks.hourly_checks, checks.reconciliation_checks],
        jobs=[
            sensors.flag_recordings,
            sensors.keep_evidence,
            sensors.reconcile,
            sensors.check_redaction,
            sensors.seal_ledger,
            sensors.apply_retention,
            what_if.what_if_job,
        ],
        schedules=[
            schedules.reconcile_schedule,
            schedules.redaction_schedule,
            schedules.ledger_schedule,
            schedules.retention_schedule,
        ],
        sensors=[
            *sensors.recording_sensors,
            sensors.evidence_sensor,
            sensors.alert_sensor,
            sensors.snapshot_sensor,
            canaries.canary_sensor,
        ],
        resources={"pipeline": resources.PipelineResource()},
        executor=dg.in_process_executor,
    )
