"""Retention over a real vault, ledger and warehouse: what is due goes, what is held stays, a kill loses nothing."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import ValidationError
from typer.testing import CliRunner

from compliance_pipeline import database
from compliance_pipeline.contracts.policy import DEFAULT_RETENTION, RetentionRule
from compliance_pipeline.evidence import clip_name
from compliance_pipeline.ledger import ledger_table
from compliance_pipeline.media.vault import NotInVault, Shredded, Vault, VaultError, vault_of
from compliance_pipeline.plain_text import NotPlain
from compliance_pipeline.retention import (
    PLATFORM,
    Deletion,
    NotHeld,
    Outcome,
    apply,
    begin,
    end,
    hold,
    holds_in_force,
    lift,
    plan_retention,
    purged,
    why_deleted,
)
from compliance_pipeline.retention_cli import app as retention_app
from compliance_pipeline.retention_cli import hold as hold_command
from compliance_pipeline.reviews import Decision, decide
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.tables import EvidenceRow, FindingRow, RecordingRow, Row, VerdictRow, ViolationRow
from compliance_pipeline.warehouse.warehouse import Warehouse

DAY = timedelta(days=1)
START = datetime(2026, 1, 1, 12, tzinfo=UTC)
runner = CliRunner()


@dataclass
class Archive:
    settings: Settings
    engine: sa.Engine
    warehouse: Warehouse
    vault: Vault

    def keep(
        self,
        recording_id: str,
        *names: str,
        kind: str = "card_number",
        verdict: str = "VIOLATION_DETECTED",
        rules: tuple[str, ...] = (),
        at: datetime = START,
    ) -> None:
        """A judged recording. Names below `evidence/` are verified clips; others are not. rules: those it broke."""
        hour = at.replace(minute=0)
        rows: list[Row] = [
            RecordingRow(recording_id, hour, "guide", "voice", None, None, [], "msg", None, None, at, at, at),
            FindingRow(recording_id, "e1", 0, hour, kind, "tones", "agent", 1, 2, 0.9, "masked"),
            VerdictRow(
                recording_id, "p1", "e1", hour, "voice", verdict, None, None, None, None, None, None, "NONE", "msg",
                None, [], at, "run-1",
            ),
        ]  # fmt: skip
        rows += [
            ViolationRow(
                recording_id, "p1", "e1", rule, hour, "voice", verdict, "PCI_CVV", "critical", "tones", "agent", 1, 0.9,
                "masked", 1, 0,
            )
            for rule in rules
        ]  # fmt: skip
        for number, name in enumerate(names):
            stored = self.vault.put(recording_id, name, name.encode(), at)
            if name.startswith("evidence/"):
                digest = stored.sha256
                rows.append(
                    EvidenceRow(recording_id, "e1", number, hour, "verified", None, name, 1, 2, digest, at, "run-1")
                )
        self.warehouse.append(rows)

    def plan(self, until: datetime, rules: tuple[RetentionRule, ...] = DEFAULT_RETENTION) -> list[Deletion]:
        return plan_retention(self.warehouse, self.vault, self.engine, rules, until)

    def apply(
        self, now: datetime, rules: tuple[RetentionRule, ...] = DEFAULT_RETENTION
    ) -> dict[tuple[str, str], Outcome]:
        outcomes = apply(self.engine, self.vault, self.plan(now, rules), "retention", now)
        return {(deletion.recording_id, deletion.what): outcome for deletion, outcome in outcomes}

    def entries(self, recording_id: str) -> list[tuple[str, str]]:
        """Kind and actor of the recording's ledger entries."""
        with self.engine.connect() as connection:
            query = sa.select(ledger_table).where(ledger_table.c.recording_id == recording_id)
            return [(row.kind, row.actor) for row in connection.execute(query.order_by(ledger_table.c.seq))]


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    settings = Settings(_env_file=None, home=tmp_path)
    engine = database.connect(settings.inbox_database_url)
    vault = vault_of(settings, engine)
    yield Archive(settings, engine, Warehouse(settings.warehouse_path), vault)
    vault.close()
    engine.dispose()


