"""The asset graph: recordings, then media and verdicts in one pass, then remediations and the hourly marts.

Each asset calls one step and reports what it did; what the step does belongs in `steps`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from compliance_pipeline import steps
from compliance_pipeline.clock import utc_now
from compliance_pipeline.orchestration.partitions import hourly
from compliance_pipeline.orchestration.resources import PipelineResource
from compliance_pipeline.remediate import remediate_batch
from compliance_pipeline.warehouse.warehouse import MARTS

if TYPE_CHECKING:
    from compliance_pipeline.warehouse.tables import SweepRow

OWNERS = ["team:compliance-engineering"]
CUSTODY_BATCH = 1_000
"""Recordings whose entries for the ledger are held in memory at a time."""
BACKFILL_TAG = "dagster/backfill"
MOST_WAITS = 5


def batches_of(context: dg.AssetExecutionContext) -> list[steps.Batch]:
    """One for each hour of the run, newest first; of several hours the log says which one is under way."""
    run = context.run
    launch_time = context.instance.get_run_stats(run.run_id).launch_time
    launched_at = datetime.fromtimestamp(launch_time, UTC) if launch_time else utc_now()
    keys = sorted(context.partition_keys, reverse=True)
    return [
        steps.Batch(
            partition_key=key,
            owner=run.root_run_id or run.run_id,
            run_id=run.run_id,
            whole_partition=not steps.is_triggered_by_inbox(run.tags),
            launched_at=launched_at,
            leaves_open=len(keys) > 1 or BACKFILL_TAG in run.tags,
        )
        for key in keys
    ]


def _in_turn(context: dg.AssetExecutionContext) -> Iterator[steps.Batch]:
    batches = batches_of(context)
    for number, batch in enumerate(batches, 1):
        if len(batches) > 1:
            context.log.info("hour %s, %d of %d", batch.partition_key, number, len(batches))
        yield batch


@contextmanager
def _after_others(pipeline: steps.Pipeline) -> Iterator[None]:
    """Try again later where another run looks again at recordings of the hour: it may be one that died."""
    try:
        yield
    except steps.HeldElsewhere as held:
        raise dg.RetryRequested(MOST_WAITS, pipeline.settings.claim_seconds) from held


def table_metadata(pipeline: steps.Pipeline, table: str, batch: steps.Batch) -> dict[str, Any]:
    """What Dagster shows of a table: its columns, and its rows in this partition."""
    described = pipeline.warehouse.describe(table, batch.hour)
    columns = [dg.TableColumn(name, kind.lower(), description=comment) for name, kind, comment in described.columns]
    return {
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "dagster/partition_row_count": described.rows,
        "dagster/table_name": f"warehouse.main.{table}",
    }


@dg.asset(
    partitions_def=hourly,
    group_name="intake",
    owners=OWNERS,
    kinds={"python", "duckdb"},
)
def recordings(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> None:
    """Recordings that the platform announced in the hour: taken from the inbox, minimised, participants as tokens."""
    from compliance_pipeline.breaker import states

    for batch in _in_turn(context):
        items = steps.claim(pipeline.pipeline, batch)
        failing = [one for one in states(pipeline.pipeline.inbox.engine, utc_now()) if one.state != "closed"]
        metadata = {
            **table_metadata(pipeline.pipeline, "recordings", batch),
            "recordings in this run": len(items),
            "duplicate events": sum(item.duplicates for item in items),
            "tries": max((item.attempts for item in items), default=0),
            "circuit breakers": "; ".join(
                f"{one.name} {one.state} since {one.since:%F %T} UTC, {one.failures} of {one.calls} calls failed"
                for one in failing
            )
            or "all closed",
        }
        context.add_asset_metadata(metadata, partition_key=batch.partition_key)


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "media",
            deps=[recordings],
            group_name="screening",
            owners=OWNERS,
            kinds={"python", "duckdb"},
            description="What was fetched and decoded of each recording: size, digest, codec, whether it is whole. "
            "The media itself is not kept.",
        ),
        dg.AssetSpec(
            "verdicts",
            deps=[recordings],
            group_name="screening",
            owners=OWNERS,
            kinds={"python", "duckdb"},
            description="One verdict a recording, policy and engine, in the guide's schema, with the findings and "
            "broken rules behind it. Media that can't be screened is UNSCREENABLE, and a recording to which a rule "
            "applies that could not be decided is UNDETERMINED: never clean.",
        ),
    ],
    partitions_def=hourly,
    can_subset=True,
)
def screening(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> Iterator[dg.MaterializeResult[None]]:
    """Fetch and screen each recording in one pass, while its media arrives.

    With `verdicts` selected alone: from what was found before, without media (see `replay`).
    """
    selected = sorted(context.selected_asset_keys)
    if selected == [dg.AssetKey("verdicts")]:
        _replay(context, pipeline.pipeline)
    else:
        for batch in _in_turn(context):
            with _after_others(pipeline.pipeline):
                _screen(context, pipeline.pipeline, batch)
    for key in selected:
        yield dg.MaterializeResult(asset_key=key)


def _screen(context: dg.AssetExecutionContext, pipeline: steps.Pipeline, batch: steps.Batch) -> None:
    report = steps.screen_batch(pipeline, batch)
    context.log.info(
        "judged %s; judged before: %d; deferred: %d; dead: %d",
        ", ".join(f"{count} {verdict}" for verdict, count in sorted(report.verdicts.items())) or "none",
        report.known,
        report.given_back["deferred"],
        report.given_back["dead"],
    )
    shown: dict[str, dict[str, Any]] = {
        "media": {
            "media fetched": report.media_rows,
            "bytes fetched": report.media_bytes,
            "fetch seconds": round(report.fetch_s, 3),
        },
        "verdicts": {
            **{f"verdicts {verdict}": count for verdict, count in sorted(report.verdicts.items())},
            "findings": report.findings,
            "findings taken back": report.retracted,
            "judged before": report.known,
            "judged from stored findings": report.replayed,
            "deferred": report.given_back["deferred"],
            "dead letters": report.given_back["dead"],
            "not judged again": report.given_back["left"],
            "analysis seconds": round(report.analysis_s, 3),
            "slowest first finding, seconds": round(max(report.first_finding_s, default=0.0), 3),
        },
    }
    selected = [key.to_user_string() for key in sorted(context.selected_asset_keys)]
    with pipeline.warehouse.together():
        tables = {table: table_metadata(pipeline, table, batch) for table in selected}
    for table, metadata in tables.items():
        context.add_asset_metadata(shown[table] | metadata, asset_key=table, partition_key=batch.partition_key)


def _replay(context: dg.AssetExecutionContext, pipeline: steps.Pipeline) -> None:
    """Judge each hour from what was found before, and enter its verdicts into the ledger."""
    from compliance_pipeline import custody
    from compliance_pipeline.replay import Judging, replay

    judging = Judging(pipeline.policy)
    for batch in _in_turn(context):
        report = replay(pipeline, [batch.hour], context.run.run_id, judging=judging)
        # Of all, not of what this run judged: one that died had not entered its verdicts.
        ids = sorted(steps.judged_of(pipeline, batch, pipeline.engine.version))
        for at in range(0, len(ids), CUSTODY_BATCH):
            custody.record(pipeline, batch.hour, ids[at : at + CUSTODY_BATCH])
        context.log.info(
            "judged from stored findings: %d; judged before: %d; changed: %d; without a screening of this engine: %d",
            report.judged,
            report.known,
            report.changed,
            report.without_screening,
        )
        metadata = {
            **{f"verdicts {verdict}": count for verdict, count in sorted(report.verdicts.items())},
            "judged from stored findings": report.judged,
            "judged before": report.known,
            "changed": report.changed,
            "without a screening of this engine": report.without_screening,
            **table_metadata(pipeline, "verdicts", batch),
        }
        context.add_asset_metadata(metadata, asset_key="verdicts", partition_key=batch.partition_key)


@dg.asset(
    deps=["verdicts"],
    partitions_def=hourly,
    group_name="remediation",
    owners=OWNERS,
    kinds={"python", "duckdb"},
)
def remediations(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> None:
    """What the policy asks for each violation, done on the platform once; a message at most once."""
    for batch in _in_turn(context):
        with _after_others(pipeline.pipeline):
            report = remediate_batch(pipeline.pipeline, batch)
        metadata = {
            **{f"{action} done": count for action, count in sorted(report.done.items())},
            **{f"{action} failed": count for action, count in sorted(report.failed.items())},
            **{f"{action} given up": count for action, count in sorted(report.dead.items())},
            "recordings settled": report.settled,
            "page": _page(pipeline.pipeline, batch.hour),
            **table_metadata(pipeline.pipeline, "remediations", batch),
        }
        context.add_asset_metadata(metadata, partition_key=batch.partition_key)


class EvidenceConfig(dg.Config):
    days: float = Field(default=2.0, gt=0, description="How far to look back for findings without a clip.")


@dg.asset(
    deps=["verdicts", remediations],
    group_name="remediation",
    owners=OWNERS,
    kinds={"python", "duckdb"},
)
def evidence(
    context: dg.AssetExecutionContext, config: EvidenceConfig, pipeline: PipelineResource
) -> dg.MaterializeResult[None]:
    """A masked clip of each finding behind a violation, screened again before it is kept; or why there is none.

    Without partitions and without a place among the flagging runs: no recording waits for it.
    """
    from compliance_pipeline.evidence import keep_evidence

    report = keep_evidence(pipeline.pipeline, context.run.run_id, utc_now() - timedelta(days=config.days))
    return dg.MaterializeResult(
        metadata={
            "clips made": report.made,
            "clips refused": report.refused,
            "media unavailable": report.unavailable,
            "findings in text": report.text,
            "left for the next run": report.left,
            "bytes of clips": report.size_bytes,
            "seconds": round(report.seconds, 3),
            "dagster/table_name": "warehouse.main.evidence",
        }
    )


@dg.asset(
    group_name="assurance",
    owners=OWNERS,
    kinds={"python"},
    check_specs=[
        dg.AssetCheckSpec(
            "redaction_hides_what_was_planted",
            asset="redaction",
            description="No number that was planted in sample interactions comes out of the platform in the clear.",
        )
    ],
)
def redaction(pipeline: PipelineResource) -> Iterator[dg.MaterializeResult[None]]:
    """What the platform's redaction leaves of sample interactions with planted numbers, by channel (guide, step 2)."""
    from compliance_pipeline.redaction import Outcome, check_redaction

    results = check_redaction(pipeline.pipeline)
    leaks = [result for result in results if result.outcome is Outcome.LEAK]
    unread = [result for result in results if result.outcome is Outcome.NOT_READ]
    lines = ["| channel | medium | planted | outcome | detail |", "|---|---|---|---|---|"]
    lines += [f"| {r.channel} | {r.medium} | {r.kind} | {r.outcome} | {r.detail} |" for r in results]
    yield dg.MaterializeResult(
        metadata={
            "planted values read": len(results) - len(unread),
            "leaks": len(leaks),
            "not read": len(unread),
            "by channel": dg.MetadataValue.md("\n".join(lines)),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="redaction_hides_what_was_planted",
                passed=bool(results) and not leaks and not unread,
                severity=dg.AssetCheckSeverity.ERROR if leaks else dg.AssetCheckSeverity.WARN,
                description=f"{len(results)} planted values, {len(leaks)} leak, {len(unread)} could not be read."
                if results
                else "No samples: `compliance platform redaction-check` says how to make them; name them in "
                "COMPLIANCE_REDACTION_SAMPLES.",
            )
        ],
    )


