"""Planted values: found however they are written, and at a cost that does not follow how many there are."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance_pipeline.sandbox.calls import Kind, make_recording
from compliance_pipeline.sandbox.planted import PlantedValues
from compliance_pipeline_tests.sandbox.test_calls import ENDED_AT


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind.channel != "voice"])
@given(seed=st.integers(0, 10**6), before=st.text(max_size=20), after=st.text(max_size=20))
@settings(deadline=None)
def test_every_planted_value_is_found_in_any_text_and_with_other_separators(
    kind: Kind, seed: int, before: str, after: str
) -> None:
    planted = PlantedValues()
    recording = make_recording(seed, kind, ended_at=ENDED_AT)
    planted.add(recording.planted, "owner")
    for value in recording.planted:
        assert planted.owners_in(f"{before}{value}{after}".encode()) == {"owner"}
        if value.isdigit():
            assert planted.owners_in(" ".join(value).encode()) == {"owner"}
            assert planted.owners_in(f"x{value[:4]}-{value[4:]}x".encode()) == {"owner"}
    assert planted.owners_in(f"{before}|{after}".encode()) == set()


def test_part_of_a_value_is_none() -> None:
    planted = PlantedValues()
    planted.add(["4111111111111111"], "owner")
    assert planted.owners_in(b"411111 and 1111") == set()


def test_a_look_up_costs_the_same_with_a_long_history() -> None:
    rng = random.Random(1)
    body = b'{"record": {"summary": "a card ending 1111, at 12 s", "key": "0f3c1a52-7c0e-4a51-9d57-0a1b2c3d4e5f"}}' * 4
    costs = []
    planted = PlantedValues()
    for count in (10, 50_000):
        for _ in range(count):
            planted.add([str(rng.randrange(10**15, 10**16)), f"+1{rng.randrange(10**9, 10**10)}"], "owner")
        began = time.process_time()
        for _ in range(300):
            planted.owners_in(body)
        costs.append(time.process_time() - began)
    # A search of each value in turn would take thousands of times as long.
    assert costs[1] < 10 * costs[0] + 0.1
