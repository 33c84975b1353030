"""A policy replayed over stored screenings says what it says of the recordings themselves, and can be killed."""

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from compliance_pipeline import steps
from compliance_pipeline.contracts.event import Channel, Direction, Participant, RecordingEvent
from compliance_pipeline.contracts.policy import Annotation, Detector, FindingKind, PolicyPack, Severity
from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.intake.inbox import IncomingEvent
from compliance_pipeline.platforms.port import Gone, MediaStream, NotYet, Platform
from compliance_pipeline.replay import Judging, ReplayReport, choose_part, replay
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.screening.engine import MediaFacts, Screening, WordsRead
from compliance_pipeline.screening.findings import Finding
from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline.warehouse.tables import EvidenceRow
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.warehouse.test_served import served
from compliance_pipeline_tests.workshop import Workshop, recording, workshop

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

DEFAULT = load_policy()
WILD = PolicyPack.model_validate_json(
    """
{"pack": "wild", "version": "1.0.0", "notice": "for tests",
 "phrases": {
  "notice": {"description": "d", "patterns": ["x"]},
  "threat": {"description": "d", "patterns": ["x"]},
  "health_term": {"description": "d", "patterns": ["x"]},
  "asks_name": {"description": "d", "patterns": ["x"]},
  "excuse": {"description": "d", "patterns": ["x"]},
  "card_number": {"description": "d", "patterns": ["x"]}
 },
 "rules": [
  {"id": "R-REVIEW", "title": "t", "basis": [{"cite": "c"}], "severity": "high", "violation_type": "A",
   "verdict": "REVIEW_REQUIRED", "actions": ["tag_recording"],
   "when": {"findings": {"kinds": ["card_number", "phone_number"], "phrases": ["threat"], "min_confidence": 0.5},
            "absent": {"phrases": ["notice", "asks_name"], "later": ["notice"], "within_s": 60}}},
  {"id": "R-CARD", "title": "t", "basis": [{"cite": "c"}], "severity": "high", "violation_type": "B",
   "actions": ["tag_recording"],
   "when": {"findings": {"kinds": ["card_number"], "speakers": ["customer"], "min_confidence": 0.75},
            "together": {"one": {"kinds": ["card_number"], "speakers": ["agent"]},
                         "other": {"phrases": ["health_term"], "kinds": ["phone_number"]}, "within_s": 30}},
   "unless": {"phrases": ["excuse"], "annotations": ["secure_pause"]}},
  {"id": "R-BOTH", "title": "t", "basis": [{"cite": "c"}], "severity": "critical", "violation_type": "C",
   "actions": ["tag_recording"],
   "when": {"together": {"one": {"phrases": ["threat", "card_number"]}, "other": {"phrases": ["threat", "notice"]},
                         "within_s": 0.5}}},
  {"id": "R-ORDER", "title": "t", "basis": [{"cite": "c"}], "severity": "high", "violation_type": "D",
   "applies": {"queues": ["*coll*"], "or_said": ["asks_name"], "except_queues": ["*parcel*"]},
   "actions": ["tag_recording"],
   "when": {"sequence": {"first": {"phrases": ["asks_name", "notice"], "kinds": ["email_address"]}, "at_least": 2,
                         "then": {"phrases": ["health_term"], "speakers": ["agent"]}}}},
  {"id": "R-LATE", "title": "t", "basis": [{"cite": "c"}], "severity": "low", "violation_type": "E",
   "actions": ["tag_recording"], "channels": ["voice", "chat"],
   "when": {"findings": {"phrases": ["threat"], "speakers": ["agent"]},
            "metadata": {"started_outside": {"earliest": "08:00:00", "latest": "20:59:30"}}}},
  {"id": "R-EXCUSED", "title": "t", "basis": [{"cite": "c"}], "severity": "low", "violation_type": "H",
   "actions": ["tag_recording"],
   "when": {"together": {"one": {"phrases": ["threat"]}, "other": {"kinds": ["government_id"]}, "within_s": 5}},
   "unless": {"phrases": ["notice"]}},
  {"id": "R-PAUSE", "title": "t", "basis": [{"cite": "c"}], "severity": "high", "violation_type": "F",
   "actions": ["tag_recording"], "when": {"metadata": {"annotated": ["pause_not_resumed"]}}},
  {"id": "R-END", "title": "t", "basis": [{"cite": "c"}], "severity": "medium", "violation_type": "G",
   "actions": ["tag_recording"], "when": {"absent": {"phrases": ["notice"], "speakers": ["agent"]}}}
 ]}
"""
)
STRICTER = DEFAULT.model_copy(
    update={
        "version": "9.0.0",
        "rules": tuple(
            rule.model_copy(update={"verdict": VerdictValue.VIOLATION_DETECTED, "severity": Severity.CRITICAL})
            if number % 3 == 0
            else rule
            for number, rule in enumerate(DEFAULT.rules)
            if number % 5
        ),
    }
)
PACKS = [DEFAULT, STRICTER, WILD]


