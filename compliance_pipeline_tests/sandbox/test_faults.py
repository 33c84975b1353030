"""Fault plans: the same seed strikes the same, at the rate and in the window that the plan says."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from compliance_pipeline.sandbox.faults import FULL, FaultKind, FaultPlan, PlannedFault, load_plan

KEYS = [f"recording-{number}" for number in range(2000)]


def struck(plan: FaultPlan, at_s: float = 0.0) -> set[str]:
    return {key for key in KEYS if plan.strikes(FaultKind.UPLOADING, key, at_s)}


@given(st.integers(0, 10**6), st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_a_seed_strikes_the_same_keys_again_and_about_as_many_as_the_rate_says(seed: int, rate: float) -> None:
    plan = FaultPlan(seed=seed, faults=(PlannedFault(kind=FaultKind.UPLOADING, rate=rate),))
    first = struck(plan)
    assert struck(plan) == first
    assert abs(len(first) / len(KEYS) - rate) < 0.08


def test_another_seed_strikes_others_and_another_kind_none() -> None:
    one, two = (FaultPlan(seed=seed, faults=(PlannedFault(kind=FaultKind.UPLOADING, rate=0.5),)) for seed in (1, 2))
    assert struck(one) != struck(two)
    assert not one.strikes(FaultKind.DELETED, KEYS[0], 0)


@pytest.mark.parametrize(("at_s", "strikes"), [(0, False), (9.9, False), (10, True), (14.9, True), (15, False)])
def test_a_window_opens_and_closes(at_s: float, strikes: bool) -> None:
    plan = FaultPlan(faults=(PlannedFault(kind=FaultKind.UPLOADING, rate=1, after_s=10, for_s=5),))
    assert bool(struck(plan, at_s)) is strikes


def test_two_faults_of_a_kind_are_drawn_apart() -> None:
    plan = FaultPlan(faults=tuple(PlannedFault(kind=FaultKind.UPLOADING, rate=0.3, times=n) for n in (1, 2)))
    times = [fault.times for key in KEYS if (fault := plan.strikes(FaultKind.UPLOADING, key, 0))]
    assert set(times) == {1, 2}


def test_the_full_plan_has_every_kind_and_strikes_few_enough_to_work_on() -> None:
    plan = load_plan(FULL)
    assert {fault.kind for fault in plan.faults} == set(FaultKind)
    assert all(fault.rate <= 0.1 or fault.for_s for fault in plan.faults)


@pytest.mark.parametrize("text", ["faults: [{kind: uploading, rate: 2}]", "faults: [{kind: nonsense, rate: 1}]", "[]"])
def test_what_is_no_plan_is_refused(text: str, tmp_path: Path) -> None:
    (path := tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ValidationError):
        load_plan(path)
