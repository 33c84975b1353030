"""Promotion: which pack judges, by what was looked at before, and what the ledger keeps of it."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from compliance_pipeline import database, what_if
from compliance_pipeline.contracts.policy import PolicyPack
from compliance_pipeline.ledger import ledger_table
from compliance_pipeline.orchestration.resources import PipelineResource
from compliance_pipeline.plain_text import NotPlain
from compliance_pipeline.promotion import (
    NotPromoted,
    history,
    known_pack,
    last_promoted,
    live_policy,
    live_policy_of,
    promote,
    promoted_policy,
)
from compliance_pipeline.screening.policy import DEFAULT_PACK, PolicyError, load_policy
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.intake.conftest import inbox_url, postgres_uri

__all__ = ["inbox_url", "postgres_uri"]
NOW = datetime(2026, 3, 8, 12, tzinfo=UTC)
PACKAGED = load_policy()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, home=tmp_path / "home")


@pytest.fixture
def engine(settings: Settings) -> Iterator[sa.Engine]:
    engine = database.connect(settings.inbox_database_url)
    yield engine
    engine.dispose()


def pack(version: str = "9.0.0", source: PolicyPack = PACKAGED) -> PolicyPack:
    return source.model_copy(update={"version": version})


def looked_at(
    settings: Settings, engine: sa.Engine, new: PolicyPack, live: PolicyPack = PACKAGED, now: datetime = NOW
) -> what_if.WhatIf:
    """A what-if over nothing, kept."""
    warehouse = Warehouse(settings.warehouse_path)
    made = what_if.diff(warehouse, live, new, "engine-1", NOW - timedelta(hours=2), NOW, 6.0)
    return what_if.keep(engine, made, new, "wanda", now)


def test_without_a_promotion_the_packaged_pack_is_live_and_nothing_is_made_by_looking(
    settings: Settings, engine: sa.Engine
) -> None:
    assert live_policy(settings, engine) == PACKAGED
    assert live_policy_of(settings) == PACKAGED
    assert not settings.home.exists()


def test_what_was_promoted_last_is_live_as_a_whole(settings: Settings, engine: sa.Engine) -> None:
    first, second = pack("9.0.0"), pack("9.1.0", PACKAGED.model_copy(update={"retention": ()}))
    for one, live in ((first, PACKAGED), (second, first)):
        looked_at(settings, engine, one, live)
        promote(settings, engine, one, "pia", NOW)
    assert live_policy(settings, engine) == second
    assert live_policy_of(settings).retention == ()
    assert [one.policy_version for one in history(engine)] == [second.policy_version, first.policy_version]


def test_the_next_run_judges_by_it(settings: Settings, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    import dagster as dg

    monkeypatch.setenv("COMPLIANCE_HOME", str(settings.home))
    promote(settings, engine, pack(), "pia", NOW, without_diff="first install")
    with dg.build_init_resource_context() as context, PipelineResource().yield_for_execution(context) as made:
        assert made.pipeline.policy == pack()


def test_the_setting_comes_before_what_was_promoted_and_nothing_is_promoted_then(
    settings: Settings, engine: sa.Engine
) -> None:
    promote(settings, engine, pack(), "pia", NOW, without_diff="first install")
    named = settings.model_copy(update={"policy": DEFAULT_PACK})
    assert live_policy(named, engine) == PACKAGED
    with pytest.raises(NotPromoted, match="COMPLIANCE_POLICY names the pack"):
        promote(named, engine, pack("9.2.0"), "pia", NOW, without_diff="again")


def test_a_named_file_that_changes_is_read_anew(settings: Settings, engine: sa.Engine, tmp_path: Path) -> None:
    path = tmp_path / "pack.yaml"
    path.write_bytes(DEFAULT_PACK.read_bytes())
    named = settings.model_copy(update={"policy": path})
    assert live_policy(named, engine) == PACKAGED
    path.write_text(path.read_text().replace(f"\nversion: {PACKAGED.version}", "\nversion: 9.9.9"))
    assert live_policy(named, engine).version == "9.9.9"
    path.unlink()
    with pytest.raises(PolicyError, match="can't be read"):
        live_policy(named, engine)


def test_the_ledger_keeps_who_when_what_instead_of_what_and_the_digest_of_the_what_if(
    settings: Settings, engine: sa.Engine
) -> None:
    seen = looked_at(settings, engine, pack())
    promote(settings, engine, pack(), "pia", NOW)
    with engine.connect() as connection:
        [entry] = connection.execute(sa.select(ledger_table)).mappings()
    assert (entry["kind"], entry["actor"], entry["at"]) == ("promotion", "pia", NOW)
    assert json.loads(entry["details"]) == {
        "policy_version": pack().policy_version,
        "pack_digest": what_if.pack_digest(pack()),
        "instead_of": PACKAGED.policy_version,
        "diff_digest": seen.diff.digest,
        "reason": None,
    }


def test_promotion_and_ledger_are_one_transaction(settings: Settings, engine: sa.Engine) -> None:
    database.ensure(engine, promoted_policy)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE ledger"))
    with pytest.raises(sa.exc.OperationalError):
        promote(settings, engine, pack(), "pia", NOW, without_diff="first install")
    assert history(engine) == []


def test_a_pack_of_which_there_is_no_what_if_is_refused_unless_there_is_a_reason(
    settings: Settings, engine: sa.Engine
) -> None:
    looked_at(settings, engine, pack("9.1.0"))
    with pytest.raises(NotPromoted, match=r"no what-if of default-us-eu@9\.0\.0\+\w+ was made"):
        promote(settings, engine, pack("9.0.0"), "pia", NOW)
    for empty in ("", "  "):
        with pytest.raises(NotPromoted, match="say in plain text why"):
            promote(settings, engine, pack("9.0.0"), "pia", NOW, without_diff=empty)
    assert last_promoted(engine) is None
    made = promote(settings, engine, pack("9.0.0"), "pia", NOW, without_diff=" the new rule floods billing ")
    assert (made.reason, made.diff_digest) == ("the new rule floods billing", None)


def test_a_pack_that_differs_in_anything_from_the_one_looked_at_is_refused(
    settings: Settings, engine: sa.Engine
) -> None:
    seen = looked_at(settings, engine, pack())
    other = pack(source=PACKAGED.model_copy(update={"retention": ()}))
    assert other.policy_version == pack().policy_version
    with pytest.raises(NotPromoted, match="not of this pack"):
        promote(settings, engine, other, "pia", NOW, diff_id=seen.id)
    with pytest.raises(NotPromoted, match="there is no what-if 0123"):
        promote(settings, engine, pack(), "pia", NOW, diff_id="0123")


def test_a_what_if_against_what_is_live_no_more_is_refused(settings: Settings, engine: sa.Engine) -> None:
    looked_at(settings, engine, pack("9.0.0"))
    looked_at(settings, engine, pack("9.1.0"))
    promote(settings, engine, pack("9.0.0"), "pia", NOW)
    with pytest.raises(NotPromoted, match=r"compares with .*, and live is default-us-eu@9\.0\.0"):
        promote(settings, engine, pack("9.1.0"), "pia", NOW)


def test_of_promotions_at_the_same_time_one_is_made_on_either_database(settings: Settings, inbox_url: str) -> None:
    packs = [pack(f"9.{number}.0") for number in range(4)]
    shared = database.connect(inbox_url)
    for one in packs:
        looked_at(settings, shared, one)

    def attempt(one: PolicyPack) -> bool:
        try:
            promote(settings, shared, one, "pia", NOW)
        except NotPromoted:
            return False
        return True

    with ThreadPoolExecutor(len(packs)) as pool:
        made = list(pool.map(attempt, packs))
    assert sum(made) == 1
    [promoted] = history(shared)
    assert promoted.policy_version == packs[made.index(True)].policy_version
    assert live_policy(settings, shared) == packs[made.index(True)]
    shared.dispose()


def test_what_is_live_already_is_not_promoted_again(settings: Settings, engine: sa.Engine) -> None:
    with pytest.raises(NotPromoted, match="is live already"):
        promote(settings, engine, PACKAGED, "pia", NOW, without_diff="to be sure")


def test_going_back_is_promoting_an_older_pack_by_its_version(settings: Settings, engine: sa.Engine) -> None:
    promote(settings, engine, pack(), "pia", NOW, without_diff="first install")
    older = known_pack(settings, engine, PACKAGED.policy_version)
    assert older == PACKAGED
    assert known_pack(settings, engine, "default-us-eu@7.7.7+00000000") is None
    promote(settings, engine, older, "pia", NOW + timedelta(hours=1), without_diff="it flooded billing")
    assert live_policy(settings, engine) == PACKAGED
    assert known_pack(settings, engine, pack().policy_version) == pack()
    assert [one.number for one in history(engine)] == [2, 1]


def test_a_reason_with_a_card_number_is_never_stored(settings: Settings, engine: sa.Engine) -> None:
    with pytest.raises(NotPlain):
        promote(settings, engine, pack(), "pia", NOW, without_diff="customer of 4111 1111 1111 1111 asked")
    assert history(engine) == []


def test_a_promoted_pack_that_this_version_cannot_read_stops_runs_with_what_to_do(
    settings: Settings, engine: sa.Engine
) -> None:
    promote(settings, engine, pack(), "pia", NOW, without_diff="first install")
    with closing(engine.raw_connection()) as raw:
        raw.cursor().execute("UPDATE promoted_policy SET content = '{}'")
    for attempt in (
        lambda: live_policy(settings, engine),
        lambda: promote(settings, engine, pack("9.1.0"), "pia", NOW),
    ):
        with pytest.raises(PolicyError, match="mend its file, and promote that with --without-diff"):
            attempt()
    promote(settings, engine, pack("9.1.0"), "pia", NOW, without_diff="mended")
    assert live_policy(settings, engine) == pack("9.1.0")
    assert history(engine)[0].instead_of == pack().policy_version