def test_a_recording_is_shredded_on_the_day_its_rule_says_and_not_before(archive: Archive) -> None:
    archive.keep("rec-1", "evidence/0.flac", "evidence/1.flac")
    assert archive.apply(START + 365 * DAY - timedelta(seconds=1)) == {}
    assert archive.vault.names("rec-1") == ["evidence/0.flac", "evidence/1.flac"]
    [planned] = archive.plan(START + 365 * DAY)
    assert planned == Deletion(
        "rec-1",
        "everything",
        ("evidence/0.flac", "evidence/1.flac"),
        "clips",
        "clips: kept 365 days",
        START + 365 * DAY,
    )
    assert archive.vault.names("rec-1") == ["evidence/0.flac", "evidence/1.flac"], "a plan deletes nothing"
    assert archive.apply(START + 365 * DAY) == {("rec-1", "everything"): Outcome.DELETED}
    assert archive.vault.names("rec-1") == []
    with pytest.raises(Shredded):
        archive.vault.read("rec-1", "evidence/0.flac")
    assert archive.entries("rec-1") == [("shred", "retention")]
    assert archive.warehouse.select("FROM verdicts"), "the verdict stays"


def test_done_again_it_finds_nothing_and_enters_nothing(archive: Archive) -> None:
    archive.keep("rec-1", "evidence/0.flac")
    now = START + 400 * DAY
    planned = archive.plan(now)
    assert [outcome for _, outcome in apply(archive.engine, archive.vault, planned, "a", now)] == [Outcome.DELETED]
    assert archive.plan(now + DAY) == []
    assert archive.entries("rec-1") == [("shred", "a")]
    assert why_deleted(archive.engine, "rec-1", "evidence/0.flac") == "clips: kept 365 days"
    assert why_deleted(archive.engine, "rec-2", "evidence/0.flac") is None


def test_data_of_each_kind_goes_on_its_own_day_and_the_key_with_the_last(archive: Archive) -> None:
    archive.keep("rec-1", "evidence/0.flac", "original", kind="card_verification_code")
    ahead = [(one.what, one.names, one.due - START) for one in archive.plan(START + 90 * DAY)]
    both = ("evidence/0.flac", "original")
    assert ahead == [("original", ("original",), 30 * DAY), ("everything", both, 90 * DAY)]
    assert archive.apply(START + 30 * DAY) == {("rec-1", "original"): Outcome.DELETED}
    with pytest.raises(NotInVault):
        archive.vault.read("rec-1", "original")
    assert b"".join(archive.vault.read("rec-1", "evidence/0.flac")) == b"evidence/0.flac"
    assert archive.apply(START + 90 * DAY) == {("rec-1", "everything"): Outcome.DELETED}
    assert archive.entries("rec-1") == [("purge", "retention"), ("shred", "retention")]


@pytest.mark.parametrize("decision", Decision)
@pytest.mark.parametrize("kind", ["card_verification_code", "card_pin"])
def test_codes_are_purged_once_a_person_has_decided_on_every_rule(
    archive: Archive, kind: str, decision: Decision
) -> None:
    rules = ("PCI-1", "PCI-2")
    archive.keep("rec-code", "evidence/0.flac", "original", kind=kind, rules=rules)
    archive.keep("rec-other", "evidence/0.flac", kind="card_number", rules=rules)
    now = START + 2 * DAY
    assert archive.plan(now) == []
    for rule in rules:
        assert archive.apply(now) == {}
        for recording_id in ("rec-code", "rec-other"):
            decide(
                archive.engine, recording_id, "2026-01-01-12:00", [rule], decision, "heard it", "D. Ansah", now,
                broken=rules, request_key=f"key-{rule}",
            )  # fmt: skip
        now += DAY
    assert [one.due for one in archive.plan(now)] == [START + 3 * DAY], "when the last rule was decided"
    assert archive.apply(now) == {("rec-code", "everything"): Outcome.DELETED}
    assert archive.entries("rec-code") == [("review", "D. Ansah")] * 2 + [("shred", "retention")]
    assert archive.vault.names("rec-other") == ["evidence/0.flac"]


