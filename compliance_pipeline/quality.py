"""Questions that every hour must answer well. Pure reading; how the answers are shown is orchestration's."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from compliance_pipeline.contracts.event import CANARY
from compliance_pipeline.contracts.verdict import Verdict
from compliance_pipeline.objective import Objective
from compliance_pipeline.platforms.port import PlatformError
from compliance_pipeline.steps import Pipeline

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""One random UUID in 100,000 holds digits that pass for a card number, and every recording has several."""
FACT_TABLES = (
    "recordings", "media", "findings", "screenings", "verdicts", "violations", "remediations", "evidence",
    "stage_times",
)  # fmt: skip


SIGNATURE_REASONS = ("signature", "stale")
SWEEP_IS_OLD = timedelta(hours=24)
"""Quiet nights are no fault; that sweeps run at all is the asset's freshness policy's to say."""
CASCADE = 0.05
"""The share of failing deliveries from which on it is an error, not a warning: the next step is lost recordings."""

SURE = 0.75
"""What the text screen doubts more than this would be put before a person; here nothing but our own words is read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """serious: whether not passing means that something is broken, rather than slow or waiting for a person."""

    passed: bool
    description: str
    serious: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)


def verdicts_match_the_contract(pipeline: Pipeline, hour: datetime) -> Answer:
    """Every verdict of the hour is valid in the guide's strict schema."""
    rows = pipeline.warehouse.select(
        "SELECT recording_id, verdict, violation_type, confidence_score, timestamp_offset_ms, evidence_snippet, "
        "recommended_action, correlation_id FROM verdicts WHERE partition_hour = $hour",
        {"hour": hour},
    )
    wrong: dict[str, str] = {}
    for row in rows:
        try:
            Verdict.model_validate(row)
        except ValidationError as error:
            wrong[row["recording_id"]] = "; ".join(fault["msg"] for fault in error.errors(include_input=False))
    facts = {"verdicts": len(rows), "invalid": len(wrong), "examples": dict(list(wrong.items())[:5])}
    return Answer(not wrong, f"{len(rows) - len(wrong)} of {len(rows)} verdicts are valid.", facts=facts)


def every_violation_is_remediated(pipeline: Pipeline, hour: datetime) -> Answer:
    """Every recording with a violation or a review has all that was planned for it done, or waiting for a person."""
    rows = pipeline.warehouse.select(
        "SELECT v.recording_id, count(r.action) AS planned, "
        "count(*) FILTER (r.status NOT IN ('done', 'waiting', 'dropped')) AS undone "
        "FROM latest_verdicts v LEFT JOIN latest_remediations r "
        "ON r.partition_hour = v.partition_hour AND r.recording_id = v.recording_id "
        "WHERE v.partition_hour = $hour AND v.rule_id IS NOT NULL AND v.recording_id NOT IN "
        "(SELECT recording_id FROM recordings WHERE partition_hour = $hour AND source = 'canary') "
        "GROUP BY v.recording_id",
        {"hour": hour},
    )
    open_ids = [row["recording_id"] for row in rows if not row["planned"] or row["undone"]]
    facts = {"flagged": len(rows), "not remediated": len(open_ids), "examples": open_ids[:5]}
    return Answer(not open_ids, f"{len(rows) - len(open_ids)} of {len(rows)} are remediated.", facts=facts)


def nothing_sensitive_is_stored(pipeline: Pipeline, hour: datetime, run_id: str | None = None) -> Answer:
    """No text in any column of the facts holds a card number, code or social security number."""
    # With a run's id, only what that run judged: a live run's cost follows new work, not the hour so far.
    from compliance_pipeline.screening.text import screen_text
    from compliance_pipeline.screening.transcripts import Transcript, Turn

    leaks: list[str] = []
    cells = 0
    clean: set[str] = set()
    with pipeline.warehouse.together():
        stored = {
            table: pipeline.warehouse.select(
                f"SELECT * FROM {table} WHERE partition_hour = $hour AND ($run IS NULL OR recording_id IN "  # noqa: S608
                "(SELECT recording_id FROM verdicts WHERE partition_hour = $hour AND run_id = $run UNION ALL "
                "SELECT recording_id FROM remediations WHERE partition_hour = $hour AND run_id = $run))",
                {"hour": hour, "run": run_id},
            )
            for table in FACT_TABLES
        }
    for table, rows in stored.items():
        for row in rows:
            for column, text in _texts(row):
                cells += 1
                if text in clean:
                    continue
                found = screen_text(Transcript((Turn(speaker="", start_ms=0, text=text),)))
                if any(finding.confidence >= SURE for finding in found):
                    leaks.append(f"{table}.{column}")
                else:
                    clean.add(text)
    facts = {"values screened": cells, "columns that leak": sorted(set(leaks))}
    return Answer(not leaks, f"{cells} values screened, {len(leaks)} hold something sensitive.", facts=facts)


