"""A sandbox platform under a fault plan, for tests: states, served APIs, recordings. Checks nothing by itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx

from compliance_pipeline.sandbox.calls import Kind, SyntheticRecording, make_recording
from compliance_pipeline.sandbox.faults import FaultKind, FaultPlan, PlannedFault
from compliance_pipeline.sandbox.platform import PlatformState, serve


def fault(kind: FaultKind, rate: float = 1.0, **fields: Any) -> PlannedFault:
    return PlannedFault(kind=kind, rate=rate, **fields)


def state_under(*faults: PlannedFault, **fields: Any) -> PlatformState:
    return PlatformState("compliance-service", "s3cret", plan=FaultPlan(faults=faults), **fields)


def chat(seed: int = 1, kind: Kind = Kind.CHAT_CARD) -> SyntheticRecording:
    return make_recording(seed, kind, ended_at=datetime.now(UTC))


@contextmanager
def api_of(state: PlatformState) -> Iterator[httpx.Client]:
    with (
        serve(state) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {state.issue_token()}"}) as client,
    ):
        yield client
