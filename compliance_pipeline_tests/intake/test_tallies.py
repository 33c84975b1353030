from compliance_pipeline import tallies
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline_tests.intake.samples import NOON, after


def test_counts_add_up_by_name_and_hour(inbox: Inbox) -> None:
    tallies.count(inbox.engine, {"rejected:signature": 2, "rejected:schema": 1}, NOON)
    tallies.count(inbox.engine, {"rejected:signature": 3, "refused:scheme": 1, "rejected:none": 0}, after(60))
    tallies.count(inbox.engine, {"rejected:signature": 10}, after(3600))
    assert tallies.counted(inbox.engine, "rejected:", NOON) == {"rejected:signature": 15, "rejected:schema": 1}
    assert tallies.counted(inbox.engine, "rejected:", after(3700)) == {"rejected:signature": 10}
    assert tallies.counted(inbox.engine, "", NOON)["refused:scheme"] == 1
