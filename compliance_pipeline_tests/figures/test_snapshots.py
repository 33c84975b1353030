"""What is published: all of it, at once, only what changed, and never changed again."""

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_pipeline import reviews
from compliance_pipeline.contracts.event import EventType
from compliance_pipeline.evidence import keep_evidence
from compliance_pipeline.figures import snapshots
from compliance_pipeline.figures.snapshots import (
    EMPTY,
    KEPT_FOR,
    NoSnapshot,
    Published,
    Snapshot,
    publish,
)
from compliance_pipeline.objective import Objective
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.figures.buckets import bucket_of, seconds_of
from compliance_pipeline_tests.workshop import Workshop, incoming, recording, workshop

CARD, SSN, CLEAN, TONES = (
    recording(kind) for kind in (Kind.CHAT_CARD, Kind.CHAT_SSN, Kind.CHAT_CLEAN, Kind.VOICE_TONES)
)
HOUR = timedelta(hours=1)
OBJECTIVE = Objective(30.0)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path / "home") as shop:
        yield shop


def folder(shop: Workshop) -> Path:
    return shop.pipeline.settings.home / "snapshots"


def published(shop: Workshop, objective: Objective = OBJECTIVE) -> Published:
    return publish(shop.warehouse, shop.inbox, folder(shop), objective, shop.clock())


def rows(shop: Workshop, query: str, **parameters: Any) -> list[dict[str, Any]]:
    snapshot = Snapshot.current(folder(shop))
    try:
        return snapshot.rows(query, shop.at, shop.at + HOUR, **parameters)
    finally:
        snapshot.close()


def total(shop: Workshop, table: str, *columns: str) -> tuple[int, ...]:
    [found] = rows(
        shop, f"SELECT {', '.join(f'sum({name})::BIGINT AS {name}' for name in columns)} FROM read_parquet(${table})"
    )
    return tuple(found[name] for name in columns)


def test_before_the_first_there_is_none(shop: Workshop) -> None:
    with pytest.raises(NoSnapshot, match="nothing was published yet"):
        Snapshot.current(folder(shop))


def test_what_is_judged_waiting_and_given_up_on_is_there_with_its_times(shop: Workshop) -> None:
    shop.announce(CARD, CLEAN)
    shop.run()
    shop.announce(SSN, TONES)
    batch = shop.batch()
    shop.inbox.claim(shop.hour, batch.owner, shop.clock(), shop.pipeline.lease, 1)
    [claimed] = shop.inbox.claimed(batch.owner)
    shop.inbox.dead(claimed.recording_id, batch.owner, "no media", shop.clock())
    published(shop)
    found = {row["recording_id"]: row for row in rows(shop, "FROM read_parquet($interactions)")}
    assert found.keys() == {one.recording_id for one in (CARD, SSN, CLEAN, TONES)}
    statuses = sorted(row["status"] for row in found.values())
    assert statuses == ["dead_letter", "judged", "judged", "waiting"]
    assert found[claimed.recording_id]["reason"] == "no media"
    flagged = found[CARD.recording_id]
    [stage] = shop.warehouse.select(
        "SELECT seconds FROM stage_times WHERE stage = 'flagged' AND recording_id = $id", {"id": CARD.recording_id}
    )
    assert flagged["flagged_s"] == stage["seconds"]
    assert (flagged["verdict"], flagged["tagged_at"] is not None) == ("VIOLATION_DETECTED", True)
    assert total(shop, "coverage", "received", "judged", "waiting", "dead_letters", "flagged", "tagged") == (
        4, 2, 1, 1, 1, 1
    )  # fmt: skip
    [lost] = rows(shop, "FROM read_parquet($losses) WHERE status = 'dead_letter'")
    assert (lost["reason"], lost["recordings"]) == ("no media", 1)
    assert total(shop, "rules", "violations", "open", "confirmed") == (1, 1, 0)
    assert total(shop, "actions", "planned", "done", "dead") == (2, 2, 0)


def test_only_hours_that_changed_are_written_anew_and_no_file_ever_changes(shop: Workshop) -> None:
    shop.announce(CARD)
    shop.run()
    first = published(shop)
    assert first.hours == (shop.at, EMPTY)
    before = {path: path.read_bytes() for path in folder(shop).rglob("*.parquet")}
    again = published(shop)
    assert (again.hours, again.manifest.number) == ((), first.manifest.number)
    assert again.manifest.data_to > first.manifest.data_to
    shop.announce(SSN)
    shop.run()
    assert published(shop).hours == (shop.at,)
    assert {path: path.read_bytes() for path in before} == before


