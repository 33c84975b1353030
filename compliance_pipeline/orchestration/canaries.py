"""The sensor that puts canaries in and says what became of them. It starts no run: one costs more than the work."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from compliance_pipeline.clock import utc_now
from compliance_pipeline.orchestration.assets import OWNERS

if TYPE_CHECKING:
    from compliance_pipeline.canaries import Fate
    from compliance_pipeline.settings import Settings

WAREHOUSE_WAIT_S = 20.0
"""A tick must end within a minute."""

canaries = dg.AssetSpec(
    "canaries",
    deps=["verdicts", "remediations"],
    group_name="assurance",
    kinds={"python"},
    owners=OWNERS,
    description="Synthetic violations, each hour one for each rule and channel of the live policy, judged like any "
    "recording and counted in no other figure: live recall, and the true P95 from available to flagged.",
)


@dg.sensor(minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING)
def canary_sensor(_context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Puts in the canaries that are due, a few every five minutes, and looks for what became of those before."""
    from compliance_pipeline.settings import Settings

    return look(Settings(), utc_now())


def look(settings: "Settings", now: datetime) -> dg.SensorResult | dg.SkipReason:
    """One tick."""
    from compliance_pipeline.canaries import DAY, fates, inject, settle
    from compliance_pipeline.intake.inbox import Inbox
    from compliance_pipeline.objective import Objective
    from compliance_pipeline.promotion import live_policy
    from compliance_pipeline.warehouse.warehouse import WarehouseError, warehouse_of

    if settings.engine_url:
        return dg.SkipReason("Another engine judges: what it could not fetch, it can't miss. No canaries.")
    inbox = Inbox(settings.inbox_database_url)
    try:
        inbox.create()
        policy = live_policy(settings, inbox.engine)
        put_in = inject(inbox, policy, now) if settings.canaries else 0
        warehouse = warehouse_of(settings, lock_timeout_s=WAREHOUSE_WAIT_S)
        decided = settle(inbox.engine, warehouse, policy, Objective.of_settings(settings), now)
        lately = fates(inbox.engine, now - DAY) if decided else []
    except WarehouseError as error:
        return dg.SkipReason(str(error))
    finally:
        inbox.close()
    if not decided:
        off = "" if settings.canaries else " Canaries are turned off."
        return dg.SkipReason(f"{put_in} canaries put in, none decided on.{off}")
    return dg.SensorResult(asset_events=[dg.AssetMaterialization("canaries", metadata=_metadata(lately))])


def _metadata(lately: "list[Fate]") -> dict[str, Any]:
    from compliance_pipeline.canaries import by_rule, recall

    whole = recall(lately)
    lines = ["| rule | canaries | flagged | P95 seconds |", "|---|--:|--:|--:|"]
    for rule_id, channels in by_rule(lately).items():
        its = recall([fate for its in channels.values() for fate in its])
        lines.append(
            f"| {rule_id} | {its.canaries} | {its.flagged} | {'–' if its.p95_s is None else f'{its.p95_s:.1f}'} |"
        )
    metadata: dict[str, Any] = {
        "canaries in 24 hours": whole.canaries,
        "flagged": whole.flagged,
        "by rule": dg.MetadataValue.md("\n".join(lines)),
    }
    if whole.share is not None:
        metadata["recall"] = round(whole.share, 4)
    if whole.p95_s is not None:
        metadata["P95 seconds"] = round(whole.p95_s, 3)
    return metadata
