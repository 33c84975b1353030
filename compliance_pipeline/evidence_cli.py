"""`compliance evidence`: links to masked clips, and the service that plays them. Only arguments, printing, exits."""

from typing import Annotated

import typer

from compliance_pipeline.stores_cli import opened, user_name

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Listen to the masked clips behind a verdict.

- A link that works for some minutes: `compliance evidence link RECORDING`
- The service that plays it: `compliance evidence serve` (`compliance up` starts it)

Only clips that were masked and verified can be played; each play is entered into the ledger with the name in the link.
""",
)


@app.command()
def link(
    recording: Annotated[str, typer.Argument(help="The recording's id.", metavar="RECORDING")],
    finding: Annotated[
        int | None, typer.Option(help="Number of the finding; default: the first of the newest clips.", min=0)
    ] = None,
    who: Annotated[
        str | None,
        typer.Option("--for", help="Who will listen, as the ledger will name them; default: your user name."),
    ] = None,
) -> None:
    """Print a link to a masked clip. It works for COMPLIANCE_LINK_SECONDS, for whoever has it: give it to nobody else.

    Examples:

        compliance evidence link rec-20260301-7

        compliance evidence link rec-20260301-7 --finding 2 --for "D. Ansah"
    """
    from compliance_pipeline.cli import err, fail
    from compliance_pipeline.evidence_service import Link, clips_of, sign

    with opened() as stores:
        settings = stores.settings
        clips = clips_of(stores.warehouse, recording)
        numbers = sorted({clip.finding_no for clip in clips})
        wanted = next((clip for clip in clips if finding is None or clip.finding_no == finding), None)
        if wanted is None:
            there = (
                f"there are clips of findings {', '.join(map(str, numbers))}" if numbers else "it has no verified clip"
            )
            raise fail(f"no such clip of {recording}: {there}")
        try:
            url = sign(settings, Link(recording, wanted.name, who if who is not None else user_name()))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--for") from None
    typer.echo(url)
    others = [str(number) for number in numbers if number != wanted.finding_no]
    more = f"; other clips: --finding {', '.join(others)}" if others else ""
    err.print(
        f"[dim]finding {wanted.finding_no}, works for {settings.link_seconds} s{more}[/]",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def serve() -> None:
    """Play evidence to those who have a link, on COMPLIANCE_EVIDENCE_PORT, until stopped.

    Examples:

        compliance evidence serve

        COMPLIANCE_LINK_SECONDS=60 compliance evidence serve
    """
    from compliance_pipeline import evidence_service
    from compliance_pipeline.cli import settings_or_exit

    evidence_service.serve(settings_or_exit())
