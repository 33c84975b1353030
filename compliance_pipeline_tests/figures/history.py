"""Two weeks of recordings, verdicts, violations, actions and reviews, at random, published as the pipeline does."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from compliance_pipeline import database, reviews
from compliance_pipeline.contracts.event import Channel, Direction, EventType, RecordingEvent
from compliance_pipeline.figures.snapshots import Snapshot, publish
from compliance_pipeline.intake.hours import partition_hour
from compliance_pipeline.intake.inbox import Inbox, State, inbox_table
from compliance_pipeline.objective import Objective
from compliance_pipeline.warehouse.tables import (
    RecordingRow,
    RemediationRow,
    Row,
    StageTimeRow,
    VerdictRow,
    ViolationRow,
)
from compliance_pipeline.warehouse.warehouse import Warehouse

HOUR = timedelta(hours=1)
QUEUES, CHANNELS, DIRECTIONS = ("billing", "claims", "sales"), ("voice", "chat"), ("inbound", "outbound")
AGENTS = ("tok_1", "tok_2", "tok_3", None)
POLICIES = ("pack/1", "pack/2")
RULES = {"R-1": ("PCI", "critical"), "R-2": ("SSN", "high"), "R-3": ("NOTICE", "low"), "R-4": ("TONE", "critical")}
STAGES = ("delivery", "queue", "start", "batch", "fetch", "analysis", "remediation")
OBJECTIVE = Objective(30.0, 0.99, {"chat": 10.0})


@dataclass
class History:
    """`hours`: of the recordings, picked at random from `start` on; the last one is `data_to`'s."""

    rng: random.Random
    start: datetime
    data_to: datetime
    recordings: int
    hours: int
    rows: list[Row] = field(default_factory=list)
    waiting: list[dict[str, object]] = field(default_factory=list)
    decided: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        length = int((self.data_to - self.start) / HOUR)
        known = sorted({length, *self.rng.sample(range(length), self.hours)})
        for number in range(self.recordings):
            hour = self.start + self.rng.choice(known) * HOUR
            at = hour + timedelta(seconds=round(self.rng.uniform(0, 3599), 3))
            self.rows += self._recording(f"rec-{number}", hour, min(at, self.data_to))
        for number in range(self.recordings // 60):
            at = self.data_to - timedelta(seconds=round(self.rng.uniform(0, 60), 3))
            self.rows += self._recording(f"new-{number}", at.replace(minute=0, second=0, microsecond=0), at)

    def _recording(self, name: str, hour: datetime, at: datetime) -> Iterator[Row]:
        rng = self.rng
        queue, channel, direction = (rng.choice(of) for of in (QUEUES, CHANNELS, DIRECTIONS))
        agent = rng.choice(AGENTS)
        fate = rng.random()
        if fate < 0.08:
            self._wait(name, hour, at, channel, queue, direction)
            return
        yield RecordingRow(
            name, hour, "test", channel, direction, queue, [], "m", None, at, at, at, at,
            found_by_sweep=rng.random() < 0.05, agent=agent,
        )  # fmt: skip
        if fate < 0.1:
            return
        policy = rng.choice(POLICIES)
        broken = [rule for rule in RULES if rng.random() < 0.2] if fate >= 0.13 else []
        undetermined = [rule for rule in RULES if rule not in broken and rng.random() < 0.1]
        verdict = "UNSCREENABLE" if fate < 0.13 else "VIOLATION_DETECTED" if broken else "NO_VIOLATION"
        yield VerdictRow(
            recording_id=name, policy_version=policy, engine_version="e", partition_hour=hour, channel=channel,
            verdict=verdict, violation_type=None, rule_id=broken[0] if broken else None, severity=None,
            confidence_score=None, timestamp_offset_ms=None, evidence_snippet=None, recommended_action="NONE",
            correlation_id="m", unscreenable_reason="truncated" if fate < 0.13 else None,
            undetermined_rules=undetermined, judged_at=at + timedelta(seconds=5), run_id="run",
        )  # fmt: skip
        seconds = {stage: round(rng.lognormvariate(0.5, 1.0), 3) for stage in STAGES}
        for stage, took in seconds.items():
            yield StageTimeRow(name, stage, hour, channel, at, at, took)
        if broken and rng.random() < 0.9 and not (name.startswith("new") and rng.random() < 0.7):
            yield StageTimeRow(name, "flagged", hour, channel, at, at, sum(seconds.values()))
        for rule in broken:
            kind, severity = RULES[rule]
            yield ViolationRow(
                name, policy, "e", rule, hour, channel, verdict, kind, severity, "text", "agent", 0, 0.9, "****", 1
            )
            for action in ("tag_recording", "create_work_item"):
                status = rng.choice(("done", "done", "failed", "dead", "planned"))
                yield RemediationRow(
                    name, rule, action, 1, hour, "planned", None, None, at + timedelta(seconds=1), "run", 0
                )
                yield RemediationRow(
                    name, rule, action, 2, hour, status, None, None, at + timedelta(seconds=6), "run", rng.randint(1, 3)
                )
            if rng.random() < 0.4:
                self._review(name, rule, hour, at)

    def _review(self, name: str, rule: str, hour: datetime, at: datetime) -> None:
        self.decided.append({
            "recording_id": name, "rule_id": rule, "decision": self.rng.choice(("confirmed", "dismissed")),
            "reason": "seen", "by": "anna", "at": at + timedelta(seconds=300 + len(self.decided)),
            "partition_hour": partition_hour(hour),
        })  # fmt: skip

    def _wait(self, name: str, hour: datetime, at: datetime, channel: str, queue: str, direction: str) -> None:
        state, reason = self.rng.choice(
            ((State.DEAD, "no media"), (State.DEFERRED, "not there yet"), (State.NEW, None))
        )
        event = RecordingEvent(
            recording_id=name, event=EventType.AVAILABLE, media_uri="https://media.test/1", channel=Channel(channel),
            queue=queue, direction=Direction(direction),
        )  # fmt: skip
        self.waiting.append({
            "recording_id": name, "source": "test", "event": event.event, "state": state,
            "partition_hour": partition_hour(hour), "correlation_id": "m", "available_at": at, "received_at": at,
            "updated_at": at, "attempts": 1, "duplicates": self.rng.randint(0, 2), "reason": reason,
            "payload": event.model_dump(mode="json"),
        })  # fmt: skip

    def publish(self, home: Path) -> Snapshot:
        """The caller closes it."""
        warehouse, inbox = Warehouse(home / "warehouse.duckdb"), Inbox(f"sqlite:///{home / 'inbox.db'}")
        inbox.create()
        database.ensure(inbox.engine, reviews.reviews)
        with database.writer(inbox.engine).begin() as connection:
            connection.execute(inbox_table.insert(), self.waiting)
            connection.execute(reviews.reviews.insert(), self.decided)
        warehouse.append(self.rows)
        publish(warehouse, inbox, home / "snapshots", OBJECTIVE, self.data_to)
        inbox.close()
        return Snapshot.current(home / "snapshots")
