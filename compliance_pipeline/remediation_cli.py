"""`compliance remediation`: what of the policy's actions is not done, and another try. Only arguments and printing."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from compliance_pipeline.stores_cli import opened, out, user_name

if TYPE_CHECKING:
    from compliance_pipeline.remediation.undone import Undone

app = typer.Typer(
    rich_markup_mode="markdown",
    help="""Actions that are not done: what waits for its next try or for a review, and what was given up on.

- What is not done, and why? `compliance remediation`
- Try again what was given up on: `compliance remediation retry`
- Only one action: `compliance remediation retry REC-1/PCI-SAD-01/create_work_item`
""",
)


@app.callback(invoke_without_command=True)
def show(context: typer.Context) -> None:
    if context.invoked_subcommand:
        return
    from compliance_pipeline.remediation.undone import DEAD, WAITING, undone

    with opened() as stores:
        found = undone(stores.warehouse)
    if found:
        out.print(_table(found))
    dead = sum(action.status == DEAD for action in found)
    waiting = sum(action.status == WAITING for action in found)
    out.print(
        f"{len(found) - dead - waiting} actions wait for their next try, {waiting} for a review or a legal hold; "
        f"{dead} were given up on.",
        highlight=False,
    )
    if dead:
        out.print("Mend what they name, then: compliance remediation retry", highlight=False)


@app.command()
def retry(
    keys: Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="Of these actions only.")] = None,
    by: Annotated[
        str | None, typer.Option("--as", help="Who you are, for the ledger; default: your user name.")
    ] = None,
) -> None:
    """Give what was given up on a full set of tries, and open its recordings again. What waits keeps its due time.

    A message of which nobody knows whether it was sent is sent (again).

    Examples:

        compliance remediation retry

        compliance remediation retry REC-1/PCI-SAD-01/create_work_item
    """
    from compliance_pipeline.cli import fail
    from compliance_pipeline.clock import utc_now
    from compliance_pipeline.remediation import undone

    with opened() as stores:
        try:
            again = undone.retry(stores.warehouse, stores.inbox, keys or None, utc_now(), by or user_name())
        except KeyError as unknown:
            why = f"{unknown.args[0]} is no action that failed; `compliance remediation` lists those"
            raise fail(why) from None
    out.print(f"{again.actions} actions will be tried again; {again.recordings} recordings reopened.", highlight=False)


def _table(found: list["Undone"]) -> Table:
    table = Table(title="Actions not done", title_justify="left", header_style="bold")
    for column in ("action", "status", "tries", "next try", "reason"):
        table.add_column(column, justify="right" if column == "tries" else "left", overflow="fold")
    for one in found:
        due = f"{one.due_at:%Y-%m-%d %H:%M:%S}" if one.due_at and one.status == "failed" else ""
        table.add_row(escape(one.key), one.status, str(one.attempts), due, escape(one.error or ""))
    return table
