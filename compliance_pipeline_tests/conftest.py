from collections.abc import Iterator

import pytest

from compliance_pipeline_tests.platforms.loopback import GuideServer, Server


@pytest.fixture
def server() -> Iterator[GuideServer]:
    server = GuideServer()
    yield server
    server.stop()


@pytest.fixture
def media_host() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()
