"""The dashboard over a history of 10 million recordings: SQL of a page, the same from the raw rows, and a real browser.

Run as `python -m benchmarks.dashboard [--recordings N] [--home DIR] [--rounds N]`; DIR keeps the history between runs
(about 900 MB, made in some minutes). Prints markdown. Limits are those of the issue that asked for the page.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, sync_playwright

from benchmarks import say_ratios
from benchmarks.history import END, OBJECTIVE, make_history
from compliance_pipeline.dashboard.app import create_app
from compliance_pipeline.figures.chosen import Filter, Grid, rows
from compliance_pipeline.figures.snapshots import CURRENT, Day, Manifest, Snapshot, roll_up
from compliance_pipeline.settings import Settings
from compliance_pipeline.stack import free_port, wait_for_port

WINDOWS = {7: 170, 30: 350}
"""Days → the most milliseconds that the page's SQL may take."""
RAW = ("counts", "kept", "flagged_p95_exact", "rules", "violating_by")
"""The heaviest of the page's queries, counted from the rows; the page has more, so the comparison favours these."""
FILTERS = ("", "&queue=billing", "&rule=PCI-PAN-01", "&queue=sales&channel=voice", "&agent=tok_agent0100")
"""The last two no rollup has: these are counted from the rows."""


class Timed(Snapshot):
    """Sums the time that its queries took."""

    seconds = 0.0
    queries = 0

    def rows(self, query: str, start: datetime, end: datetime, **parameters: Any) -> list[dict[str, Any]]:
        begun = time.perf_counter()
        try:
            return super().rows(query, start, end, **parameters)
        finally:
            self.seconds += time.perf_counter() - begun
            self.queries += 1


def page_sql(settings: Settings, manifest: Manifest, path: str) -> tuple[float, int]:
    """Milliseconds and number of the queries that a page needs of a snapshot that nobody has asked before."""
    app = create_app(settings, clock=lambda: END)
    board, snapshot = app.state.board, Timed(settings.home / "snapshots", manifest)
    board.snapshot = lambda: snapshot

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path)

    answer = asyncio.run(ask())
    answer.raise_for_status()
    snapshot.close()
    return 1000 * snapshot.seconds, snapshot.queries


def raw_ms(settings: Settings, manifest: Manifest, days: int) -> float:
    """Milliseconds of RAW over the rows themselves."""
    snapshot = Snapshot(settings.home / "snapshots", manifest)
    snapshot._database.execute("SET memory_limit = '6GB'; SET preserve_insertion_order = false")
    chosen = Filter(END - timedelta(days=days), END)
    begun = time.perf_counter()
    for name in RAW:
        rows(snapshot, name, chosen, {**Grid.of(chosen).pairs, "dimension": "queue"}, facts=True)
    spent = 1000 * (time.perf_counter() - begun)
    snapshot.close()
    return spent


def publish_ms(settings: Settings, manifest: Manifest) -> float:
    """Milliseconds of counting the rollups of the busiest day again because one of its hours changed."""
    folder = settings.home / "snapshots"
    day = max(manifest.days)
    old = Day.read(folder / manifest.days[day])
    hour = sorted(old.hours)[13]
    begun = time.perf_counter()
    roll_up(folder, day, old, {}, {hour: old.hours[hour]}, OBJECTIVE)
    return 1000 * (time.perf_counter() - begun)


