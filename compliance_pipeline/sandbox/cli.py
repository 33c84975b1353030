"""`compliance sandbox`: the simulated platform as a process that makes recordings. Only the command line and what it
prints live here."""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Callable, Iterator
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from compliance_pipeline.sandbox.calls import PlannedRecording
    from compliance_pipeline.sandbox.faults import FaultPlan
    from compliance_pipeline.sandbox.state import Observation, PlatformState
    from compliance_pipeline.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""A simulated contact-center platform that produces calls, chats and e-mails, and fights back.

- Something to look at: `compliance sandbox serve`, then open http://127.0.0.1:8090/sandbox/
- A platform that does everything wrong: `compliance sandbox serve --faults full`
- Under load: `compliance sandbox serve --plan soak --rate 2 --seconds 900 --faults full`

Secrets, addresses and ports come from the `COMPLIANCE_*` settings: the same as the pipeline's.
""",
)

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
        "inside reached",
        "fault",
    }
)


class Plan(StrEnum):
    ENDLESS = "endless"
    DEMO = "demo"
    SOAK = "soak"


@app.callback()
def sandbox() -> None:
    """Keeps `serve` a command of its own."""


@app.command()
def serve(
    profile: Annotated[
        Literal["guide", "cloud"] | None,
        typer.Option(help="Whose API it speaks; default: COMPLIANCE_PLATFORM_PROFILE."),
    ] = None,
    faults: Annotated[
        str | None, typer.Option(help="Fault plan: a YAML file, or `full` for all that platforms are known to do.")
    ] = None,
    plan: Annotated[
        Plan, typer.Option(help="endless: until Ctrl-C; demo: one of every kind; soak: many, from a pool.")
    ] = Plan.ENDLESS,
    seed: Annotated[
        int | None,
        typer.Option(
            help="The same seed makes the same recordings and strikes the same ones. Without it 1, and the plan's own."
        ),
    ] = None,
    count: Annotated[int | None, typer.Option(help="Stop after so many recordings (demo: 40).")] = None,
    interval: Annotated[float, typer.Option(help="endless: seconds between recordings, on average.")] = 6.0,
    spread: Annotated[float, typer.Option(help="demo: seconds over which the recordings come.")] = 40.0,
    rate: Annotated[float, typer.Option(help="soak: recordings a second.")] = 2.0,
    seconds: Annotated[float, typer.Option(help="soak: how long recordings come.")] = 900.0,
    delay: Annotated[float, typer.Option(help="Seconds to wait before the first recording.")] = 0.0,
    queue_url: Annotated[
        str | None,
        typer.Option(
            help="cloud: SQS queue that gets the events, as `sqs://sqs.eu-west-1.amazonaws.com/123456789012/events`, "
            "or `sqs+http://127.0.0.1:5000/123456789012/events` for a local one. Without it no event is sent, and "
            "only a sweep finds the recordings."
        ),
    ] = None,
) -> None:
    """Run the platform: its API, token endpoint and media host, and recordings that come and are announced.

    What it did and received is at /sandbox/ (a page) and /sandbox/state (JSON); what is in the recordings at
    /sandbox/truth. The fault plan can be read and replaced while it runs: GET and PUT /sandbox/plan.

    A fault plan is a seed and a list of faults, for example:

        seed: 1
        faults:
          # the first two answers about every twentieth recording
          - {kind: not_found_for_now, rate: 0.05, times: 2}
          # one request in a hundred: 429, Retry-After: 3
          - {kind: too_many_requests, rate: 0.01, seconds: 3}
          # half of the requests, for ten seconds, a minute after the start
          - {kind: server_error, rate: 0.5, after_s: 60, for_s: 10}

    The kinds are in sandbox/faults.py, and all of them at once in sandbox/plans/full.yaml.

    Examples:

        compliance sandbox serve --interval 2

        compliance sandbox serve --faults full --plan soak --rate 5 --seconds 60

        compliance sandbox serve --profile cloud --queue-url sqs+http://127.0.0.1:5000/123456789012/events
    """
    from compliance_pipeline.sandbox.state import PlatformState
    from compliance_pipeline.settings import Settings

    settings = Settings()
    profile = profile or settings.platform_profile
    state = PlatformState(
        settings.client_id, settings.platform_client_secret, profile=profile, plan=_fault_plan(faults, seed)
    )
    if queue_url and profile == "guide":
        _fail("--queue-url is for --profile cloud: the guide's platform posts its events to the receiver")
    if plan is Plan.DEMO:
        state.planned = count or 40
    elif plan is Plan.SOAK:
        state.planned = min(round(rate * seconds), count or 10**9)
    else:
        state.planned = count
    state.listeners.append(_Printer(state))
    made_by = 1 if seed is None else seed

    def recordings() -> "Iterator[PlannedRecording]":
        from compliance_pipeline.sandbox.calls import demo_plan, endless_plan
        from compliance_pipeline.sandbox.soak_plan import soak_plan

        if plan is Plan.DEMO:
            return iter(demo_plan(made_by, count=count or 40, spread_s=spread))
        if plan is Plan.SOAK:
            return itertools.islice(soak_plan(made_by, rate_per_s=rate, seconds=seconds), count)
        return itertools.islice(endless_plan(made_by, interval_s=interval), count)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(state, settings, recordings, delay, queue_url))


def _fault_plan(name: str | None, seed: int | None) -> "FaultPlan":
    import yaml
    from pydantic import ValidationError

    from compliance_pipeline.sandbox.faults import FULL, FaultPlan, load_plan

    if name is None:
        return FaultPlan()
    try:
        found = load_plan(FULL if name == "full" else Path(name))
        return found if seed is None else found.model_copy(update={"seed": seed})
    except OSError as error:
        _fail(f"{name}: {error.strerror}; give a YAML file, or `full`")
    except yaml.YAMLError as error:
        _fail(f"{name} is not YAML: {str(error).splitlines()[0]}")
    except ValidationError as error:
        if not error.errors()[0]["loc"]:
            _fail(f"{name} is no fault plan: it needs `faults:`, a list (`compliance sandbox serve --help` shows one)")
        said = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        _fail(f"{name} is no fault plan: {'; '.join(said)}")


def _fail(message: str) -> NoReturn:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False)
    raise typer.Exit(1)


async def _run(
    state: "PlatformState",
    settings: "Settings",
    recordings: "Callable[[], Iterator[PlannedRecording]]",
    delay_s: float,
    queue_url: str | None,
) -> None:
    import httpx
    import uvicorn

    from compliance_pipeline.sandbox.delivery import INGEST_PATH, Deliverer, QueueDeliverer, Sender, play
    from compliance_pipeline.sandbox.platform import create_app

    state.base_url = settings.platform_url.rstrip("/")
    address = urlsplit(settings.platform_url)
    host, port = address.hostname or "127.0.0.1", address.port or 80
    try:
        listener = socket.create_server((host, port), backlog=2048)
    except OSError as error:
        _fail(
            f"the platform can't listen at {host}:{port} ({error.strerror}): stop what runs there, or set "
            "COMPLIANCE_PLATFORM_URL to a free port of this machine"
        )
    server = uvicorn.Server(uvicorn.Config(create_app(state), log_level="warning", access_log=False))
    async with httpx.AsyncClient(timeout=10) as client:
        sender: Sender | None = None
        to = "no queue (--queue-url): only a sweep finds them"
        if state.profile == "guide":
            to = f"http://{settings.host}:{settings.receiver_port}{INGEST_PATH}"
            secret, callback_secret = settings.webhook_signing_secret, settings.callback_signing_secret
            sender = Deliverer(state, to, secret, client, callback_secret=callback_secret)
        elif queue_url:
            to = queue_url
            sender = QueueDeliverer(state, *_queue(queue_url))

        async def produce() -> None:
            while not server.started:
                await asyncio.sleep(0.05)
            see = f"see {state.base_url}/sandbox/"
            print(f"{state.profile} platform at {state.base_url}, {see}; events go to {to}", flush=True)
            # A plan may have to make its recordings first, which is work for seconds.
            planned = await asyncio.to_thread(_primed, recordings())
            state.follow(state.plan)
            await asyncio.sleep(delay_s)
            await play(planned, state, sender)

        async with asyncio.TaskGroup() as group:
            producing = group.create_task(produce())
            # After the last recording the platform stays up: its truth and its state are still asked for.
            await server.serve(sockets=[listener])
            producing.cancel()


def _primed(plan: "Iterator[PlannedRecording]") -> "Iterator[PlannedRecording]":
    return itertools.chain(list(itertools.islice(plan, 1)), plan)


def _queue(url: str) -> tuple[str, str]:
    """The queue's URL as SQS has it, and the endpoint: of sqs://…, sqs+http://… or http(s)://…"""
    url = url.replace("sqs://", "https://", 1) if url.startswith("sqs://") else url.removeprefix("sqs+")
    parts = urlsplit(url)
    return url, f"{parts.scheme}://{parts.netloc}"


class _Printer:
    """One short line per observation that a reader wants to follow."""

    def __init__(self, state: "PlatformState") -> None:
        self._state = state

    def __call__(self, seen: "Observation") -> None:
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
