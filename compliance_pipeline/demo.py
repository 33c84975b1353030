"""`compliance demo`: the whole job once, headless, on recordings whose truth is known; whether all came right."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from shutil import rmtree
from typing import Any

import httpx

from compliance_pipeline.contracts.policy import Action
from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.intake.inbox import Inbox, State
from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline.stack import Stack, StackError
from compliance_pipeline.warehouse.warehouse import Warehouse, warehouse_of

RECORDINGS = 40
SPREAD_S = 40
SETTLE_TIMEOUT_S = 300.0
STAGES = {
    "platform": "call end → available",
    "delivery": "available → received",
    "queue": "received → Dagster launches a run",
    "start": "launch → the run claims it (Dagster's start)",
    "batch": "claim → its turn in the batch",
    "fetch": "waiting for the media's bytes",
    "analysis": "decoding and screening",
    "first_finding": "fetch begins → first finding that stood",
    "remediation": "verdict → tag written",
    "judged": "available → verdict",
    "flagged": "available → flagged",
}
OFFSET_TOLERANCE_MS = 1000


@dataclass(frozen=True, slots=True)
class Outcome:
    """One recording: what was planted, what was said of it, and everything that is wrong with that."""

    recording_id: str
    kind: str
    truth: str
    verdict: str
    expected_offset_ms: int | None
    offset_ms: int | None
    flagged_s: float | None
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Result:
    outcomes: list[Outcome]
    stages: list[dict[str, Any]]
    duplicates: int
    unscreenable: dict[str, str]
    dead: dict[str, str]
    leaks: int
    seconds: float

    @property
    def faults(self) -> list[str]:
        found = [f"{o.recording_id}: {fault}" for o in self.outcomes for fault in o.faults]
        found += [f"{recording_id}: gave up on it: {reason}" for recording_id, reason in self.dead.items()]
        return found + ([f"{self.leaks} requests carried what they must not"] if self.leaks else [])


def run_demo(home: Path, *, seed: int = 1) -> Iterator[tuple[int, int] | Result]:
    """Start the parts on ports of their own, feed the demo plan, and wait until every recording is settled.

    Yields (settled, of how many) as it goes, and the Result in the end. `home` is emptied first.
    """
    begun = time.monotonic()
    if home.exists():
        rmtree(home)
    options = f"--plan demo --seed {seed} --count {RECORDINGS} --spread {SPREAD_S}"
    with Stack(home, sandbox_options=options) as stack:
        stack.start("receiver", "code")
        stack.wait_until_up("receiver", "code")
        stack.start("daemon")
        stack.start("sandbox")
        stack.wait_until_up("sandbox")
        for settled in wait_until_settled(stack):
            yield settled, RECORDINGS
        yield collect(stack, time.monotonic() - begun)


def wait_until_settled(stack: Stack, *, timeout_s: float = SETTLE_TIMEOUT_S) -> Iterator[int]:
    """How many recordings are settled, about twice a second, until all that the sandbox planned are."""
    inbox = Inbox(stack.settings.inbox_database_url)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            counts = inbox.counts()
            settled = counts[State.DONE] + counts[State.DEAD]
            yield settled
            truth = sandbox_says(stack, "truth")
            if truth["finished"] and settled >= len(truth["recordings"]):
                return
            if time.monotonic() > deadline:
                raise StackError(
                    f"after {timeout_s:.0f} s only {settled} of {truth['planned']} recordings are settled "
                    f"({', '.join(f'{n} {state}' for state, n in counts.items() if n)}); "
                    f"the processes' output is in {stack.settings.home / 'logs'}"
                )
            stack.check()
            time.sleep(0.4)
    finally:
        inbox.close()


def sandbox_says(stack: Stack, what: str) -> dict[str, Any]:
    """The sandbox's `truth` or `state`."""
    answer: dict[str, Any] = httpx.get(f"{stack.settings.platform_url}/sandbox/{what}", timeout=30).json()
    return answer


def verdicts_by_recording(warehouse: Warehouse) -> dict[str, list[dict[str, Any]]]:
    verdicts: dict[str, list[dict[str, Any]]] = {}
    for row in warehouse.select("FROM verdicts"):
        verdicts.setdefault(row["recording_id"], []).append(row)
    return verdicts


