"""The job in process, with a real Dagster instance on disk and a real platform: what Dagster then shows."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from compliance_pipeline.breaker import circuit_breaker
from compliance_pipeline.contracts.policy import RetentionRule
from compliance_pipeline.definitions import compliance_pipeline
from compliance_pipeline.figures.snapshots import Snapshot, folder_of
from compliance_pipeline.intake.inbox import State
from compliance_pipeline.media.vault import vault_of
from compliance_pipeline.orchestration.sensors import evidence_sensor, snapshot_sensor
from compliance_pipeline.retention import hold
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline.steps import TRIGGER_TAG, TRIGGERED_BY_INBOX
from compliance_pipeline_tests.orchestration.test_definitions import EXPECTED
from compliance_pipeline_tests.workshop import CLIENT, Workshop, recording, workshop

CARD, SSN, CLEAN = recording(Kind.CHAT_CARD), recording(Kind.CHAT_SSN), recording(Kind.CHAT_CLEAN)
PLOTTED = {
    "recordings": {"recordings in this run", "duplicate events", "tries"},
    "media": {"media fetched", "bytes fetched", "fetch seconds"},
    "verdicts": {"findings", "judged before", "deferred", "dead letters", "analysis seconds"},
    "remediations": {"recordings settled", "tag_recording done", "create_work_item done"},
    "latency_by_hour": {"flagged P50 seconds", "flagged P95 seconds", "judged P95 seconds"},
    "violations_by_hour": set(),
}


@dataclass
class Dagster:
    shop: Workshop
    instance: dg.DagsterInstance

    def run(self, *, by_inbox: bool = True, **options: Any) -> dg.ExecuteInProcessResult:
        return (
            compliance_pipeline()
            .resolve_job_def("flag_recordings")
            .execute_in_process(
                partition_key=self.shop.hour,
                instance=self.instance,
                tags={TRIGGER_TAG: TRIGGERED_BY_INBOX} if by_inbox else {},
                **options,
            )
        )


@pytest.fixture
def dagster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dagster]:
    (tmp_path / "dagster").mkdir()
    with workshop(tmp_path / "home") as shop, dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        monkeypatch.setenv("COMPLIANCE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("COMPLIANCE_PLATFORM_URL", shop.state.base_url)
        monkeypatch.setenv("COMPLIANCE_CLIENT_ID", CLIENT[0])
        monkeypatch.setenv("COMPLIANCE_CLIENT_SECRET", CLIENT[1])
        yield Dagster(shop, instance)


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    found = (event.step_materialization_data.materialization for event in result.get_asset_materialization_events())
    return {
        one.asset_key.to_user_string(): {name: value.value for name, value in one.metadata.items()} for one in found
    }


def test_a_run_materialises_all_assets_of_the_hour_with_their_figures_and_answers_all_checks(
    dagster: Dagster, caplog: pytest.LogCaptureFixture
) -> None:
    shop = dagster.shop
    shop.announce(CARD, SSN, CLEAN)
    result = dagster.run()
    assert result.success
    events = result.get_asset_materialization_events()
    assert {event.asset_key.to_user_string() for event in events if event.asset_key} == set(EXPECTED)
    assert {event.partition for event in events} == {shop.hour}
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert len(checks) == 5
    assert all(check.passed for check in checks.values()), checks
    screened = checks["nothing_sensitive_is_stored"].metadata["values screened"].value
    assert isinstance(screened, int)
    assert screened > 50
    assert set(shop.states().values()) == {State.DONE}
    assert len(shop.state.work_items) == 2
    assert {row["run_id"] for row in shop.rows("verdicts")} == {result.run_id}
    for asset, metadata in metadata_of(result).items():
        columns = metadata["dagster/column_schema"].columns
        assert [(c.name, c.type.upper(), c.description) for c in columns] == shop.warehouse.describe(
            asset, shop.at
        ).columns
        assert metadata["dagster/partition_row_count"] == len(
            shop.warehouse.select(f"FROM {asset} WHERE partition_hour = $hour", {"hour": shop.at})
        )
        assert metadata["dagster/table_name"] == f"warehouse.main.{asset}"
        assert metadata.keys() >= PLOTTED[asset]
        assert all(isinstance(metadata[name], int | float) for name in PLOTTED[asset]), "numbers plot over partitions"
    assert not [value for one in (CARD, SSN) for value in one.planted if value in caplog.text]


def test_a_run_says_which_circuit_breakers_are_open(dagster: Dagster) -> None:
    assert metadata_of(dagster.run())["recordings"]["circuit breakers"] == "all closed"
    circuit_breaker(dagster.shop.inbox.engine, "media:bucket.test").open()
    assert metadata_of(dagster.run())["recordings"]["circuit breakers"].startswith("media:bucket.test open since ")


def test_an_hour_in_which_nothing_happened_materialises_and_passes_too(dagster: Dagster) -> None:
    result = dagster.run()
    assert len(result.get_asset_materialization_events()) == len(EXPECTED)
    assert all(check.passed for check in result.get_asset_check_evaluations())


def test_a_run_by_hand_looks_at_the_whole_hour_again_and_repeats_nothing(dagster: Dagster) -> None:
    shop = dagster.shop
    shop.announce(CARD)
    shop.run()
    before = shop.end_state()
    again = metadata_of(dagster.run(by_inbox=False))
    assert again["verdicts"]["judged before"] == 1
    assert again["recordings"]["recordings in this run"] == 1
    assert shop.end_state() == before


def test_a_live_run_screens_what_it_wrote_and_a_run_by_hand_the_whole_hour(dagster: Dagster) -> None:
    shop = dagster.shop
    shop.announce(CARD)
    shop.run()
    with shop.warehouse.write() as connection:
        connection.execute("UPDATE media SET codec = '4111 1111 1111 1111'")
    shop.announce(CLEAN)

    def screened(by_inbox: bool) -> dg.AssetCheckEvaluation:
        checks = dagster.run(by_inbox=by_inbox).get_asset_check_evaluations()
        return next(check for check in checks if check.check_name == "nothing_sensitive_is_stored")

    live = screened(by_inbox=True)
    assert live.passed
    assert live.metadata["values screened"].value not in (0, None)
    assert not screened(by_inbox=False).passed


def test_planted_faults_fail_their_checks_and_not_the_run(dagster: Dagster) -> None:
    shop = dagster.shop
    shop.announce(CARD, SSN, CLEAN)
    shop.run()
    with shop.warehouse.write() as connection:
        connection.execute("UPDATE verdicts SET confidence_score = 7 WHERE recording_id = $1", [CARD.recording_id])
        connection.execute("DELETE FROM remediations WHERE recording_id = $1", [SSN.recording_id])
        connection.execute("UPDATE stage_times SET seconds = 99 WHERE stage = 'flagged'")
        connection.execute("DELETE FROM verdicts WHERE recording_id = $1", [CLEAN.recording_id])
    result = dagster.run()
    assert result.success
    failed = {c.check_name: c for c in result.get_asset_check_evaluations() if not c.passed}
    assert {name: check.severity.value for name, check in failed.items()} == {
        "verdicts_match_the_contract": "ERROR",
        "every_violation_is_remediated": "ERROR",
        "every_recording_is_accounted_for": "ERROR",
        "p95_is_within_the_objective": "WARN",
    }
    assert failed["verdicts_match_the_contract"].metadata["invalid"].value == 1


def test_a_marts_only_run_needs_nothing_upstream(dagster: Dagster) -> None:
    dagster.shop.announce(CARD)
    dagster.shop.run()
    result = dagster.run(asset_selection=[dg.AssetKey("violations_by_hour")])
    assert [
        event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key
    ] == ["violations_by_hour"]


def test_the_evidence_of_a_flagged_call_follows_in_a_job_of_its_own(dagster: Dagster) -> None:
    shop = dagster.shop
    tones = recording(Kind.VOICE_TONES)
    shop.announce(tones)

    def ticked() -> dg.SensorResult | dg.RunRequest | dg.SkipReason | None:
        with dg.build_sensor_context(instance=dagster.instance) as context:
            said = evidence_sensor(context)
            assert isinstance(said, dg.RunRequest | dg.SkipReason)
            return said

    assert isinstance(ticked(), dg.SkipReason)
    assert dagster.run().success
    [before] = shop.rows("latest_verdicts")
    assert before["evidence_snippet"] is None, "nothing is pointed to before the masked clip is there"
    assert isinstance(ticked(), dg.RunRequest)
    result = compliance_pipeline().resolve_job_def("keep_evidence").execute_in_process(instance=dagster.instance)
    assert result.success
    assert metadata_of(result)["evidence"]["clips made"] == 1
    assert isinstance(ticked(), dg.SkipReason), "done once"
    [after] = shop.rows("latest_verdicts")
    assert after["evidence_snippet"].startswith("evidence/")
    with closing(vault_of(shop.pipeline.settings, shop.inbox.engine)) as vault:
        assert b"".join(vault.read(after["recording_id"], after["evidence_snippet"])).startswith(b"fLaC")


def job_of(dagster: Dagster, name: str) -> tuple[dict[str, Any], bool]:
    """The metadata of the one asset that the job makes, and whether its check passed."""
    result = compliance_pipeline().resolve_job_def(name).execute_in_process(instance=dagster.instance)
    assert result.success
    [metadata] = metadata_of(result).values()
    [check] = result.get_asset_check_evaluations()
    return metadata, check.passed


def test_the_ledger_is_sealed_by_a_job_and_a_changed_entry_fails_its_check_and_gets_no_seal(dagster: Dagster) -> None:
    dagster.shop.announce(CARD)
    dagster.shop.run()
    sealed, passed = job_of(dagster, "seal_ledger")
    assert passed
    assert sealed["sealed up to entry"] == sealed["entries"] > 0
    dagster.shop.announce(SSN)
    dagster.shop.run()
    with closing(sqlite3.connect(dagster.shop.pipeline.settings.home / "inbox.db")) as database, database:
        for (trigger,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{trigger}"')
        database.execute("UPDATE ledger SET actor = 'nobody' WHERE seq = (SELECT max(seq) FROM ledger)")
    after, passed = job_of(dagster, "seal_ledger")
    assert not passed
    assert after["sealed up to entry"] == sealed["sealed up to entry"]


def test_what_is_due_is_deleted_by_a_job_unless_held_and_what_can_t_be_fails_its_check(
    dagster: Dagster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = dagster.shop
    settings, operational = shop.pipeline.settings, shop.inbox.engine
    called, held = recording(Kind.VOICE_TONES), recording(Kind.VOICE_TONES, 2)
    shop.announce(called, held)
    assert dagster.run().success
    assert compliance_pipeline().resolve_job_def("keep_evidence").execute_in_process(instance=dagster.instance).success
    metadata, passed = job_of(dagster, "apply_retention")
    assert passed
    assert metadata["deleted"] == 0

    pack = load_policy(None)
    at_once = RetentionRule(name="at-once", data="clip", days=0)
    short = tmp_path / "short.yaml"
    short.write_text(pack.model_copy(update={"retention": (at_once,)}).model_dump_json(exclude_unset=True))
    monkeypatch.setenv("COMPLIANCE_POLICY", str(short))
    hold(operational, held.recording_id, "a dispute", "a lawyer", shop.clock())
    with operational.begin() as connection:
        connection.execute(
            sa.text("CREATE TRIGGER broken BEFORE UPDATE ON data_keys BEGIN SELECT RAISE(ABORT, ''); END")
        )
    metadata, passed = job_of(dagster, "apply_retention")
    assert not passed
    assert (metadata["deleted"], metadata["held"], metadata["failed"]) == (0, 1, 1)

    with operational.begin() as connection:
        connection.execute(sa.text("DROP TRIGGER broken"))
    metadata, passed = job_of(dagster, "apply_retention")
    assert passed, "nothing had to be done by hand"
    assert (metadata["deleted"], metadata["held"], metadata["failed"]) == (1, 1, 0)
    with closing(vault_of(settings, operational)) as vault:
        assert vault.names(called.recording_id) == []
        assert vault.names(held.recording_id)


def test_what_changed_is_published_by_a_sensor_that_starts_no_run(dagster: Dagster) -> None:
    def ticked() -> dg.SensorResult | dg.SkipReason | dg.RunRequest | None:
        with dg.build_sensor_context(instance=dagster.instance) as context:
            said = snapshot_sensor(context)
            assert isinstance(said, dg.SensorResult | dg.SkipReason)
            return said

    dagster.shop.announce(CARD)
    assert dagster.run().success
    first = ticked()
    assert isinstance(first, dg.SensorResult)
    [event] = first.asset_events
    assert isinstance(event, dg.AssetMaterialization)
    assert {name: value.value for name, value in event.metadata.items()}.items() >= {
        "snapshot": 1,
        "days in all": 1,
    }.items()
    assert isinstance(ticked(), dg.SkipReason), "done once"
    snapshot = Snapshot.current(folder_of(dagster.shop.pipeline.settings.home))
    [row] = snapshot.rows("FROM read_parquet($interactions)", dagster.shop.at, dagster.shop.at + timedelta(hours=1))
    assert row["recording_id"] == CARD.recording_id
    snapshot.close()
