"""The soak's recordings: many, cheap, each its own, with the truth and the bytes of the pool."""

from datetime import UTC, datetime, timedelta

from compliance_pipeline.sandbox.soak_plan import soak_plan

AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def test_recordings_come_evenly_each_with_an_id_of_its_own_and_bytes_that_are_shared() -> None:
    plan = list(soak_plan(1, rate_per_s=20, seconds=60))
    assert len(plan) == 1200
    assert [planned.at_s for planned in plan[:3]] == [0, 0.05, 0.1]
    made = [planned.make(AT + timedelta(seconds=planned.at_s)) for planned in plan]
    assert len({recording.recording_id for recording in made}) == 1200
    assert [recording.recording_id for recording in made] == [planned.recording_id for planned in plan]
    assert [recording.kind for recording in made] == [planned.kind for planned in plan]
    assert len({id(recording.media) for recording in made}) <= 60
    assert len({recording.participants[0]["id"] for recording in made}) == 1200
    assert {recording.end_time for recording in made} == {AT + timedelta(seconds=p.at_s) for p in plan}
    verdicts = [recording.truth.verdict for recording in made]
    assert 0.2 < verdicts.count(verdicts[0].VIOLATION_DETECTED) / 1200 < 0.8


def test_the_same_seed_makes_the_same_and_another_one_others() -> None:
    ids = [[p.recording_id for p in soak_plan(seed, rate_per_s=2, seconds=10)] for seed in (3, 3, 4)]
    assert ids[0] == ids[1]
    assert not set(ids[0]) & set(ids[2])