def test_the_rules_for_codes_say_what_they_rest_on() -> None:
    for rule in DEFAULT_RETENTION:
        if rule.kinds:
            assert rule.after_review
            assert "PCI DSS 4.0.1, 3.3.1" in rule.basis
            assert "FAQ 1210" in rule.basis


def test_a_clip_that_no_row_names_any_more_is_kept_as_clips_are(archive: Archive) -> None:
    archive.keep("rec-1", kind="card_pin")
    archive.vault.put("rec-1", clip_name("engine 1", 3), b"clip", START)
    assert [one.due - START for one in archive.plan(START + 1000 * DAY)] == [90 * DAY]


def test_a_rule_is_for_its_verdicts_and_the_earliest_counts(archive: Archive) -> None:
    rules = (
        RetentionRule(name="clips", data="clip", days=100),
        RetentionRule(name="clean", data="clip", days=10, verdicts=("NO_VIOLATION",)),
        RetentionRule(name="clean-later", data="clip", days=20, verdicts=("NO_VIOLATION",)),
    )
    archive.keep("rec-clean", "evidence/0.flac", verdict="NO_VIOLATION")
    archive.keep("rec-found", "evidence/0.flac")
    archive.keep("rec-kept", "original")
    planned = archive.plan(START + 1000 * DAY, rules)
    assert [(one.recording_id, one.rule) for one in planned] == [("rec-clean", "clean"), ("rec-found", "clips")]
    assert archive.plan(START + 1000 * DAY, ()) == []


@pytest.mark.parametrize("changes", [{"days": -1}, {"data": "verdict"}, {"kinds": ("voice",)}, {"years": 1}])
def test_a_rule_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RetentionRule.model_validate({"name": "x", "data": "clip", "days": 1} | changes)


def test_a_hold_beats_every_rule_until_it_is_lifted(archive: Archive) -> None:
    archive.keep("rec-1", "evidence/0.flac", "original", kind="card_pin")
    now = START + 1000 * DAY
    assert hold(archive.engine, "rec-1", "case 1", "counsel", now)
    assert not hold(archive.engine, "rec-1", "case 2", "someone", now)
    assert {one.held for one in archive.plan(now)} == {"case 1"}
    assert set(archive.apply(now).values()) == {Outcome.HELD}
    assert archive.vault.names("rec-1") == ["evidence/0.flac", "original"]
    assert [(one.recording_id, one.reason, one.by) for one in holds_in_force(archive.engine)] == [
        ("rec-1", "case 1", "counsel")
    ]
    assert lift(archive.engine, "rec-1", "closed", "counsel", now + DAY)
    assert not lift(archive.engine, "rec-1", "closed", "counsel", now + DAY)
    assert hold(archive.engine, "rec-1", "case 3", "counsel", now + 2 * DAY)
    assert lift(archive.engine, "rec-1", "closed", "counsel", now + 3 * DAY)
    assert set(archive.apply(now + 4 * DAY).values()) == {Outcome.DELETED}
    assert [kind for kind, _ in archive.entries("rec-1")] == [*["hold"] * 4, "purge", "shred"]


def test_a_hold_between_plan_and_deletion_is_heeded(archive: Archive) -> None:
    archive.keep("rec-1", "evidence/0.flac")
    now = START + 365 * DAY
    planned = archive.plan(now)
    assert planned[0].held is None
    hold(archive.engine, "rec-1", "case 1", "counsel", now)
    assert [outcome for _, outcome in apply(archive.engine, archive.vault, planned, "a", now)] == [Outcome.HELD]
    assert archive.vault.names("rec-1") == ["evidence/0.flac"]


def at_the_platform(recording_id: str, now: datetime) -> Deletion:
    return Deletion(recording_id, PLATFORM, (), "PCI-1", "PCI-1: purged after review", now)


