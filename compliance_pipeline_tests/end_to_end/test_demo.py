"""The main job on real processes: what came out, what Dagster says of it, and what must not be found anywhere."""

import base64
import json
import sqlite3
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import duckdb
import pytest

from compliance_pipeline.demo import STAGES, Result, collect
from compliance_pipeline.orchestration.checks import QUESTIONS
from compliance_pipeline.orchestration.sensors import flag_recordings, keep_evidence, seal_ledger
from compliance_pipeline.sandbox.calls import demo_plan
from compliance_pipeline.settings import Settings
from compliance_pipeline.stack import Stack
from compliance_pipeline_tests.canaries import Canaries, Leak, planted_by_demo
from compliance_pipeline_tests.end_to_end.demo_run import (
    COUNT,
    SEED,
    SPREAD_S,
    instance_of,
    sandbox_options,
    settle,
    start_all,
)

CHECK_OF_LATENCY = "p95_is_within_the_objective"
"""How fast a busy test machine is says nothing of the pipeline."""


@dataclass
class Demo:
    home: Path
    result: Result


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    home = tmp_path_factory.mktemp("demo")
    with Stack(home, sandbox_options=sandbox_options()) as stack:
        start_all(stack)
        seconds = settle(stack, timeout_s=240)
        result = collect(stack, seconds)
        for job in (keep_evidence.name, seal_ledger.name):
            _run(stack, f"dagster job execute -m compliance_pipeline.definitions -j {job}")
        _run(stack, "compliance report --publish")
        for outcome in result.outcomes:
            if outcome.truth != "NO_VIOLATION":
                bundle = home / f"bundle-{outcome.recording_id}.zip"
                _run(stack, f"compliance audit export {outcome.recording_id} --out {bundle}")
        # Killed, so that they leave the write-ahead log as it is: the last one to close it would fold it in.
        for name in ("daemon", "code", "receiver"):
            stack.kill(name)
    return Demo(home, result)


def _run(stack: Stack, command: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", command], env=stack.environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def instance(demo: Demo) -> Iterator[dg.DagsterInstance]:
    with instance_of(demo.home) as instance:
        yield instance


def test_nothing_is_lost_double_or_wrong(demo: Demo) -> None:
    assert len(demo.result.outcomes) == COUNT
    assert demo.result.faults == [], f"logs: {demo.home / 'logs'}"


def test_violations_of_every_channel_are_among_them(demo: Demo) -> None:
    found = {o.truth for o in demo.result.outcomes}
    assert {"PCI_MID_CAPTURE", "PCI_DTMF_CAPTURE", "PCI_SAD_CAPTURE", "PII_GOVERNMENT_ID", "NO_VIOLATION"} <= found


def test_duplicates_are_absorbed(demo: Demo) -> None:
    sent_again = sum(planned.deliveries - 1 for planned in demo_plan(SEED, count=COUNT, spread_s=SPREAD_S))
    assert sent_again > 0
    assert demo.result.duplicates >= sent_again


def test_damaged_media_is_reported_as_unscreenable_with_the_reason(demo: Demo) -> None:
    damaged = {p.recording_id: p.damage for p in demo_plan(SEED, count=COUNT, spread_s=SPREAD_S) if p.damage}
    assert damaged
    assert demo.result.unscreenable == damaged


def test_the_latency_table_has_every_stage(demo: Demo) -> None:
    rows = {row["stage"]: row for row in demo.result.stages}
    assert rows.keys() == STAGES.keys()
    assert rows["judged"]["recordings"] == COUNT
    for row in rows.values():
        assert 0 <= row["p50"] <= row["p95"] <= row["p99"]


def test_every_run_succeeded(demo: Demo, instance: dg.DagsterInstance) -> None:
    runs = instance.get_runs()
    assert runs
    # Besides, what schedules start by the clock.
    assert {run.job_name for run in runs} >= {flag_recordings.name, keep_evidence.name, seal_ledger.name}
    assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}