class LedgerConfig(dg.Config):
    whole: bool = Field(default=False, description="Check every entry; otherwise those since the last seal.")


@dg.asset(
    deps=[remediations],
    group_name="assurance",
    owners=OWNERS,
    kinds={"python"},
    check_specs=[
        dg.AssetCheckSpec(
            "ledger_is_unbroken",
            asset="ledger",
            description="No entry of the audit trail was changed, removed or put in another order.",
        )
    ],
)
def ledger(config: LedgerConfig, pipeline: PipelineResource) -> Iterator[dg.MaterializeResult[None]]:
    """The audit trail: verified, then sealed with a signature. The head is shown here, where the database that holds
    the trail can't change it."""
    from compliance_pipeline import audit

    work = pipeline.pipeline
    engine, settings = work.inbox.engine, work.settings
    found = audit.verify(engine, settings, since_seal=not config.whole)
    sealed = audit.seal(engine, settings, work.clock()) if found.is_unbroken else None
    yield dg.MaterializeResult(
        metadata={
            "entries": found.entries,
            "entries checked": found.checked,
            "head": sealed.hash if sealed else found.head,
            "sealed up to entry": last.seq if (last := sealed or found.sealed) else 0,
            "key": found.key or "made with the first seal",
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="ledger_is_unbroken",
                passed=found.is_unbroken,
                description=f"{found.checked} entries checked, {found.fault_count} faults.",
                metadata={f"entry {fault.seq}": fault.what for fault in found.faults},
            )
        ],
    )


