"""As test_soak.py, under Genesys Cloud's profile; a file of its own, so that both can go side by side."""

from pathlib import Path

from compliance_pipeline_tests.end_to_end.test_soak import soaked


def test_nothing_is_lost_double_or_wrong_under_the_full_fault_plan_of_the_cloud(tmp_path: Path) -> None:
    soaked(tmp_path / "soak", "cloud", 30)
