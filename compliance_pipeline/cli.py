"""The `compliance` command. Only arguments, printing and exit codes; the work is done in the modules it calls."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from compliance_pipeline import (
    audit_cli,
    backfill_cli,
    canary_cli,
    consume_cli,
    doctor_cli,
    evidence_cli,
    keys_cli,
    platform_cli,
    policy_cli,
    remediation_cli,
    report_cli,
    retention_cli,
    warehouse_cli,
    worker_cli,
)
from compliance_pipeline.sandbox import cli as sandbox_cli
from compliance_pipeline.settings import Settings
from compliance_pipeline.stores_cli import out

if TYPE_CHECKING:
    from compliance_pipeline.demo import Result
    from compliance_pipeline.scan import Scanned, ScanResult
    from compliance_pipeline.soak import SoakResult

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="""Flag compliance violations in contact-center recordings.

- Try it on your own files: `compliance scan ~/recordings`
- See the whole job once, on synthetic calls: `compliance demo`
- Start everything and watch: `compliance up`, then open the Dagster UI
- What waits, what failed: `compliance inbox`

All data lies in `COMPLIANCE_HOME` (default `./var`). Every setting is a `COMPLIANCE_*` variable or a line of `.env`;
the README lists them.
""",
)
err = Console(stderr=True)

T = TypeVar("T")
Profile = Literal["guide", "cloud"]

EXIT_CLEAN, EXIT_ERROR, EXIT_USAGE, EXIT_FOUND, EXIT_UNSCREENABLE = 0, 1, 2, 3, 4
_VERDICT_STYLE = {
    "VIOLATION_DETECTED": "bold red",
    "REVIEW_REQUIRED": "yellow",
    "UNDETERMINED": "cyan",
    "UNSCREENABLE": "magenta",
    "NO_VIOLATION": "green",
}


NOTHING_FOUND = ("NO_VIOLATION", "UNDETERMINED", "UNSCREENABLE")


def fail(message: str) -> typer.Exit:
    err.print(f"[bold red]error:[/] {escape(message)}", highlight=False)
    return typer.Exit(EXIT_ERROR)


def settings_or_exit() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        faults = [
            f"COMPLIANCE_{str(fault['loc'][0]).upper()}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        ]
        raise fail("; ".join(faults) + ". Mend the variable (or the line of .env) and start again.") from None
    except SettingsError as error:
        # The text of its cause quotes the value.
        field = re.search(r'field "(\w+)"', str(error))
        variable = f"COMPLIANCE_{field[1].upper()}" if field else "a COMPLIANCE_* variable"
        raise fail(f"{variable}: not valid JSON. Mend it (or the line of .env) and start again.") from None


def offset(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 60}:{seconds % 60:02d}.{rest // 100}"


@app.command()
def up(
    web_port: Annotated[int, typer.Option(help="Port of the Dagster UI.")] = 3000,
    interval: Annotated[float, typer.Option(help="Seconds between the sandbox's calls, on average.")] = 6.0,
) -> None:
    """Start everything on this machine: receiver, Dagster, and a sandbox platform that keeps producing calls.

    With COMPLIANCE_PLATFORM_URL set to another host there is no sandbox: events come from your platform. With
    COMPLIANCE_QUEUE_URL they are taken from a queue as well.
    Ctrl-C stops all of it. The data stays in COMPLIANCE_HOME; start again and it goes on.

    Examples:

        compliance up

        compliance up --interval 1 --web-port 3001
    """
    from filelock import FileLock, Timeout
    from honcho.manager import Manager
    from sqlalchemy.exc import SQLAlchemyError

    from compliance_pipeline.dashboard.access import AccessNotConfigured, refuse_open
    from compliance_pipeline.promotion import live_policy_of
    from compliance_pipeline.screening.policy import PolicyError
    from compliance_pipeline.stack import environment, free_port, is_open, procfile, worker_commands

    settings = settings_or_exit()
    platform = urlsplit(settings.platform_url)
    sandboxed = settings.is_sandboxed
    ports = {
        "--web-port": web_port,
        "COMPLIANCE_RECEIVER_PORT": settings.receiver_port,
        "COMPLIANCE_EVIDENCE_PORT": settings.evidence_port,
        "COMPLIANCE_DASHBOARD_PORT": settings.dashboard_port,
    }
    if sandboxed:
        ports["COMPLIANCE_PLATFORM_URL"] = platform.port or 80
    for variable, port in ports.items():
        if is_open(port):
            raise fail(f"port {port} is in use by another program; choose another one with {variable}")
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FileLock(settings.home / "up.lock", timeout=0)
    try:
        live_policy_of(settings)
        refuse_open(settings)
        lock.acquire()
    except (PolicyError, AccessNotConfigured) as error:
        raise fail(str(error)) from None
    except SQLAlchemyError as error:
        raise fail(f"the inbox can't be read ({type(error).__name__}): see `compliance doctor`") from None
    except Timeout:
        raise fail(f"it runs already with the data folder {settings.home}; stop that, or set COMPLIANCE_HOME") from None
    if not sandboxed:
        platform_cli.names_or_exit(settings)
    variables = environment(
        settings,
        code_port=free_port(),
        web_port=web_port,
        sandbox_options=f"--interval {interval} --delay 10",
    )
    url = f"http://127.0.0.1:{web_port}"
    out.print(
        f"""[bold]compliance_pipeline[/] is starting (about 15 s); Ctrl-C stops it.

  dashboard        {settings.dashboard_base_url}
  Dagster UI       {url}
  asset graph      {url}/asset-groups
  runs             {url}/runs
  sensor           {url}/locations/compliance_pipeline/sensors/recording_sensor
  receiver         http://{settings.host}:{settings.receiver_port}/readyz  (figures: /metrics)
  sandbox          {settings.platform_url}/sandbox/state
  data             {os.path.relpath(settings.home)}