def collect(stack: Stack, seconds: float) -> Result:
    """Compare what the platform saw and what the warehouse holds with the truth."""
    truth, seen = sandbox_says(stack, "truth"), sandbox_says(stack, "state")
    observed = {row["recordingId"]: row for row in seen["recordings"]}
    warehouse = warehouse_of(stack.settings)
    verdicts = verdicts_by_recording(warehouse)
    flagged = {
        row["recording_id"]: row["ended_at"] for row in warehouse.select("FROM stage_times WHERE stage = 'flagged'")
    }
    inbox = Inbox(stack.settings.inbox_database_url)
    items = {r["recordingId"]: inbox.get(r["recordingId"]) for r in truth["recordings"]}
    inbox.close()
    outcomes = [
        _outcome(t, verdicts.get(t["recordingId"], []), observed[t["recordingId"]], flagged.get(t["recordingId"]))
        for t in truth["recordings"]
    ]
    counts = seen["counts"]
    return Result(
        outcomes=outcomes,
        stages=stage_times(warehouse),
        duplicates=sum(item.duplicates for item in items.values() if item),
        unscreenable={
            id_: rows[0]["unscreenable_reason"] for id_, rows in verdicts.items() if rows[0]["unscreenable_reason"]
        },
        dead={id_: item.reason or "" for id_, item in items.items() if item and item.state is State.DEAD},
        leaks=counts.get("bearer leaked", 0) + counts.get("sensitive value received", 0),
        seconds=seconds,
    )


def stage_times(warehouse: Warehouse, without: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Exact percentiles of each stage in seconds, in the order of STAGES; `without`: recordings that don't count."""
    stages = warehouse.select(
        "SELECT stage, count(*) AS recordings, quantile_cont(seconds, 0.5) AS p50, "
        "quantile_cont(seconds, 0.95) AS p95, quantile_cont(seconds, 0.99) AS p99 FROM stage_times "
        "WHERE NOT list_contains($without, recording_id) GROUP BY stage",
        {"without": list(without)},
    )
    by_stage = {row["stage"]: row for row in stages}
    return [by_stage[stage] for stage in STAGES if stage in by_stage]


@cache
def _violations_with_a_callback() -> set[str]:
    return {rule.violation_type for rule in load_policy().rules if rule.wants(Action.SUPERVISOR_CALLBACK)}


def _outcome(
    truth: Mapping[str, Any], verdicts: list[dict[str, Any]], seen: Mapping[str, Any], flagged_at: datetime | None
) -> Outcome:
    faults = list(recording_faults(truth, verdicts, seen))
    said = verdicts[0] if verdicts else {}
    flagged_s = (flagged_at - datetime.fromisoformat(truth["availableAt"])).total_seconds() if flagged_at else None
    return Outcome(
        recording_id=truth["recordingId"],
        kind=truth["kind"] + (f" ({truth['damage']})" if truth["damage"] else ""),
        truth=truth["violationType"] or truth["expectedVerdict"],
        verdict=said.get("violation_type") or said.get("verdict") or "none",
        expected_offset_ms=truth["offsetMs"],
        offset_ms=said.get("timestamp_offset_ms"),
        flagged_s=flagged_s,
        faults=tuple(faults),
    )


def recording_faults(
    truth: Mapping[str, Any], verdicts: list[dict[str, Any]], seen: Mapping[str, Any]
) -> Iterator[str]:
    """Everything that is wrong with what was said and done about a recording that can be judged."""
    if not verdicts:
        yield "lost: no verdict"
        return
    if len(verdicts) > 1:
        yield f"double: {len(verdicts)} verdicts"
    said = verdicts[0]
    expected = truth["expectedVerdict"]
    if said["verdict"] != expected:
        yield f"wrong: {said['verdict']} where the truth is {expected}"
    elif truth["violationType"] and said["violation_type"] != truth["violationType"]:
        yield f"wrong: {said['violation_type']} where the truth is {truth['violationType']}"
    elif truth["offsetMs"] is not None and abs(said["timestamp_offset_ms"] - truth["offsetMs"]) > OFFSET_TOLERANCE_MS:
        yield f"wrong: found at {said['timestamp_offset_ms']} ms, planted at {truth['offsetMs']} ms"
    flagged = expected in (VerdictValue.VIOLATION_DETECTED, VerdictValue.REVIEW_REQUIRED)
    if len(seen["workItems"]) != int(flagged):
        yield f"{len(seen['workItems'])} work items in place of {int(flagged)}"
    called_back = int(truth["violationType"] in _violations_with_a_callback())
    if seen["callbacks"] != called_back:
        yield f"{seen['callbacks']} callbacks in place of {called_back}"
    if flagged and seen["tags"].get("compliance_status") != expected:
        yield f"tagged {seen['tags'].get('compliance_status')} in place of {expected}"
    if not flagged and "compliance_status" in seen["tags"]:
        yield "tagged without a violation"
