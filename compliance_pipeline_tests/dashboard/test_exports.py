"""Exports: what the page shows, all of it, nothing else; safe in a spreadsheet; known to the ledger."""

import csv
import io
import json
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pytest
import sqlalchemy as sa

from compliance_pipeline import database, reviews
from compliance_pipeline.dashboard import exports
from compliance_pipeline.dashboard.api import instant
from compliance_pipeline.figures.figures import Filter
from compliance_pipeline.intake.hours import partition_hour
from compliance_pipeline.ledger import ledger_table
from compliance_pipeline_tests.dashboard.boards import END
from compliance_pipeline_tests.dashboard.lists import Home, home_at


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with home_at(tmp_path_factory.mktemp("exports") / "home") as made:
        yield made


def csv_rows(home: Home, query: str = "") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(home.get(f"/export.csv?{query}"), newline="")))


def parquet_rows(home: Home, tmp_path: Path, query: str = "") -> list[dict[str, Any]]:
    path = tmp_path / "export.parquet"
    path.write_bytes(home.client.get(f"/export.parquet?{query}").content)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        result = connection.execute("FROM read_parquet($path)", {"path": str(path)})
        names = [column[0] for column in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def entries(home: Home) -> list[Any]:
    engine = database.connect(home.settings.inbox_database_url)
    with engine.connect() as connection:
        of = sa.select(ledger_table).where(ledger_table.c.kind == "export").order_by(ledger_table.c.seq)
        found = list(connection.execute(of))
    engine.dispose()
    return found


def key(row: dict[str, Any]) -> tuple[Any, Any]:
    return row["recording_id"], row["rule_id"]


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("", "true"),
        ("queue=collections&review=open&range=30d", "queue = 'collections' AND review = 'open'"),
        ("from=2026-05-29T13:10Z&to=2026-05-29T13:50Z",
         "available_at >= '2026-05-29T13:10:00Z' AND available_at < '2026-05-29T13:50:00Z'"),
    ],
)  # fmt: skip
def test_both_formats_hold_the_rows_of_the_view_in_its_order(
    home: Home, tmp_path: Path, query: str, where: str
) -> None:
    wanted = home.violations(where)
    assert wanted
    as_csv, as_parquet = csv_rows(home, query), parquet_rows(home, tmp_path, query)
    assert [key(row) for row in as_csv] == [key(row) for row in as_parquet] == [key(row) for row in wanted]
    for said, stored, row in zip(as_csv, as_parquet, wanted, strict=True):
        assert list(said) == list(stored) == list(exports.COLUMNS)
        assert datetime.fromisoformat(said["available_at"]) == stored["available_at"] == row["available_at"]
        assert said["masked"] == stored["masked"] == row["masked"]
        assert float(said["confidence"]) == stored["confidence"] == row["confidence"]


def test_a_view_without_rows_is_a_file_with_its_columns_only(home: Home, tmp_path: Path) -> None:
    assert home.get("/export.csv?queue=nobody").split("\r\n") == [",".join(exports.COLUMNS), ""]
    assert parquet_rows(home, tmp_path, "queue=nobody") == []


def test_the_file_is_named_by_its_window_and_kept_by_no_cache(home: Home) -> None:
    answer = home.client.get("/export.csv?from=2026-05-29T13:10Z&to=2026-05-29T13:50Z")
    assert answer.headers["content-disposition"] == (
        'attachment; filename="violations-20260529T1310Z-20260529T1350Z.csv"'
    )
    assert "no-store" in answer.headers["cache-control"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-2", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_text_that_a_spreadsheet_would_run_gets_an_apostrophe(text: str) -> None:
    assert exports.cell(text) == f"'{text}"


def test_a_number_below_zero_stays_one() -> None:
    assert (exports.cell(-1.5), exports.cell(None), exports.cell(True)) == ("-1.5", "", "true")


@pytest.mark.parametrize("text", ['a "quoted", b', "two\nlines", "", "=1+1", "über ☎", "\\", "a\\Nb", None])
def test_a_text_is_in_the_parquet_file_as_it_is(tmp_path: Path, text: str | None) -> None:
    row = dict.fromkeys(exports.COLUMNS, None) | {"masked": text, "recording_id": "rec-1"}
    path = tmp_path / "made.parquet"
    with path.open("wb") as out:
        assert exports.write_parquet(iter([[row]]), out) == 1
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT masked, recording_id, hits FROM read_parquet($p)", {"p": str(path)}
        ).fetchall()
    assert found == [(text, "rec-1", None)]


def test_each_export_is_in_the_ledger_with_who_what_and_how_much(home: Home) -> None:
    before = len(entries(home))
    rows = csv_rows(home, "queue=sales&severity=critical")
    home.client.get("/export.parquet?queue=nobody")
    first, second = entries(home)[before:]
    details = json.loads(first.details)
    assert (details["format"], details["rows"]) == ("csv", len(rows))
    assert json.loads(details["filter"]) == {"queue": ["sales"], "severity": ["critical"]}
    assert first.actor
    assert json.loads(second.details)["rows"] == 0


def test_a_filter_with_a_number_of_a_card_is_refused_and_kept_nowhere(home: Home) -> None:
    before = len(entries(home))
    said = home.get("/export.csv?queue=4111111111111111", status=400)
    assert "4111111111111111" not in said
    assert len(entries(home)) == before


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_elsewhere_can_not_export_in_the_users_name(home: Home, site: str) -> None:
    before = len(entries(home))
    for kind in exports.FORMATS:
        assert home.client.get(f"/export.{kind}", headers={"Sec-Fetch-Site": site}).status_code == 403
    assert len(entries(home)) == before
    for own in ("same-origin", "none"):
        answer = home.client.get("/export.csv?queue=nobody", headers={"Sec-Fetch-Site": own})
        assert answer.status_code == 200


def test_while_one_file_is_made_another_is_refused_at_once(home: Home) -> None:
    with exports._one_at_a_time:
        answer = home.client.get("/export.csv")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "one is made at a time" in answer.text
    assert home.client.get("/export.csv").status_code == 200


def test_a_decision_is_exported_at_once_though_the_figures_are_older(home: Home) -> None:
    row = home.violations("review = 'open'")[0]
    engine = database.connect(home.settings.inbox_database_url)
    reviews.decide(
        engine, row["recording_id"], partition_hour(row["available_at"]), [row["rule_id"]],
        reviews.Decision.DISMISSED, "heard it", "rita", END, broken=[row["rule_id"]], request_key="k1",
    )  # fmt: skip
    engine.dispose()
    [said] = [one for one in csv_rows(home) if key(one) == key(row)]
    assert (said["review"], said["reviewed_at"]) == ("dismissed", instant(END))


def test_nothing_is_left_on_disk(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    home.client.get("/export.csv")
    home.client.get("/export.parquet")
    assert list(tmp_path.iterdir()) == []


def test_the_pieces_of_a_window_are_all_of_it_and_nothing_twice() -> None:
    chosen = Filter(END - timedelta(days=3), END)
    pieces = list(exports.pieces(chosen))
    assert pieces[0].end == END.replace(hour=22, minute=0, second=0)
    assert pieces[-1].start == (END - timedelta(days=3)).replace(hour=22, minute=0, second=0)
    assert all(newer.start == older.end for newer, older in pairwise(pieces))
    [short] = exports.pieces(Filter(END - timedelta(hours=2), END))
    assert (short.start, short.end) == (END - timedelta(hours=2), END)