""",
        highlight=False,
    )
    manager = Manager()
    for name, command in (procfile() | worker_commands(settings)).items():
        if (name == "sandbox" and not sandboxed) or (name == "consumer" and not settings.queue_url):
            continue
        manager.add_process(name, command, env=variables)
    manager.loop()
    out.print(f"stopped; the data is in {os.path.relpath(settings.home)}", highlight=False)
    # On Ctrl-C each process ends by a signal; that is no failure.
    interrupted = manager.returncode is not None and manager.returncode in (-2, -15, 130, 143)
    raise typer.Exit(0 if interrupted else manager.returncode or 0)


@app.command()
def receiver() -> None:
    """Run the receiver: the HTTP endpoint that the platform posts its recording events to.

    Example:

        COMPLIANCE_WEBHOOK_SECRET=whsec_... compliance receiver
    """
    from compliance_pipeline.intake.receiver import serve

    serve(settings_or_exit())


@app.command()
def dashboard() -> None:
    """Serve the page that analysts open: was the promise kept, where did the time go, what was found, who must act.

    On this machine alone, unless people sign in: COMPLIANCE_DASHBOARD_AUTH=oidc, or `proxy` behind one that signs them
    in. COMPLIANCE_DASHBOARD_ROLES says who may look, who may review, who may do all.

    Examples:

        compliance dashboard

        COMPLIANCE_DASHBOARD_PORT=9000 compliance dashboard
    """
    from compliance_pipeline.asgi import serve
    from compliance_pipeline.dashboard.access import AccessNotConfigured
    from compliance_pipeline.dashboard.app import create_app

    settings = settings_or_exit()
    try:
        served = create_app(settings)
    except AccessNotConfigured as error:
        raise fail(str(error)) from None
    serve(served, settings.dashboard_host, settings.dashboard_port)


app.add_typer(policy_cli.app, name="policy")
app.command("backfill")(backfill_cli.backfill)
app.add_typer(platform_cli.app, name="platform")
app.command("consume")(consume_cli.consume)
app.add_typer(sandbox_cli.app, name="sandbox")
app.add_typer(remediation_cli.app, name="remediation")
app.add_typer(evidence_cli.app, name="evidence")
app.add_typer(audit_cli.app, name="audit")
app.add_typer(retention_cli.app, name="retention")
app.command("hold")(retention_cli.hold)
app.command("review")(retention_cli.review)
app.add_typer(keys_cli.app, name="keys")
app.add_typer(warehouse_cli.app, name="warehouse")
app.command("worker")(worker_cli.worker)
app.command("doctor")(doctor_cli.doctor)
app.command("report")(report_cli.report)
app.command("canaries")(canary_cli.canaries)
engine_app = typer.Typer(no_args_is_help=True, help="The screening engine as a service of its own.")
app.add_typer(engine_app, name="engine")


@engine_app.command("serve")
def serve_engine() -> None:
    """Serve this package's engine over HTTP: POST /api/v1/screenings, signed (Standard Webhooks).

    It fetches the media from the URL that it is given, and answers the verdict: at once, or later by a signed callback.
    It keeps nothing. Point a pipeline to it with COMPLIANCE_ENGINE_URL; both need the same policy pack,
    COMPLIANCE_ENGINE_SECRET and COMPLIANCE_CALLBACK_SECRET. COMPLIANCE_ENGINE_HOSTS names the hosts that it may fetch
    from, where they are not public.

    Example:

        COMPLIANCE_ENGINE_HOSTS='["127.0.0.1"]' compliance engine serve
    """
    from compliance_pipeline import asgi
    from compliance_pipeline.promotion import live_policy_of
    from compliance_pipeline.screening.engine import from_settings
    from compliance_pipeline.screening.policy import PolicyError
    from compliance_pipeline.screening.recogniser import RecogniserError
    from compliance_pipeline.screening.service import create_engine_app

    settings = settings_or_exit()
    try:
        policy = live_policy_of(settings)
        engine = from_settings(settings, policy)
    except (PolicyError, RecogniserError) as error:
        raise fail(str(error)) from None
    service = create_engine_app(
        policy,
        engine,
        settings.engine_signing_secret,
        settings.callback_signing_secret,
        hosts=settings.engine_hosts,
        keys={name: key.get_secret_value() for name, key in settings.engine_keys.items()},
    )
    # Without a callback address the answer waits for the screening.
    asgi.serve(service, settings.host, settings.engine_port, request_seconds=600.0)


@app.command("await-port", hidden=True)
def await_port(port: int, timeout_s: float = 90.0) -> None:
    """Wait until something listens on a port of this machine: the Procfile's order of starting."""
    from compliance_pipeline.stack import StackError, wait_for_port

    try:
        wait_for_port(port, timeout_s)
    except StackError as error:
        raise fail(str(error)) from None


