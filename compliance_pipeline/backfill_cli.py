"""`compliance backfill`: hours of history again. Only arguments, printing and exit codes."""

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from compliance_pipeline.stores_cli import opened, out

if TYPE_CHECKING:
    import dagster as dg

    from compliance_pipeline.orchestration.backfills import State, Wanted

LOOK_EVERY_S = 1.0
FORMATS = ("%Y-%m-%d", "%Y-%m-%dT%H", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d-%H:%M")
EXIT_ERROR, EXIT_INTERRUPTED = 1, 130


def backfill(
    start: Annotated[str, typer.Option("--from", help="The first hour, UTC: 2026-11-20T14:00Z or 2026-11-20.")],
    end: Annotated[
        str | None, typer.Option("--to", help="Up to this hour, not with it; default: the hour that is under way.")
    ] = None,
    only: Annotated[
        Literal["verdicts"] | None,
        typer.Option(help="verdicts: judge anew what was found before; no media is fetched, no action is taken."),
    ] = None,
    single_run: Annotated[bool, typer.Option(help="One run for all hours, in place of one for each.")] = False,
    wait: Annotated[bool, typer.Option(help="Show the progress until it has ended.")] = True,
) -> None:
    """Go through hours of history again: after a change of policy or engine, or where something was left out.

    What was judged by this policy and engine is not judged again, and what was done on the platform is not done again.
    It is a backfill of Dagster's, shown on its page, and gives way to live recordings. Stop looking with Ctrl-C: it
    goes on; the same command shows it again.

    Examples:

        compliance backfill --from 2026-11-20 --to 2026-11-21

        compliance backfill --from 2026-11-20T14:00Z --to 2026-11-20T18:00Z --only verdicts

        compliance backfill --from 2026-11-01 --single-run --no-wait
    """
    from compliance_pipeline.cli import fail
    from compliance_pipeline.clock import utc_now
    from compliance_pipeline.orchestration import backfills
    from compliance_pipeline.stack import dagster_postgres_url

    wanted = backfills.Wanted(_hours(start, end, utc_now()), only, single_run, until_now=end is None)
    with opened() as stores:
        home = Path(os.environ.get("DAGSTER_HOME") or stores.settings.home / "dagster").resolve()
        workspace = Path(os.environ.get("COMPLIANCE_WORKSPACE") or stores.settings.home / "workspace.yaml")
        if not (home / "dagster.yaml").exists() or not workspace.exists():
            raise fail(f"nothing runs with the data folder {stores.settings.home}: start it with `compliance up`")
        known = stores.inbox.counts_by_hour(wanted.hours[0], wanted.hours[-1])
        if not known:
            raise fail("no recording of these hours is known here; the job `reconcile` asks the platform for them")
        import dagster as dg

        # dagster.yaml names its folder by this variable.
        os.environ.setdefault("DAGSTER_HOME", str(home))
        if postgres := dagster_postgres_url(stores.settings):
            os.environ["DAGSTER_POSTGRES_URL"] = postgres
        if "DAGSTER_POSTGRES_URL" in (home / "dagster.yaml").read_text() and not os.environ.get("DAGSTER_POSTGRES_URL"):
            raise fail("set DAGSTER_POSTGRES_URL to the database in which Dagster keeps its runs")
        with dg.DagsterInstance.from_config(str(home)) as instance:
            try:
                if found := backfills.under_way(instance, wanted):
                    backfill_id, wanted = found
                    known = {hour: count for hour, count in known.items() if hour <= wanted.hours[-1]}
                    out.print(
                        f"backfill {backfill_id} of these hours, to {wanted.hours[-1]}, is under way already",
                        highlight=False,
                    )
                else:
                    with backfills.workspace(instance, workspace) as context:
                        backfill_id = backfills.request(context, wanted, utc_now())
                    out.print(
                        f"backfill {backfill_id}: {len(wanted.hours)} hours, {sum(known.values())} recordings",
                        highlight=False,
                    )
                page = os.environ.get("COMPLIANCE_DAGSTER_URL")
                if page:
                    out.print(f"{page}/runs/b/{backfill_id}", highlight=False)
                if wait:
                    _follow(instance, backfill_id, wanted, known)
            except backfills.BackfillError as error:
                raise fail(str(error)) from None


def _hours(start: str, end: str | None, now: datetime) -> tuple[str, ...]:
    from compliance_pipeline.intake.hours import FIRST_HOUR
    from compliance_pipeline.orchestration.backfills import hours_between

    this_hour = now.replace(minute=0, second=0, microsecond=0)
    first, last = _time(start, "--from"), this_hour if end is None else _time(end, "--to")
    if first < FIRST_HOUR:
        raise typer.BadParameter(f"there are no hours before {FIRST_HOUR:%Y-%m-%dT%H:%MZ}", param_hint="--from")
    if last > this_hour:
        free = this_hour + timedelta(hours=1)
        raise typer.BadParameter(
            f"the hour under way and those to come are for live recordings: at most {this_hour:%Y-%m-%dT%H:%MZ} "
            f"now, {free:%Y-%m-%dT%H:%MZ} from {free:%H:%M} UTC on",
            param_hint="--to",
        )
    if first >= last:
        raise typer.BadParameter(
            f"from {first:%Y-%m-%dT%H:%MZ} to {last:%Y-%m-%dT%H:%MZ} there is no hour that has ended",
            param_hint="--from",
        )
    return hours_between(first, last)


def _time(text: str, option: str) -> datetime:
    for form in FORMATS:
        try:
            return datetime.strptime(text.removesuffix("Z").replace(" ", "T"), form).replace(tzinfo=UTC)
        except ValueError:
            continue
    raise typer.BadParameter(
        f"{text!r} is no time; write it as 2026-11-20T14:00Z (UTC) or as a day, 2026-11-20", param_hint=option
    )


def _follow(instance: "dg.DagsterInstance", backfill_id: str, wanted: "Wanted", known: dict[str, int]) -> None:
    from compliance_pipeline.cli import err
    from compliance_pipeline.orchestration.backfills import state

    bar: Any = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=err, transient=True,
    )  # fmt: skip
    try:
        with bar:
            task = bar.add_task("waiting for its turn", total=len(wanted.hours))
            while not (now := state(instance, backfill_id, wanted.hours)).ended:
                bar.update(task, completed=len(now.done | now.failed), description=_in_words(now, wanted, known))
                time.sleep(LOOK_EVERY_S)
    except KeyboardInterrupt:
        err.print("it goes on without you; the same command shows it again")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    out.print(_in_words(now, wanted, known), highlight=False)
    if left := [hour for hour in wanted.hours if hour not in now.done]:
        for hour in left[:20]:
            out.print(f"[bold red]not done[/] {hour}", highlight=False)
        out.print("What was done stays done: the same command does the rest.", highlight=False)
        raise typer.Exit(EXIT_ERROR)


def _in_words(now: "State", wanted: "Wanted", known: dict[str, int]) -> str:
    left = len(wanted.hours) - len(now.done) - len(now.failed)
    recordings = sum(known.get(hour, 0) for hour in now.done)
    return (
        f"{len(now.done)} hours done, {len(now.failed)} failed, {left} left; "
        f"{recordings} of {sum(known.values())} recordings"
    )
