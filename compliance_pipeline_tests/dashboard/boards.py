"""A home with a month of made-up recordings, published: what the pages' tests look at. The same for the same seed.

    settings = board(tmp_path / "home")                   # a warehouse, an inbox, breakers, reviews; published at END
    client = visitor(settings)                            # from this machine, at END
    add(settings, later); publish_at(settings, later)     # a newer snapshot

It is made once for a state of the code that makes it, and copied from the machine's temporary folder after that.
"""

import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock
from starlette.testclient import TestClient

import compliance_pipeline
from compliance_pipeline import database
from compliance_pipeline.breaker import breaker_table, opening_table
from compliance_pipeline.clock import Clock
from compliance_pipeline.contracts.event import Channel, Direction, Participant, RecordingEvent
from compliance_pipeline.dashboard.app import create_app
from compliance_pipeline.figures.figures import Objective
from compliance_pipeline.figures.snapshots import Published, folder_of, publish
from compliance_pipeline.intake.hours import partition_hour
from compliance_pipeline.intake.inbox import Inbox, IncomingEvent
from compliance_pipeline.reviews import reviews
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.tables import (
    FindingRow,
    MediaRow,
    RecordingRow,
    RemediationRow,
    Row,
    StageTimeRow,
    VerdictRow,
    ViolationRow,
)
from compliance_pipeline.warehouse.warehouse import Warehouse

END = datetime(2026, 5, 30, 21, 43, 10, tzinfo=UTC)
"""The time of publishing: a Saturday evening."""
QUEUES = {"billing": 0.05, "claims": 0.05, "collections": 0.16, "sales": 0.09, "support": 0.04}
"""How likely a recording of the queue breaks a rule."""
RULES = {
    "PCI-PAN-01": ("PCI_MID_CAPTURE", "high"),
    "PCI-SAD-01": ("PCI_SAD_CAPTURE", "critical"),
    "REC-CONSENT-01": ("REC_NOTICE_MISSING", "high"),
    "PII-GOV-02": ("PII_GOVERNMENT_ID", "medium"),
    "FDCPA-THREAT-01": ("FDCPA_THREAT", "critical"),
    "GDPR-ART9-01": ("GDPR_SPECIAL_CATEGORY", "medium"),
}
WEIGHTS = (6, 2, 5, 3, 1, 2)
POLICIES = ("default-us-eu@1 4be1c0ffee01", "default-us-eu@2 9d20aa5177c3")
AGENTS = 24
INCIDENT = END - timedelta(days=12)
"""A day on which fetching was slow."""


@dataclass(frozen=True)
class Shape:
    """How much there is. hours: those of each day, UTC, that have recordings; older: of days more than a week back."""

    days: int = 31
    hours: tuple[int, ...] = (10, 21)
    older: tuple[int, ...] = (10,)
    recordings_an_hour: int = 40
    seed: int = 7


SMALL = Shape()


def board(home: Path, shape: Shape = SMALL, **of_settings: object) -> Settings:
    """Settings of a home that is filled and published at END."""
    made = sha256(repr(shape).encode())
    package = Path(compliance_pipeline.__file__).parent
    for path in (
        Path(__file__),
        *(package / one for one in ("figures/snapshots.py", "reviews.py", "breaker.py", "intake/inbox.py")),
        *sorted((package / "warehouse").rglob("*.py")),
        *sorted((package / "warehouse").rglob("*.sql")),
        *sorted((package / "figures/sql/snapshot").rglob("*.sql")),
    ):
        made.update(path.read_bytes())
    kept = Path(tempfile.gettempdir()) / f"compliance-board-{made.hexdigest()[:16]}"
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            part = Path(f"{kept}.part")
            shutil.rmtree(part, ignore_errors=True)
            publish_at(fill(part, shape))
            part.rename(kept)
    shutil.copytree(kept, home)
    return _settings(home, of_settings)


def fill(home: Path, shape: Shape = SMALL, **of_settings: object) -> Settings:
    """Settings of a home with recordings up to END, not yet published."""
    settings = _settings(home, of_settings)
    rng = random.Random(shape.seed)
    inbox, warehouse = Inbox(settings.inbox_database_url), Warehouse(settings.warehouse_path)
    inbox.create()
    rows = list(_history(rng, shape))
    warehouse.append(rows)
    _not_judged(rng, inbox)
    _breakers(inbox.engine)
    _reviews(rng, inbox.engine, [row for row in rows if isinstance(row, ViolationRow)])
    inbox.close()
    return settings


def _settings(home: Path, of_settings: dict[str, object]) -> Settings:
    return Settings(_env_file=None, home=home, **of_settings)  # type: ignore[arg-type]


def visitor(settings: Settings, clock: Clock = lambda: END, **options: Any) -> TestClient:
    """A browser of this machine, which needs no sign-in."""
    app = create_app(settings, clock=clock)
    return TestClient(app, base_url="http://127.0.0.1:8060", client=("127.0.0.1", 50_000), **options)