@app.command()
def scan(
    path: Annotated[Path, typer.Argument(help="A folder, or one file.", exists=True)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document in place of the tables.")] = False,
) -> None:
    """Screen a folder of your own recordings, without an account anywhere.

    Voice: wav, mp3, ogg, webm, m4a and more; chat and e-mail: json, txt, eml. What is found is shown masked. Tags and
    work items become JSON files under COMPLIANCE_HOME/scan; your folder is only read.

    A call's words are read from a transcript beside it (`call.wav.transcript.json` or `.txt`), or by the recogniser
    that COMPLIANCE_RECOGNISER_MODEL names; without either, rules about words stay UNDETERMINED.

    Exit code: 0 nothing found, 3 something found, 4 nothing found but not everything could be screened (skipped
    files and undetermined rules count), 1 error, 2 wrong usage.

    Examples:

        compliance scan ~/recordings

        compliance scan call.wav --json | jq '.recordings[] | select(.verdict != "NO_VIOLATION")'
    """
    from compliance_pipeline.platforms.port import PlatformError
    from compliance_pipeline.scan import ScanInProgress, ScanResult
    from compliance_pipeline.scan import scan as run_scan
    from compliance_pipeline.screening.policy import PolicyError
    from compliance_pipeline.screening.recogniser import RecogniserError
    from compliance_pipeline.warehouse.warehouse import WarehouseError

    try:
        result = _with_progress("screening", run_scan(path, settings_or_exit()), ScanResult)
    except (PlatformError, ScanInProgress, PolicyError, RecogniserError, WarehouseError) as error:
        raise fail(str(error)) from None
    except KeyboardInterrupt:
        err.print("stopped; scan again, and it goes on with what is left")
        os._exit(130)  # not waiting for the batch under way: every step may be killed
    if not result.files and not result.skipped:
        raise fail(f"there is nothing to screen in {path}")
    if as_json:
        sys.stdout.write(json.dumps(_scan_document(result), indent=2) + "\n")
    else:
        _print_scan(result)
    verdicts = {scanned.verdict["verdict"] if scanned.verdict else None for scanned in result.files}
    if verdicts & {"VIOLATION_DETECTED", "REVIEW_REQUIRED"}:
        raise typer.Exit(EXIT_FOUND)
    if verdicts & {"UNSCREENABLE", "UNDETERMINED", None} or result.skipped:
        raise typer.Exit(EXIT_UNSCREENABLE)


def _with_progress(label: str, steps: Iterator[tuple[int, int] | T], kind: type[T]) -> T:
    """Show the (done, of how many) that a generator yields as a bar on stderr, and return its last item."""
    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=err, transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task(label, total=None)
        for step in steps:
            if isinstance(step, kind):
                return step
            done, total = step  # type: ignore[misc]
            bar.update(task, completed=done, total=total)
    raise RuntimeError("the generator ended without a result")


def _verdict(scanned: "Scanned") -> str:
    return scanned.verdict["verdict"] if scanned.verdict else "UNSCREENABLE"


def _why(scanned: "Scanned") -> str:
    return scanned.dead or (scanned.verdict or {}).get("unscreenable_reason") or ""


def _scan_document(result: "ScanResult") -> dict[str, Any]:
    shown = ("rule_id", "violation_type", "severity", "detector", "speaker", "start_ms", "confidence", "masked", "hits")
    return {
        "recordings": [
            {
                "file": s.recording.name,
                "recordingId": s.recording.recording_id,
                "channel": s.recording.channel,
                "verdict": _verdict(s),
                "reason": _why(s) or None,
                "undeterminedRules": (s.verdict or {}).get("undetermined_rules") or [],
                "violations": [{name: row[name] for name in shown} for row in s.findings],
            }
            for s in result.files
        ],
        "skipped": [{"file": skipped.name, "why": skipped.why} for skipped in result.skipped],
    }


def _print_scan(result: "ScanResult") -> None:
    table = Table(title="Findings", title_justify="left", header_style="bold")
    for column in ("file", "verdict", "rule", "at", "who", "found", "confidence"):
        table.add_column(column, justify="right" if column in ("at", "confidence") else "left", overflow="fold")
    flagged = [s for s in result.files if s.findings]
    for s in flagged:
        for row in s.findings:
            times = f", {row['hits']}×" if row["hits"] > 1 else ""
            found = f"{escape(row['masked'])} [dim]({row['detector']}{times})[/]"
            table.add_row(
                escape(s.recording.name),
                f"[{_VERDICT_STYLE[row['verdict']]}]{row['verdict']}[/]",
                row["rule_id"],
                offset(row["start_ms"]),
                row["speaker"],
                found,
                f"{row['confidence']:.2f}",
            )
    if flagged:
        out.print(table)
    unscreenable = [s for s in result.files if _verdict(s) == "UNSCREENABLE"]
    for s in unscreenable:
        out.print(f"[magenta]UNSCREENABLE[/]  {escape(s.recording.name)}: {escape(_why(s))}", highlight=False)
    undetermined = [s for s in result.files if _verdict(s) == "UNDETERMINED"]
    for s in undetermined:
        rules = (s.verdict or {})["undetermined_rules"]
        out.print(
            f"[cyan]UNDETERMINED[/]  {escape(s.recording.name)}: nothing found, but {len(rules)} rules could not be "
            f"decided (most need a transcript): {', '.join(rules)}",
            highlight=False,
        )
    for skipped in result.skipped:
        out.print(f"[dim]skipped       {escape(skipped.name)}: {escape(skipped.why)}[/]", highlight=False)
    clean = len(result.files) - len(flagged) - len(unscreenable) - len(undetermined)
    out.print(
        f"\n{len(result.files)} recordings: {len(flagged)} with findings, {clean} with none, "
        f"{len(undetermined)} undetermined, {len(unscreenable)} that could not be screened; "
        f"{len(result.skipped)} files skipped.",
        highlight=False,
    )


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Another seed makes other calls.")] = 1,
) -> None:
    """Do the whole job once, headless: 40 synthetic recordings whose truth is known, and whether all came right.

    Starts receiver, Dagster and the sandbox platform on free ports, in COMPLIANCE_HOME/demo (emptied first); takes
    about a minute. Exits with 1 if a recording was lost, done twice or judged wrongly.

    Example:

        compliance demo --seed 7
    """
    from compliance_pipeline.demo import Result, run_demo
    from compliance_pipeline.stack import StackError

    try:
        result = _with_progress("settled", run_demo(settings_or_exit().home / "demo", seed=seed), Result)
    except StackError as error:
        raise fail(str(error)) from None
    _print_demo(result)
    if result.faults:
        raise typer.Exit(EXIT_ERROR)