def _hours(instance: dg.DagsterInstance) -> set[str]:
    runs = instance.get_runs(dg.RunsFilter(job_name=flag_recordings.name))
    return {run.tags["dagster/partition"] for run in runs}


def test_every_asset_is_materialized_in_every_hour_that_had_recordings(
    demo: Demo, instance: dg.DagsterInstance
) -> None:
    hours = _hours(instance)
    names = ("recordings", "media", "verdicts", "remediations", "latency_by_hour", "violations_by_hour")
    for name in names:
        assert instance.get_materialized_partitions(dg.AssetKey(name)) == hours


def test_the_latest_result_of_every_check_is_that_it_passed(demo: Demo, instance: dg.DagsterInstance) -> None:
    hours = _hours(instance)
    for question, asset in QUESTIONS.items():
        key = dg.AssetCheckKey(dg.AssetKey(asset), question.__name__)
        # Latest first: of each hour the first counts.
        latest: dict[str | None, bool] = {}
        for record in instance.event_log_storage.get_asset_check_execution_history(key, limit=100):
            evaluation = record.event.asset_check_evaluation if record.event else None
            assert evaluation, f"{key} was planned and never answered"
            latest.setdefault(evaluation.partition, evaluation.passed)
        assert latest.keys() == hours
        if question.__name__ != CHECK_OF_LATENCY:
            assert all(latest.values()), f"{question.__name__} did not pass: {latest}"


# Canaries


@pytest.fixture(scope="module")
def canaries(demo: Demo) -> Canaries:
    settings = Settings(home=demo.home)
    keyset = json.loads((demo.home / "secrets" / "vault_key").read_text())
    return Canaries(
        planted_by_demo(SEED, COUNT, SPREAD_S),
        {
            "the client secret": settings.platform_client_secret,
            "the webhook secret": settings.webhook_signing_secret,
            "the key of participant tokens": settings.participant_token_key,
            "the key of the ledger's seals": settings.ledger_signing_key,
            "the key of the vault": keyset["key"][0]["keyData"]["value"],
        },
    )


def test_no_clear_value_is_in_any_file_that_the_system_wrote(demo: Demo, canaries: Canaries) -> None:
    files = {str(path.relative_to(demo.home)) for path in demo.home.rglob("*") if path.is_file()}
    # The sweep is worth something only if it meets these.
    expected = {
        "inbox.db",
        "inbox.db-wal",
        "warehouse.duckdb",
        "dagster/history/runs.db",
        "dagster/history/runs/index.db",
    }
    assert expected | {f"logs/{name}.log" for name in ("receiver", "code", "daemon", "sandbox")} <= files
    assert any("compute_logs" in name for name in files)
    assert any(name.startswith("vault/") for name in files)
    assert any(name.endswith(".parquet") for name in files)
    bundles = [demo.home / name for name in files if name.endswith(".zip")]
    assert any("clips/" in name for bundle in bundles for name in zipfile.ZipFile(bundle).namelist())

    leaks, swept = canaries.sweep(demo.home)
    assert leaks == []
    assert swept >= len(files)


PLANTED = {"call": ["4929123456781239", "123-45-6789", "+14155550123", "hana.goran77@example.com"]}
CARD, SSN, PHONE, EMAIL = PLANTED["call"]
TOKEN = "q8Xw0b3n2cVYt6k1Zr5uLhEeJg9sAaPd"
CLEAR = {
    "as it is": CARD,
    "grouped": "4929 1234 5678 1239",
    "with hyphens": "4929-1234-5678-1239",
    "inside longer figures": f"17953973{CARD}",
    "a social security number": SSN,
    "a social security number without hyphens": "123456789",
    "a phone number": PHONE,
    "a phone number as people write it": "(415) 555-0123",
    "a phone number in an address": "tel=%2B14155550123",
    "an e-mail address": EMAIL,
    "an e-mail address in capitals": "Hana.Goran77@Example.com",
    "an e-mail address in a URL": "hana.goran77%40example.com",
    "a bearer token": f"Authorization: Bearer {TOKEN}",
    "an access token": f'{{"access_token": "{TOKEN}"}}',
    "a signed address": f"http://host/media/1?token=1795397369.123.{'0af3' * 16}",
    "a secret": "whsec_" + TOKEN,
}


