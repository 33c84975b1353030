import os
from collections.abc import Iterator

import hypothesis
import pytest

from compliance_pipeline_tests.platforms.loopback import GuideServer, Server

# Wide enough that what is printed isn't folded within a long path.
os.environ["COLUMNS"] = "250"

LONGEST = ("end_to_end", "faults")

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: side by side, one of them alone at the end would hold up the rest."""
    items.sort(key=lambda item: item.path.parent.name not in LONGEST)


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
