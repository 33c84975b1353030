from collections.abc import Iterator

import pytest

from compliance_pipeline.platforms.transport import Transport
from compliance_pipeline_tests.platforms.loopback import CLIENT, GuideServer


@pytest.fixture
def transport(server: GuideServer) -> Iterator[Transport]:
    transport = Transport(server.url, *CLIENT, backoff_s=0.001)
    yield transport
    transport.close()