LOOK_AHEAD = timedelta(days=30)


@dg.asset(
    deps=[evidence],
    group_name="assurance",
    owners=OWNERS,
    kinds={"python"},
    check_specs=[
        dg.AssetCheckSpec(
            "nothing_is_kept_for_longer_than_allowed",
            asset="retention",
            description="What was due was deleted, or a legal hold has it.",
        )
    ],
)
def retention(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> Iterator[dg.MaterializeResult[None]]:
    """What the vault may no longer keep, deleted; and what will be within 30 days. A legal hold beats every rule."""
    from compliance_pipeline import custody, purge
    from compliance_pipeline.media.vault import vault_of
    from compliance_pipeline.retention import Outcome, apply, plan_retention

    work = pipeline.pipeline
    engine, now = work.inbox.engine, work.clock()
    vault = vault_of(work.settings, engine)
    try:
        planned = plan_retention(work.warehouse, vault, engine, work.policy.retention, now + LOOK_AHEAD)
        outcomes = apply(engine, vault, planned, f"run {context.run.run_id}", now)
    finally:
        vault.close()
    purge.settle(work.warehouse, engine, work.platform, (), custody.ACTOR, now)
    due = [deletion for deletion, _ in outcomes]
    coming = [deletion for deletion in planned if deletion not in due]
    lines = ["| recording | what | when | why | held |", "|---|---|---|---|---|"]
    lines += [f"| {d.recording_id} | {d.what} | {d.due:%Y-%m-%d} | {d.why} | {d.held or ''} |" for d in coming[:100]]
    counts = {outcome: sum(result is outcome for _, result in outcomes) for outcome in Outcome}
    yield dg.MaterializeResult(
        metadata={
            **{outcome.value: count for outcome, count in counts.items()},
            "due within 30 days": len(coming),
            "purges taken up": purge.reopen_due(work.warehouse, work.inbox, work.policy, now),
            "next": dg.MetadataValue.md("\n".join(lines)),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="nothing_is_kept_for_longer_than_allowed",
                passed=not counts[Outcome.FAILED],
                description=f"{counts[Outcome.FAILED]} deletions failed; the next run tries them again.",
            )
        ],
    )


