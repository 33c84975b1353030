"""Durable events a second of the receiver's group commit beside one commit an event, and the latency of the receiver.

Run as `python -m benchmarks.inbox [--folder DIR] [--events N] [--rate N] [--seconds N]`; DIR lies on the disk that is
measured. Prints markdown: both stores in one run, taking turns, over the same events; then answers of a real receiver
at a steady rate offered by a process of its own, timed from when each request was due, so that waiting counts.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import say_ratios
from compliance_pipeline.intake.inbox import Inbox, IncomingEvent
from compliance_pipeline.intake.receiver import GroupCommit
from compliance_pipeline_tests.intake.samples import NOON, incoming
from compliance_pipeline_tests.intake.test_receiver import PATH, body_of, signed
from compliance_pipeline_tests.intake.test_receiver_kill import free_port, launch

TURNS = 3
IN_FLIGHT = 1_000
"""Requests that wait at a time: the receiver takes 1,024 connections."""
CONNECTIONS = 64


def events_of(count: int, turn: int) -> list[IncomingEvent]:
    return [incoming(f"rec-{turn}-{number}") for number in range(count)]


def one_commit_each(inbox: Inbox, events: Sequence[IncomingEvent]) -> float:
    """Events a second."""
    begun = time.perf_counter()
    for event in events:
        inbox.store([event], NOON)
    return len(events) / (time.perf_counter() - begun)


async def group_commit(inbox: Inbox, events: Sequence[IncomingEvent]) -> float:
    """Events a second."""
    commits = GroupCommit(lambda batch: inbox.store(batch, datetime.now(UTC)))
    room = asyncio.Semaphore(IN_FLIGHT)

    async def put(event: IncomingEvent) -> None:
        async with room:
            await commits.put(event)

    begun = time.perf_counter()
    await asyncio.gather(*(put(event) for event in events))
    seconds = time.perf_counter() - begun
    await asyncio.to_thread(commits.close)
    return len(events) / seconds


def stores(folder: Path, count: int) -> float:
    """Events a second of the group commit beside one commit an event."""
    grouped, single = [], []
    for turn in range(TURNS):
        for kind in random.sample(("grouped", "single"), 2):
            inbox = Inbox(f"sqlite:///{folder / f'{kind}-{turn}.db'}")
            inbox.create()
            if kind == "grouped":
                grouped.append(asyncio.run(group_commit(inbox, events_of(count, turn))))
            else:
                single.append(one_commit_each(inbox, events_of(max(count // 10, 1), turn)))
            inbox.close()
    ratio = statistics.median(grouped) / statistics.median(single)
    print("| store | durable events/s (median, least, most) | ratio |\n|---|---|---|")
    for name, found, times in (("group commit", grouped, ratio), ("one commit an event", single, 1.0)):
        print(f"| {name} | {statistics.median(found):,.0f} ({min(found):,.0f}, {max(found):,.0f}) | {times:.1f} |")
    return ratio


async def offer(port: int, rate: int, seconds: int) -> None:
    """Send `rate` events a second over kept connections, signed beforehand; print the answers' latencies, P99 last."""
    requests = []
    for number in range(rate * seconds):
        body = body_of(f"rec-{number}")
        fields = signed(body, message_id=f"msg-{number}") | {"Host": "x", "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        requests.append(f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + body)
    latencies: list[float] = []
    statuses: dict[str, int] = {}
    begun = time.perf_counter() + 0.5
    late: list[float] = []

    async def connection(which: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(which, len(requests), CONNECTIONS):
            due = begun + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            late.append(time.perf_counter() - due)
            writer.write(requests[number])
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(line for line in head.lower().split("\r\n") if line.startswith("content-length:"))
            await reader.readexactly(int(length.partition(":")[2]))
            latencies.append(time.perf_counter() - due)
            status = head.split(" ", 2)[1]
            statuses[status] = statuses.get(status, 0) + 1
        writer.close()

    await asyncio.gather(*(connection(which) for which in range(CONNECTIONS)))
    taken = time.perf_counter() - begun
    p50, p99 = (1000 * statistics.quantiles(latencies, n=100)[at] for at in (49, 98))
    sent_late = 1000 * statistics.quantiles(late, n=100)[98]
    print("\n| offered/s | answered/s | P50 ms | P99 ms | sent late, P99 ms | answers |\n|---|---|---|---|---|---|")
    answers = ", ".join(f"{count:,} x {status}" for status, count in sorted(statuses.items()))
    print(f"| {rate:,} | {len(latencies) / taken:,.0f} | {p50:.1f} | {p99:.1f} | {sent_late:.1f} | {answers} |")
    print(json.dumps(p99))


def receiver(folder: Path, rate: int, seconds: int) -> float:
    """P99 of its answers in ms."""
    port = free_port()
    process = launch(folder, port)
    try:
        command = [sys.executable, "-m", "benchmarks.inbox", "--offer", str(port)]
        command += ["--rate", str(rate), "--seconds", str(seconds)]
        table, _, p99 = subprocess.check_output(command, text=True).strip().rpartition("\n")
        print(f"\n{table}")
        return float(p99)
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rate", type=int, default=1_000)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--offer", type=int, default=None, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.offer:
        asyncio.run(offer(asked.offer, asked.rate, asked.seconds))
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start (others use the machine above 0)\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(dir=asked.folder) as made:
        folder = Path(made)
        ratio = stores(folder, asked.events)
        sys.stdout.flush()
        p99_ms = receiver(folder, asked.rate, asked.seconds)
    named = {"group commit / one commit an event (goal 10)": ratio, "P99 / 50 ms (limit 1)": p99_ms / 50}
    say_ratios("inbox", named)


if __name__ == "__main__":
    main()
