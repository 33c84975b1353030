"""Dagster's storage in Postgres with connections that stay open: a real Postgres."""

import os
import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from compliance_pipeline.orchestration import storage
from compliance_pipeline.orchestration.storage import PooledPostgresStorage
from compliance_pipeline_tests.intake.conftest import postgres_uri as postgres_uri  # a fixture


@pytest.fixture
def pooled(postgres_uri: str) -> Iterator[PooledPostgresStorage]:
    found = PooledPostgresStorage(postgres_uri.replace("+psycopg", "+psycopg2"))
    yield found
    storage._engine(found.postgres_url).dispose()


def backend(pooled: PooledPostgresStorage) -> int:
    """The process of Postgres that serves the runs now; that of the events is the same."""
    with pooled.run_storage.connect() as runs:  # type: ignore[attr-defined]
        found = int(runs.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())
    with pooled.event_log_storage.index_connection() as events:  # type: ignore[attr-defined]
        assert events.execute(sa.text("SELECT pg_backend_pid()")).scalar_one() == found
    return found


def test_a_connection_stays_open_and_another_instance_of_the_process_uses_it_too(pooled: PooledPostgresStorage) -> None:
    first = backend(pooled)
    assert pooled.run_storage.get_runs() == []
    assert pooled.event_log_storage.all_asset_keys() == []
    assert backend(pooled) == first
    assert backend(PooledPostgresStorage(pooled.postgres_url)) == first


def test_a_connection_that_broke_while_nobody_used_it_is_replaced(pooled: PooledPostgresStorage) -> None:
    broken = backend(pooled)
    other = sa.create_engine(pooled.postgres_url)
    with other.begin() as connection:
        connection.execute(sa.text(f"SELECT pg_terminate_backend({broken})"))
    other.dispose()
    time.sleep(0.2)  # less than it is trusted for
    assert pooled.run_storage.get_runs() == []
    assert backend(pooled) != broken


def test_a_child_has_connections_of_its_own(pooled: PooledPostgresStorage) -> None:
    ours = backend(pooled)
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writes, str(backend(pooled)).encode())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert int(os.read(reads, 100)) != ours
    assert backend(pooled) == ours
    os.close(reads)
    os.close(writes)