SWEPT = ("at_source", "judged", "in_the_works", "not_recorded", "given_up", "missing", "found_by_sweep")
"""Columns of `sweeps`; all but the first and the last add up to the first."""


class ReconciliationConfig(dg.Config):
    hours: int | None = Field(default=None, ge=1, description="How far to look back; default: COMPLIANCE_SWEEP_HOURS.")


@dg.asset(
    deps=["verdicts"],
    group_name="assurance",
    owners=OWNERS,
    kinds={"python", "duckdb"},
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(minutes=30)),
)
def reconciliation(
    context: dg.AssetExecutionContext, config: ReconciliationConfig, pipeline: PipelineResource
) -> dg.MaterializeResult[None]:
    """What the platform says became available, beside what became of it here; what no event announced is taken in.

    The proof that nothing was missed: so many at the source, so many judged, none missing. Reads the verdicts, but
    waits for no run: it has no partitions and no place among the flagging runs.
    """
    from compliance_pipeline.reconcile import reconcile, window

    hours = config.hours or pipeline.pipeline.settings.sweep_hours
    since, until = window(pipeline.pipeline, hours, utc_now())
    sweep = reconcile(pipeline.pipeline, context.run.run_id, since, until)
    return dg.MaterializeResult(
        metadata={
            **{name.replace("_", " "): sweep.total(name) for name in SWEPT},
            "taken in by this sweep": sweep.found_now,
            "conversations listed again": sweep.listed_again,
            "hours": dg.MetadataValue.md(_hours_table(sweep.hours)),
            "dagster/table_name": "warehouse.main.sweeps",
        }
    )


