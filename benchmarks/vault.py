"""Speed of the vault beside plain obstore writes and reads of the same bytes, as markdown.

Run as `python -m benchmarks.vault`. The disk's speed swings: only the ratios, of the same run, tell something. Plain
obstore does not wait for the disk; a file that is synced does, as the vault does.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import obstore
from obstore.store import LocalStore

from benchmarks import say_ratios
from compliance_pipeline import database
from compliance_pipeline.media.vault import vault_of
from compliance_pipeline.settings import Settings

SIZES = {"clip, 0.3 MB": (300_000, 20), "recording, 20 MB": (20_000_000, 3), "recording, 200 MB": (200_000_000, 1)}
ROUNDS = 5


def main() -> None:
    print("| content | put MB/s | of plain obstore | of a synced file | read MB/s | of plain obstore |")
    print("|---|---|---|---|---|---|")
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        for what, (size, times) in SIZES.items():
            found = figures(Path(folder), size, times)
            print(f"| {what} | {' | '.join(found)} |", flush=True)
            ratios[f"{what}: put / a synced file"] = float(found[2])
            ratios[f"{what}: read / plain obstore"] = float(found[4])
    say_ratios("vault", ratios)


def figures(home: Path, size: int, times: int) -> list[str]:
    content, now = os.urandom(size), datetime.now(UTC)
    settings = Settings(home=home)
    engine = database.connect(settings.inbox_database_url)
    vault, plain, synced = vault_of(settings, engine), LocalStore(home), home / "synced"

    def sync_file() -> None:
        with synced.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    ways: dict[str, Callable[[], object]] = {
        "put": lambda: vault.put("recording", "name", content, now),
        "plain put": lambda: obstore.put(plain, "plain", content),
        "synced": sync_file,
        "read": lambda: sum(map(len, vault.read("recording", "name"))),
        "plain read": lambda: sum(map(len, obstore.get(plain, "plain").stream(min_chunk_size=1 << 20))),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, do in ways.items():
            started = time.perf_counter()
            for _ in range(times):
                do()
            seconds[way].append(time.perf_counter() - started)
    engine.dispose()
    speed = {way: size * times / 1e6 / statistics.median(taken) for way, taken in seconds.items()}
    return [
        f"{speed['put']:,.0f}",
        f"{speed['put'] / speed['plain put']:.2f}",
        f"{speed['put'] / speed['synced']:.2f}",
        f"{speed['read']:,.0f}",
        f"{speed['read'] / speed['plain read']:.2f}",
    ]


if __name__ == "__main__":
    main()
