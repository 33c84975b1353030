"""What an event, a minute of audio and a stored recording cost; how that grows with history and with workers; and the
machines and the money that follow for 1 thousand, 100 thousand and 10 million recordings a day.

Run as `python -m benchmarks.capacity [--only PART ...] [--sizes N,N] [--folder DIR]`; PART: costs, stack, scaling,
growth or pages. The folder keeps the histories between runs (10 million: about 35 GB, made in half an hour), and what
was measured of each part; when there is something of each, docs/capacity.md is written anew between its markers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from benchmarks.__main__ import commit, machine
from benchmarks.model import PARTS, SIZES, Measured, document, ratios

if TYPE_CHECKING:
    from compliance_pipeline.sandbox.calls import SyntheticRecording

ENDED = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "capacity.md"
BEGIN, END = "<!-- capacity begins -->", "<!-- capacity ends -->"
ROUNDS = 12
CHATS, SINGLE, CALLS = 100, 20, 40
CALL_S = 60
AUDIO_MINUTES = 10
CLIP_S = 22


def said(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


# Processes


def cpu_s(*sessions: int) -> float:
    """CPU seconds that the processes of these sessions have used, ended children that were waited for included."""
    ticks = 0
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split() if folder.name.isdigit() else []
            if fields and int(fields[3]) in sessions:
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def spawned(*arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """This module in a process of its own that leads a session; its output is read by the caller."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.capacity", *arguments],
        cwd=ROOT,
        env=os.environ | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


# The platform and the workers, each in processes of its own


def recordings_of(what: str, first: int, count: int) -> "Iterator[SyntheticRecording]":
    """Chats, one in twenty with a violation; or calls of CALL_S. Some that repeat under other ids."""
    from compliance_pipeline.sandbox.calls import Kind, make_recording

    if what == "chat":
        kinds = [Kind.CHAT_CARD] + [Kind.CHAT_CLEAN] * 19
        made = [make_recording(seed, kind, ended_at=ENDED) for seed, kind in enumerate(kinds)]
    else:
        from benchmarks.screening import pcm
        from compliance_pipeline_tests.media.audio import encoded

        made = [
            replace(make_recording(1, Kind.VOICE_CLEAN, ended_at=ENDED), media=encoded("mulaw", pcm(CALL_S, seed)))
            for seed in (1, 2, 3)
        ]
    return (
        replace(made[number % len(made)], recording_id=str(UUID(int=number + 1)))
        for number in range(first, first + count)
    )


def platform(what: str, count: int) -> None:
    """Serve so many recordings until stdin ends; prints the address, then after each line the requests so far."""
    from compliance_pipeline.sandbox.platform import PlatformState, serve

    state = PlatformState("capacity", "capacity")
    for one in recordings_of(what, 0, count):
        state.add(one)
    with serve(state) as url:
        print(url, flush=True)
        for _ in sys.stdin:
            print(state.counts["requests"], flush=True)


