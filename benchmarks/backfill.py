"""How long a chat waits for its flag while a backfill goes through hours of history, beside without.

Run as `python -m benchmarks.backfill [--rate 1] [--seconds 60] [--history 2400]`. Real processes on loopback: receiver,
Dagster, a warm worker, a platform on which chats become available at a steady rate; half-way one run is started for
all hours of history, whose recordings must all be fetched and screened. Prints markdown: exact percentiles of available
to flagged, and their ratio, which must be at most 1.3. Both halves compete with whatever else runs on the machine: the
load of each is printed.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import mkdtemp

import dagster as dg

from benchmarks import say_ratios
from compliance_pipeline.contracts.event import EventType, RecordingEvent
from compliance_pipeline.demo import sandbox_says, wait_until_settled
from compliance_pipeline.intake.hours import partition_hour
from compliance_pipeline.intake.inbox import Inbox, IncomingEvent
from compliance_pipeline.orchestration.backfills import WHAT_TAG
from compliance_pipeline.sandbox.calls import Kind, PlannedRecording
from compliance_pipeline.settings import Settings
from compliance_pipeline.stack import Stack
from compliance_pipeline.warehouse.warehouse import warehouse_of

WARM_UP_S = 15.0
START_S = 30.0
"""Chats come so much longer: until the backfill's run has begun."""
MOST = 1.3
FEWEST = 10
"""Of fewer chats in one of the halves nothing is said."""
HOURS = 24
CHATS = (Kind.CHAT_CARD, Kind.CHAT_CLEAN, Kind.CHAT_SSN, Kind.CHAT_LOOKALIKE, Kind.CHAT_CVV)
FIRST_OF_HISTORY = 1_000_000
OURS = "import typer; from compliance_pipeline.backfill_cli import backfill; typer.run(backfill)"


def chats(rate: float, seconds: float) -> Iterator[PlannedRecording]:
    for number in range(round(rate * seconds)):
        yield PlannedRecording(seed=number, kind=CHATS[number % len(CHATS)], at_s=number / rate, lag_s=0.1)


def history(count: int) -> Iterator[PlannedRecording]:
    """One in twenty is a call."""
    for number in range(count):
        kind = CHATS[number % len(CHATS)] if number % 20 else Kind.VOICE_TONES
        yield PlannedRecording(seed=FIRST_OF_HISTORY + number, kind=kind, at_s=0)


def platform(rate: float, seconds: float, count: int) -> None:
    from compliance_pipeline.sandbox import cli
    from compliance_pipeline.sandbox.state import PlatformState

    settings = Settings()
    state = PlatformState(settings.client_id, settings.platform_client_secret, profile="guide")
    state.planned = round(rate * seconds)
    ended_at = datetime.now(UTC) - timedelta(hours=2)
    for planned in history(count):
        state.add(planned.make(ended_at))
    asyncio.run(cli._run(state, settings, lambda: chats(rate, seconds), 0.0, None))


def remember(inbox: Inbox, count: int) -> list[str]:
    """Rows of history over HOURS hours, done, of which the warehouse knows nothing; the hours, oldest first."""
    now = datetime.now(UTC)
    hours = [now - timedelta(hours=ago) for ago in range(HOURS, 0, -1)]
    incoming: dict[str, list[IncomingEvent]] = {}
    for number, planned in enumerate(history(count)):
        at = hours[number % HOURS]
        made = planned.recording_id
        event = RecordingEvent(
            recording_id=made,
            event=EventType.AVAILABLE,
            media_uri="https://media.test/1",
            channel=planned.kind.channel,
        )
        incoming.setdefault(partition_hour(at), []).append(IncomingEvent(event, "guide", f"msg-{made}", at))
    for hour, events in incoming.items():
        inbox.store(events, now)
        inbox.claim(hour, "history", now, timedelta(minutes=5), len(events))
        inbox.done([event.recording_id for event in events], "history", now)
    return sorted(incoming)


