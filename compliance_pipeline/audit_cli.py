"""`compliance audit`: check the ledger, read it, hand it out. Only arguments, printing and exit codes."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from compliance_pipeline.stores_cli import opened, out, user_name

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Check, read and hand out the audit trail.

- Was it tampered with? `compliance audit verify`
- What happened to this recording, and who heard it? `compliance audit show RECORDING`
- What do I give to the auditor? `compliance audit export RECORDING`, which they check with
  `compliance audit check-bundle FILE`

Everything up to the last seal is signed. Keep copies of `ledger-seals.jsonl` (in COMPLIANCE_HOME) where nobody who
runs this can write: `compliance audit verify --seals COPY` then shows a change even by somebody with the database and
the key, and that the end of the ledger was cut off together with its seals. Without a copy, nothing does.
""",
)
EXIT_BROKEN = 1
_SHOWN = 10

Recording = Annotated[str, typer.Argument(help="The platform's id of the recording.", metavar="RECORDING")]


@app.command()
def verify(
    seals: Annotated[
        Path | None,
        typer.Option(
            help="Check everything against a copy of ledger-seals.jsonl too, from where nobody here can write.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Check every entry of the ledger, its chain and its seals; exits with 1 if anything is wrong.

    Examples:

        compliance audit verify

        compliance audit verify --seals /mnt/auditor/ledger-seals.jsonl
    """
    from compliance_pipeline import audit

    with opened() as stores:
        result = audit.verify(stores.engine, stores.settings, copy=seals)
    held = result.sealed
    sealed = f"sealed up to {held.seq} ({held.sealed_at:%Y-%m-%d %H:%M:%S} UTC)" if held else "not sealed yet"
    state = "[green]unbroken[/]" if result.is_unbroken else "[bold red]BROKEN[/]"
    key = f", key {result.key}" if result.key else ""
    out.print(
        f"{result.entries} entries, {state}, head {result.head[:16]}, {sealed}{key}",
        highlight=False,
        soft_wrap=True,
    )
    for fault in result.faults[:_SHOWN]:
        where = f"entry {fault.seq}: " if fault.seq else ""
        out.print(f"[bold red]fault[/]  {where}{escape(fault.what)}", highlight=False, soft_wrap=True)
    if result.fault_count > _SHOWN:
        out.print(f"and {result.fault_count - _SHOWN} more", highlight=False)
    if not result.is_unbroken:
        raise typer.Exit(EXIT_BROKEN)


@app.command()
def seal() -> None:
    """Check what is new since the last seal, and sign it.

    Example:

        compliance audit seal
    """
    from datetime import UTC, datetime

    from compliance_pipeline import audit
    from compliance_pipeline.cli import fail

    with opened() as stores:
        try:
            made = audit.seal(stores.engine, stores.settings, datetime.now(UTC))
        except audit.LedgerBroken as error:
            raise fail(f"not sealed: {error}") from None
    out.print(f"sealed up to {made.seq}" if made else "nothing is new since the last seal", highlight=False)


@app.command()
def show(
    recording: Recording,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print a recording's chain of custody: what happened, when, by whom, in which run.

    Examples:

        compliance audit show rec-20260301-0042

        compliance audit show rec-20260301-0042 --json
    """
    from compliance_pipeline import audit
    from compliance_pipeline.cli import fail

    with opened() as stores:
        events = audit.custody(stores.engine, recording)
    if not events:
        raise fail(f"the ledger knows nothing of recording {recording}")
    if as_json:
        rows = [asdict(event) | {"at": event.at.isoformat()} for event in events]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    table = Table(title=escape(recording), title_justify="left", header_style="bold")
    for column in ("entry", "time (UTC)", "what", "actor", "run", "details"):
        table.add_column(column, overflow="fold")
    for event in events:
        table.add_row(
            str(event.seq),
            f"{event.at:%Y-%m-%d %H:%M:%S}",
            event.kind.replace("_", " "),
            escape(event.actor),
            escape((event.run_id or "")[:8]),
            escape("\n".join(f"{name}: {_plain(value)}" for name, value in event.details.items())),
        )
    out.print(table)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@app.command()
def export(
    recording: Recording,
    to: Annotated[Path | None, typer.Option("--out", help="The file to write; default: RECORDING.zip here.")] = None,
    who: Annotated[str | None, typer.Option("--for", help="Who gets it, for the ledger; default: you.")] = None,
) -> None:
    """Make an evidence bundle: masked clips, verdicts, policy text, the recording's part of the ledger, checksums.

    That it was made, and for whom, is itself entered into the ledger.

    Examples:

        compliance audit export rec-20260301-0042 --for "A. Auditor"

        compliance audit export rec-20260301-0042 --out evidence.zip
    """
    import re
    from datetime import UTC, datetime

    from compliance_pipeline import audit
    from compliance_pipeline.cli import fail

    path = to or Path(re.sub(r"[^A-Za-z0-9_-]+", "_", recording)[:100] + ".zip")
    with opened() as stores:
        try:
            made = audit.export(stores.engine, stores.settings, recording, path, who or user_name(), datetime.now(UTC))
        except audit.NothingKnown:
            raise fail(f"nothing is known of recording {recording}") from None
        except audit.KeyLost as error:
            raise fail(str(error)) from None
    out.print(
        f"{escape(str(path))}: {made.clips} clips, {made.entries} ledger entries", highlight=False, soft_wrap=True
    )
    for note in made.notes:
        out.print(f"[yellow]not in it[/]  {escape(note)}", highlight=False, soft_wrap=True)


@app.command("check-bundle")
def check_bundle(
    file: Annotated[Path, typer.Argument(help="A bundle of `compliance audit export`.", exists=True, dir_okay=False)],
) -> None:
    """Check an evidence bundle, with nothing but the bundle; exits with 1 if anything in it was changed.

    What it can't say is whose key it is: compare the fingerprint with the one that `compliance audit verify` prints
    where the bundle was made.

    Example:

        compliance audit check-bundle evidence.zip
    """
    from compliance_pipeline import audit
    from compliance_pipeline.cli import fail

    try:
        checked = audit.check_bundle(file)
    except audit.NotABundle as error:
        raise fail(f"{file}: {error}") from None
    state = "[bold red]BROKEN[/]" if checked.faults else "[green]sound[/]"
    out.print(
        f"recording {escape(checked.recording_id)}: {state}, {checked.entries} ledger entries, key {checked.key}",
        highlight=False,
        soft_wrap=True,
    )
    for fault in checked.faults[:_SHOWN]:
        out.print(f"[bold red]fault[/]  {escape(fault)}", highlight=False, soft_wrap=True)
    for note in checked.notes:
        out.print(f"[yellow]not in it[/]  {escape(note)}", highlight=False, soft_wrap=True)
    if checked.faults:
        raise typer.Exit(EXIT_BROKEN)
