"""`compliance report`: the figures of the page in a terminal. Only arguments, printing and exit codes."""

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from compliance_pipeline.stores_cli import opened, out

if TYPE_CHECKING:
    from compliance_pipeline.figures.report import Report


def report(
    hours: Annotated[float, typer.Option(help="The window, back from what was published last.", min=0.1)] = 24.0,
    queue: Annotated[list[str] | None, typer.Option(help="Only this queue; may be given again.")] = None,
    channel: Annotated[list[str] | None, typer.Option(help="Only voice, chat or email; may be given again.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the tables.")] = False,
    publish_first: Annotated[
        bool, typer.Option("--publish", help="Publish what changed since the last snapshot, then report.")
    ] = False,
) -> None:
    """Say whether the promise was kept, where the time went, and what was found. docs/metrics.md defines each figure.

    It reads the snapshot that was published last (each run does), so it never waits for a run, nor a run for it.

    Examples:

        compliance report

        compliance report --hours 168 --queue billing

        compliance report --json | jq .attainment
    """
    from compliance_pipeline.cli import fail
    from compliance_pipeline.figures.figures import Filter, Objective
    from compliance_pipeline.figures.report import report_of
    from compliance_pipeline.figures.snapshots import NoSnapshot, Snapshot, folder_of, publish

    with opened() as stores:
        settings = stores.settings
        folder = folder_of(settings.home)
        objective = Objective(settings.objective_seconds)
        if publish_first:
            publish(stores.warehouse, stores.inbox, folder, objective.seconds, datetime.now(UTC))
        try:
            snapshot = Snapshot.current(folder)
        except NoSnapshot as error:
            raise fail(str(error)) from None
        try:
            end = snapshot.manifest.data_to
            chosen = Filter(end - timedelta(hours=hours), end, tuple(queue or ()), tuple(channel or ()))
            made = report_of(snapshot, chosen, objective)
        finally:
            snapshot.close()
    if as_json:
        sys.stdout.write(json.dumps(made.as_json(), indent=2) + "\n")
        return
    _show(made)


def _show(made: "Report") -> None:
    counted, chosen = made.counts, made.chosen
    out.print(f"[bold]{chosen.start:%Y-%m-%d %H:%M} to {chosen.end:%Y-%m-%d %H:%M} UTC[/], snapshot {made.snapshot}")
    out.print(made.sentence, highlight=False)
    table = Table(title="Seconds by stage", title_justify="left", header_style="bold")
    for column in ("stage", "recordings", "P50", "P95", "P99"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, found in made.stages.items():
        table.add_row(
            stage, f"{found.recordings:,}", *(_seconds(value) for value in (found.p50_s, found.p95_s, found.p99_s))
        )
    out.print(table)
    table = Table(title="Violations", title_justify="left", header_style="bold")
    for column in ("rule", "type", "severity", "recordings", "of", "rate", "95% interval"):
        table.add_column(column, justify="left" if column in ("rule", "type", "severity") else "right")
    for row in made.violations:
        interval = row.interval
        table.add_row(
            row.rule_id, escape(row.violation_type), row.severity, f"{row.recordings:,}", f"{row.screened:,}",
            f"{row.recordings / row.screened:.1%}" if row.screened else "–",
            f"{interval[0]:.1%} to {interval[1]:.1%}" if interval else "–",
        )  # fmt: skip
    out.print(table if made.violations else "No violation was found.")
    lost: dict[str, Any] = {
        "unscreenable": counted.unscreenable, "waiting": counted.waiting, "to be tried again": counted.deferred,
        "given up on": counted.dead_letters, "actions given up on": counted.dead_actions,
    }  # fmt: skip
    said = ", ".join(f"{count:,} {name}" for name, count in lost.items() if count)
    out.print(f"Not judged or not done: {said or 'nothing'}.", highlight=False)


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 1:
        return f"{1000 * value:.0f} ms"
    return f"{value:.3g} s" if value < 60 else f"{value // 60:.0f} min {value % 60:02.0f} s"