def test_a_hold_that_comes_too_late_is_refused(archive: Archive) -> None:
    deletion = at_the_platform("rec-1", START)
    assert begin(archive.engine, deletion, START) == START
    with pytest.raises(NotHeld, match="is being deleted"):
        hold(archive.engine, "rec-1", "case 1", "counsel", START)
    end(archive.engine, deletion, "a", START, START)
    with pytest.raises(NotHeld, match="was deleted at 2026-01-01 12:00:00"):
        hold(archive.engine, "rec-1", "case 1", "counsel", START + DAY)
    assert holds_in_force(archive.engine) == []


def test_a_recording_whose_clips_are_gone_can_be_held_as_long_as_the_platform_has_it(archive: Archive) -> None:
    archive.keep("rec-1", "evidence/0.flac")
    now = START + 365 * DAY
    archive.apply(now)
    assert hold(archive.engine, "rec-1", "case 1", "counsel", now)
    assert begin(archive.engine, at_the_platform("rec-1", now), now) is None


def test_a_hold_on_a_recording_that_would_lose_its_protection_beats_a_deletion_begun_before_too(
    archive: Archive,
) -> None:
    deletion = at_the_platform("rec-1", START)
    assert begin(archive.engine, deletion, START, ["rec-2"]) == START
    hold(archive.engine, "rec-2", "case 1", "counsel", START)
    assert begin(archive.engine, deletion, START + DAY, ["rec-2"]) is None
    assert begin(archive.engine, deletion, START + DAY) == START


@pytest.mark.parametrize(
    "text",
    [
        "read out 4111 1111 1111 1111",
        "x4111111111111111",
        "four one one one one one one one one one one one one one one one",
        "his cvv 123",
        "SSN 219-12-3456",
        "case \ud800",
    ],
)
def test_a_reason_or_name_that_no_ledger_may_keep_is_refused_and_not_quoted(archive: Archive, text: str) -> None:
    engine = archive.engine
    hold(engine, "rec-1", "case 1", "counsel", START)
    for reason, by in ((text, "ada"), ("case 1", text)):
        for attempt in (
            partial(hold, engine, "rec-2", reason, by, START),
            partial(lift, engine, "rec-1", reason, by, START),
        ):
            with pytest.raises(NotPlain) as raised:
                attempt()
            assert text not in str(raised.value)
            assert not set("123456789") & set(str(raised.value))
    assert archive.entries("rec-1") == [("hold", "counsel")]
    assert archive.entries("rec-2") == []


@pytest.mark.parametrize(
    "text",
    [
        "case 2026-001234, ticket 20260301123456",
        "INC0012345678 on 2026-03-01 at 12:30:45",
        "rec-20260301-1234567 and 8a4a5b52-5d0c-4f0a-9a3e-2f1f3f1b7a11",
        "asked by ada@example.com",
        "Prüfung: «Straße» 東京",
    ],
)
def test_references_dates_and_names_of_any_language_may_stand(archive: Archive, text: str) -> None:
    assert hold(archive.engine, "rec-1", text, text, START)


class Failing(Vault):
    """A vault whose store goes away, for some recordings or for good."""

    def delete(self, recording_id: str, name: str) -> bool:
        if recording_id == "rec-down":
            raise VaultError("no store")
        return super().delete(recording_id, name)


def test_a_failure_leaves_the_others_and_is_mended_by_the_next_run(archive: Archive) -> None:
    for recording_id in ("rec-a", "rec-down", "rec-z"):
        archive.keep(recording_id, "evidence/0.flac")
    now = START + 365 * DAY
    failing = Failing(archive.vault.url, archive.vault._root, archive.vault._keys, archive.engine)
    outcomes = apply(archive.engine, failing, archive.plan(now), "a", now)
    assert [outcome for _, outcome in outcomes] == [Outcome.DELETED, Outcome.FAILED, Outcome.DELETED]
    assert archive.entries("rec-down") == []
    with pytest.raises(NotHeld, match="is being deleted"):
        hold(archive.engine, "rec-down", "case 1", "counsel", now)
    assert archive.apply(now + DAY) == {("rec-down", "everything"): Outcome.DELETED}
    assert archive.entries("rec-down") == [("shred", "retention")]
    assert archive.vault.names("rec-down") == []
    assert [one.done_at for one in purged(archive.engine)] == [now, now + DAY, now]