def test_what_one_hour_changes_in_a_day_leaves_what_its_other_hours_say(shop: Workshop) -> None:
    other = shop.at + (HOUR if shop.at.hour < 23 else -HOUR)
    shop.announce(CARD, CLEAN)
    shop.run()
    published(shop)
    moment = other + timedelta(minutes=5)
    shop.inbox.store([incoming(SSN, EventType.AVAILABLE, moment)], shop.clock())
    assert published(shop).hours == (other,)
    whole = (
        "SELECT partition_hour, sum(received)::INT AS received FROM read_parquet($coverage) GROUP BY ALL ORDER BY ALL"
    )
    assert [tuple(row.values()) for row in rows(shop, whole)] == sorted([(shop.at, 2), (other, 1)])


def test_a_decision_on_a_finding_is_in_the_next_one(shop: Workshop) -> None:
    shop.announce(CARD)
    shop.run()
    published(shop)
    [broken] = rows(shop, "SELECT rule_id FROM read_parquet($violations)")
    reviews.decide(
        shop.inbox.engine, CARD.recording_id, shop.hour, [broken["rule_id"]], reviews.Decision.DISMISSED, "a test",
        "ann", shop.clock(), broken=[broken["rule_id"]], request_key="1",
    )  # fmt: skip
    assert published(shop).hours == (shop.at,)
    assert total(shop, "rules", "open", "confirmed", "dismissed") == (0, 0, 1)
    assert total(shop, "coverage", "reviewed") == (1,)


def test_a_new_objective_is_counted_by_for_all_that_is_stored(shop: Workshop) -> None:
    shop.announce(CARD, TONES)
    shop.run()
    published(shop, Objective(3600.0))
    assert total(shop, "coverage", "flagged", "in_time") == (2, 2)
    by_channel = Objective(3600.0, by_channel={"chat": 0.0})
    done = published(shop, by_channel)
    assert (done.hours, done.manifest.objective) == ((), by_channel)
    assert total(shop, "coverage", "flagged", "in_time") == (2, 1)
    assert total(shop, "breaches", "recordings") == (1,)


def test_the_manifest_grows_by_a_line_a_day_not_by_its_files(shop: Workshop) -> None:
    shop.announce(CARD)
    shop.run()
    manifest = published(shop).manifest
    assert set(manifest.days) == {EMPTY.date(), shop.at.date()}


def test_a_reader_keeps_its_snapshot_while_others_are_published_and_old_files_go_later(shop: Workshop) -> None:
    shop.announce(CARD)
    shop.run()
    published(shop)
    reader = Snapshot.current(folder(shop))
    count = "SELECT count(*) AS n FROM read_parquet($interactions)"
    shop.announce(SSN)
    shop.run()
    retired = published(shop).manifest.retired
    assert reader.rows(count, shop.at, shop.at + HOUR) == [{"n": 1}]
    assert rows(shop, count) == [{"n": 2}]
    shop.clock.wait(KEPT_FOR.total_seconds() + 1)
    shop.announce(CLEAN)
    shop.run()
    published(shop)
    assert not [name for name in retired if (folder(shop) / name).exists()]
    assert rows(shop, count) == [{"n": 3}]
    reader.close()


def test_a_publisher_that_dies_leaves_the_snapshot_before_it(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def dies(*_: object) -> None:
        raise Killed

    shop.announce(CARD)
    shop.run()
    published(shop)
    shop.announce(SSN)
    shop.run()
    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "make_current", dies)
        with pytest.raises(Killed):
            published(shop)
    count = "SELECT count(*) AS n FROM read_parquet($interactions)"
    assert rows(shop, count) == [{"n": 1}]
    published(shop)
    assert rows(shop, count) == [{"n": 2}]


def test_a_long_backlog_is_published_in_parts_that_a_kill_leaves(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    monkeypatch.setattr(snapshots, "HOURS_AT_ONCE", 1)
    shop.announce(CARD)
    shop.run()
    with shop.warehouse.write() as connection:
        for number in range(1, 4):
            moved = {"hour": shop.at - number * HOUR, "number": 100 + number}
            connection.execute("INSERT INTO changed_hours VALUES ($hour, $number)", moved)
    kept, left = snapshots.make_current, 2

    def dies(where: Path, manifest: snapshots.Manifest) -> None:
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        kept(where, manifest)

    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "make_current", dies)
        with pytest.raises(Killed):
            published(shop)
    with pytest.raises(NoSnapshot, match="for the first time"):
        Snapshot.current(folder(shop))
    assert snapshots.Manifest.read(folder(shop)).change_no == 101, "the part that was published stays"
    published(shop)
    assert total(shop, "coverage", "received") == (1,)


