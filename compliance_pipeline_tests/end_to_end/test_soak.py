"""The short version of `make soak`: everything real, a platform that does everything wrong, nothing lost or double."""

from pathlib import Path
from typing import Literal

from compliance_pipeline.soak import SoakResult, run_soak


def soaked(home: Path, profile: Literal["guide", "cloud"], seconds: float) -> None:
    *_, result = run_soak(home, profile=profile, seconds=seconds, rate=2, faults="full")
    assert isinstance(result, SoakResult)
    assert (dict(result.lost), dict(result.double), dict(result.wrong), dict(result.alarms)) == ({}, {}, {}, {})
    assert result.unique > seconds
    assert len(result.faults) > 15, "a plan that strikes nothing would prove nothing"


def test_nothing_is_lost_double_or_wrong_under_the_full_fault_plan(tmp_path: Path) -> None:
    soaked(tmp_path / "soak", "guide", 30)
