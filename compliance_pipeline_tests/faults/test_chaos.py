"""kill -9 of every process at random instants under load: nothing lost, nothing done twice, nothing left half done.

A few kills here; 200 by `make chaos`. The seed is printed: the same one plans the same kills.
"""

import os
from pathlib import Path

from compliance_pipeline_tests.faults.chaos import VICTIMS, show, strikes

KILLS, SEED = (200, 20) if os.environ.get("CHAOS") else (5, 7)


def test_killing_every_process_at_random_instants_loses_doubles_and_half_does_nothing(tmp_path: Path) -> None:
    """fault: kill -9 of receiver, daemon, code server, runs and engine at random instants, pauses of the sandbox, under
    load; invariant: nothing lost, nothing done twice, nothing left half done."""
    result = show(tmp_path / "chaos", kills=KILLS, seed=SEED)
    assert result.faults == [], f"logs: {tmp_path / 'chaos' / 'logs'}"
    assert sum(result.struck[name] for name in VICTIMS) == KILLS
    assert result.struck["sandbox"] > 0
    assert result.verdicts["VIOLATION_DETECTED"] > KILLS / 2, "too little went on for a kill to hit"


def test_the_same_seed_plans_the_same_kills_of_every_process() -> None:
    """fault: none; invariant: a seed plans the same kills again, and each process has its share."""
    assert strikes(3, 200) == strikes(3, 200) != strikes(4, 200)
    assert {strike.victim for strike in strikes(3, 8)} == {*VICTIMS, "sandbox"}