def test_what_another_version_published_is_made_anew(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.announce(CARD)
    shop.run()
    old = published(shop).manifest
    monkeypatch.setattr(snapshots, "layout", lambda: "another")
    with pytest.raises(NoSnapshot, match="after an upgrade"):
        Snapshot.current(folder(shop))
    assert published(shop).hours == (shop.at, EMPTY)
    assert total(shop, "coverage", "received") == (1,)
    assert Snapshot.current(folder(shop)).manifest.number > old.number


@given(st.floats(0.001, 86_400))
def test_a_bucket_of_the_histogram_is_at_most_1_02_per_cent_off(seconds: float) -> None:
    assert abs(seconds_of(bucket_of(seconds)) - seconds) <= 0.0102 * seconds


def test_a_masked_clip_is_in_the_next_one(shop: Workshop) -> None:
    shop.announce(TONES)
    shop.run()
    published(shop)
    assert [row["has_clip"] for row in rows(shop, "FROM read_parquet($violations) WHERE finding_no IS NOT NULL")] == [
        False
    ]
    keep_evidence(shop.pipeline, "run", shop.at)
    assert published(shop).hours == (shop.at,)
    assert any(row["has_clip"] for row in rows(shop, "FROM read_parquet($violations)"))


def test_what_lay_in_a_warehouse_of_before_is_published_too(shop: Workshop) -> None:
    shop.announce(CARD)
    shop.run()
    with shop.warehouse.write() as connection:
        connection.execute("DROP TABLE changed_hours")
        connection.execute("DELETE FROM schema_digest")
    upgraded = Warehouse(shop.warehouse.path)
    publish(upgraded, shop.inbox, folder(shop), OBJECTIVE, shop.clock())
    assert total(shop, "coverage", "judged") == (1,)


def test_a_warehouse_that_was_restored_from_a_backup_is_published_anew(shop: Workshop) -> None:
    shop.announce(CARD)
    shop.run()
    backup = shop.warehouse.path.read_bytes()
    shop.announce(SSN)
    shop.run()
    published(shop)
    assert total(shop, "coverage", "judged") == (2,)
    shop.warehouse.path.write_bytes(backup)
    published(shop)
    assert total(shop, "coverage", "judged") == (1,)


def test_a_recording_that_is_announced_and_not_available_yet_is_not_received(shop: Workshop) -> None:
    shop.announce(CARD, event=EventType.STARTED)
    published(shop)
    assert rows(shop, "FROM read_parquet($interactions)") == []


def test_duplicates_of_what_is_settled_and_conversations_that_were_listed_are_told(shop: Workshop) -> None:
    shop.announce(CARD)
    shop.run()
    published(shop)
    shop.clock.wait(120)
    shop.announce(CARD, held=False)
    published(shop)
    assert total(shop, "coverage", "received", "duplicates") == (1, 1)


def test_a_recording_tried_in_an_hour_and_available_in_another_counts_where_it_lies(
    shop: Workshop,
) -> None:
    shop.announce(CARD)
    shop.run()
    with shop.warehouse.write() as connection:
        connection.execute("UPDATE recordings SET available_at = available_at + INTERVAL 2 HOUR")
    published(shop)
    [row] = rows(shop, "FROM read_parquet($interactions) WHERE available_at >= $start AND available_at < $end")
    assert row["recording_id"] == CARD.recording_id


def test_what_a_killed_publisher_left_goes_with_the_next_of_the_day(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def dies(*_: object) -> None:
        raise Killed

    shop.announce(CARD)
    shop.run()
    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "make_current", dies)
        with pytest.raises(Killed):
            published(shop)
    left = [path for path in folder(shop).rglob("*.parquet") if path.parent.name == f"{shop.at:%F}"]
    assert left
    shop.announce(SSN)
    shop.run()
    for path in left:
        os.utime(path, (0, 0))
    published(shop)
    named = {folder(shop) / name for name in snapshots.Day.read(
        folder(shop) / snapshots.Manifest.read(folder(shop)).days[shop.at.date()]
    ).names}  # fmt: skip
    assert {path for path in folder(shop).rglob("*.parquet") if path.parent.name == f"{shop.at:%F}"} == named
