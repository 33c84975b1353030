"""`compliance report`: the figures of the page in a terminal. Only arguments, printing and exit codes."""

import json
import os
import secrets
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from compliance_pipeline.stores_cli import Stores, opened, out, user_name

if TYPE_CHECKING:
    from compliance_pipeline.figures.figures import Filter
    from compliance_pipeline.figures.report import Report
    from compliance_pipeline.figures.snapshots import Snapshot

FILTERS = ("queue", "channel", "direction", "rule", "severity", "agent")


def report(
    hours: Annotated[
        float, typer.Option(help="The window, back from what was published last.", min=0.1, max=24 * 400)
    ] = 24.0,
    queue: Annotated[
        list[str] | None, typer.Option(help="Only this queue; may be given again, as all filters.")
    ] = None,
    channel: Annotated[list[str] | None, typer.Option(help="Only voice, chat or email.")] = None,
    direction: Annotated[list[str] | None, typer.Option(help="Only inbound or outbound.")] = None,
    agent: Annotated[list[str] | None, typer.Option(help="Only this agent, by its token (tok_...).")] = None,
    rule: Annotated[list[str] | None, typer.Option(help="Of violations only those of this rule.")] = None,
    severity: Annotated[
        list[str] | None, typer.Option(help="Of violations only the critical, high, medium or low ones.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the tables.")] = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Write the window's violations to this file, as the page exports them.")
    ] = None,
    parquet: Annotated[Path | None, typer.Option("--parquet", help="The same, as Parquet.")] = None,
    publish_first: Annotated[
        bool, typer.Option("--publish", help="Publish what changed since the last snapshot, then report.")
    ] = False,
) -> None:
    """Say whether the promise was kept, where the time went, and what was found. docs/metrics.md defines each figure.

    It reads the snapshot that was published last (every half minute, if anything changed), so it never waits for a
    run, nor a run for it.

    Examples:

        compliance report

        compliance report --hours 168 --queue billing

        compliance report --json | jq .attainment

        compliance report --hours 168 --severity critical --csv critical.csv
    """
    from compliance_pipeline.cli import fail
    from compliance_pipeline.figures.figures import Filter
    from compliance_pipeline.figures.report import report_of
    from compliance_pipeline.figures.snapshots import NoSnapshot, Snapshot, folder_of, publish
    from compliance_pipeline.objective import Objective

    with opened() as stores:
        settings = stores.settings
        folder = folder_of(settings.home)
        objective = Objective.of_settings(settings)
        if publish_first:
            publish(stores.warehouse, stores.inbox, folder, objective, datetime.now(UTC))
        try:
            snapshot = Snapshot.current(folder)
        except NoSnapshot as error:
            raise fail(str(error)) from None
        try:
            end = snapshot.manifest.data_to
            chosen = Filter(
                end - timedelta(hours=hours), end, queue=tuple(queue or ()), channel=tuple(channel or ()),
                direction=tuple(direction or ()), rule=tuple(rule or ()), severity=tuple(severity or ()),
                agent=tuple(agent or ()),
            )  # fmt: skip
            made = report_of(snapshot, chosen, snapshot.manifest.objective or objective)
            for path, kind in ((csv, "csv"), (parquet, "parquet")):
                if path:
                    _export(stores, snapshot, chosen, path, kind)
        finally:
            snapshot.close()
    if as_json:
        sys.stdout.write(json.dumps(made.as_json(), indent=2) + "\n")
        return
    _show(made)


def _export(stores: Stores, snapshot: "Snapshot", chosen: "Filter", path: Path, kind: str) -> None:
    """As the page does: the file is whole before it is there, and the ledger knows of it."""
    from compliance_pipeline.cli import err
    from compliance_pipeline.clock import utc_now
    from compliance_pipeline.dashboard.exports import refuse_sensitive_filter, write

    refuse_sensitive_filter(chosen)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as out:  # noqa: PTH123
            written = write(out, kind, snapshot, chosen, stores.engine, user_name(), utc_now)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    err.print(escape(f"{written:,} violations were written to {path}."), highlight=False, soft_wrap=True)


def _show(made: "Report") -> None:
    counted, chosen, head = made.counts, made.chosen, made.headline
    out.print(f"[bold]{chosen.start:%Y-%m-%d %H:%M} to {chosen.end:%Y-%m-%d %H:%M} UTC[/], snapshot {made.snapshot}")
    out.print(made.sentence, highlight=False)
    if firing := [one.name for one in head.windows if one.firing]:
        out.print(f"[bold red]The budget burns too fast:[/] {', '.join(firing)}.", highlight=False)
    table = Table(title="Seconds by stage", title_justify="left", header_style="bold")
    for column in ("stage", "recordings", "P50", "P95", "P99"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, found in head.stages.items():
        table.add_row(
            stage, f"{found.recordings:,}", *(_seconds(value) for value in (found.p50_s, found.p95_s, found.p99_s))
        )
    out.print(table)
    table = Table(title="Violations", title_justify="left", header_style="bold")
    for column in ("rule", "type", "severity", "recordings", "of", "rate", "95% interval", "right"):
        table.add_column(column, justify="left" if column in ("rule", "type", "severity") else "right")
    for row in made.violations:
        interval = row.interval
        table.add_row(
            row.rule_id, escape(row.violation_type), row.severity, f"{row.recordings:,}", f"{row.screened:,}",
            f"{row.rate:.1%}" if row.rate is not None else "–",
            f"{interval[0]:.1%} to {interval[1]:.1%}" if interval else "–",
            f"{row.confirmed:,} of {row.confirmed + row.dismissed:,}" if row.confirmed + row.dismissed else "–",
        )  # fmt: skip
    out.print(table if made.violations else "No violation was found.")
    lost: dict[str, Any] = {
        "unscreenable": counted.unscreenable, "waiting": counted.waiting, "to be tried again": counted.deferred,
        "given up on": counted.dead_letters, "actions not delivered": head.failed_actions,
    }  # fmt: skip
    said = ", ".join(f"{count:,} {name}" for name, count in lost.items() if count)
    out.print(f"Not judged or not done: {said or 'nothing'}.", highlight=False)


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 1:
        return f"{1000 * value:.0f} ms"
    return f"{value:.3g} s" if value < 60 else f"{value // 60:.0f} min {value % 60:02.0f} s"