def test_what_is_stored_after_a_purge_goes_too_and_is_entered_again(archive: Archive) -> None:
    archive.keep("rec-1", "evidence/0.flac", "original", kind="card_pin")
    archive.apply(START + 31 * DAY)
    archive.vault.put("rec-1", "original", b"fetched again", START + 32 * DAY)
    assert archive.apply(START + 33 * DAY) == {("rec-1", "original"): Outcome.DELETED}
    assert archive.entries("rec-1") == [("purge", "retention")] * 2


def test_a_second_purge_leaves_what_is_known_of_the_first(archive: Archive) -> None:
    archive.keep("rec-1", "evidence/0.flac", "evidence/1.flac", "original")
    rules = (RetentionRule(name="clips", data="clip", days=10),)
    archive.apply(START + 10 * DAY, rules)
    archive.vault.put("rec-1", "evidence/2.flac", b"clip", START)
    for _ in range(2):
        assert len(archive.apply(START + 10 * DAY, rules)) < 2, "the second time there is nothing"
    assert [one.deletion.names for one in purged(archive.engine)] == [
        ("evidence/0.flac", "evidence/1.flac"),
        ("evidence/2.flac",),
    ]
    for number in range(3):
        assert why_deleted(archive.engine, "rec-1", f"evidence/{number}.flac") == "clips: kept 10 days"
    assert archive.entries("rec-1") == [("purge", "retention")] * 2


@pytest.mark.parametrize("days", [10, 365])
def test_a_plan_that_another_process_did_is_not_done_again(archive: Archive, days: int) -> None:
    archive.keep("rec-1", "evidence/0.flac", "original")
    rules = (
        RetentionRule(name="clips", data="clip", days=10),
        RetentionRule(name="originals", data="original", days=365),
    )
    now = START + days * DAY
    planned = archive.plan(now, rules)
    for outcome, later in ((Outcome.DELETED, now), (Outcome.GONE, now), (Outcome.GONE, now + DAY)):
        assert {found for _, found in apply(archive.engine, archive.vault, planned, "a", later)} == {outcome}
    assert archive.entries("rec-1") == {10: [("purge", "a")], 365: [("purge", "a"), ("shred", "a")]}[days]
    assert all(one.done_at == now for one in purged(archive.engine))


def test_the_end_of_everything_is_final(archive: Archive) -> None:
    archive.keep("rec-1", "evidence/0.flac")
    now = START + 365 * DAY
    [planned] = archive.plan(now)
    archive.apply(now)
    begun_at = begin(archive.engine, planned, now + DAY)
    assert begun_at == now
    end(archive.engine, planned, "b", begun_at, now + DAY)
    assert [one.done_at for one in purged(archive.engine)] == [now]
    assert archive.entries("rec-1") == [("shred", "retention")]


def test_what_came_after_the_plan_and_is_not_due_stays_readable(archive: Archive) -> None:
    archive.keep("rec-1", "evidence/0.flac")
    now = START + 365 * DAY
    planned = archive.plan(now)
    assert [one.what for one in planned] == ["everything"]
    archive.vault.put("rec-1", "original", b"sound", now)
    assert [outcome for _, outcome in apply(archive.engine, archive.vault, planned, "a", now)] == [Outcome.DELETED]
    assert b"".join(archive.vault.read("rec-1", "original")) == b"sound"
    assert archive.vault.names("rec-1") == ["original"]
    assert archive.entries("rec-1") == [("purge", "a")]
    assert [(one.deletion.what, one.deletion.names) for one in purged(archive.engine)] == [
        ("clip", ("evidence/0.flac",))
    ]
    assert hold(archive.engine, "rec-1", "case 1", "counsel", now)


