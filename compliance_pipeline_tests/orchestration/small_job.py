"""A job for tests of what executes runs: it says in a file who it is, then works for so long, or kills itself."""

import json
import os
import signal
import time
from pathlib import Path

import dagster as dg


@dg.op
def work(context: dg.OpExecutionContext) -> None:
    tags = context.run.tags
    said = {"pid": os.getpid(), "parent": os.getppid(), "niceness": os.getpriority(os.PRIO_PROCESS, 0)}
    (Path(tags["folder"]) / context.run.run_id).write_text(json.dumps(said))
    if "deaf" in tags:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(float(tags["seconds"]))
    if "kill" in tags:
        os.kill(os.getpid(), int(tags["kill"]))


@dg.job(executor_def=dg.in_process_executor)
def small_job() -> None:
    work()