def measured(rate: float, seconds: float, count: int) -> tuple[list[float], list[float], int]:
    """Seconds from available to flagged without and during the backfill; recordings that this judged meanwhile."""
    home = Path(mkdtemp(prefix="backfill-")) / "home"
    variables = {"COMPLIANCE_CANARIES": "false", "COMPLIANCE_REQUESTS_PER_MINUTE": "6000"}
    total_s = WARM_UP_S + 2 * seconds + START_S
    with Stack(home, workers=1, variables=variables) as stack:
        inbox = Inbox(stack.settings.inbox_database_url)
        inbox.create()
        hours = remember(inbox, count)
        inbox.close()
        stack.start("receiver", "code")
        stack.wait_until_up("receiver", "code", timeout_s=180)
        stack.start("daemon", "worker-1")
        time.sleep(12)  # until the daemon has all its threads
        stack.run("sandbox", f"exec {sys.executable} -m benchmarks.backfill --platform {rate} {total_s} {count}")
        stack.wait_until_up("sandbox", timeout_s=180)
        print(f"load {os.getloadavg()[0]:.1f} at the start", flush=True)
        time.sleep(WARM_UP_S + seconds)
        first, last = (hour[:10] + "T" + hour[11:] for hour in (hours[0], partition_hour(datetime.now(UTC))))
        subprocess.run(
            [sys.executable, "-c", OURS, "--from", first, "--to", last, "--single-run", "--no-wait"],
            env=stack.environment,
            check=True,
        )
        print(f"load {os.getloadavg()[0]:.1f} when the backfill was asked for", flush=True)
        for _ in wait_until_settled(stack, timeout_s=seconds * 4 + 60):
            pass
        ended = datetime.now(UTC)
        # dagster.yaml names its folder by this variable.
        os.environ["DAGSTER_HOME"] = stack.environment["DAGSTER_HOME"]
        with dg.DagsterInstance.get() as instance:
            records = [one for one in instance.get_run_records() if WHAT_TAG in one.dagster_run.tags]
        if not records or records[0].start_time is None:
            raise SystemExit("the backfill's run had not begun when the last chat was flagged: the machine is too busy")
        begun = datetime.fromtimestamp(records[0].start_time, UTC)
        truth = sandbox_says(stack, "truth")["recordings"]
        available = {
            said["recordingId"]: datetime.fromisoformat(said["availableAt"]) for said in truth if said["availableAt"]
        }
        warehouse = warehouse_of(stack.settings)
        flagged = warehouse.select("SELECT recording_id, ended_at FROM stage_times WHERE stage = 'flagged'")
        done = warehouse.select("SELECT DISTINCT recording_id, judged_at FROM verdicts")
    live = {planned.recording_id for planned in chats(rate, total_s)}
    of_history = [row["judged_at"] for row in done if row["recording_id"] not in live]
    under_way_until = max(of_history, default=ended) if len(of_history) == count else ended
    warm = min(available[one] for one in live) + timedelta(seconds=WARM_UP_S)
    alone, beside = [], []
    for row in flagged:
        if row["recording_id"] in live and (at := available[row["recording_id"]]) >= warm:
            waited = (row["ended_at"] - at).total_seconds()
            if at + timedelta(seconds=seconds / 10) < begun:
                alone.append(waited)
            elif begun <= at <= under_way_until:
                beside.append(waited)
    return alone, beside, len(of_history)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--history", type=int, default=2400)
    parser.add_argument("--platform", type=float, nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.platform:
        rate, seconds, count = asked.platform
        platform(rate, seconds, int(count))
        return
    alone, beside, judged = measured(asked.rate, asked.seconds, asked.history)
    if min(len(alone), len(beside)) < FEWEST:
        raise SystemExit(
            f"only {len(alone)} chats without and {len(beside)} during the backfill: the machine is too busy"
        )
    print(f"\n{asked.rate:g} chats a second; the backfill judged {judged} of {asked.history} recordings meanwhile\n")
    print("| live chats | how many | P50 s | P95 s | most s |\n|---|--:|--:|--:|--:|")
    p95s = []
    for name, found in (("without a backfill", alone), ("during a backfill", beside)):
        p50, p95 = (statistics.quantiles(found, n=100, method="inclusive")[at] for at in (49, 94))
        p95s.append(p95)
        print(f"| {name} | {len(found)} | {p50:.2f} | {p95:.2f} | {max(found):.2f} |")
    what = f"available to flagged, P95, chats, during a backfill / without (at most {MOST:g})"
    say_ratios("backfill", {what: p95s[1] / p95s[0]})


if __name__ == "__main__":
    main()
