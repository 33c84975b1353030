"""`compliance doctor`: only arguments, printing and exit codes. What is checked is doctor's."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

_MARKS = {"ok": "[green]ok  [/]", "warn": "[yellow]warn[/]", "bad": "[bold red]bad [/]"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="One JSON list, for a machine.")] = False) -> None:
    """Check this installation, and say what to do about what is wrong: permissions, disk, database, keys, warehouse,
    policy, ports, platform, clock, breakers. Exits with 1 if something is bad. Prints no secret.

    Examples:

        compliance doctor

        compliance doctor --json | jq '.[] | select(.state == "bad")'
    """
    from compliance_pipeline.cli import settings_or_exit
    from compliance_pipeline.clock import utc_now
    from compliance_pipeline.doctor import check

    findings = check(settings_or_exit(), utc_now())
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        out = Console(highlight=False, soft_wrap=True)
        for finding in findings:
            out.print(f"{_MARKS[finding.state]}  {escape(finding.name)}: {escape(finding.what)}")
            if finding.state != "ok" and finding.fix:
                out.print(f"      {escape(finding.fix)}")
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)
