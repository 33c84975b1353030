"""`python -m compliance_pipeline.sandbox`: the simulated platform as a process that makes recordings.
Only the command line and what it prints live here."""

import argparse
import asyncio
import contextlib
import itertools
from datetime import datetime
from urllib.parse import urlsplit

import httpx

from compliance_pipeline.sandbox.calls import demo_plan, endless_plan
from compliance_pipeline.sandbox.delivery import INGEST_PATH, Deliverer, play
from compliance_pipeline.sandbox.platform import Observation, PlatformState, create_app
from compliance_pipeline.settings import Settings

_PRINTED = frozenset(
    {
        "delivered",
        "delivery refused",
        "delivery failed",
        "tags written",
        "work item",
        "callback",
        "bearer leaked",
        "sensitive value received",
        "fault",
    }
)


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    settings = Settings()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(options, settings))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compliance_pipeline.sandbox",
        description="A simulated contact-center platform that keeps producing recordings. "
        "Secrets, addresses and ports come from the COMPLIANCE_* settings.",
    )
    parser.add_argument("--plan", choices=("endless", "demo"), default="endless")
    parser.add_argument("--count", type=int, help="stop after so many recordings (demo: 40)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--interval", type=float, default=6.0, help="endless: seconds between recordings, on average")
    parser.add_argument("--spread", type=float, default=40.0, help="demo: seconds over which the recordings come")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds to wait before the first recording")
    return parser


async def _run(options: argparse.Namespace, settings: Settings) -> None:
    import uvicorn

    address = urlsplit(settings.platform_url)
    host, port = address.hostname or "127.0.0.1", address.port or 80
    state = PlatformState(settings.client_id, settings.platform_client_secret)
    state.base_url = settings.platform_url.rstrip("/")
    state.listeners.append(_Printer(state))
    if options.plan == "demo":
        plan = iter(demo_plan(options.seed, count=options.count or 40, spread_s=options.spread))
        state.planned = options.count or 40
    else:
        plan = itertools.islice(endless_plan(options.seed, interval_s=options.interval), options.count)
        state.planned = options.count
    server = uvicorn.Server(
        uvicorn.Config(create_app(state), host=host, port=port, log_level="warning", access_log=False)
    )
    async with httpx.AsyncClient(timeout=10) as client:
        receiver = f"http://{settings.host}:{settings.receiver_port}{INGEST_PATH}"
        deliverer = Deliverer(state, receiver, settings.webhook_signing_secret, client)
        print(f"platform at {state.base_url}, events go to {receiver}", flush=True)

        async def produce() -> None:
            while not server.started:
                await asyncio.sleep(0.05)
            await asyncio.sleep(options.delay)
            await play(plan, state, deliverer)

        async with asyncio.TaskGroup() as group:
            producing = group.create_task(produce())
            # After the last recording the platform stays up: its truth and its state are still asked for.
            await server.serve()
            producing.cancel()


class _Printer:
    """One short line per observation that a reader wants to follow."""

    def __init__(self, state: PlatformState) -> None:
        self._state = state

    def __call__(self, seen: Observation) -> None:
        if seen.what not in _PRINTED:
            return
        since = ""
        held = self._state.held.get(seen.recording_id or "")
        if held and seen.what in ("tags written", "work item", "callback"):
            since = f"{(seen.at - held.available_at).total_seconds():.1f} s after it was available"
        words = (_clock(seen.at), seen.recording_id or "", seen.what, seen.detail, since)
        print("  ".join(word for word in words if word), flush=True)


def _clock(at: datetime) -> str:
    return at.astimezone().strftime("%H:%M:%S")


if __name__ == "__main__":
    main()
