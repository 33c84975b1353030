"""A small published home, and a client of its dashboard, for the tests of the list pages."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from compliance_pipeline.dashboard.app import create_app
from compliance_pipeline.figures.snapshots import Snapshot, folder_of
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.tables import SweepRow
from compliance_pipeline.warehouse.warehouse import Warehouse
from compliance_pipeline_tests.dashboard.boards import END, Shape, fill, publish_at

SHAPE = Shape(days=4, hours=(8, 13, 21), recordings_an_hour=60)
MISSING_AT = datetime.fromisoformat("2026-05-29T13:00:00Z")


@dataclass
class Home:
    settings: Settings
    client: TestClient
    snapshot: Snapshot

    def get(self, path: str, status: int = 200) -> str:
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.text

    def violations(self, where: str = "true", start: datetime = END - timedelta(days=30)) -> list[dict[str, Any]]:
        """Straight from the facts, newest first."""
        query = f"FROM read_parquet($violations) WHERE {where} ORDER BY available_at, recording_id, rule_id"
        return self.snapshot.rows(query, start, END + timedelta(days=1))[::-1]


@contextmanager
def home_at(path: Path, shape: Shape = SHAPE, **of_settings: object) -> Iterator[Home]:
    settings = fill(path, shape, **of_settings)
    sweeps = [
        SweepRow(
            partition_hour=MISSING_AT + timedelta(hours=number), swept_at=END, at_source=9, judged=9 - missing,
            in_the_works=0, not_recorded=0, given_up=0, missing=missing, found_by_sweep=1, run_id="run-1",
        )
        for number, missing in enumerate((2, 0))
    ]  # fmt: skip
    Warehouse(settings.warehouse_path).append(sweeps)
    publish_at(settings)
    app = create_app(settings, clock=lambda: END)
    snapshot = Snapshot.current(folder_of(settings.home))
    with TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 50000)) as client:
        yield Home(settings, client, snapshot)
    snapshot.close()


def text(html: str) -> str:
    """What a page says, without its marks."""
    said = " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())
    return re.sub(r" ([,.;:])", r"\1", said)


def link(html: str, words: str) -> str | None:
    """Where the link with these words leads, or None."""
    for href, inside in re.findall(r'<a\b[^>]*?href="([^"]*)"[^>]*>(.*?)</a>', html, re.DOTALL):
        if text(inside) == words:
            return unescape(href)
    return None