@contextmanager
def served(settings: Settings) -> Iterator[tuple[str, int]]:
    """A dashboard in a process of its own: its address and process id."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("compliance")), "dashboard"]
    variables = os.environ | {"COMPLIANCE_HOME": str(settings.home), "COMPLIANCE_DASHBOARD_PORT": str(port)}
    with subprocess.Popen(command, env=variables, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for_port(port, 60)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()


def in_browser(browser: Browser, url: str, turn: int) -> tuple[float, float, float, float]:
    """Of a first visit and a change of filter: first paint, ready, kilobytes transferred, filter settled; in ms."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    network = context.new_cdp_session(page)
    network.send("Network.enable")
    received: list[float] = []
    network.on("Network.loadingFinished", lambda event: received.append(event["encodedDataLength"]))
    begun = time.perf_counter()
    page.goto(f"{url}/?range=30d")
    page.wait_for_selector("html[data-ready]", state="attached")
    ready = 1000 * (time.perf_counter() - begun)
    paint = float(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
    kilobytes = sum(received) / 1000
    # Another queue each time: what was answered before is kept.
    link = page.locator("main a[href*='queue=']:visible").nth(turn)
    drawn = page.locator("html").get_attribute("data-ready")
    begun = time.perf_counter()
    link.click()
    page.wait_for_selector(f"html:not([data-ready='{drawn}'])", state="attached")
    settled = 1000 * (time.perf_counter() - begun)
    context.close()
    return paint, ready, kilobytes, settled


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--recordings", type=int, default=10_000_000)
    arguments.add_argument("--home", type=Path, help="keeps the history between runs")
    arguments.add_argument("--rounds", type=int, default=5)
    said = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = said.home or Path(scratch)
        folder = home / "snapshots"
        if not (folder / CURRENT).exists():
            folder.mkdir(parents=True, exist_ok=True)
            make_history(folder, said.recordings, said=lambda day: print(f"day {day} of 30", file=sys.stderr))
        measure(Settings(home=home), said.rounds)


def measure(settings: Settings, rounds: int) -> None:
    folder = settings.home / "snapshots"
    manifest = Manifest.current(folder)
    snapshot = Snapshot(folder, manifest)
    [held] = snapshot.rows(
        "SELECT sum(received)::BIGINT AS n FROM read_parquet($coverage)", END - timedelta(days=30), END
    )
    snapshot.close()
    print(f"{held['n']:,} recordings in 30 days, {rounds} rounds, medians\n")
    print("| page | SQL, ms | limit, ms | queries | from the rows, ms | times as fast |\n|---|--:|--:|--:|--:|--:|")
    ratios = {}
    for days, limit in WINDOWS.items():
        raw = raw_ms(settings, manifest, days)
        for chosen in FILTERS:
            took = [page_sql(settings, manifest, f"/?range={days}d{chosen}") for _ in range(rounds)]
            spent = statistics.median(one for one, _ in took)
            ratios[f"SQL of {days} days{chosen} / {limit} ms (limit 1)"] = spent / limit
            beside = f"{raw:,.0f} | {raw / spent:.0f}" if not chosen else " | "
            print(f"| {days} days {chosen or 'whole'} | {spent:.0f} | {limit} | {took[0][1]} | {beside} |", flush=True)
    print(f"\nRollups of a day, when one hour changed: {publish_ms(settings, manifest):.0f} ms\n")
    with served(settings) as (url, process), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        visits = [in_browser(browser, url, turn) for turn in range(rounds)]
        browser.close()
        memory = next(
            int(line.split()[1]) for line in Path(f"/proc/{process}/status").read_text().splitlines() if "VmHWM" in line
        )
    paint, ready, kilobytes, settled = (statistics.median(values) for values in zip(*visits, strict=True))
    print("| in Chromium, 30 days | measured | limit |\n|---|--:|--:|")
    print(f"| first paint, ms | {paint:.0f} | 500 |\n| charts drawn, ms | {ready:.0f} | |")
    print(f"| transferred, kB | {kilobytes:.0f} | 150 |\n| filter settled, ms | {settled:.0f} | 1000 |")
    print(f"| server's memory at most, MB | {memory / 1024:.0f} | 500 |")
    within = {"first paint / 500 ms": paint / 500, "transferred / 150 kB": kilobytes / 150}
    within |= {"filter settled / 1 s": settled / 1000, "memory / 500 MB": memory / 1024 / 500}
    say_ratios("dashboard", ratios | {f"{name} (limit 1)": ratio for name, ratio in within.items()})


if __name__ == "__main__":
    main()