@pytest.fixture(scope="module")
def looking() -> Canaries:
    return Canaries(PLANTED, {"the webhook secret": "whsec_" + TOKEN})


@pytest.mark.parametrize("clear", CLEAR.values(), ids=CLEAR.keys())
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "base64", "padded base64"])
def test_the_sweep_finds_every_way_of_writing_a_value(looking: Canaries, clear: str, encoding: str) -> None:
    text = f"caller said {clear} at 12"
    if "base64" in encoding:
        written = base64.b64encode(("x" if encoding.startswith("padded") else "").encode() + text.encode())
        written = b'{"body": "' + written + b'"}'
    else:
        written = text.encode(encoding)
    assert list(looking.find(written))


@pytest.mark.parametrize(
    "harmless", ["492912******1239", "***-**-****", "tok_4929aa12", "order 4929123", "2026-11-23 01:29"]
)
def test_the_sweep_finds_nothing_in_masked_values_and_plain_figures(looking: Canaries, harmless: str) -> None:
    assert list(looking.find(harmless.encode())) == []


def test_the_sweep_finds_one_planted_value_in_each_kind_of_file(tmp_path: Path, looking: Canaries) -> None:
    wal = _plant(tmp_path)
    try:
        leaks, swept = looking.sweep(tmp_path)
    finally:
        wal.close()
    assert swept >= 9
    card = f"a number of {len(CARD)} digits of call"
    found = {leak.file for leak in leaks if leak.what == card}
    assert found >= {
        "process.log",
        "dagster/storage/run/compute_logs/step.err",
        "dagster/history/runs/index.db",
        "inbox.db-wal",
        "warehouse.duckdb",
        "warehouse.duckdb.lock",
        "bundle.zip",
        "findings.parquet",
        f"{CARD}.tmp",
    }
    # Where secrets may lie: no leak there. Anywhere else: one.
    assert Leak("process.log", "the webhook secret") in leaks
    assert not [leak for leak in leaks if leak.file == "secrets/webhook"]
    assert not [leak for leak in leaks if CARD in leak.what]


def _plant(home: Path) -> sqlite3.Connection:
    """One value in a file of each kind. Returns the connection that keeps the write-ahead log in being."""
    said = f'{{"text": "my card is {CARD[:4]} {CARD[4:8]} {CARD[8:12]} {CARD[12:]}"}}'
    for name in ("process.log", "dagster/storage/run/compute_logs/step.err", "warehouse.duckdb.lock"):
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(said + " whsec_" + TOKEN)
    (home / f"{CARD}.tmp").touch()
    with zipfile.ZipFile(home / "bundle.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("warehouse/findings.json", said)
    (home / "secrets").mkdir()
    (home / "secrets" / "webhook").write_text("whsec_" + TOKEN)
    index = home / "dagster/history/runs/index.db"
    index.parent.mkdir(parents=True)
    with closing(sqlite3.connect(index)) as connection:
        connection.execute("CREATE TABLE event_logs (event TEXT)")
        # Longer than a page: the file holds it in pieces.
        connection.execute("INSERT INTO event_logs VALUES (?)", ("x" * 4055 + said,))
        connection.commit()
    with duckdb.connect(home / "warehouse.duckdb") as warehouse:
        warehouse.execute(
            "CREATE TABLE findings AS SELECT $said || (i % 3) AS masked FROM range(200000) r(i)", {"said": said}
        )
        warehouse.execute("CHECKPOINT")
        warehouse.execute(f"COPY (FROM findings LIMIT 9) TO '{home / 'findings.parquet'}' (COMPRESSION zstd)")
    inbox = sqlite3.connect(home / "inbox.db")
    inbox.execute("PRAGMA journal_mode=WAL")
    inbox.execute("CREATE TABLE inbox (payload TEXT)")
    inbox.execute("INSERT INTO inbox VALUES (?)", (said,))
    inbox.commit()
    return inbox