def _hours_table(rows: "tuple[SweepRow, ...]") -> str:
    header = "| hour (UTC) | " + " | ".join(name.replace("_", " ") for name in SWEPT) + " |"
    lines = [header, "|---|" + "--:|" * len(SWEPT)]
    lines += [
        f"| {row.partition_hour:%Y-%m-%d %H:%M} | " + " | ".join(str(getattr(row, name)) for name in SWEPT) + " |"
        for row in rows
    ]
    return "\n".join(lines)


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "latency_by_hour",
            deps=[remediations, "verdicts"],
            group_name="reporting",
            owners=OWNERS,
            kinds={"duckdb", "sql"},
            description="Exact P50, P95 and P99 of each stage by channel, and how many were flagged within the "
            "objective (docs/metrics.md).",
        ),
        dg.AssetSpec(
            "violations_by_hour",
            deps=[remediations, "verdicts"],
            group_name="reporting",
            owners=OWNERS,
            kinds={"duckdb", "sql"},
            description="Recordings that broke each rule, by channel, beside those that could be screened "
            "(docs/metrics.md).",
        ),
    ],
    partitions_def=hourly,
    can_subset=True,
)
def marts(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> Iterator[dg.MaterializeResult[None]]:
    """Rebuild the hour's figures from the facts."""
    selected = [key.to_user_string() for key in sorted(context.selected_asset_keys)]
    for batch in _in_turn(context):
        steps.refresh_marts(pipeline.pipeline, selected, batch.hour)
        with pipeline.pipeline.warehouse.together():
            shown = {
                mart: steps.headline(pipeline.pipeline, mart, batch.hour)
                | table_metadata(pipeline.pipeline, mart, batch)
                for mart in selected
            }
        for mart, figures in shown.items():
            metadata = {
                **figures,
                "dagster/column_lineage": LINEAGE[mart],
                "page": _page(pipeline.pipeline, batch.hour),
            }
            context.add_asset_metadata(metadata, asset_key=mart, partition_key=batch.partition_key)
    for mart in selected:
        yield dg.MaterializeResult(asset_key=mart)


def _lineage(**columns: tuple[str, ...]) -> dg.TableColumnLineage:
    """columns: of each, what it is made of, as asset.column."""
    return dg.TableColumnLineage(
        {column: [dg.TableColumnDep(*dep.split(".")) for dep in deps] for column, deps in columns.items()}
    )


_TIMES = ("recordings.available_at", "recordings.received_at", "verdicts.judged_at", "remediations.revised_at")
_NEWEST = ("verdicts.recording_id", "verdicts.policy_version", "verdicts.engine_version", "verdicts.judged_at")
LINEAGE = {
    "latency_by_hour": _lineage(
        partition_hour=("recordings.partition_hour",),
        channel=("recordings.channel",),
        **dict.fromkeys(("recordings", "p50_s", "p95_s", "p99_s", "max_s", "within_objective"), _TIMES),
    ),
    "violations_by_hour": _lineage(
        partition_hour=("verdicts.partition_hour",),
        channel=("verdicts.channel",),
        rule_id=("verdicts.rule_id",),
        violation_type=("verdicts.violation_type",),
        severity=("verdicts.severity",),
        verdict=("verdicts.verdict",),
        recordings=_NEWEST,
        screened=(*_NEWEST, "verdicts.verdict", "verdicts.undetermined_rules"),
    ),
}


def _page(pipeline: steps.Pipeline, hour: datetime) -> dg.UrlMetadataValue:
    """The analysts' page of the hour."""
    window = f"from={hour:%Y-%m-%dT%H:%MZ}&to={hour + timedelta(hours=1):%Y-%m-%dT%H:%MZ}"
    return dg.MetadataValue.url(f"{pipeline.settings.dashboard_base_url}/violations?{window}")


snapshot = dg.AssetSpec(
    "snapshot",
    deps=[*MARTS],
    group_name="reporting",
    owners=OWNERS,
    kinds={"parquet"},
    description="What `compliance report` and the page read: Parquet files of an hour each, never changed, named by a "
    "manifest. Published by `snapshot_sensor` whenever an hour changed; docs/metrics.md defines every figure.",
)
