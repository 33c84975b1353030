"""Asset checks: each asks one question of `quality` about the partition. One op, so that five cost no more than one."""

import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import dagster as dg

from compliance_pipeline import quality
from compliance_pipeline.clock import utc_now
from compliance_pipeline.intake.hours import hour_of
from compliance_pipeline.orchestration.partitions import hourly
from compliance_pipeline.orchestration.resources import PipelineResource
from compliance_pipeline.steps import Pipeline, is_triggered_by_inbox

# Partitioned checks are in preview; without partitions a check's history mixes hours.
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

Question = Callable[[Pipeline, datetime], quality.Answer]
QUESTIONS: dict[Question, str] = {
    quality.every_recording_is_accounted_for: "recordings",
    quality.verdicts_match_the_contract: "verdicts",
    quality.nothing_sensitive_is_stored: "verdicts",
    quality.every_violation_is_remediated: "remediations",
    quality.p95_is_within_the_objective: "latency_by_hour",
}
SCREENS: Question = quality.nothing_sensitive_is_stored
RECKONS: set[Question] = {
    SCREENS,
    quality.every_recording_is_accounted_for,
    quality.verdicts_match_the_contract,
}


def _spec(question: Question, asset: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        question.__name__,
        asset=asset,
        description=question.__doc__,
        # After the marts, so that no check delays a flag.
        additional_deps=[dep for dep in ("latency_by_hour", "remediations") if dep != asset],
        partitions_def=hourly,
    )


@dg.multi_asset_check(specs=[_spec(question, asset) for question, asset in QUESTIONS.items()], can_subset=True)
def hourly_checks(
    context: dg.AssetCheckExecutionContext, pipeline: PipelineResource
) -> Iterator[dg.AssetCheckResult | dg.AssetCheckEvaluation]:
    op = context.op_execution_context
    keys = sorted(op.partition_keys, reverse=True)
    selected = {key.name for key in context.selected_asset_check_keys}
    asked = [question for question in QUESTIONS if question.__name__ in selected]
    for key in keys:
        for question, answer in _answers(context, pipeline.pipeline, asked, hour_of(key)).items():
            asset = QUESTIONS[question]
            result = _result(asset, question.__name__, answer)
            if len(keys) == 1:
                yield result
                continue
            # Dagster would file the result of a range under no partition.
            yield dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey(asset),
                check_name=question.__name__,
                passed=result.passed,
                metadata=result.metadata,
                severity=result.severity,
                description=result.description,
                partition=key,
            )


def _answers(
    context: dg.AssetCheckExecutionContext, pipeline: Pipeline, asked: list[Question], hour: datetime
) -> dict[Question, quality.Answer]:
    answers: dict[Question, quality.Answer] = {}
    with pipeline.warehouse.together():
        answers |= {question: question(pipeline, hour) for question in asked if question not in RECKONS}
    # These take long over what they have read: nobody has to wait for the warehouse meanwhile.
    answers |= {question: question(pipeline, hour) for question in asked if question in RECKONS - {SCREENS}}
    if SCREENS in asked:
        new = context.run.run_id if is_triggered_by_inbox(context.run.tags) else None
        answers[SCREENS] = quality.nothing_sensitive_is_stored(pipeline, hour, new)
    return answers


SWEEP_QUESTIONS: dict[Question, str] = {
    quality.nothing_is_missing: "reconciliation",
    quality.deliveries_arrive: "reconciliation",
    quality.snapshot_says_what_the_warehouse_says: "snapshot",
    quality.every_canary_was_flagged: "canaries",
}


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec(question.__name__, asset=asset, description=question.__doc__)
        for question, asset in SWEEP_QUESTIONS.items()
    ],
    can_subset=True,
)
def reconciliation_checks(
    context: dg.AssetCheckExecutionContext, pipeline: PipelineResource
) -> Iterator[dg.AssetCheckResult]:
    since = utc_now() - timedelta(hours=pipeline.pipeline.settings.sweep_hours)
    selected = {key.name for key in context.selected_asset_check_keys}
    for question, asset in SWEEP_QUESTIONS.items():
        if question.__name__ in selected:
            yield _result(asset, question.__name__, question(pipeline.pipeline, since))


def _result(asset: str, name: str, answer: quality.Answer) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=name,
        passed=answer.passed,
        severity=dg.AssetCheckSeverity.ERROR if answer.serious else dg.AssetCheckSeverity.WARN,
        description=answer.description,
        metadata=dict(answer.facts),
    )