def work(home: str, url: str) -> None:
    """What runs do, without Dagster, until the inbox has nothing due; prints what it cost as JSON."""
    from compliance_pipeline import steps
    from compliance_pipeline.engines import engine_of
    from compliance_pipeline.intake.inbox import Inbox
    from compliance_pipeline.platforms.profiles import platform_of
    from compliance_pipeline.remediate import remediate_batch
    from compliance_pipeline.screening.policy import load_policy
    from compliance_pipeline.settings import Settings
    from compliance_pipeline.warehouse.warehouse import MARTS, Warehouse

    class Timed(Warehouse):
        """Sums how long it was held and how long it was waited for."""

        held_s = waited_s = 0.0

        @contextmanager
        def _connect(self, read_only: bool) -> Iterator[Any]:
            begun = time.monotonic()
            self._lock.acquire()
            got = time.monotonic()
            try:
                with super()._connect(read_only) as connection:
                    yield connection
            finally:
                self.held_s += time.monotonic() - got
                self.waited_s += got - begun
                self._lock.release()

    settings = Settings(
        home=Path(home), platform_url=url, client_id="capacity", client_secret="capacity", inbox_url=None
    )
    inbox = Inbox(settings.inbox_database_url)
    inbox.create()
    policy = load_policy()
    engine = engine_of(settings, policy, inbox)
    warehouse = Timed(settings.warehouse_path)
    pipeline = steps.Pipeline(settings, inbox, warehouse, platform_of(settings, inbox.engine), policy, engine)
    steps.BATCH_LIMIT = int(os.environ.get("CAPACITY_BATCH", steps.BATCH_LIMIT))
    _ = engine.version
    warehouse.select("SELECT 1")
    warehouse.held_s = warehouse.waited_s = 0.0
    print("ready", flush=True)
    sys.stdin.readline()
    settled = runs = 0
    begun, before = time.monotonic(), time.process_time()
    while pending := inbox.pending(datetime.now(UTC)):
        run = f"{os.getpid()}-{runs}"
        batch = steps.Batch(pending[0].partition_hour, run, run, False, datetime.now(UTC))
        if not steps.claim(pipeline, batch):
            continue
        steps.screen_batch(pipeline, batch)
        settled += remediate_batch(pipeline, batch).settled
        steps.refresh_marts(pipeline, MARTS, batch.hour)
        runs += 1
    cost = {
        "recordings": settled,
        "runs": runs,
        "cpu_s": time.process_time() - before,
        "wall_s": time.monotonic() - begun,
        "held_s": warehouse.held_s,
        "waited_s": warehouse.waited_s,
    }
    print(json.dumps(cost), flush=True)
    os._exit(0)  # not what the libraries do at their end


def announce(home: Path, what: str, first: int, count: int, *, an_hour_each: bool = False) -> None:
    """Into the inbox as due, in one partition or in one for each."""
    from compliance_pipeline.contracts.event import EventType
    from compliance_pipeline.intake.inbox import Inbox
    from compliance_pipeline.settings import Settings
    from compliance_pipeline_tests.workshop import incoming

    inbox = Inbox(Settings(home=home, inbox_url=None).inbox_database_url)
    inbox.create()
    now = datetime.now(UTC)
    hour = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    inbox.store(
        [
            incoming(one, EventType.AVAILABLE, hour - timedelta(hours=number if an_hour_each else 0))
            for number, one in enumerate(recordings_of(what, first, count))
        ],
        now,
    )
    inbox.close()


def worked(home: Path, url: str, workers: int, batch: int = 100) -> Measured:
    """The inbox emptied by so many processes that start together; sums, and the wall clock's time."""
    with ExitStack() as opened:
        processes = [
            opened.enter_context(spawned("--work", str(home), url, CAPACITY_BATCH=str(batch))) for _ in range(workers)
        ]
        for process in processes:
            assert process.stdout
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("a worker did not start")
        begun = time.monotonic()
        for process in processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        costs = [json.loads(process.stdout.readline()) for process in processes if process.stdout]
        wall_s = time.monotonic() - begun
    return {name: sum(cost[name] for cost in costs) for name in costs[0]} | {"wall_s": wall_s}


