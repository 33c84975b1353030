"""`compliance remediation`: the real command over a real home, beside a platform that refuses."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from compliance_pipeline.cli import app
from compliance_pipeline.intake.inbox import State
from compliance_pipeline.ledger import ledger_table
from compliance_pipeline.platforms.guide import RECORDS
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline_tests.remediation.test_remediate import statuses, want
from compliance_pipeline_tests.workshop import Workshop, recording, workshop

CVV, CARD = recording(Kind.CHAT_CVV), recording(Kind.CHAT_CARD)
KEY = f"{CVV.recording_id}/PCI-SAD-01/create_work_item"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    with workshop(tmp_path, max_attempts=1) as shop:
        yield shop


def ran(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["remediation", *arguments])


def flat(result: Result) -> str:
    return " ".join((result.output + (result.stderr if result.stderr_bytes else "")).split())


def give_up_on(shop: Workshop, *actions: str) -> None:
    """A run after which work items are dead."""
    want(shop, *actions)
    shop.announce(CVV, CARD)
    shop.state.fail_next(RECORDS, 403, method="POST", times=2)
    shop.run()
    assert statuses(shop)["create_work_item"] == "dead"


def test_with_nothing_undone_it_says_so(shop: Workshop) -> None:
    shown = ran()
    assert shown.exit_code == 0
    assert flat(shown) == ("0 actions wait for their next try, 0 for a review or a legal hold; 0 were given up on.")


def test_what_was_given_up_on_is_listed_with_its_reason_and_what_to_do(shop: Workshop) -> None:
    give_up_on(shop, "tag_recording", "create_work_item", "purge_after_review")
    shown = ran()
    assert shown.exit_code == 0
    said = flat(shown)
    assert CVV.recording_id in said
    assert "gave up after 1 tries: POST" in said
    assert f"{RECORDS}: 403" in said
    assert "not reviewed yet" in said
    assert "tag_recording" not in said
    assert "0 actions wait for their next try, 2 for a review or a legal hold; 2 were given up on." in said
    assert "then: compliance remediation retry" in said


def test_a_retry_of_one_action_leaves_the_others(shop: Workshop) -> None:
    give_up_on(shop, "tag_recording", "create_work_item")
    assert flat(ran("retry", KEY)) == "1 actions will be tried again; 1 recordings reopened."
    assert shop.states() == {CVV.recording_id: State.NEW, CARD.recording_id: State.DONE}
    assert "1 actions wait for their next try, 0 for a review or a legal hold; 1 were given up on." in flat(ran())
    shop.run()
    assert shop.state.counts["work item"] == 1
    assert KEY not in flat(ran())


def test_a_retry_without_keys_takes_all_that_was_given_up_on(shop: Workshop) -> None:
    give_up_on(shop, "tag_recording", "create_work_item")
    assert flat(ran("retry")) == "2 actions will be tried again; 2 recordings reopened."
    shop.run()
    assert shop.state.counts["work item"] == 2
    assert flat(ran("retry")) == "0 actions will be tried again; 0 recordings reopened."


def test_the_ledger_names_who_asked_for_a_retry(shop: Workshop) -> None:
    give_up_on(shop, "create_work_item")
    assert ran("retry", KEY, "--as", "Ada").exit_code == 0
    shop.run()
    with shop.inbox.engine.connect() as connection:
        told = sa.select(ledger_table.c.actor).where(ledger_table.c.key.like(f"action/{KEY}/%"))
        actors = connection.scalars(told.order_by(ledger_table.c.seq)).all()
    assert actors == ["pipeline", "Ada", "pipeline"], "given up on, asked for again, done"


def test_a_name_that_holds_a_card_number_is_refused(shop: Workshop) -> None:
    give_up_on(shop, "create_work_item")
    shown = ran("retry", "--as", "4111 1111 1111 1111")
    assert shown.exit_code == 1
    assert "4111" not in flat(shown)
    assert statuses(shop)["create_work_item"] == "dead"


def test_in_an_empty_home_nothing_is_undone_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    shown = ran()
    assert shown.exit_code == 0
    assert "0 were given up on" in flat(shown)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"), [(b"no database" * 1_000, "inbox.db is"), (None, "the inbox's database can't be used (Oper")]
)
def test_a_database_that_cannot_be_used_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, said: str
) -> None:
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    path = tmp_path / "inbox.db"
    if content:
        path.write_bytes(content)
    else:
        path.mkdir()
    shown = ran("retry")
    assert (shown.exit_code, type(shown.exception)) == (1, SystemExit)
    assert said in flat(shown)


def test_a_damaged_warehouse_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path))
    (tmp_path / "warehouse.duckdb").write_bytes(b"no warehouse" * 1_000)
    for shown in (ran(), ran("retry")):
        assert (shown.exit_code, type(shown.exception)) == (1, SystemExit)
        assert "warehouse.duckdb is damaged" in flat(shown)


@pytest.mark.parametrize("action", ["tag_recording", "purge_after_review", "notify"])
def test_what_did_not_fail_is_not_retried(shop: Workshop, action: str) -> None:
    give_up_on(shop, "tag_recording", "create_work_item", "purge_after_review")
    key = f"{CVV.recording_id}/PCI-SAD-01/{action}"
    shown = ran("retry", key)
    assert shown.exit_code == 1
    assert f"{key} is no action that failed" in flat(shown)
    assert set(shop.states().values()) == {State.DONE}
