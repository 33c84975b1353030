"""What is done by the clock, whatever the inbox holds."""

import dagster as dg

from compliance_pipeline.orchestration.sensors import (
    UNDER_WAY,
    apply_retention,
    check_redaction,
    reconcile,
    seal_ledger,
)

NO_RETRY = {"dagster/max_retries": "0"}
"""The next tick is the retry."""


@dg.schedule(
    job=reconcile,
    cron_schedule="*/5 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every five minutes the sweep for what no event announced: the last hour, and once an hour all of "
    "COMPLIANCE_SWEEP_HOURS. One sweep at a time.",
)
def reconcile_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    if context.instance.get_runs_count(dg.RunsFilter(job_name=reconcile.name, statuses=UNDER_WAY)):
        return dg.SkipReason("The sweep before this one is still under way.")
    config = {} if context.scheduled_execution_time.minute < 5 else {"hours": 1}
    return dg.RunRequest(
        run_config={"ops": {"reconciliation": {"config": config}}},
        tags=NO_RETRY,
    )


redaction_schedule = dg.ScheduleDefinition(
    name="redaction_schedule",
    job=check_redaction,
    cron_schedule="0 4 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    tags=NO_RETRY,
    description="Each night: whether the platform's redaction hides what was planted in sample interactions.",
)


@dg.schedule(
    job=seal_ledger,
    cron_schedule="7 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every hour what the audit trail got since the last seal is verified and sealed; each night all of it.",
)
def ledger_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    whole = context.scheduled_execution_time.hour == 3
    return dg.RunRequest(run_config={"ops": {"ledger": {"config": {"whole": whole}}}}, tags=NO_RETRY)


retention_schedule = dg.ScheduleDefinition(
    name="retention_schedule",
    job=apply_retention,
    cron_schedule="30 2 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    tags=NO_RETRY,
    description="Each night: what the vault may no longer keep is deleted.",
)
