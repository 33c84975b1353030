"""Reviews: what a person decided on a finding counts until a later decision, once, and never half of it."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from compliance_pipeline import database, reviews
from compliance_pipeline.cli import app
from compliance_pipeline.contracts.event import Channel, EventType, RecordingEvent
from compliance_pipeline.intake.inbox import Inbox, IncomingEvent
from compliance_pipeline.ledger import ledger_table
from compliance_pipeline.plain_text import NotPlain
from compliance_pipeline.reviews import LATE_BY, REASON_LENGTH, Decision, NotDecided, Review, decide, reviewed
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.tables import RecordingRow, Row, VerdictRow, ViolationRow
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.intake.conftest import inbox_url, postgres_uri

__all__ = ["inbox_url", "postgres_uri"]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = "2026-03-01-12:00"
MINUTE, TICK = timedelta(minutes=1), timedelta(microseconds=1)
RULES = ("A", "B", "C")
CONFIRMED, DISMISSED = Decision.CONFIRMED, Decision.DISMISSED
_keys = count()


@pytest.fixture
def engine(inbox_url: str) -> Iterator[sa.Engine]:
    engine = database.connect(inbox_url)
    yield engine
    engine.dispose()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = database.connect(f"sqlite:///{tmp_path / 'inbox.db'}")
    yield engine
    engine.dispose()


def say(
    engine: sa.Engine,
    decision: Decision = CONFIRMED,
    rules: Sequence[str] = RULES,
    *,
    recording_id: str = "rec-1",
    hour: str = HOUR,
    reason: str = "heard it",
    by: str = "ada",
    now: datetime = NOON,
    broken: Sequence[str] = RULES,
    key: str | None = None,
) -> list[Review]:
    key = f"key-{next(_keys)}" if key is None else key
    return decide(engine, recording_id, hour, rules, decision, reason, by, now, broken=broken, request_key=key)


def holding(engine: sa.Engine, recording_id: str = "rec-1") -> dict[str | None, tuple[Decision, str]]:
    """Decision and person by rule."""
    return {one.rule_id: (one.decision, one.by) for one in reviews.state(engine, [recording_id]).values()}


def stored(engine: sa.Engine, recording_id: str = "rec-1") -> int:
    with engine.connect() as connection:
        query = sa.select(sa.func.count()).where(reviews.reviews.c.recording_id == recording_id)
        return connection.execute(query).scalar_one()


def entries(engine: sa.Engine, recording_id: str = "rec-1") -> list[tuple[str, str, dict[str, Any]]]:
    database.ensure(engine, ledger_table)
    with engine.connect() as connection:
        query = sa.select(ledger_table).where(ledger_table.c.recording_id == recording_id)
        return [
            (r.kind, r.actor, json.loads(r.details)) for r in connection.execute(query.order_by(ledger_table.c.seq))
        ]


def entry(rule: str, decision: Decision, by: str = "ada", reason: str = "heard it") -> tuple[str, str, dict[str, Any]]:
    return "review", by, {"rule": rule, "decision": str(decision), "reason": reason}


def test_a_decision_is_on_each_rule_and_a_later_one_counts_and_stands_beside_it(engine: sa.Engine) -> None:
    first, second = say(engine, CONFIRMED, ["B", "A"])
    assert first == Review("rec-1", "B", CONFIRMED, "heard it", "ada", NOON)
    assert (second.rule_id, second.at) == ("A", NOON + TICK)
    say(engine, DISMISSED, ["A"], by="bob", reason=" a test call\n", now=NOON + MINUTE)
    assert holding(engine) == {"A": (DISMISSED, "bob"), "B": (CONFIRMED, "ada")}
    found = reviews.state(engine, ["rec-1", "rec-2"])
    assert reviews.decided(found, "rec-1", "A") == Review("rec-1", "A", DISMISSED, "a test call", "bob", NOON + MINUTE)
    assert reviews.decided(found, "rec-1", "C") is None
    assert reviews.decided(found, "rec-2", "A") is None
    assert entries(engine) == [
        entry("B", CONFIRMED),
        entry("A", CONFIRMED),
        entry("A", DISMISSED, "bob", "a test call"),
    ]


def test_a_form_sent_twice_is_one_decision(engine: sa.Engine) -> None:
    once = say(engine, key="form-1")
    assert say(engine, key="form-1", now=NOON + MINUTE) == once
    assert say(engine, DISMISSED, ["A"], by="bob", now=NOON + MINUTE)[0].by == "bob"
    assert say(engine, key="form-1", now=NOON + 2 * MINUTE) == once, "late, it does not undo what bob said since"
    assert holding(engine)["A"] == (DISMISSED, "bob")
    assert (stored(engine), len(entries(engine))) == (4, 4)
    assert say(engine, recording_id="rec-2", key="form-1")[0].recording_id == "rec-2"


@pytest.mark.parametrize("changed", [{"decision": DISMISSED}, {"reason": "listened again"}, {"by": "bob"}])
def test_a_form_sent_again_with_something_else_in_it_is_a_later_decision(
    here: sa.Engine, changed: dict[str, Any]
) -> None:
    say(here, rules=["A"], key="form-1")
    [second] = say(here, rules=["A"], key="form-1", **changed)
    [third] = say(here, rules=["A"], key="form-1")
    assert list(reviews.state(here, ["rec-1"]).values()) == [third]
    assert (second.at, third.at, stored(here)) == (NOON + TICK, NOON + 2 * TICK, 3)


def test_a_form_with_a_rule_more_adds_that_one_only(here: sa.Engine) -> None:
    [first] = say(here, rules=["A"], key="form-1")
    assert [one.rule_id for one in say(here, rules=["B", "A", "B"], key="form-1")] == ["A", "B"]
    assert reviews.state(here, ["rec-1"])["rec-1", "A"] == first
    assert stored(here) == 2


def test_people_who_decide_at_once_are_all_heard(engine: sa.Engine) -> None:
    say(engine, by="first")
    ready = Barrier(6)

    def press(number: int) -> list[Review]:
        ready.wait(30)
        return say(engine, by=f"p{number}", key=f"form-{number % 3}")

    with ThreadPoolExecutor(6) as pool:
        made = [its for first in range(0, 24, 6) for its in pool.map(press, range(first, first + 6))]
    at = [one.at for its in made for one in its]
    assert len(set(at)) == len(at) == 72
    assert stored(engine) == len(entries(engine)) == 75
    assert set(holding(engine).values()) == {(CONFIRMED, max(made, key=lambda its: its[0].at)[0].by)}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rules": ["A", "X"]}, "it did not break that rule; it broke A, B, C"),
        ({"rules": []}, "say which rule"),
        ({"broken": []}, "nothing to decide"),
        ({"reason": " \n"}, "say why"),
        ({"reason": "case\0"}, "say why"),
        ({"reason": "x" * (REASON_LENGTH + 1)}, "longer than 1,000 characters"),
        ({"key": ""}, "load the page again"),
        ({"key": "k" * 65}, "load the page again"),
    ],
)
def test_what_can_not_be_decided_is_refused_in_words_and_stores_nothing(
    here: sa.Engine, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(NotDecided, match=said):
        say(here, **wrong)
    assert reviews.state(here, ["rec-1"]) == {}
    assert entries(here) == []
    lines = "x\r\n" * (REASON_LENGTH // 2 - 1)
    assert say(here, reason=f"{lines}xx")[0].reason == f"{lines}xx".replace("\r", ""), "a browser's line ends"


@pytest.mark.parametrize("field", ["reason", "by"])
@pytest.mark.parametrize("text", ["read out 4111 1111 1111 1111", "his cvv 123", "case \ud800"])
def test_a_text_that_no_ledger_may_keep_is_refused_and_not_quoted(here: sa.Engine, field: str, text: str) -> None:
    with pytest.raises(NotPlain) as raised:
        say(here, **{field: text})  # type: ignore[arg-type]
    assert text not in str(raised.value)
    assert reviews.state(here, ["rec-1"]) == {}
    assert entries(here) == []


def test_an_hour_that_is_none_is_refused(here: sa.Engine) -> None:
    with pytest.raises(ValueError, match="does not match format"):
        say(here, hour="2026-03-01T12:00")


def test_the_hours_that_changed_are_told_newest_first_and_for_a_while_longer(engine: sa.Engine) -> None:
    assert reviews.hours_changed(engine, NOON) == []
    say(engine, hour="2026-02-01-07:00")
    say(engine, recording_id="rec-2", now=NOON + MINUTE)
    say(engine, recording_id="rec-3", now=NOON + 3 * MINUTE)
    assert reviews.hours_changed(engine, NOON) == [HOUR, "2026-02-01-07:00"]
    assert reviews.hours_changed(engine, NOON + LATE_BY) == [HOUR, "2026-02-01-07:00"]
    assert reviews.hours_changed(engine, NOON + LATE_BY + TICK * 3) == [HOUR]
    assert reviews.hours_changed(engine, NOON + 3 * MINUTE + LATE_BY + TICK * 3) == []


def test_of_an_hour_the_newest_decision_of_each_finding_is_told(engine: sa.Engine) -> None:
    say(engine, hour="2026-02-01-07:00", recording_id="rec-2")
    say(engine, CONFIRMED, ["A", "B"])
    [newest] = say(engine, DISMISSED, ["A"])
    found = {one.rule_id: one for one in reviews.of_hour(engine, HOUR)}
    assert found.keys() == {"A", "B"}
    assert found["A"] == newest
    assert reviews.of_hour(engine, "2026-03-01-13:00") == []


# Of an older home


@pytest.fixture
def older(inbox_url: str) -> Iterator[sa.Engine]:
    """A home whose reviews are on whole recordings: one, made at NOON, of `rec-1`, which is of HOUR."""
    engine = database.connect(inbox_url)
    with database.writer(engine).begin() as connection:
        connection.execute(
            sa.text(
                "CREATE TABLE reviews (recording_id VARCHAR NOT NULL, at BIGINT NOT NULL, decision VARCHAR NOT NULL, "
                "reason VARCHAR NOT NULL, by VARCHAR NOT NULL, PRIMARY KEY (recording_id, at))"
            )
        )
        at = int(NOON.timestamp()) * 1_000_000
        row = f"('rec-1', {at}, 'confirmed', 'read out', 'bob')"
        connection.execute(sa.text(f"INSERT INTO reviews VALUES {row}"))
    inbox = Inbox(inbox_url)
    inbox.create()
    event = RecordingEvent(recording_id="rec-1", event=EventType.STARTED, channel=Channel.VOICE)
    inbox.store([IncomingEvent(event, "guide", "msg-1", NOON + 10 * MINUTE)], NOON)
    inbox.close()
    yield engine
    engine.dispose()


def test_a_decision_of_an_older_home_holds_for_every_rule_until_there_is_one_on_the_rule(older: sa.Engine) -> None:
    whole = Review("rec-1", None, CONFIRMED, "read out", "bob", NOON)
    assert reviews.of_hour(older, HOUR) == [whole]
    assert reviews.hours_changed(older, NOON) == [HOUR]
    say(older, DISMISSED, ["A", "B"])
    found = reviews.state(older, ["rec-1"])
    assert reviews.decided(found, "rec-1", "C") == whole
    own = reviews.decided(found, "rec-1", "A")
    assert own is not None
    assert (own.decision, own.at) == (DISMISSED, NOON + TICK)
    assert {one.rule_id for one in reviews.of_hour(older, HOUR)} == {None, "A", "B"}
    assert stored(older) == 3


# What counts as reviewed


def verdict(recording_id: str, number: int, rules: Sequence[str]) -> list[Row]:
    """The rows of a verdict by policy `number`, as newer as that is greater."""
    hour, at, policy = NOON.replace(minute=0), NOON + number * MINUTE, f"p{number}"
    value = "VIOLATION_DETECTED" if rules else "NO_VIOLATION"
    return [
        RecordingRow(recording_id, hour, "guide", "voice", None, None, [], "msg", None, None, NOON, NOON, NOON),
        VerdictRow(
            recording_id, policy, "e1", hour, "voice", value, None, next(iter(rules), None), None, None, None, None,
            "NONE", "msg", None, [], at, "run-1",
        ),
        *(
            ViolationRow(
                recording_id, policy, "e1", rule, hour, "voice", value, "PCI_CVV", "critical", "tones", "agent", 1, 0.9,
                "masked", 1, 0,
            )
            for rule in rules
        ),
    ]  # fmt: skip


def decide_whole(engine: sa.Engine, recording_id: str, at: datetime) -> None:
    """As an older home has it."""
    database.ensure(engine, reviews.reviews)
    row = {"recording_id": recording_id, "at": at, "decision": "confirmed", "reason": "x", "by": "bob"}
    with database.writer(engine).begin() as connection:
        connection.execute(reviews.reviews.insert().values(row))


WHOLE = "whole"
HISTORIES = st.lists(
    st.one_of(
        st.frozensets(st.sampled_from(RULES)).map(lambda rules: ("verdict", tuple(sorted(rules)))),
        st.sampled_from(RULES).map(lambda rule: ("decision", (rule,))),
        st.just(("decision", RULES)),
        st.just(("decision", (WHOLE,))),
    ),
    max_size=7,
)


def expected(history: Sequence[tuple[str, tuple[str, ...]]]) -> datetime | None:
    """By the words of the rule: the earliest decision with which nothing of what counts was left to decide."""
    counts = next((set(rules) for what, rules in reversed(history) if what == "verdict" and rules), set())
    known: set[str] = set()
    for number, (what, rules) in enumerate(history):
        for place, rule in enumerate(rules if what == "decision" else ()):
            known.add(rule)
            if WHOLE in known or (counts and counts <= known):
                return NOON + number * MINUTE + place * TICK
    return None


def test_a_recording_counts_as_reviewed_from_when_nothing_was_left_to_decide(here: sa.Engine, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "warehouse.duckdb")
    numbers = count()

    @settings(max_examples=15, deadline=None)
    @given(st.lists(HISTORIES, min_size=1, max_size=8))
    def holds(histories: list[list[tuple[str, tuple[str, ...]]]]) -> None:
        by_id = {f"rec-{next(numbers)}": history for history in histories}
        rows: list[Row] = []
        for recording_id, history in by_id.items():
            for number, (what, rules) in enumerate(history):
                now = NOON + number * MINUTE
                if what == "verdict":
                    rows += verdict(recording_id, number, rules)
                elif rules == (WHOLE,):
                    decide_whole(here, recording_id, now)
                else:
                    say(here, rules=rules, recording_id=recording_id, now=now)
        warehouse.append(rows)
        wanted = {one: at for one, history in by_id.items() if (at := expected(history)) is not None}
        assert reviewed(warehouse, here, list(by_id)) == wanted

    holds()


def test_what_an_earlier_verdict_broke_is_still_there_to_be_decided_when_a_later_one_broke_nothing(
    here: sa.Engine, tmp_path: Path
) -> None:
    warehouse = Warehouse(tmp_path / "warehouse.duckdb")
    warehouse.append([*verdict("rec-1", 1, "AB"), *verdict("rec-2", 1, "")])
    warehouse.append(verdict("rec-1", 2, ""))
    assert reviews.broken(warehouse, ["rec-1", "rec-2", "rec-3"]) == {"rec-1": reviews.Broken(HOUR, ("A", "B"))}
    assert reviewed(warehouse, here, ["rec-1", "rec-2"]) == {}, "nobody has looked"


def forked(work: Callable[[], None]) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode


def test_killed_after_any_statement_all_rules_are_decided_or_none_and_done_again_each_is_once(here: sa.Engine) -> None:
    database.ensure(here, reviews.reviews)
    here.dispose()
    outcomes = []
    for last in count(1):
        recording_id = f"rec-{last}"

        def die_in_it(last: int = last, recording_id: str = recording_id) -> None:
            engine = database.connect(str(here.url))
            database.ensure(engine, reviews.reviews)
            statements = count(1)

            @sa.event.listens_for(engine, "after_cursor_execute")
            def _die(*_: Any) -> None:
                if next(statements) == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            say(engine, recording_id=recording_id, key="form-1")

        code = forked(die_in_it)
        found = stored(here, recording_id)
        outcomes.append((code, found, len(entries(here, recording_id))))
        say(here, recording_id=recording_id, key="form-1", now=NOON + MINUTE)
        assert (stored(here, recording_id), len(entries(here, recording_id))) == (3, 3)
        here.dispose()
        if code == 0:
            break
    assert set(outcomes[:-1]) == {(-signal.SIGKILL, 0, 0)}
    assert len(outcomes) > 5, "it died in several places"
    assert outcomes[-1] == (0, 3, 3)


# The command


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    """A home whose `rec-1` broke A and B by its newest verdict, and C by the one before; `rec-clean` broke nothing."""
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    monkeypatch.setenv("LOGNAME", "ada")
    where = Settings(_env_file=None, home=tmp_path)
    rows = [*verdict("rec-1", 1, "C"), *verdict("rec-clean", 1, "")]
    Warehouse(where.warehouse_path).append([*rows, *verdict("rec-1", 2, "AB")])
    engine = database.connect(where.inbox_database_url)
    yield engine
    engine.dispose()


def ran(*arguments: str, decision: str = "confirmed", reason: str = "heard it", exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, ["review", *arguments, "--decision", decision, "--reason", reason])
    assert result.exit_code == exit_code, result.output
    return " ".join(result.output.split())


def test_the_command_decides_all_that_was_broken_or_the_rules_that_are_named(home: sa.Engine) -> None:
    said = ran("rec-1", "--rule", "B", decision="dismissed", reason="a test call")
    assert said == "rec-1: B was dismissed by ada not decided yet: A"
    assert ran("rec-1", "--as", "bob") == "rec-1: A was confirmed by bob rec-1: B was confirmed by bob"
    assert holding(home) == {"A": (CONFIRMED, "bob"), "B": (CONFIRMED, "bob")}
    assert entries(home)[0] == entry("B", DISMISSED, reason="a test call")
    assert len(reviews.of_hour(home, HOUR)) == 2


def test_the_command_says_what_can_not_be_decided(home: sa.Engine) -> None:
    assert "there is no recording rec-2 here" in ran("rec-2", exit_code=1)
    assert "rec-clean broke no rule: there is nothing to decide" in ran("rec-clean", exit_code=1)
    assert "it did not break that rule; it broke A, B" in ran("rec-1", "--rule", "C", exit_code=1)
    assert "rec-1: say why" in ran("rec-1", reason=" ", exit_code=1)
    for text in ("heard 4111111111111111", "case \udcff"):
        shown = ran("rec-1", reason=text, exit_code=1)
        assert "the reason" in shown
        assert "4111" not in shown
    ran("rec-1", decision="maybe", exit_code=2)
    assert (reviews.state(home, ["rec-1", "rec-2", "rec-clean"]), entries(home)) == ({}, [])


@pytest.mark.parametrize("name", ["inbox.db", "warehouse.duckdb"])
def test_a_damaged_store_is_told_in_a_line(name: str, home: sa.Engine, tmp_path: Path) -> None:
    database.ensure(home, reviews.reviews)
    home.dispose()
    (tmp_path / name).write_bytes(b"nonsense" * 1_000)
    assert f"{name} is damaged" in ran("rec-1", exit_code=1)


def test_the_help_has_examples() -> None:
    shown = CliRunner().invoke(app, ["review", "--help"]).output
    assert "compliance review rec-" in shown
    assert "--rule PCI-PAN-01" in shown
