"""The job `what_if`: what another policy pack would change, with its report page linked in the run."""

from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from compliance_pipeline.orchestration.resources import PipelineResource

if TYPE_CHECKING:
    from compliance_pipeline.contracts.policy import PolicyPack
    from compliance_pipeline.what_if import PolicyDiff

ACTOR = "dagster"


class WhatIfConfig(dg.Config):
    pack: str = Field(description="The new pack: path of its YAML file, or its text.")
    start: str = Field(alias="from", description="Begin of the window: 2026-03-01, or 2026-03-01T14:00 (UTC).")
    end: str = Field(alias="to", description="Its end.")


@dg.op(out=dg.Out(dg.Nothing), description="Both packs judge what was found in the window; nothing is fetched.")
def compare_policies(context: dg.OpExecutionContext, config: WhatIfConfig, pipeline: PipelineResource) -> None:
    from compliance_pipeline.what_if import diff, keep, time_of

    work = pipeline.pipeline
    new = _pack(config.pack)
    try:
        start, end = time_of(config.start), time_of(config.end)
    except ValueError as error:
        raise dg.Failure(str(error)) from None
    if start >= end:
        raise dg.Failure("The window ends before it begins: `from` must be earlier than `to`.")
    made = diff(
        work.warehouse, work.policy, new, work.engine.version, start, end, work.settings.review_minutes,
        lambda done, pieces: context.log.info("%d of %d pieces compared", done, pieces) if done % 100 == 0 else None,
    )  # fmt: skip
    kept = keep(work.inbox.engine, made, new, ACTOR, work.clock())
    items = made.work_items
    context.add_output_metadata(
        {
            "page": dg.MetadataValue.url(f"{work.settings.dashboard_base_url}/what-if/{kept.id}"),
            "what-if": kept.id,
            "digest": made.digest,
            "live pack": made.live,
            "new pack": made.new,
            "recordings compared": made.compared,
            "recordings that need their media": made.needs_audio,
            "added": made.added,
            "removed": made.removed,
            "changed": made.changed,
            "work items that would open": items.opens,
            "reviewers' hours": round(made.hours(items.new), 2),
            "reviewers' hours by the live pack": round(made.hours(items.live), 2),
            "by rule": dg.MetadataValue.md(_table(made)),
        }
    )


@dg.job(
    name="what_if",
    description="What another policy pack would change in a window. Nothing is fetched, and nothing is written to the "
    "platform.",
    tags={"dagster/priority": "-10"},
)
def what_if_job() -> None:
    compare_policies()


def _pack(given: str) -> "PolicyPack":
    """By its path, or from its text."""
    import tempfile

    from compliance_pipeline.screening.policy import PolicyError, load_policy

    try:
        if "\n" not in given:
            return load_policy(Path(given))
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".yaml") as file:
            file.write(given)
            file.flush()
            return load_policy(Path(file.name))
    except PolicyError as error:
        raise dg.Failure(f"The pack can't be used: {'; '.join(error.faults)}") from None


def _table(made: "PolicyDiff") -> str:
    lines = ["| rule | pack | live | new | added | removed | changed | work items open |", "|---|---|" + "--:|" * 6]
    lines += [
        f"| {one.rule_id} | {one.edit} | {one.live} | {one.new} | {one.added} | {one.removed} | {one.changed} | "
        f"{one.opens} |"
        for one in made.rules
        if one.is_any
    ]
    return "\n".join(lines)
