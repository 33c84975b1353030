"""Pages in a real browser: Debian's Chromium, driven by Playwright. What a page must never do fails its test."""

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from compliance_pipeline.dashboard.app import create_app
from compliance_pipeline.figures.snapshots import Snapshot, folder_of
from compliance_pipeline.intake.inbox import Inbox
from compliance_pipeline.media.clips import PAD_MS, encode
from compliance_pipeline.media.vault import vault_of
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.tables import (
    EvidenceRow,
    FindingRow,
    RecordingRow,
    RemediationRow,
    Row,
    StageTimeRow,
    SweepRow,
    VerdictRow,
    ViolationRow,
)
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.dashboard.boards import END, board, publish_at

ARTEFACTS = Path(__file__).parents[2] / "test-artefacts"
PATIENCE_MS = 15_000
"""Of a machine that is busy with something else."""
INLINE = ("data", "blob", "about")
"""Schemes of addresses that nobody is asked for."""


# While Playwright runs, no other test of the process may call asyncio.run: hence not for the session.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium: `apt-get install --no-install-recommends chromium` lets the browser's tests run")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def faults() -> list[str]:
    """What the test's pages did that they must not. A test that provokes some asserts them, and clears the list."""
    return []


@pytest.fixture
def open_page(browser: Browser, faults: list[str]) -> Iterator[Callable[..., Page]]:
    """Makes a page in a profile of its own; takes the options of Playwright's `Browser.new_context`."""
    contexts: list[BrowserContext] = []

    def made(**options: Any) -> Page:
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(PATIENCE_MS)
        _watch(contexts[-1], faults)
        return contexts[-1].new_page()

    yield made
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    """Fails its test for an error on the console (a refusal by the CSP is one), an exception that no script caught, and
    a request to another origin than the first that was asked."""
    return open_page()


def _watch(context: BrowserContext, faults: list[str]) -> None:
    own: list[str] = []

    def said(message: ConsoleMessage) -> None:
        if message.type == "error":
            faults.append(f"console: {message.text} ({message.location['url']})")

    def asked(url: str) -> None:
        address = urlsplit(url)
        if address.scheme in INLINE:
            return
        own[:] = own or [address.netloc]
        if address.netloc != own[0]:
            faults.append(f"request to another origin: {url}")

    def requested(request: Request) -> None:
        asked(request.url)

    context.on("console", said)
    context.on("weberror", lambda thrown: faults.append(f"exception: {thrown.error}"))
    context.on("request", requested)
    context.on("page", lambda page: page.on("websocket", lambda socket: asked(socket.url)))


def keep_screenshot(page: Page, name: str, theme: str) -> Path:
    """The whole page as `test-artefacts/<name>-<theme>.png`, to be looked at."""
    path = ARTEFACTS / f"{name}-{theme}.png"
    page.screenshot(path=path, full_page=True, animations="disabled")
    return path


# What is served

HEARD = "rec-heard"
"""A recording of the site whose clip is seconds 20 to 32 of it; from 26 to 28 a card's number was, now silence."""


@dataclass
class Site:
    """A published board, served by the server that serves it everywhere. now: the time of its clock."""

    settings: Settings
    url: str = ""
    now: datetime = END

    def rows(self, sql: str, start: datetime, end: datetime) -> list[dict[str, Any]]:
        """Of the facts of the snapshot that is published now."""
        with closing(Snapshot.current(folder_of(self.settings.home))) as snapshot:
            return snapshot.rows(sql, start, end)


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """For tests that change nothing."""
    with serving(filled(tmp_path_factory.mktemp("site") / "home")) as site:
        yield site


@pytest.fixture
def own_site(site: Site, tmp_path: Path) -> Iterator[Site]:
    """For a test that decides, publishes, or moves the clock."""
    home = shutil.copytree(site.settings.home, tmp_path / "home")
    with serving(Settings(_env_file=None, home=home)) as own:
        yield own