def test_only_recordings_that_the_vault_still_has_are_looked_up_in_the_store(archive: Archive) -> None:
    listed: list[str] = []

    class Listing(Vault):
        def names(self, recording_id: str) -> list[str]:
            listed.append(recording_id)
            return super().names(recording_id)

    for number in range(3):
        archive.keep(f"rec-text-{number}")
    archive.keep("rec-old", "evidence/0.flac")
    archive.apply(START + 365 * DAY)
    archive.keep("rec-1", "evidence/0.flac")
    vault = Listing(archive.vault.url, archive.vault._root, archive.vault._keys, archive.engine)
    planned = plan_retention(archive.warehouse, vault, archive.engine, DEFAULT_RETENTION, START + 366 * DAY)
    assert [one.recording_id for one in planned] == ["rec-1"]
    assert listed == ["rec-1"]
    assert archive.vault.recording_ids() == ["rec-1"]


def _apply_all(home: Path, now: datetime) -> None:
    settings = Settings(_env_file=None, home=home)
    engine = database.connect(settings.inbox_database_url)
    vault = vault_of(settings, engine)
    apply(
        engine,
        vault,
        plan_retention(Warehouse(settings.warehouse_path), vault, engine, DEFAULT_RETENTION, now),
        "r",
        now,
    )


def test_killed_at_any_instant_it_goes_on_where_it_was(archive: Archive) -> None:
    ids = [f"rec-{number}" for number in range(24)]
    for recording_id in ids:
        archive.vault.put(recording_id, "evidence/0.flac", b"clip", START)
    hour = START.replace(minute=0)
    rows: list[Row] = []
    for one in ids:
        rows.append(RecordingRow(one, hour, "guide", "voice", None, None, [], "m", None, None, START, START, START))
        rows.append(EvidenceRow(one, "e1", 0, hour, "verified", None, "evidence/0.flac", 1, 2, "00", START, "run-1"))
    archive.warehouse.append(rows)
    now = START + 365 * DAY
    context = multiprocessing.get_context("spawn")
    kills = 0
    deadline = time.monotonic() + 60
    left = len(ids)
    while left and time.monotonic() < deadline:
        process = context.Process(target=_apply_all, args=(archive.settings.home, now))
        process.start()
        target = left - 8
        while process.is_alive() and len(purged(archive.engine)) < len(ids) - target:
            time.sleep(0.002)
        if process.is_alive() and process.pid and kills < 2:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join(20)
        left = len(ids) - sum(one.done_at is not None for one in purged(archive.engine))
    assert left == 0
    assert kills == 2
    assert all(archive.vault.names(one) == [] for one in ids)
    assert all(archive.entries(one) == [("shred", "r")] for one in ids), "each once, whatever was killed"


# The commands


@pytest.fixture
def shell(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """Commands run on the archive, as the user `ada`."""
    monkeypatch.setenv("COMPLIANCE_HOME", str(archive.settings.home))
    monkeypatch.setenv("LOGNAME", "ada")
    return archive


def ran(command: Any, *arguments: str) -> Any:
    import typer

    if command is hold_command:
        one = typer.Typer()
        one.command()(command)
        command = one
    return runner.invoke(command, list(arguments))


def test_report_says_what_was_deleted_and_what_will_be_and_what_is_held(shell: Archive) -> None:
    now = datetime.now(UTC)
    shell.keep("rec-old", "evidence/0.flac", at=now - 366 * DAY)
    shell.keep("rec-soon", "evidence/0.flac", at=now - 360 * DAY)
    shell.keep("rec-held", "evidence/0.flac", at=now - 400 * DAY)
    assert ran(hold_command, "rec-held", "--reason", "case 1").exit_code == 0
    due = ran(retention_app, "report", "--days", "0")
    assert due.exit_code == 0
    assert "0 deleted, 1 to be deleted, 1 due and held." in due.output
    assert shell.vault.names("rec-old") == ["evidence/0.flac"]
    done = ran(retention_app, "apply")
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "1 deleted, 1 held, 0 failed.")
    assert shell.entries("rec-old") == [("shred", "ada")]
    report = ran(retention_app, "report", "--days", "10")
    assert report.exit_code == 0
    assert "1 deleted, 1 to be deleted, 1 due and held." in report.output
    for text in ("rec-old", "rec-soon", "rec-held", "case 1", "ada", "FAQ 1210", "clips: kept 365 days"):
        assert text in " ".join(report.output.split())
    assert "rec-soon" not in ran(retention_app, "report", "--days", "1").output