def _texts(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for column, value in row.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                yield column, _UUID.sub("", text)


def p95_is_within_the_objective(pipeline: Pipeline, hour: datetime) -> Answer:
    """P95 of 'available to flagged' keeps what stakeholders were promised."""
    objective = Objective.of_settings(pipeline.settings)
    rows = pipeline.warehouse.select(
        "SELECT channel, p95_s, recordings, within_objective FROM latency_by_hour "
        "WHERE partition_hour = $hour AND stage = 'flagged' AND (channel = 'all') = $together ORDER BY channel",
        {"hour": hour, "together": not objective.by_channel},
    )
    if not rows:
        return Answer(True, "Nothing was flagged in this hour.", serious=False, facts={"flagged": 0})
    said, facts = [], dict[str, float]()
    for row in rows:
        name, promised = "" if row["channel"] == "all" else f"{row['channel']} ", objective.of(row["channel"])
        said.append(
            f"{name}P95 {row['p95_s']:.1f} s against {promised:g} s; "
            f"{row['within_objective']} of {row['recordings']} within it"
        )
        facts |= {
            f"{name}P95 seconds": round(row["p95_s"], 3),
            f"{name}objective seconds": promised,
            f"{name}flagged": row["recordings"],
            f"{name}within": row["within_objective"],
        }
    kept = all(row["p95_s"] <= objective.of(row["channel"]) for row in rows)
    return Answer(kept, f"{'. '.join(said)}.", serious=False, facts=facts)


def every_recording_is_accounted_for(pipeline: Pipeline, hour: datetime) -> Answer:
    """Every recording announced for the hour is judged, still in the works, or a dead letter with a reason."""
    from compliance_pipeline.intake.hours import partition_hour
    from compliance_pipeline.intake.inbox import OPEN_STATES, State

    items = [
        item
        for item in pipeline.inbox.items(partition_hour(hour))
        if item.state is not State.LISTED and item.source != CANARY
    ]
    rows = pipeline.warehouse.select(
        "SELECT recording_id, unscreenable_reason FROM latest_verdicts WHERE partition_hour = $hour "
        "AND recording_id NOT IN (SELECT recording_id FROM recordings WHERE partition_hour = $hour "
        "AND source = 'canary')",
        {"hour": hour},
    )
    judged = {row["recording_id"] for row in rows}
    lost = [item.recording_id for item in items if item.state is State.DONE and item.recording_id not in judged]
    dead = [item for item in items if item.state is State.DEAD]
    unscreenable = [row["unscreenable_reason"] for row in rows if row["unscreenable_reason"]]
    facts = {
        "announced": len(items),
        "judged": len(judged),
        "in the works": sum(item.state in OPEN_STATES for item in items),
        "dead letters": {item.recording_id: item.reason for item in dead},
        "unscreenable by reason": {reason: unscreenable.count(reason) for reason in sorted(set(unscreenable))},
        "lost": lost[:5],
    }
    return Answer(
        not lost and not dead,
        f"{len(items)} announced, {len(judged)} judged ({len(unscreenable)} unscreenable), {len(dead)} dead letters, "
        f"{len(lost)} lost.",
        serious=bool(lost),
        facts=facts,
    )


def nothing_is_missing(pipeline: Pipeline, since: datetime) -> Answer:
    """Whatever the platform says became available is judged, in the works, or given up on with a reason."""
    rows = pipeline.warehouse.select("FROM completeness_by_hour WHERE partition_hour >= $since", {"since": since})
    total = {name: sum(row[name] for row in rows) for name in ("at_source", "judged", "given_up", "missing")}
    newest = pipeline.warehouse.select("SELECT max(swept_at) AS at FROM sweeps")[0]["at"]
    old = newest is not None and pipeline.clock() - newest > SWEEP_IS_OLD
    return Answer(
        not total["missing"] and not total["given_up"] and not old,
        f"{total['at_source']} at source, {total['judged']} judged, {total['given_up']} given up on, "
        f"{total['missing']} missing." + (f" No sweep since {newest:%H:%M} UTC saw anything." if old else ""),
        serious=bool(total["missing"]),
        facts={name.replace("_", " "): count for name, count in total.items()},
    )


def every_canary_was_flagged(pipeline: Pipeline, since: datetime) -> Answer:
    """Every synthetic violation put in lately was flagged for its rule, within three times the objective."""
    from compliance_pipeline import canaries

    found = canaries.fates(pipeline.inbox.engine, since)
    whole = canaries.recall(found)
    missed = sorted({fate.name for fate in canaries.missed(pipeline.inbox.engine, since)})
    facts: dict[str, Any] = {"canaries": whole.canaries, "flagged": whole.flagged, "missed": missed}
    if whole.p95_s is not None:
        facts["P95 seconds"] = round(whole.p95_s, 3)
    return Answer(not missed, f"{whole.flagged} of {whole.canaries} canaries were flagged in time.", facts=facts)


def snapshot_says_what_the_warehouse_says(pipeline: Pipeline, since: datetime) -> Answer:
    """What pages and reports count of whole hours is what the warehouse holds of them."""
    from compliance_pipeline.figures.snapshots import NoSnapshot, Snapshot, folder_of

    try:
        snapshot = Snapshot.current(folder_of(pipeline.settings.home))
    except NoSnapshot as error:
        return Answer(False, f"{error}.", serious=False)
    try:
        query = (
            "SELECT partition_hour, sum(judged + unscreenable)::INTEGER AS verdicts, sum(flagged)::INTEGER AS flagged "
            "FROM read_parquet($coverage) WHERE partition_hour >= $start AND partition_hour < $end GROUP BY ALL"
        )
        shown = {row["partition_hour"]: row for row in snapshot.rows(query, since, pipeline.clock())}
    finally:
        snapshot.close()
    held = pipeline.warehouse.select(
        "WITH canaries AS (SELECT recording_id FROM recordings WHERE partition_hour >= $since AND source = 'canary') "
        "SELECT partition_hour, count(DISTINCT recording_id) AS verdicts, "
        "(SELECT count(*) FROM stage_times s WHERE s.partition_hour = v.partition_hour AND stage = 'flagged' "
        "AND recording_id NOT IN (FROM canaries)) AS flagged "
        "FROM verdicts v WHERE partition_hour >= $since AND recording_id NOT IN (FROM canaries) GROUP BY ALL",
        {"since": since},
    )
    # Last, so that what was stored meanwhile is not taken for a difference.
    changed, _ = pipeline.warehouse.changed_hours(snapshot.manifest.change_no)
    settled = [row for row in held if row["partition_hour"] not in changed]
    wrong = [row["partition_hour"] for row in settled if shown.get(row["partition_hour"]) != row]
    return Answer(
        not wrong,
        f"{len(settled)} hours compared, {len(wrong)} differ.",
        facts={"hours compared": len(settled), "hours that differ": [f"{hour:%F %H:%M} UTC" for hour in wrong]},
    )


def deliveries_arrive(pipeline: Pipeline, since: datetime) -> Answer:
    """Events reach the inbox: none fails at the platform, is refused for its signature, or can't be understood."""
    from compliance_pipeline import tallies

    try:
        failed = pipeline.platform.delivery_failures(since)
    except PlatformError as error:
        failed, why = None, str(error)
    else:
        why = "the platform does not tell"
    received = sum(tallies.counted(pipeline.inbox.engine, tallies.RECEIVED, since).values())
    refused = {
        name.removeprefix(tallies.REJECTED): count
        for name, count in tallies.counted(pipeline.inbox.engine, tallies.REJECTED, since).items()
    }
    forged = sum(refused.get(reason, 0) for reason in SIGNATURE_REASONS)
    poison = refused.get(tallies.POISON, 0)
    trouble = (failed or 0) + forged + poison
    return Answer(
        not trouble,
        f"{received} events received; {'an unknown number' if failed is None else failed} failed at the platform, "
        f"{forged} refused for their signature, {poison} not understood.",
        serious=trouble > CASCADE * max(received, 1),
        facts={
            "events received": received,
            "delivery failures (platform)": why if failed is None else failed,
            "refused, by reason": refused,
            "media URLs refused": tallies.counted(pipeline.inbox.engine, tallies.URL_REFUSED, since),
        },
    )