def publish_at(settings: Settings, now: datetime = END) -> Published:
    inbox, warehouse = Inbox(settings.inbox_database_url), Warehouse(settings.warehouse_path)
    try:
        return publish(warehouse, inbox, folder_of(settings.home), Objective.of_settings(settings), now)
    finally:
        inbox.close()


def add(settings: Settings, now: datetime, seed: int = 1, recordings: int = 5) -> None:
    """More recordings, of the ten minutes before `now`; published with the next `publish_at`."""
    rng = random.Random(seed)
    rows: list[Row] = []
    for number in range(recordings):
        at = now - timedelta(minutes=10) + timedelta(seconds=30 * number)
        rows += _recording(rng, f"rec-new-{seed}-{number:03d}", at, POLICIES[1], slow=False)
    Warehouse(settings.warehouse_path).append(rows)


def _history(rng: random.Random, shape: Shape) -> Iterator[Row]:
    number = 0
    midnight = END.replace(hour=0, minute=0, second=0, microsecond=0)
    for back in range(shape.days, -1, -1):
        day = midnight - timedelta(days=back)
        for hour in shape.hours if back < 8 else shape.older:
            for _ in range(round(shape.recordings_an_hour * rng.uniform(0.7, 1.3))):
                at = day + timedelta(hours=hour, seconds=rng.uniform(0, 3600))
                number += 1
                if at < END - timedelta(minutes=2):
                    policy = POLICIES[at > END - timedelta(days=10)]
                    slow = day.date() == INCIDENT.date() and hour >= 10
                    yield from _recording(rng, f"rec-{number:06d}", at, policy, slow)


def _recording(rng: random.Random, name: str, at: datetime, policy: str, slow: bool) -> Iterator[Row]:
    hour = at.replace(minute=0, second=0, microsecond=0)
    queue = rng.choices(list(QUEUES), (4, 2, 3, 4, 2))[0]
    channel = rng.choices(("voice", "chat", "email"), (7, 2, 1))[0]
    direction = rng.choices(("inbound", "outbound"), (3, 2))[0]
    agent = f"tok_{int(rng.triangular(0, AGENTS, 3)):02d}c0ffee"
    took = {
        "platform": rng.lognormvariate(3.2, 0.5),
        "delivery": rng.lognormvariate(-1.2, 0.6),
        "queue": rng.lognormvariate(0.3, 0.6),
        "start": rng.lognormvariate(-0.5, 0.3),
        "batch": rng.lognormvariate(-1.5, 0.8),
        "fetch": rng.lognormvariate(2.9 if slow else 0.4, 0.5),
        "analysis": rng.lognormvariate(1.2, 0.6),
    }
    received = at + timedelta(seconds=took["delivery"])
    yield RecordingRow(
        name, hour, "guide", channel, direction, queue, [agent], f"msg-{name}", None,
        at - timedelta(seconds=took["platform"]), at, received, received, f"conv-{name}", rng.random() < 0.01, agent,
    )  # fmt: skip
    violates = rng.random() < QUEUES[queue] * (1.6 if direction == "outbound" else 1)
    broken = sorted(set(rng.choices(list(RULES), WEIGHTS, k=rng.choice((1, 1, 1, 2))))) if violates else []
    screenable = rng.random() > 0.004
    ours = list(took)[1:]
    judged_s = sum(took[stage] for stage in ours)
    judged = at + timedelta(seconds=judged_s)
    first = min(broken, key=lambda rule: ("critical", "high", "medium").index(RULES[rule][1]), default=None)
    verdict = "UNSCREENABLE" if not screenable else "VIOLATION_DETECTED" if broken else "NO_VIOLATION"
    yield VerdictRow(
        recording_id=name, policy_version=policy, engine_version="engine-1", partition_hour=hour, channel=channel,
        verdict=verdict, violation_type=RULES[first][0] if first and screenable else None,
        rule_id=first if screenable else None, severity=RULES[first][1] if first and screenable else None,
        confidence_score=0.93 if broken else None, timestamp_offset_ms=29_000 if broken else None,
        evidence_snippet=None, recommended_action="CREATE_WORK_ITEM" if broken else "NONE",
        correlation_id=f"msg-{name}", unscreenable_reason=None if screenable else rng.choice(("damaged", "silent")),
        undetermined_rules=["REC-CONSENT-01"] if channel == "email" else [], judged_at=judged, run_id="run-1",
    )  # fmt: skip
    yield MediaRow(name, "engine-1", hour, 900_000, "0" * 64, "ogg", "opus", 2, 180_000, True, judged)
    start = at - timedelta(seconds=took["platform"])
    for stage, seconds in took.items():
        yield StageTimeRow(name, stage, hour, channel, start, start + timedelta(seconds=seconds), seconds)
        start += timedelta(seconds=seconds)
    yield StageTimeRow(name, "judged", hour, channel, at, judged, judged_s)
    if not screenable:
        return
    if not broken:
        tagged_s = rng.lognormvariate(-0.9, 0.3)
    else:
        tagged_s = rng.lognormvariate(-0.7, 0.4)
        first_s = took["analysis"] * rng.uniform(0.2, 0.9)
        yield StageTimeRow(name, "first_finding", hour, channel, at, at + timedelta(seconds=first_s), first_s)
    flagged = judged + timedelta(seconds=tagged_s)
    yield StageTimeRow(name, "remediation", hour, channel, judged, flagged, tagged_s)
    yield StageTimeRow(name, "flagged", hour, channel, at, flagged, judged_s + tagged_s)
    for no, rule in enumerate(broken, 1):
        kind, severity = RULES[rule]
        offset = rng.randrange(5_000, 170_000)
        yield FindingRow(
            name, "engine-1", no, hour, "card_number", "digits", "customer", offset, offset + 8_000, 0.93,
            "411111******1111", spans=[[offset, offset + 8_000]],
        )  # fmt: skip
        yield ViolationRow(
            name, policy, "engine-1", rule, hour, channel, "VIOLATION_DETECTED", kind, severity, "digits",
            "customer", offset, round(rng.uniform(0.7, 0.99), 2), "411111******1111", 1, no,
        )  # fmt: skip
        for action in ("tag_recording", "create_work_item"):
            tries, chance = 1, rng.random()
            status = "dead" if chance > 0.97 else "failed" if chance > 0.94 else "done"
            if status != "done" or chance < 0.05:
                tries = rng.randrange(2, 6)
            yield RemediationRow(
                name, rule, action, tries, hour, status, f"wi-{name}" if status == "done" else None,
                None if status == "done" else "503 from the platform", flagged, "run-1", tries,
            )  # fmt: skip