@dataclass(frozen=True)
class Made:
    event: RecordingEvent
    outcome: Screening | Gone


class Scripted:
    """An engine whose findings are made up."""

    version = "scripted-1"

    def __init__(self, made: list[Made]) -> None:
        self._outcomes = {one.event.recording_id: one.outcome for one in made}
        self.asked: list[str] = []

    def judge(
        self, _platform: Platform, event: RecordingEvent, _correlation: str, _located: Callable[[MediaStream], None]
    ) -> Screening | NotYet | Gone:
        self.asked.append(event.recording_id)
        outcome = self._outcomes[event.recording_id]
        return replace(outcome) if isinstance(outcome, Screening) else outcome

    def close(self) -> None: ...


TELLING = ("recording_notice", "notice", "health_term", "health_disclosure", "asks_name")
STARTS = (0, 499, 500, 1000, 15_000, 30_000, 30_001, 59_999, 60_000, 60_500, 90_000)
CONFIDENCES = (0.3, 0.5, 0.74, 0.75, 0.8, 0.9, 1.0)
SPEAKERS = ("agent", "customer", "0")
DURATIONS = (20_000, 29_999, 30_000, 59_999, 90_000)


def made_up(seed: int, count: int) -> list[Made]:
    """Recordings on the edges of what rules tell apart: equal times and confidences, limits met and just missed."""
    chance = random.Random(seed)
    phrases = sorted({*DEFAULT.phrases, *WILD.phrases})
    kinds = [kind for kind in FindingKind if kind is not FindingKind.PHRASE]

    def finding() -> Finding:
        phrase = chance.choice([*TELLING * 5, *phrases, "unheard_of"]) if chance.random() < 0.6 else None
        start = chance.choice(STARTS)
        return Finding(
            FindingKind.PHRASE if phrase else chance.choice(kinds),
            Detector.PHRASES if phrase else chance.choice([Detector.TONES, Detector.DIGITS, Detector.TEXT]),
            chance.choice(SPEAKERS),
            start,
            start + 100,
            chance.choice(CONFIDENCES),
            f"masked {chance.randrange(1000)}",
            phrase=phrase,
        )

    def one(number: int) -> Made:
        channel = chance.choice([Channel.VOICE, *Channel])
        # Outside of 8 to 21 in New York, and just not.
        began = datetime(2026, 3, 1, *chance.choice([(2, 0), (1, 59), (13, 0), (12, 59)]), 0, tzinfo=UTC)
        event = RecordingEvent(
            recording_id=f"rec-{number:05d}",
            media_uri="https://media.test/1",
            channel=channel,
            direction=chance.choice([None, *Direction, Direction.OUTBOUND]),
            start_time=chance.choice([None, began, began, began]),
            called_time_zone=chance.choice([None, *["America/New_York"] * 3, "Asia/Kolkata", "Nowhere/Land"]),
            participants=(Participant(queue=chance.choice([None, "sales", "Collections", "parcel collection"])),),
        )
        if chance.random() < 0.03:
            return Made(event, Gone("deleted"))
        words = WordsRead(frozenset(chance.choice([("agent", "customer"), ("customer",), ("0", "1"), ()])),
                          chance.random() < 0.8)  # fmt: skip
        reason = chance.choice([None] * 6 + ["truncated"])
        screening = Screening(
            findings=sorted((finding() for _ in range(chance.choice([0, 0, 1, 2, 3, 6]))), key=lambda f: f.start_ms),
            media=chance.choice([None, MediaFacts(1, "0" * 64, "wav", "pcm", 1, chance.choice(DURATIONS),
                                                  reason is None)]),
            words=words if channel is not Channel.VOICE or chance.random() < 0.7 else None,
            unscreenable=reason,
            annotations=chance.choice([None, frozenset(), frozenset({chance.choice(list(Annotation))})]),
        )  # fmt: skip
        return Made(event, screening)

    def like(other: Made, number: int) -> Made:
        """One that differs from another in one thing, or in nothing."""
        event = other.event.model_copy(update={"recording_id": f"rec-{number:05d}"})
        if not isinstance(other.outcome, Screening):
            return Made(event, other.outcome)
        screening = replace(other.outcome)
        findings = list(screening.findings)
        at = chance.randrange(len(findings)) if findings else 0
        match chance.choice([0, 0, 1, 2, 3, 4, 5]) if findings else chance.choice([4, 5]):
            case 0:
                findings[at] = replace(findings[at], start_ms=chance.choice(STARTS))
            case 1:
                findings[at] = replace(findings[at], confidence=chance.choice(CONFIDENCES))
            case 2:
                findings[at] = replace(findings[at], speaker=chance.choice(SPEAKERS))
            case 3:
                findings.append(replace(findings[at], start_ms=chance.choice(STARTS)))
            case 4 if event.start_time:
                event = event.model_copy(
                    update={"start_time": event.start_time.replace(second=chance.choice([0, 1, 59]))}
                )
            case 5 if screening.media:
                screening.media = replace(screening.media, duration_ms=chance.choice(DURATIONS))
        screening.findings = sorted(findings, key=lambda f: f.start_ms)
        return Made(event, screening)

    first = [one(number) for number in range(count // 4)]
    return first + [like(chance.choice(first), number) for number in range(len(first), count)]


def told_apart() -> list[Made]:
    """Recordings of which each two differ in little that decides."""

    def found(what: str, start_ms: int, detector: Detector = Detector.TEXT, confidence: float = 0.9) -> Finding:
        if what in list(FindingKind):
            return Finding(FindingKind(what), detector, "agent", start_ms, start_ms, confidence, what)
        return Finding(
            FindingKind.PHRASE, Detector.PHRASES, "agent", start_ms, start_ms, confidence, "said", phrase=what
        )

    contents = [
        *([found("health_term", 0), found("phone_number", ms)] for ms in (60_000, 60_001)),
        *([found("card_number", 0), found("health_term", ms)] for ms in (30_000, 30_001)),
        *([found("threat", 1000), found("notice", ms)] for ms in (1500, 1501)),
        *([found("recording_notice", ms)] for ms in (30_000, 30_001)),
        *([found("notice", 0), found("asks_name", ms)] for ms in (60_000, 60_001)),
        *([found("card_verification_code", ms), found("card_pin", 3000)] for ms in (2000, 3000, 4000)),
        *([found("card_number", 0, Detector.DIGITS, sure)] for sure in (0.79, 0.8)),
        *([found("card_number", 0, detector)] for detector in Detector if detector is not Detector.PHRASES),
        *([found("card_number", 0, confidence=sure), found("card_number", 9, confidence=0.85)] for sure in (0.8, 0.95)),
        *([found("health_term", 0, confidence=sure), found("phone_number", 1, confidence=0.8)] for sure in (0.7, 0.9)),
    ]
    words = WordsRead(frozenset({"agent", "customer"}), timed=True)
    media = MediaFacts(1, "0" * 64, "wav", "pcm", 1, 90_000, complete=True)
    return [
        Made(
            RecordingEvent(
                recording_id=f"edge-{number}-{second}",
                media_uri="https://media.test/1",
                direction=Direction.OUTBOUND,
                start_time=datetime(2026, 3, 1, 2, 0, second, tzinfo=UTC),
                called_time_zone="America/New_York",
            ),
            Screening(findings=findings, words=words, media=media, annotations=frozenset()),
        )
        for number, findings in enumerate([*contents, []])
        for second in (0, 1)
    ]


@contextmanager
def screened(home: Path, policy: PolicyPack, made: list[Made]) -> Iterator[Workshop]:
    """All of these, screened and judged by the steps of runs."""
    with workshop(home) as shop:
        shop.pipeline.policy = policy
        shop.pipeline.engine = Scripted(made)
        now = shop.clock()
        shop.inbox.store(
            [IncomingEvent(one.event, "guide", f"msg-{one.event.recording_id}", shop.at) for one in made], now
        )
        for _ in range(0, len(made), steps.BATCH_LIMIT):
            batch = shop.batch()
            steps.claim(shop.pipeline, batch)
            steps.screen_batch(shop.pipeline, batch)
            shop.inbox.done([item.recording_id for item in shop.inbox.claimed(batch.owner)], batch.owner, now)
        yield shop


VERDICTS = (
    "SELECT * EXCLUDE (judged_at, run_id, partition_hour) FROM verdicts WHERE policy_version = $policy ORDER BY ALL"
)
VIOLATIONS = "SELECT * EXCLUDE partition_hour FROM violations WHERE policy_version = $policy ORDER BY ALL"


def judged(shop: Workshop, policy: PolicyPack) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    key = {"policy": policy.policy_version}
    return shop.warehouse.select(VERDICTS, key), shop.warehouse.select(VIOLATIONS, key)


def anew(policy: PolicyPack) -> PolicyPack:
    """The same rules as another version, of which nothing is judged yet."""
    return policy.model_copy(update={"version": "99.0.0"})


@pytest.mark.parametrize("policy", PACKS, ids=lambda policy: policy.policy_version)
def test_a_replay_says_what_the_policy_says_of_the_recordings_themselves(tmp_path: Path, policy: PolicyPack) -> None:
    made = [*made_up(1, 250), *told_apart()]
    with screened(tmp_path, policy, made) as shop:
        expected = judged(shop, policy)
        shop.pipeline.policy = anew(policy)
        report = replay(shop.pipeline, [shop.at], "replay-1")
        assert (report.judged, report.known, report.without_screening, report.changed) == (len(made), 0, 0, 0)
        assert report.verdicts == Counter(row["verdict"] for row in expected[0])
        for replayed, wanted in zip(judged(shop, shop.pipeline.policy), expected, strict=True):
            assert replayed == [row | {"policy_version": shop.pipeline.policy.policy_version} for row in wanted]


def test_a_replay_over_the_served_warehouse_says_what_it_says_over_the_file(tmp_path: Path) -> None:
    with screened(tmp_path, WILD, [*made_up(7, 150), *told_apart()]) as shop:
        shop.pipeline.policy = STRICTER
        over_file = replay(shop.pipeline, [shop.at], "replay-1")
        expected = judged(shop, STRICTER)
        with served(shop.warehouse.path) as server:
            shop.pipeline.warehouse = server.warehouse()
            shop.pipeline.policy = anew(STRICTER)
            assert replay(shop.pipeline, [shop.at], "replay-2") == replace(over_file, changed=0)
            for over_server, wanted in zip(judged(shop, shop.pipeline.policy), expected, strict=True):
                assert over_server == [row | {"policy_version": shop.pipeline.policy.policy_version} for row in wanted]


def test_each_part_of_an_hour_can_be_judged_again_without_storing_anything(tmp_path: Path) -> None:
    made = made_up(2, 120)
    with screened(tmp_path, WILD, made) as shop:
        expected, rows = judged(shop, WILD), 0
        judging = Judging(WILD)
        verdicts: list[dict[str, Any]] = []
        for part in range(3):
            with shop.warehouse.read() as connection:
                choose_part(connection, Scripted.version, shop.at, part, 3)
                rows += judging.judge(connection, Scripted.version, shop.at)
                found = connection.execute("SELECT * EXCLUDE partition_hour FROM judged")
                names = [column[0] for column in found.description or ()]
                verdicts += [dict(zip(names, row, strict=True)) for row in found.fetchall()]
        assert rows == len(made)
        assert sorted(verdicts, key=lambda row: str(row["recording_id"])) == expected[0]
        assert judged(shop, WILD) == expected


def test_a_second_replay_finds_all_of_it_judged_and_counts_what_changed_against_the_newest(tmp_path: Path) -> None:
    made = made_up(3, 120)
    with screened(tmp_path, DEFAULT, made) as shop:
        before = {row["recording_id"]: (row["verdict"], row["rule_id"]) for row in judged(shop, DEFAULT)[0]}
        shop.pipeline.policy = STRICTER
        first = replay(shop.pipeline, [shop.at], "replay-1")
        rows = shop.rows("verdicts")
        after = {row["recording_id"]: (row["verdict"], row["rule_id"]) for row in judged(shop, STRICTER)[0]}
        assert first.changed == sum(after[one] != was for one, was in before.items())
        assert 0 < first.changed < len(made)
        assert shop.rows("policies")[1]["content"] in (DEFAULT.content, STRICTER.content)
        second = replay(shop.pipeline, [shop.at], "replay-2")
        assert (second.judged, second.known, second.changed) == (0, len(made), 0)
        assert shop.rows("verdicts") == rows
        newest = shop.warehouse.select("SELECT DISTINCT policy_version, run_id FROM latest_verdicts")
        assert newest == [{"policy_version": STRICTER.policy_version, "run_id": "replay-1"}]


def test_recordings_that_another_engine_screened_are_counted_and_left_to_their_media(tmp_path: Path) -> None:
    with screened(tmp_path, DEFAULT, made_up(4, 20)) as shop:
        shop.pipeline.engine.version = "scripted-2"  # type: ignore[misc]
        report = replay(shop.pipeline, [shop.at, shop.at - timedelta(hours=1)], "replay-1")
        assert (report.judged, report.without_screening) == (0, 20)


def test_others_get_the_warehouse_between_two_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compliance_pipeline.replay.PART_SIZE", 20)
    monkeypatch.setattr("compliance_pipeline.replay.HELD_S", 0.001)
    with screened(tmp_path, DEFAULT, made_up(5, 60)) as shop:
        shop.pipeline.policy = STRICTER
        other = Warehouse(shop.warehouse.path, lock_timeout_s=1)
        seen: list[int] = []

        def look(_hour: datetime, report: ReplayReport) -> None:
            [row] = other.select("SELECT count(*) AS n FROM verdicts WHERE run_id = 'replay-1'")
            assert row["n"] == report.judged
            seen.append(row["n"])

        replay(shop.pipeline, [shop.at], "replay-1", look)
        assert seen[:3] == [20, 40, 60]


class Interrupted(Judging):
    """Something happens each time between what was looked at and what is stored of it."""

    def __init__(self, policy: PolicyPack, meanwhile: Callable[[], object]) -> None:
        super().__init__(policy)
        self._meanwhile = meanwhile

    def judge(self, connection: "DuckDBPyConnection", engine_version: str, hour: datetime) -> int:
        count = super().judge(connection, engine_version, hour)
        self._meanwhile()
        return count


def test_what_another_judges_while_a_replay_reckons_is_known_and_not_judged_twice(tmp_path: Path) -> None:
    made = made_up(8, 60)
    with screened(tmp_path, DEFAULT, made) as shop:
        shop.pipeline.policy = STRICTER
        some = sorted(one.event.recording_id for one in made)[10:25]
        others: list[ReplayReport] = []

        def other() -> None:
            if not others:
                others.append(ReplayReport())
                others[:] = [replay(shop.pipeline, [shop.at], "replay-other", only=some)]

        report = replay(shop.pipeline, [shop.at], "replay-1", judging=Interrupted(STRICTER, other))
        assert (report.judged, report.known, others[0].judged) == (45, 15, 15)
        assert report.verdicts + others[0].verdicts == Counter(row["verdict"] for row in judged(shop, STRICTER)[0])
        by_run = shop.warehouse.select(
            "SELECT run_id, list(recording_id ORDER BY recording_id) AS ids FROM verdicts "
            "WHERE policy_version = $policy GROUP BY run_id ORDER BY run_id",
            {"policy": STRICTER.policy_version},
        )
        assert [(row["run_id"], len(row["ids"])) for row in by_run] == [("replay-1", 45), ("replay-other", 15)]
        assert by_run[1]["ids"] == some
        shop.pipeline.policy = anew(STRICTER)
        replay(shop.pipeline, [shop.at], "replay-2")
        for were, wanted in zip(judged(shop, STRICTER), judged(shop, shop.pipeline.policy), strict=True):
            assert were == [row | {"policy_version": STRICTER.policy_version} for row in wanted]


def test_what_is_screened_anew_while_a_replay_reckons_is_judged_by_what_was_found_last(tmp_path: Path) -> None:
    made = made_up(9, 60)
    with screened(tmp_path, DEFAULT, made) as shop:
        [first, *_] = broken = sorted({row["recording_id"] for row in judged(shop, DEFAULT)[1] if row["finding_no"]})
        times = 0

        def screen_anew() -> None:
            nonlocal times
            times += 1
            if times == 1:
                with Warehouse(shop.warehouse.path).write() as connection:
                    for change in (
                        "DELETE FROM findings",
                        "UPDATE screenings SET screened_at = screened_at + INTERVAL 1 SECOND",
                    ):
                        connection.execute(f"{change} WHERE recording_id = $id", {"id": first})

        shop.pipeline.policy = anew(DEFAULT)
        report = replay(shop.pipeline, [shop.at], "replay-1", judging=Interrupted(shop.pipeline.policy, screen_anew))
        assert (report.judged, report.known, times) == (60, 0, 2)
        after = {row["recording_id"] for row in judged(shop, shop.pipeline.policy)[1] if row["finding_no"]}
        assert after == set(broken) - {first}


def test_what_a_failed_block_wrote_on_a_lent_connection_is_gone_and_its_own_tables_stay(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "it's here" / "warehouse.duckdb", lock_timeout_s=1)
    with duckdb.connect() as here:
        with warehouse.lent(here, read_only=True):
            here.execute("CREATE TEMP TABLE counted AS SELECT count(*) AS n FROM policies")
        with pytest.raises(duckdb.InvalidInputException), warehouse.lent(here):
            here.execute("INSERT INTO policies VALUES ('p', '{}', now()); SELECT error('broken off')")
        assert Warehouse(warehouse.path, lock_timeout_s=1).select("FROM policies") == []
        with warehouse.lent(here):
            here.execute("INSERT INTO policies SELECT 'p' || n, '{}', now() FROM counted")
        assert [row["policy_version"] for row in warehouse.select("FROM policies")] == ["p0"]


DIES = """
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from compliance_pipeline import replay
from compliance_pipeline.clock import utc_now
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.test_replay import STRICTER, Scripted
replay.PART_SIZE = 10
replay.HELD_S = 0.001
pipeline = SimpleNamespace(
    warehouse=Warehouse(Path(sys.argv[1])), policy=STRICTER, engine=Scripted([]), clock=utc_now)
replay.replay(pipeline, [datetime.fromisoformat(sys.argv[2])], "replay-0", lambda *_: print("part", flush=True))
"""


def test_a_replay_that_is_killed_is_finished_by_the_next(tmp_path: Path) -> None:
    made = made_up(6, 200)
    with screened(tmp_path / "killed", DEFAULT, made) as shop:
        process = subprocess.Popen(
            [sys.executable, "-c", DIES, str(shop.warehouse.path), shop.at.isoformat()], stdout=subprocess.PIPE
        )
        assert process.stdout
        for _ in range(3):
            assert process.stdout.readline() == b"part\n"
        process.kill()
        process.wait()
        process.stdout.close()
        shop.pipeline.policy = STRICTER
        report = replay(shop.pipeline, [shop.at], "replay-1")
        assert 0 < report.known < len(made)
        assert report.judged + report.known == len(made)
        twice = judged(shop, STRICTER)
        shop.pipeline.policy = anew(STRICTER)
        replay(shop.pipeline, [shop.at], "replay-2")
        once = judged(shop, shop.pipeline.policy)
        for were, wanted in zip(twice, once, strict=True):
            assert were == [row | {"policy_version": STRICTER.policy_version} for row in wanted]


def test_a_run_judges_by_a_new_policy_without_media_and_keeps_findings_and_evidence(tmp_path: Path) -> None:
    with workshop(tmp_path) as shop:
        shop.announce(*(recording(kind) for kind in (Kind.CHAT_CARD, Kind.CHAT_SSN, Kind.CHAT_CLEAN)))
        shop.run()
        evidence = EvidenceRow(
            recording(Kind.CHAT_CARD).recording_id, shop.pipeline.engine.version, 0, shop.at, "verified", "text", None,
            0, 1, None, shop.clock(), "run-1",
        )  # fmt: skip
        shop.warehouse.append([evidence])
        kept = {table: shop.rows(table) for table in ("findings", "screenings", "media", "evidence")}
        fetched = shop.state.counts["media fetched"]
        shop.pipeline.policy = anew(DEFAULT)
        report = steps.screen_batch(shop.pipeline, shop.batch(whole_partition=True))
        assert (report.replayed, report.known) == (3, 0)
        assert report.verdicts == {"VIOLATION_DETECTED": 2, "NO_VIOLATION": 1}
        assert shop.state.counts["media fetched"] == fetched
        assert {table: shop.rows(table) for table in kept} == kept


def test_a_run_fetches_what_was_screened_before_screenings_were_kept(tmp_path: Path) -> None:
    with workshop(tmp_path) as shop:
        shop.announce(*(recording(kind) for kind in (Kind.CHAT_CARD, Kind.CHAT_CLEAN)))
        shop.run()
        gone = recording(Kind.CHAT_CARD).recording_id
        with shop.warehouse.write() as connection:
            connection.execute("DELETE FROM screenings WHERE recording_id = $id", {"id": gone})
        fetched = shop.state.counts["media fetched"]
        shop.pipeline.policy = anew(DEFAULT)
        report = steps.screen_batch(shop.pipeline, shop.batch(whole_partition=True))
        assert (report.replayed, report.verdicts) == (1, {"VIOLATION_DETECTED": 1, "NO_VIOLATION": 1})
        assert shop.state.counts["media fetched"] == fetched + 1
        assert len(shop.rows("screenings")) == 2