def test_hold_and_lift_write_who_and_why(shell: Archive) -> None:
    shell.keep("rec-1", "evidence/0.flac")
    assert "is held" in ran(hold_command, "rec-1", "--reason", "case 1", "--as", "counsel").output
    assert "held already" in ran(hold_command, "rec-1", "--reason", "case 2").output
    assert "no longer held" in ran(hold_command, "rec-1", "--lift", "--reason", "over").output
    assert "was not held" in ran(hold_command, "rec-1", "--lift", "--reason", "over").output
    assert shell.entries("rec-1") == [("hold", "counsel"), ("hold", "ada")]


@pytest.mark.parametrize("text", ["heard 4111111111111111", "case \udcff"])
def test_a_reason_that_may_not_be_kept_is_an_error_in_words(shell: Archive, text: str) -> None:
    shell.keep("rec-1")
    for shown in (
        ran(hold_command, "rec-1", "--reason", text),
        ran(hold_command, "rec-1", "--lift", "--reason", text),
        ran(hold_command, "rec-1", "--reason", "case 1", "--as", text),
        ran(retention_app, "apply", "--as", text),
    ):
        assert shown.exit_code == 1
        assert "4111" not in shown.output
        assert "the reason" in shown.output or "the name" in shown.output
    assert shell.entries("rec-1") == []


def test_the_report_names_recordings_that_the_warehouse_does_not_know(shell: Archive) -> None:
    shell.keep("rec-1", "evidence/0.flac")
    assert "not in the warehouse" not in ran(retention_app, "report").output
    shell.vault.put("rec-lost", "evidence/0.flac", b"clip", START)
    shown = " ".join(ran(retention_app, "report").output.split())
    assert "1 recordings in the vault are not in the warehouse" in shown
    assert "rec-lost" in shown


def test_a_recording_that_is_not_there_can_not_be_held(shell: Archive) -> None:
    shell.keep("rec-1")
    shown = ran(hold_command, "rec-2", "--reason", "x")
    assert shown.exit_code == 1
    assert "there is no recording rec-2 here" in shown.output
    assert ran(hold_command, "rec-1").exit_code == 2, "a hold needs a reason"
    assert holds_in_force(shell.engine) == []


def test_a_hold_too_late_is_an_error(shell: Archive) -> None:
    shell.keep("rec-1")
    begin(shell.engine, at_the_platform("rec-1", START), START)
    shown = ran(hold_command, "rec-1", "--reason", "x")
    assert shown.exit_code == 1
    assert "too late" in shown.output


def test_a_hold_says_that_the_clips_are_gone_already(shell: Archive) -> None:
    shell.keep("rec-1", "evidence/0.flac")
    shell.apply(START + 365 * DAY)
    shown = ran(hold_command, "rec-1", "--reason", "x")
    assert shown.exit_code == 0
    assert "is held; what the vault had of it was deleted before" in shown.output


@pytest.mark.parametrize("name", ["inbox.db", "warehouse.duckdb"])
def test_a_damaged_store_is_told_in_a_line(name: str, shell: Archive) -> None:
    shell.keep("rec-1", "evidence/0.flac")
    shell.engine.dispose()
    (shell.settings.home / name).write_bytes(b"nonsense" * 1_000)
    for shown in (
        ran(retention_app, "report"),
        ran(retention_app, "apply"),
        ran(hold_command, "rec-1", "--reason", "x"),
    ):
        assert (shown.exit_code, type(shown.exception)) == (1, SystemExit)
        assert f"{name} is damaged" in " ".join(shown.output.split())


def test_the_helps_have_examples() -> None:
    assert "compliance hold rec-" in (hold_command.__doc__ or "")
    for name in ("report", "apply"):
        assert f"compliance retention {name}" in runner.invoke(retention_app, [name, "--help"]).output
