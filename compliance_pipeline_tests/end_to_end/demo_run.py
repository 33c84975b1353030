"""A small demo on real processes, for the tests that look at what it left behind, and at Dagster's side of it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from compliance_pipeline.demo import wait_until_settled
from compliance_pipeline.stack import Stack

SEED = 1
COUNT = 12
SPREAD_S = 10.0


def sandbox_options(count: int = COUNT, spread_s: float = SPREAD_S, seed: int = SEED) -> str:
    return f"--plan demo --seed {seed} --count {count} --spread {spread_s}"


def start_all(stack: Stack) -> None:
    stack.start("receiver", "code")
    stack.wait_until_up("receiver", "code")
    stack.start("daemon", "sandbox")
    stack.wait_until_up("sandbox")


@contextmanager
def instance_of(home: Path) -> Iterator[dg.DagsterInstance]:
    dagster_home = str(home / "dagster")
    # dagster.yaml names its folder by this variable.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", dagster_home)
        instance = dg.DagsterInstance.from_config(dagster_home)
    with instance:
        yield instance


def settle(stack: Stack, timeout_s: float) -> float:
    """Wait until every recording is settled and no run is under way; returns the seconds until the former."""
    begun = time.monotonic()
    for _ in wait_until_settled(stack, timeout_s=timeout_s):
        pass
    settled_s = time.monotonic() - begun
    with instance_of(stack.settings.home) as instance:
        while unfinished := [run for run in instance.get_runs() if not run.is_finished]:
            assert time.monotonic() - begun < timeout_s + 120, (
                f"runs that do not end: {unfinished}; logs: {stack.settings.home / 'logs'}"
            )
            time.sleep(0.5)
    return settled_s
