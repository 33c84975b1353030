"""What is published: all of it, at once, only what changed, and never changed again."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_pipeline.figures import snapshots
from compliance_pipeline.figures.snapshots import EMPTY, KEPT_FOR, NoSnapshot, Published, Snapshot, publish
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline_tests.workshop import Workshop, recording, workshop

CARD, SSN, CLEAN, TONES = (
    recording(kind) for kind in (Kind.CHAT_CARD, Kind.CHAT_SSN, Kind.CHAT_CLEAN, Kind.VOICE_TONES)
)
HOUR = timedelta(hours=1)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    with workshop(tmp_path / "home") as shop:
        yield shop


def folder(shop: Workshop) -> Path:
    return shop.pipeline.settings.home / "snapshots"


def published(shop: Workshop) -> Published:
    return publish(shop.warehouse, shop.inbox, folder(shop), 30.0, shop.clock())


def rows(shop: Workshop, query: str, **parameters: Any) -> list[dict[str, Any]]:
    snapshot = Snapshot.current(folder(shop))
    try:
        return snapshot.rows(query, shop.at, shop.at + HOUR, **parameters)
    finally:
        snapshot.close()


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
    [coverage] = rows(shop, "FROM read_parquet($coverage) WHERE dimension = 'all'")
    assert {name: coverage[name] for name in ("received", "judged", "waiting", "dead_letters", "flagged")} == {
        "received": 4, "judged": 2, "waiting": 1, "dead_letters": 1, "flagged": 1,
    }  # fmt: skip


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
        patched.setattr(snapshots, "_replace", dies)
        with pytest.raises(Killed):
            published(shop)
    count = "SELECT count(*) AS n FROM read_parquet($interactions)"
    assert rows(shop, count) == [{"n": 1}]
    published(shop)
    assert rows(shop, count) == [{"n": 2}]


@given(st.floats(0.001, 86_400))
def test_a_bucket_of_the_histogram_is_at_most_1_02_per_cent_off(seconds: float) -> None:
    assert abs(snapshots.seconds_of(snapshots.bucket_of(seconds)) - seconds) <= 0.0102 * seconds
