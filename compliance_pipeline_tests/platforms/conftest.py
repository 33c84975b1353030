from collections.abc import Iterator

import pytest

from compliance_pipeline.platforms.transport import Transport
from compliance_pipeline_tests.contract.recorder import every_sandbox_conforms
from compliance_pipeline_tests.platforms.loopback import CLIENT, GuideServer


@pytest.fixture
def by_the_contract() -> Iterator[None]:
    """Whatever a test says to a sandbox, and whatever that answers, is held against the contract."""
    with every_sandbox_conforms():
        yield


@pytest.fixture
def transport(server: GuideServer) -> Iterator[Transport]:
    transport = Transport(server.url, *CLIENT, backoff_s=0.001)
    yield transport
    transport.close()