@contextmanager
def serving(settings: Settings, now: datetime = END) -> Iterator[Site]:
    site = Site(settings, now=now)
    app = create_app(settings, clock=lambda: site.now)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, proxy_headers=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    site.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield site
    server.should_exit = True
    thread.join()


def filled(home: Path) -> Settings:
    """A board, with HEARD and what the sweep saw of its last hours."""
    settings = board(home)
    at = END.replace(minute=20, second=0)
    hour, judged, flagged = (at.replace(minute=0), at + timedelta(seconds=9), at + timedelta(seconds=10))
    seconds = np.arange(12 * 8_000) / 8_000
    pcm = np.stack([9_000 * np.sin(2_000 * seconds), 4_000 * np.sin(900 * seconds)]).astype(np.int16)
    pcm[:, 8 * (6_000 - PAD_MS) : 8 * (8_000 + PAD_MS)] = 0
    content, name = encode(pcm), "evidence/engine-1/1.flac"
    inbox = Inbox(settings.inbox_database_url)
    with closing(inbox), closing(vault_of(settings, inbox.engine)) as vault:
        vault.put(HEARD, name, content, at)
    starts = {"platform": (-12, 0), "delivery": (0, 1), "queue": (1, 3), "fetch": (3, 5), "analysis": (5, 9),
              "judged": (0, 9), "remediation": (9, 10), "flagged": (0, 10)}  # fmt: skip
    rows: list[Row] = [
        RecordingRow(
            HEARD, hour, "guide", "voice", "inbound", "billing", ["tok_01c0ffee"], f"msg-{HEARD}", None,
            at - timedelta(seconds=12), at, at + timedelta(seconds=1), at + timedelta(seconds=1), None, False,
            "tok_01c0ffee",
        ),
        VerdictRow(
            HEARD, "default-us-eu@2 9d20aa5177c3", "engine-1", hour, "voice", "VIOLATION_DETECTED", "PCI_SAD_CAPTURE",
            "PCI-SAD-01", "critical", 0.97, 26_000, None, "CREATE_WORK_ITEM", f"msg-{HEARD}", None, [], judged, "run-1",
        ),
        FindingRow(
            HEARD, "engine-1", 1, hour, "card_number", "digits", "customer", 26_000, 28_000, 0.97, "411111******1111",
            spans=[[26_000, 28_000]],
        ),
        ViolationRow(
            HEARD, "default-us-eu@2 9d20aa5177c3", "engine-1", "PCI-SAD-01", hour, "voice", "VIOLATION_DETECTED",
            "PCI_SAD_CAPTURE", "critical", "digits", "customer", 26_000, 0.97, "411111******1111", 1, 1,
        ),
        EvidenceRow(
            HEARD, "engine-1", 1, hour, "verified", None, name, 20_000, 32_000, sha256(content).hexdigest(), flagged,
            "run-1",
        ),
        RemediationRow(
            HEARD, "PCI-SAD-01", "create_work_item", 1, hour, "done", f"wi-{HEARD}", None, flagged, "run-1", 1
        ),
        *(
            StageTimeRow(
                HEARD, stage, hour, "voice", at + timedelta(seconds=one), at + timedelta(seconds=two), float(two - one)
            )
            for stage, (one, two) in starts.items()
        ),
        *(
            SweepRow(hour - timedelta(hours=back), END, 40, 40 - (back == 2) * 3, 0, 0, 0, (back == 2) * 3, 1, "run-1")
            for back in range(30)
        ),
    ]  # fmt: skip
    Warehouse(settings.warehouse_path).append(rows)
    publish_at(settings)
    return settings


# How pages are looked at


def opened(page: Page, url: str) -> Page:
    """At the page, drawn."""
    page.goto(url)
    expect(page.locator("html")).to_have_attribute("data-ready", re.compile(r"\d+"))
    return page


def settled(page: Page, act: Callable[[], object]) -> None:
    """After what `act` makes the page load has been drawn."""
    html = page.locator("html")
    before = int(html.get_attribute("data-ready") or 0)
    act()
    expect(html).to_have_attribute("data-ready", str(before + 1))