def _stage_table(rows: list[dict[str, Any]]) -> Table:
    from compliance_pipeline.demo import STAGES

    stages = Table(title="Where the time goes", title_justify="left", header_style="bold")
    for column in ("stage", "what", "n", "P50", "P95", "P99"):
        stages.add_column(column, justify="left" if column in ("stage", "what") else "right")
    for row in rows:
        if row["stage"] == "judged":
            stages.add_section()
        figures = [f"{row[name]:.2f} s" for name in ("p50", "p95", "p99")]
        stages.add_row(row["stage"], STAGES[row["stage"]], str(row["recordings"]), *figures)
    return stages


def _print_demo(result: "Result") -> None:
    table = Table(
        title="Recordings", title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for column in ("recording", "kind", "truth", "verdict", "at", "flagged"):
        table.add_column(
            column,
            justify="right" if column in ("at", "flagged") else "left",
            min_width=17 if column == "truth" else None,
        )
    for o in result.outcomes:
        same = "✓" if o.verdict == o.truth else o.verdict
        table.add_row(
            o.recording_id[:8],
            o.kind,
            o.truth,
            f"[{'bold red' if o.faults else 'green'}]{same}[/]",
            "" if o.offset_ms is None else offset(o.offset_ms),
            "" if o.flagged_s is None else f"{o.flagged_s:.1f} s",
        )
    out.print(table)
    out.print(_stage_table(result.stages))
    planted = [o for o in result.outcomes if o.truth not in NOTHING_FOUND]
    found = [o for o in planted if o.verdict == o.truth]
    false = [o for o in result.outcomes if o not in planted and o.verdict not in NOTHING_FOUND]
    out.print(
        f"violations: {len(found)} found, {len(planted) - len(found)} missed, {len(false)} false   "
        f"duplicates absorbed: {result.duplicates}   "
        f"damaged, reported as UNSCREENABLE: {', '.join(result.unscreenable.values()) or 'none'}   "
        f"in {result.seconds:.0f} s",
        highlight=False,
    )
    for fault in result.faults:
        out.print(f"[bold red]FAULT[/] {fault}", highlight=False)
    out.print("[green]nothing lost, nothing double, nothing wrong[/]" if not result.faults else "[red]failed[/]")


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(help="How long recordings come.")] = 15.0,
    rate: Annotated[float, typer.Option(help="Recordings a second.")] = 2.0,
    profile: Annotated[
        Profile, typer.Option(help="guide: events by webhook; cloud: by SQS (moto's server).")
    ] = "guide",
    faults: Annotated[
        str, typer.Option(help="Fault plan: `full`, or a file (see `compliance sandbox serve`).")
    ] = "full",
    seed: Annotated[int, typer.Option(help="Another seed strikes other recordings.")] = 1,
) -> None:
    """Run the whole product under a platform that does everything wrong, and count what was lost or done twice.

    Real processes in COMPLIANCE_HOME/soak (emptied first): receiver, Dagster, the sandbox platform with its fault
    plan. What can't be judged must have been refused with a reason. Exits with 1 if a recording was lost, done twice
    or judged wrongly.

    Example:

        compliance soak --minutes 1 --profile cloud
    """
    from compliance_pipeline.soak import SoakResult, run_soak
    from compliance_pipeline.stack import StackError

    home = settings_or_exit().home / "soak"
    steps = run_soak(home, profile=profile, seconds=minutes * 60, rate=rate, faults=faults, seed=seed)
    try:
        result = _with_progress("settled", steps, SoakResult)
    except StackError as error:
        raise fail(str(error)) from None
    _print_soak(result)
    if not result.passed:
        raise typer.Exit(EXIT_ERROR)


