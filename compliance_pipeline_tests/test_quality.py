"""Each question passes on a good hour and fails on a planted fault."""

import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from compliance_pipeline import quality, steps
from compliance_pipeline.contracts.event import EventType
from compliance_pipeline.figures.snapshots import folder_of, publish
from compliance_pipeline.objective import Objective
from compliance_pipeline.orchestration.checks import QUESTIONS
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.warehouse.tables import Row
from compliance_pipeline_tests.warehouse import rows
from compliance_pipeline_tests.workshop import Workshop, incoming, recording, workshop

CARD_NUMBER = "4111 1111 1111 1111"
SSN = recording(Kind.CHAT_SSN).planted[-1]
CARD, CLEAN, EMAIL = recording(Kind.CHAT_CARD), recording(Kind.CHAT_CLEAN), recording(Kind.EMAIL_CARD)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The data of a good hour: judged, remediated, settled; and which hour that is."""
    home = tmp_path_factory.mktemp("good")
    with workshop(home) as shop:
        shop.announce(CARD, CLEAN, EMAIL)
        shop.run()
        return home, shop.hour


@pytest.fixture
def shop(good: tuple[Path, str], tmp_path: Path) -> Iterator[Workshop]:
    home, hour = good
    shutil.copytree(home, tmp_path / "good")
    with workshop(tmp_path / "good") as shop:
        shop.hour = hour
        yield shop


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path / "empty") as shop:
        yield shop


def plant(shop: Workshop, statement: str, **parameters: Any) -> None:
    with shop.warehouse.write() as connection:
        assert connection.execute(statement, parameters).fetchall()[0][0] >= 1, "nothing was planted"


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.__name__)
def test_a_good_hour_and_an_empty_one_pass(shop: Workshop, empty: Workshop, question: Any) -> None:
    answer = question(shop.pipeline, shop.at)
    assert answer.passed, answer
    assert question(empty.pipeline, empty.at).passed


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.__name__)
def test_every_question_says_in_a_sentence_what_it_asks(question: Any) -> None:
    assert question.__doc__.endswith(".")


@pytest.mark.parametrize(
    "fault",
    [
        "violation_type = NULL",
        "confidence_score = 1.5",
        "timestamp_offset_ms = -1",
        "verdict = 'PROBABLY_FINE'",
        "recommended_action = 'SHRUG'",
        "correlation_id = ''",
    ],
)
def test_a_verdict_outside_the_contract_fails(shop: Workshop, fault: str) -> None:
    plant(shop, f"UPDATE verdicts SET {fault} WHERE recording_id = $id", id=CARD.recording_id)
    answer = quality.verdicts_match_the_contract(shop.pipeline, shop.at)
    assert not answer.passed
    assert answer.serious
    assert (answer.facts["verdicts"], answer.facts["invalid"]) == (3, 1)
    assert list(answer.facts["examples"]) == [CARD.recording_id]


def test_a_verdict_of_no_violation_that_names_one_fails(shop: Workshop) -> None:
    plant(shop, "UPDATE verdicts SET violation_type = 'PCI_PAN' WHERE recording_id = $id", id=CLEAN.recording_id)
    assert not quality.verdicts_match_the_contract(shop.pipeline, shop.at).passed


@pytest.mark.parametrize("status", ["planned", "failed"])
def test_a_violation_whose_action_was_not_done_fails(shop: Workshop, status: str) -> None:
    newer = rows.remediation(CARD.recording_id, status, revision=9, partition_hour=shop.at)
    shop.warehouse.append([newer])
    answer = quality.every_violation_is_remediated(shop.pipeline, shop.at)
    assert not answer.passed
    assert answer.facts == {"flagged": 2, "not remediated": 1, "examples": [CARD.recording_id]}


def test_a_violation_for_which_nothing_was_planned_fails(shop: Workshop) -> None:
    plant(shop, "DELETE FROM remediations WHERE recording_id = $id", id=EMAIL.recording_id)
    answer = quality.every_violation_is_remediated(shop.pipeline, shop.at)
    assert not answer.passed
    assert answer.serious
    assert answer.facts["examples"] == [EMAIL.recording_id]


def test_an_earlier_failure_that_was_made_good_passes(shop: Workshop) -> None:
    common: dict[str, Any] = {"partition_hour": shop.at}
    shop.warehouse.append([rows.remediation(CARD.recording_id, "failed", revision=9, **common)])
    shop.warehouse.append([rows.remediation(CARD.recording_id, "done", revision=11, **common)])
    assert quality.every_violation_is_remediated(shop.pipeline, shop.at).passed


def text_columns() -> list[tuple[Row, str]]:
    found = []
    for row in rows.ONE_OF_EACH:
        hints = get_type_hints(type(row))
        found += [(row, field.name) for field in fields(row) if "str" in str(hints[field.name])]
    return found


TEXT_COLUMNS = text_columns()


def test_there_are_text_columns_in_every_table() -> None:
    assert {row.table for row, _ in TEXT_COLUMNS} == set(quality.FACT_TABLES)
    assert len(TEXT_COLUMNS) > 40


def test_a_card_number_in_any_text_column_of_any_table_fails_and_names_the_column(empty: Workshop) -> None:
    planted: list[Row] = []
    for number, (row, column) in enumerate(TEXT_COLUMNS):
        kind = get_type_hints(type(row))[column]
        value: Any = ["tok_id_aaaaaaaaaaaaaaaaaaaaaaaaaa", CARD_NUMBER] if "list" in str(kind) else CARD_NUMBER
        changes: dict[str, Any] = {"partition_hour": empty.at, "recording_id": f"rec-{number}"}
        planted.append(replace(row, **(changes | {column: value})))
    assert empty.warehouse.append(planted) == len(planted)
    answer = quality.nothing_sensitive_is_stored(empty.pipeline, empty.at)
    assert not answer.passed
    assert answer.serious
    assert answer.facts["columns that leak"] == sorted(f"{row.table}.{column}" for row, column in TEXT_COLUMNS)
    assert CARD_NUMBER not in str(answer)


@pytest.mark.parametrize(
    "leak", ["4111111111111111", f"my ssn is {SSN}", "four one one one" + " one one one one" * 3, "cvv is 123"]
)
def test_other_forms_of_sensitive_values_fail_too(shop: Workshop, leak: str) -> None:
    plant(shop, "UPDATE remediations SET error = $leak WHERE recording_id = $id", leak=leak, id=CARD.recording_id)
    answer = quality.nothing_sensitive_is_stored(shop.pipeline, shop.at)
    assert answer.facts["columns that leak"] == ["remediations.error"]


def test_another_hours_leak_is_another_hours(shop: Workshop) -> None:
    shop.warehouse.append([rows.recording(queue=CARD_NUMBER, partition_hour=shop.at - timedelta(hours=1))])
    assert quality.nothing_sensitive_is_stored(shop.pipeline, shop.at).passed


def test_a_slow_p95_fails_as_a_warning(shop: Workshop) -> None:
    flagged = [rows.stage(f"rec-{n}", "flagged", seconds=60.0 if n < 2 else 1.0, hour=shop.at) for n in range(18)]
    shop.warehouse.append(flagged)
    steps.refresh_marts(shop.pipeline, ["latency_by_hour"], shop.at)
    answer = quality.p95_is_within_the_objective(shop.pipeline, shop.at)
    assert not answer.passed
    assert not answer.serious
    assert (answer.facts["flagged"], answer.facts["within"]) == (20, 18)
    assert answer.facts["P95 seconds"] == pytest.approx(60.0)


def test_a_few_slow_flags_within_the_five_percent_pass(shop: Workshop) -> None:
    shop.warehouse.append(
        [rows.stage(f"rec-{n}", "flagged", seconds=60.0 if n == 0 else 1.0, hour=shop.at) for n in range(98)]
    )
    steps.refresh_marts(shop.pipeline, ["latency_by_hour"], shop.at)
    assert quality.p95_is_within_the_objective(shop.pipeline, shop.at).passed


def test_a_settled_recording_without_a_verdict_is_lost_and_fails(shop: Workshop) -> None:
    plant(shop, "DELETE FROM verdicts WHERE recording_id = $id", id=CLEAN.recording_id)
    answer = quality.every_recording_is_accounted_for(shop.pipeline, shop.at)
    assert not answer.passed
    assert answer.serious
    assert answer.facts["lost"] == [CLEAN.recording_id]


def test_a_dead_letter_fails_as_a_warning_with_its_reason(shop: Workshop) -> None:
    late = recording(Kind.CHAT_CARD, 2)
    shop.inbox.store([incoming(late, EventType.AVAILABLE, shop.at)], shop.clock())
    batch = shop.batch()
    steps.claim(shop.pipeline, batch)
    shop.inbox.dead(late.recording_id, batch.owner, "the platform said no", shop.clock())
    answer = quality.every_recording_is_accounted_for(shop.pipeline, shop.at)
    assert not answer.passed
    assert not answer.serious
    assert answer.facts["dead letters"] == {late.recording_id: "the platform said no"}


def test_what_is_in_the_works_is_accounted_for(shop: Workshop) -> None:
    shop.announce(recording(Kind.CHAT_CARD, 3))
    answer = quality.every_recording_is_accounted_for(shop.pipeline, shop.at)
    assert answer.passed
    assert (answer.facts["announced"], answer.facts["judged"], answer.facts["in the works"]) == (4, 3, 1)


def test_unscreenable_recordings_are_counted_by_reason(shop: Workshop) -> None:
    gone = recording(Kind.CHAT_CARD, 4)
    shop.announce(gone)
    shop.state.held[gone.recording_id].status = "deleted"
    shop.run()
    answer = quality.every_recording_is_accounted_for(shop.pipeline, shop.at)
    assert answer.passed
    assert answer.facts["unscreenable by reason"] == {"gone": 1}
    assert "(1 unscreenable)" in answer.description


def test_a_snapshot_that_says_something_else_than_the_warehouse_is_found(shop: Workshop) -> None:
    def answer() -> quality.Answer:
        return quality.snapshot_says_what_the_warehouse_says(shop.pipeline, shop.at)

    folder = folder_of(shop.pipeline.settings.home)
    missing = answer()
    assert (missing.passed, missing.serious) == (False, False)
    published = publish(shop.warehouse, shop.inbox, folder, Objective(30.0), shop.clock()).manifest
    assert answer().passed
    shop.announce(recording(Kind.CHAT_SSN))
    shop.run()
    assert answer().facts["hours compared"] == 0, "what changed since is published soon"
    with shop.warehouse.write() as connection:
        connection.execute("UPDATE changed_hours SET change_no = $published", {"published": published.change_no})
    wrong = answer()
    assert (wrong.passed, len(wrong.facts["hours that differ"])) == (False, 1)
