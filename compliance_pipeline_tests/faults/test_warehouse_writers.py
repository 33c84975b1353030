"""Four processes write to one warehouse, a short transaction at a time; 2,000 of them with CHAOS=1, else 100."""

import os
import subprocess
import sys
import time
from pathlib import Path

from compliance_pipeline.warehouse.warehouse import Warehouse

WRITERS = 4
TRANSACTIONS = 2_000 if os.environ.get("CHAOS") == "1" else 100

WRITE = """
import sys
from pathlib import Path
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.warehouse.rows import recording
writer, transactions = (int(arg) for arg in sys.argv[2:])
for number in range(transactions):
    assert Warehouse(Path(sys.argv[1]), lock_timeout_s=600).append([recording(f"{writer}-{number}")]) == 1
    print(f"{writer}-{number}", flush=True)
"""


def test_no_commit_of_four_processes_is_lost(tmp_path: Path) -> None:
    """fault: four processes open, commit and close at once; invariant: every reported transaction is there, once."""
    path, each = tmp_path / "warehouse.duckdb", TRANSACTIONS // WRITERS
    begun = time.monotonic()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE, path, str(writer), str(each)], stdout=subprocess.PIPE, text=True)
        for writer in range(WRITERS)
    ]
    reported = [line for writer in writers for line in writer.communicate(timeout=1200)[0].split()]
    seconds = time.monotonic() - begun
    assert [writer.returncode for writer in writers] == [0] * WRITERS
    rows = [row["recording_id"] for row in Warehouse(path).select("SELECT recording_id FROM recordings")]
    print(f"{len(reported)} transactions by {WRITERS} processes in {seconds:.1f} s: {len(reported) / seconds:.1f}/s")
    assert len(reported) == TRANSACTIONS
    assert sorted(rows) == sorted(reported)