@contextmanager
def served_platform(what: str, count: int) -> Iterator[tuple[str, Callable[[], int]]]:
    """A platform in a process of its own: its address, and how many requests it had so far."""
    with spawned("--platform", what, str(count)) as process:
        assert process.stdin
        assert process.stdout
        url = process.stdout.readline().strip()

        def requests() -> int:
            assert process.stdin
            assert process.stdout
            process.stdin.write("\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield url, requests


# Costs


def costs() -> Measured:
    return receiver_cost() | run_costs() | audio_cost() | clip_bytes()


def receiver_cost(rate: int = 300, seconds: int = 10) -> Measured:
    """CPU of the receiver for an event at a steady rate, and the bytes of the event in the inbox."""
    from compliance_pipeline_tests.intake.test_receiver_kill import free_port, launch

    with tempfile.TemporaryDirectory() as made:
        port = free_port()
        process = launch(Path(made), port)
        try:
            before = _own_cpu_s(process.pid)
            command = [sys.executable, "-m", "benchmarks.inbox", "--offer", str(port)]
            subprocess.run(
                [*command, "--rate", str(rate), "--seconds", str(seconds)],
                check=True,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
            )
            spent = _own_cpu_s(process.pid) - before
        finally:
            process.terminate()
            process.wait()
    return {"receiver_cpu_s": spent / (rate * seconds)}


def _own_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_costs() -> Measured:
    """Of a run and of each recording in it, from runs of 1 and of 100 chats; what they leave on the disk."""
    with tempfile.TemporaryDirectory() as made, served_platform("chat", 2 * CHATS + SINGLE) as (url, requests):
        home = Path(made)
        announce(home, "chat", 0, CHATS)
        warm = worked(home, url, 1)
        said(f"warm: {warm}")
        bytes_before, asked_before = stored_bytes(home), requests()
        announce(home, "chat", CHATS, CHATS)
        many = worked(home, url, 1)
        asked, added = requests() - asked_before, stored_bytes(home) - bytes_before
        announce(home, "chat", 2 * CHATS, SINGLE, an_hour_each=True)
        single = worked(home, url, 1)
        said(f"together: {many}\none by one: {single}")

    def split(name: str) -> tuple[float, float]:
        """(of a run, of each recording in it)"""
        of_many, of_one = many[name] / many["runs"], single[name] / single["runs"]
        size = many["recordings"] / many["runs"]
        each = (of_many - of_one) / (size - 1)
        return of_one - each, each

    (run, each), (held_run, held_each) = split("cpu_s"), split("held_s")
    return {
        "run_cpu_s": run,
        "chat_cpu_s": each,
        "run_held_s": held_run,
        "chat_held_s": held_each,
        "requests": asked / many["recordings"],
        "operational_bytes": added / many["recordings"],
    }


def stored_bytes(home: Path) -> int:
    """Of the operational database, its log written back."""
    import sqlite3

    connection = sqlite3.connect(home / "inbox.db")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    [(pages,)] = connection.execute("SELECT page_count - freelist_count FROM pragma_page_count, pragma_freelist_count")
    [(size,)] = connection.execute("PRAGMA page_size")
    connection.close()
    return int(pages * size)


def audio_cost() -> Measured:
    """CPU of a minute of a call on two channels, decoding included, by the built-in engine."""
    from benchmarks.screening import ENGINE, pcm
    from compliance_pipeline.contracts.event import Channel
    from compliance_pipeline_tests.media.audio import MemoryStream, encoded

    samples = pcm(60 * AUDIO_MINUTES)
    media = encoded("mulaw", samples)
    ENGINE.screen(MemoryStream(media[: len(media) // 8]), Channel.VOICE)
    taken = []
    for _ in range(3):
        before = time.process_time()
        ENGINE.screen(MemoryStream(media), Channel.VOICE)
        taken.append(time.process_time() - before)
    return {"audio_minute_cpu_s": statistics.median(taken) / AUDIO_MINUTES}


def clip_bytes() -> Measured:
    """What a clip of two channels takes in the vault."""
    from benchmarks.screening import pcm
    from compliance_pipeline import database
    from compliance_pipeline.media.vault import vault_of
    from compliance_pipeline.settings import Settings
    from compliance_pipeline_tests.media.audio import encoded

    content = encoded("flac", pcm(CLIP_S))
    with tempfile.TemporaryDirectory() as made:
        settings = Settings(home=Path(made), inbox_url=None)
        engine = database.connect(settings.inbox_database_url)
        vault_of(settings, engine).put("recording", "clip", content, datetime.now(UTC))
        engine.dispose()
        largest = max(path.stat().st_size for path in Path(made).rglob("*") if path.is_file() and "vault" in str(path))
    return {"clip_bytes": largest}


# The whole stack


def stack() -> Measured:
    """CPU of everything but the platform: at rest, and for each run of the demo's recordings."""
    import dagster as dg

    from compliance_pipeline.demo import RECORDINGS, SPREAD_S, wait_until_settled
    from compliance_pipeline.stack import Stack

    with tempfile.TemporaryDirectory() as made:
        options = f"--plan demo --seed 1 --count {RECORDINGS} --spread {SPREAD_S}"
        with Stack(Path(made), sandbox_options=options) as running:
            parts = ["receiver", "code", "dashboard"]
            running.start(*parts)
            running.wait_until_up("receiver", "code")
            running.start("daemon")
            sessions = [running._processes[name].pid for name in [*parts, "daemon"]]
            before, begun = cpu_s(*sessions), time.monotonic()
            running.start("sandbox")
            running.wait_until_up("sandbox")
            for _ in wait_until_settled(running):
                pass
            time.sleep(10)
            spent, took_s = cpu_s(*sessions) - before, time.monotonic() - begun
            # At rest only now: starting would count too.
            before, begun = cpu_s(*sessions), time.monotonic()
            time.sleep(20)
            idle = (cpu_s(*sessions) - before) / (time.monotonic() - begun)
            spent -= idle * took_s
            os.environ["DAGSTER_HOME"] = running.environment["DAGSTER_HOME"]
            with dg.DagsterInstance.get() as instance:
                runs = instance.get_runs_count(dg.RunsFilter(job_name="flag_recordings"))
    return {"stack": {"idle_cores": idle, "cpu_s": spent, "runs": runs, "recordings": RECORDINGS}}


# One worker, two workers


def scaling(rounds: int = 3) -> Measured:
    """Calls from one inbox by one and by two processes, taking turns."""
    found: dict[int, list[Measured]] = {1: [], 2: []}
    with served_platform("call", 2 * rounds * CALLS) as (url, _):
        for turn in range(rounds):
            for workers in (1, 2) if turn % 2 else (2, 1):
                with tempfile.TemporaryDirectory() as made:
                    announce(Path(made), "call", (2 * turn + workers - 1) * CALLS, CALLS)
                    # Batches small enough that both have some until the end.
                    found[workers].append(worked(Path(made), url, workers, batch=10))
                said(f"{workers} workers: {found[workers][-1]}")
    one, two = found[1], found[2]

    def of(name: str, rows: list[Measured]) -> float:
        return statistics.median(float(row[name] / row["recordings"]) for row in rows)

    return {
        "scaling": {
            "cpu_1": of("cpu_s", one),
            "cpu_2": of("cpu_s", two),
            "busy_1": statistics.median(row["cpu_s"] / row["wall_s"] for row in one),
            "busy_2": statistics.median(row["cpu_s"] / row["wall_s"] for row in two),
            "waited_1": of("waited_s", one),
            "waited_2": of("waited_s", two),
            "held": of("held_s", one),
            "speedup": statistics.median(a["wall_s"] / b["wall_s"] for a, b in zip(one, two, strict=True)),
        }
    }


# Growth with history


def growth(folder: Path, sizes: Sequence[int], turns: int) -> Measured:
    from benchmarks.growth import history, one_round, served, served_round

    with ExitStack() as opened:
        histories = [opened.enter_context(history(folder / str(size), size, said)) for size in sizes]
        rounds = []
        for number in range(turns + 1):
            rounds.append([one_round(of) for of in histories])
            said(f"round {number} of {turns}")
    with ExitStack() as opened:
        servers = [opened.enter_context(served(folder / str(size))) for size in sizes]
        for number, steps_of in enumerate(rounds):
            for took, server in zip(steps_of, servers, strict=True):
                took |= served_round(*server)
            said(f"round {number} of {turns}, served")
    rounds = rounds[1:]  # the first warms up
    steps = {
        name: {
            # The least disturbed: who else has the machine only ever makes a step slower.
            "ms": (wall := [min(turn[at][name].wall for turn in rounds) for at in range(len(sizes))]),
            "ratio": [one / wall[0] for one in wall],
            "cpu_ratio": min(turn[-1][name].cpu for turn in rounds) / min(turn[0][name].cpu for turn in rounds),
        }
        for name in rounds[0][0]
    }
    stored = {name: size / sizes[-1] for name, size in histories[-1].sizes.items()}
    return {"growth": {"sizes": list(sizes), "steps": steps, "bytes": stored, "load": os.getloadavg()[0]}}


def _said_day(size: int, day: int) -> None:
    said(f"page {size:,}: day {day} of 30")


def pages(folder: Path, sizes: Sequence[int]) -> Measured:
    """The overview of 7 days over 30 days of history: SQL of a snapshot that nobody has asked before."""
    from benchmarks.dashboard import page_sql
    from benchmarks.history import make_history
    from compliance_pipeline.figures.snapshots import EMPTY, Manifest
    from compliance_pipeline.settings import Settings

    boards = []
    for size in sizes:
        snapshots = folder / f"page-{size}" / "snapshots"
        snapshots.mkdir(parents=True, exist_ok=True)
        if not (snapshots.parent / "made").exists():
            make_history(snapshots, size, said=partial(_said_day, size))
            (snapshots.parent / "made").touch()
        boards.append((Settings(home=snapshots.parent), Manifest.current(snapshots)))
    # The largest once more with its last 8 days alone: what the rest of the history costs a page that doesn't show it.
    settings, whole = boards[-1]
    since = max(whole.days) - timedelta(days=8)
    shown = {day: name for day, name in whole.days.items() if day > since or day == EMPTY.date()}
    boards.append((settings, replace(whole, days=shown)))
    rounds = [
        [page_sql(settings, manifest, "/?range=7d")[0] for settings, manifest in boards] for _ in range(ROUNDS + 1)
    ]
    *best, alone = (min(turn[at] for turn in rounds[1:]) for at in range(len(boards)))
    stored = sum(
        (Path(where) / name).stat().st_size
        for where, _, names in os.walk(boards[-1][0].home / "snapshots", followlinks=True)
        for name in names
    )
    return {
        "pages": {
            "sizes": list(sizes),
            "ms": best,
            "ratio": [one / best[0] for one in best],
            "longer": best[-1] / alone,
            "bytes": stored / sizes[-1],
        }
    }


# The document


def write(text: str) -> None:
    content = DOCS.read_text("utf-8")
    head, _, rest = content.partition(BEGIN)
    DOCS.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PARTS), action="append")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each step over each history")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "compliance-capacity")
    parser.add_argument("--platform", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.platform:
        platform(asked.platform[0], int(asked.platform[1]))
        return
    if asked.work:
        work(*asked.work)
        return
    asked.folder.mkdir(parents=True, exist_ok=True)
    sizes = [int(size) for size in asked.sizes.split(",")]
    kept = asked.folder / "measured.json"
    measured: Measured = {}
    do: dict[str, Callable[[], Measured]] = {
        "costs": costs,
        "stack": stack,
        "scaling": scaling,
        "growth": lambda: growth(asked.folder, sizes, asked.rounds),
        "pages": lambda: pages(asked.folder, sizes),
    }
    for part in asked.only or PARTS:
        load = os.getloadavg()[0]
        said(f"{part}, load {load:.1f}")
        found = do[part]()
        # Read again: another part may have been measured meanwhile.
        measured = (json.loads(kept.read_text()) if kept.exists() else {}) | found
        measured.setdefault("when", {})[part] = f"{datetime.now(UTC):%Y-%m-%d}, {commit()}, load {load:.0f}"
        kept.write_text(json.dumps(measured, indent=1))
    if missing := [part for part, name in PARTS.items() if name not in measured]:
        said(f"docs/capacity.md stays as it is: nothing measured yet of {', '.join(missing)}")
    else:
        when = "; ".join(f"{part} {said_of}" for part, said_of in measured["when"].items())
        text = f"Measured on {machine()}: {when}.\n\n{document(measured)}"
        write(text)
        print(text)
    print(json.dumps({"benchmark": "capacity", "ratios": ratios(measured)}))


if __name__ == "__main__":
    main()