def _not_judged(rng: random.Random, inbox: Inbox) -> None:
    """Twelve dead letters, eight deferred, six waiting, over the last three days."""
    fates = ["dead"] * 12 + ["deferred"] * 8 + ["waiting"] * 6
    for number, fate in enumerate(fates):
        days = rng.randrange(3) if fate == "dead" else 0
        at = END - timedelta(days=days, minutes=rng.uniform(3, 8 if fate == "waiting" else 40))
        name = f"rec-lost-{number:03d}"
        event = RecordingEvent(
            recording_id=name, media_uri="https://media.test/1", channel=Channel.VOICE, direction=Direction.INBOUND,
            participants=(Participant(id="tok_00c0ffee", purpose="agent"), Participant(queue=rng.choice(list(QUEUES)))),
        )  # fmt: skip
        inbox.store([IncomingEvent(event, "guide", f"msg-{name}", at)], at)
        if fate == "waiting":
            continue
        hour = partition_hour(at)
        inbox.claim(hour, "run-1", at, timedelta(minutes=1), 10)
        if fate == "dead":
            inbox.dead(name, "run-1", rng.choice(("media gone (404)", "media not ready")), at)
        else:
            inbox.defer(name, "run-1", END + timedelta(minutes=2), "media not ready", at)


def _breakers(engine: sa.Engine) -> None:
    database.ensure(engine, opening_table)
    opened = INCIDENT.replace(hour=10, minute=12)
    later = END - timedelta(days=3, hours=9)
    rows = [
        {"name": "media", "opened_at": opened, "failures": 9, "calls": 14, "closed_at": opened + timedelta(minutes=95)},
        {"name": "platform", "opened_at": later, "failures": 5, "calls": 8, "closed_at": later + timedelta(minutes=40)},
        {"name": "media", "opened_at": END - timedelta(minutes=9), "failures": 6, "calls": 7, "closed_at": None},
    ]
    states = [
        {
            "name": "media",
            "state": "open",
            "opened_at": END - timedelta(minutes=9),
            "since": END - timedelta(minutes=9),
        },
        {"name": "platform", "state": "closed", "opened_at": later, "since": later + timedelta(minutes=40)},
    ]
    with engine.begin() as connection:
        connection.execute(sa.insert(opening_table), rows)
        connection.execute(sa.insert(breaker_table), states)


def _reviews(rng: random.Random, engine: sa.Engine, found: list[ViolationRow]) -> None:
    """Two thirds of what is older than two days are reviewed; one in eight findings was wrong."""
    database.ensure(engine, reviews)
    rows = [
        {
            "recording_id": one.recording_id,
            "rule_id": one.rule_id,
            "decision": "dismissed" if rng.random() < 0.125 else "confirmed",
            "reason": "listened to the clip",
            "by": "rita",
            "at": one.partition_hour + timedelta(hours=20, seconds=number),
            "partition_hour": partition_hour(one.partition_hour),
            "request_key": f"key-{number}",
        }
        for number, one in enumerate(found)
        if one.partition_hour < END - timedelta(days=2) and rng.random() < 0.66
    ]
    with engine.begin() as connection:
        connection.execute(sa.insert(reviews), rows)