def _print_soak(result: "SoakResult") -> None:
    for title, counts in (
        ("What the sandbox sent", result.sent),
        ("Faults struck", result.faults),
        ("Refused, with the reason", result.refused),
    ):
        table = Table(title=title, title_justify="left", show_header=False, box=box.SIMPLE_HEAD)
        table.add_column(justify="right")
        table.add_column(overflow="fold")
        for name, count in counts.items():
            table.add_row(str(count), escape(name))
        if counts:
            out.print(table)
    out.print(_stage_table(result.stages))
    for what, which in (("LOST", result.lost), ("DOUBLE", result.double), ("WRONG", result.wrong)):
        for recording_id, why in which.items():
            out.print(f"[bold red]{what}[/] {recording_id}: {escape(why)}", highlight=False)
    out.print(
        f"{result.unique} recordings: {result.judged} judged ({result.found_by_sweep} found by the sweep), "
        f"{sum(result.refused.values())} refused with a reason, {len(result.lost)} lost, {len(result.double)} double, "
        f"{len(result.wrong)} wrong; in {result.seconds:.0f} s",
        highlight=False,
    )
    for name, count in result.alarms.items():
        out.print(f"[bold red]ALARM[/] {name}: {count}", highlight=False)


@app.command()
def inbox(
    retry: Annotated[bool, typer.Option(help="Give all dead letters another full set of tries.")] = False,
) -> None:
    """Show what waits in the inbox and what was given up on, and why.

    Examples:

        compliance inbox

        compliance inbox --retry
    """
    from compliance_pipeline.clock import utc_now
    from compliance_pipeline.intake.inbox import Inbox

    letters = Inbox(settings_or_exit().inbox_database_url)
    letters.create()
    if retry:
        out.print(f"{letters.retry_dead(None, utc_now())} recordings will be tried again.")
    for state, count in letters.counts().items():
        out.print(f"{state:10} {count:8}", highlight=False)
    for item in letters.dead_letters():
        out.print(f"[red]dead[/]  {item.recording_id}  {escape(item.reason or '')}", highlight=False)
    letters.close()
