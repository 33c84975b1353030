"""A run's process is killed before each write and each request in turn, until one goes through unharmed; then a fresh
process finishes. Not random: the boundaries between fetch, verdict and remediation, one after the other."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from compliance_pipeline import steps
from compliance_pipeline.engines import engine_of
from compliance_pipeline.intake.hours import hour_of
from compliance_pipeline.intake.inbox import OPEN_STATES, Inbox
from compliance_pipeline.platforms.guide import GuidePlatform
from compliance_pipeline.platforms.transport import Transport
from compliance_pipeline.remediate import remediate_batch
from compliance_pipeline.sandbox.calls import Kind
from compliance_pipeline.screening.policy import load_policy
from compliance_pipeline.settings import Settings
from compliance_pipeline.warehouse.warehouse import MARTS, Warehouse
from compliance_pipeline_tests.workshop import CLIENT, Workshop, recording, workshop

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

CALLS = ("locate", "open_media", "tag", "open_work_item", "request_callback", "protect")
CALLED_BACK, REVIEWED = Kind.CHAT_CVV, Kind.CHAT_CARD
ROUNDS = 4
AT_ONCE = 3
EVERY = 1 if os.environ.get("CHAOS") else 7
"""Every kill point by `make chaos`, else each seventh: odd, so that both sides of requests have their turn."""
APART_S = 120.0
"""Between one process and the next: longer than a claim, and than a due time."""

_processes = get_context("forkserver")
_processes.set_forkserver_preload(
    [
        "compliance_pipeline_tests.faults.test_kill_between_steps",
        # What a run imports when it gets there.
        "compliance_pipeline.breaker",
        "compliance_pipeline.screening.phrases",
        "compliance_pipeline.screening.text_contacts",
        "duckdb",
        "phonenumbers",
        "pytz",
    ]
)


class Killer:
    """kill -9 of this process at the `at`-th step (from 1; 0: never)."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._steps = 0
        self._lock = Lock()

    def step(self, *_: object) -> None:
        with self._lock:
            self._steps += 1
            if self._steps == self._at:
                os.kill(os.getpid(), signal.SIGKILL)


class KilledWarehouse(Warehouse):
    """Killed before a commit; after it is before whatever comes next."""

    def __init__(self, path: Path, killer: Killer) -> None:
        super().__init__(path)
        self._killer = killer

    @contextmanager
    def write(self) -> "Iterator[DuckDBPyConnection]":
        with super().write() as connection:
            yield connection
            self._killer.step()


def _killing(call: Callable[..., Any], killer: Killer) -> Callable[..., Any]:
    """Killed before the request, and once the platform has done it, before the answer is used."""

    def wrapped(*given: Any, **named: Any) -> Any:
        killer.step()
        answer = call(*given, **named)
        killer.step()
        return answer

    return wrapped


def run(home: Path, url: str, hour: str, number: int, kill_at: int) -> None:
    """One run's process from claim to figures, on objects of its own."""
    killer = Killer(kill_at)
    settings = Settings(home=home, platform_url=url, client_id=CLIENT[0], client_secret=CLIENT[1], fetch_workers=1)
    inbox = Inbox(settings.inbox_database_url)
    inbox.create()
    policy = load_policy()
    engine = engine_of(settings, policy, inbox)
    sa.event.listen(inbox.engine, "commit", killer.step)
    platform = GuidePlatform(Transport(url, *CLIENT, backoff_s=0.001))
    for name in CALLS:
        setattr(platform, name, _killing(getattr(platform, name), killer))

    def clock() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=APART_S * number)

    warehouse = KilledWarehouse(settings.warehouse_path, killer)
    pipeline = steps.Pipeline(settings, inbox, warehouse, platform, policy, engine, clock)
    batch = steps.Batch(hour, f"run-{number}", f"run-{number}", False, clock())
    steps.claim(pipeline, batch)
    steps.screen_batch(pipeline, batch)
    remediate_batch(pipeline, batch)
    steps.refresh_marts(pipeline, MARTS, hour_of(hour))


def go(shop: Workshop, number: int, kill_at: int = 0) -> int:
    """The exit code of a run in a process of its own."""
    settings = shop.pipeline.settings
    process = _processes.Process(target=run, args=(settings.home, settings.platform_url, shop.hour, number, kill_at))
    process.start()
    process.join(60)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def finish(shop: Workshop, first: int) -> None:
    """Fresh processes, one after the other, until nothing is open."""
    for number in range(first, first + ROUNDS):
        assert go(shop, number) == 0
        if not any(shop.inbox.counts()[state] for state in OPEN_STATES):
            return
    raise AssertionError(f"still open after {ROUNDS} runs: {shop.states()}")


def announced(shop: Workshop) -> None:
    shop.announce(*(recording(kind) for kind in (CALLED_BACK, REVIEWED)))


def test_a_run_killed_at_any_write_or_request_is_finished_by_the_next_as_if_nothing_had_been(tmp_path: Path) -> None:
    """fault: a run is killed before each write and each request in turn, fetch to remediation; invariant: the next run
    ends as if nothing had been."""
    with workshop(tmp_path / "undisturbed") as shop:
        announced(shop)
        finish(shop, 0)
        wanted = shop.end_state()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for begin in count(1, AT_ONCE * EVERY):
            tried = range(begin, begin + AT_ONCE * EVERY, EVERY)
            ends = list(pool.map(partial(killed_at, tmp_path), tried))
            for kill_at, (_, end) in zip(tried, ends, strict=True):
                assert end == wanted, f"killed at step {kill_at}"
            if unharmed := [kill_at for kill_at, (code, _) in zip(tried, ends, strict=True) if code == 0]:
                break
    print(f"killed at every step from 1 to {unharmed[0] - 1}, {EVERY} apart")
    assert unharmed[0] > 20, "the steps of a run are not seen: the kills would show nothing"


def killed_at(tmp_path: Path, kill_at: int) -> tuple[int, dict[str, Any]]:
    """The exit code of the run that was to be killed, and what there is in the end."""
    with workshop(tmp_path / str(kill_at)) as shop:
        announced(shop)
        code = go(shop, 0, kill_at)
        if code:
            assert code == -signal.SIGKILL
            finish(shop, 1)
        return code, shop.end_state()
