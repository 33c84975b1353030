"""`compliance retention`, `compliance hold`, `compliance review`. Only arguments, printing and exit codes."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from compliance_pipeline.stores_cli import Stores, opened, out, user_name

if TYPE_CHECKING:
    from datetime import datetime

    from compliance_pipeline.contracts.policy import PolicyPack
    from compliance_pipeline.retention import Deletion

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""What is kept of recordings, and for how long.

- What was deleted, and what will be: `compliance retention report`
- Delete what is due: `compliance retention apply` (the schedule does it daily)
- Keep a recording whatever the rules say: `compliance hold RECORDING --reason ...`

Verdicts and the ledger stay. A legal hold beats every rule.
""",
)

Recording = Annotated[str, typer.Argument(help="The recording's id.", metavar="RECORDING")]
Reason = Annotated[str, typer.Option(help="Why, for the ledger. No personal data.")]
As = Annotated[str | None, typer.Option("--as", help="Who you are, for the ledger; default: your user name.")]
EXIT_ERROR = 1


@app.command()
def report(
    days: Annotated[float, typer.Option(help="How far back and ahead.", min=0, max=36_500)] = 30,
) -> None:
    """What retention deleted in the last days and will delete in the next, by which rule; and the holds in force.

    Examples:

        compliance retention report

        compliance retention report --days 365
    """
    from datetime import timedelta

    from compliance_pipeline.clock import utc_now
    from compliance_pipeline.retention import holds_in_force, plan_retention, purged, unknown_recordings

    now = utc_now()
    with opened() as stores:
        deleted = purged(stores.engine, now - timedelta(days=days))
        rules = _policy(stores).retention
        planned = plan_retention(stores.warehouse, stores.vault, stores.engine, rules, now + timedelta(days=days))
        held = holds_in_force(stores.engine)
        unknown = unknown_recordings(stores.warehouse, stores.vault)
    gone = _table(f"Deleted in the last {days:g} days", "when (UTC)", "recording", "what", "why")
    for one in deleted:
        when = f"{one.done_at:%Y-%m-%d %H:%M}" if one.done_at else "begun, not done"
        gone.add_row(when, escape(one.deletion.recording_id), one.deletion.what, escape(one.deletion.why))
    for table in (gone, _planned(f"To be deleted in the next {days:g} days", planned)):
        if table.row_count:
            out.print(table, highlight=False)
            out.print()
    if held:
        holding = _table("Holds in force", "since (UTC)", "recording", "by", "reason")
        for hold in held:
            holding.add_row(f"{hold.at:%Y-%m-%d %H:%M}", *map(escape, (hold.recording_id, hold.by, hold.reason)))
        out.print(holding, highlight=False)
        out.print()
    for rule in rules:
        if rule.basis:
            out.print(f"[dim]{rule.name}: {escape(rule.basis)}[/]", highlight=False)
    if unknown:
        some = escape(", ".join(unknown[:10])) + (", ..." if len(unknown) > 10 else "")
        out.print(
            f"[yellow]{len(unknown)} recordings in the vault are not in the warehouse, so that no rule has them:[/] "
            f"{some}. Restore the warehouse from your backup, or have them judged again.",
            highlight=False,
        )
    waiting = sum(deletion.held is not None for deletion in planned)
    out.print(
        f"{len(deleted)} deleted, {len(planned) - waiting} to be deleted, {waiting} due and held.", highlight=False
    )


@app.command("apply")
def apply_rules(
    who: As = None,
) -> None:
    """Delete what is due and not held. What was shredded can't be read again, from any copy.

    Exit code: 1 if something could not be deleted; the next run tries it again.

    Example:

        compliance retention apply
    """
    from compliance_pipeline.clock import utc_now
    from compliance_pipeline.plain_text import refuse_sensitive
    from compliance_pipeline.retention import Outcome, apply, plan_retention

    now = utc_now()
    with opened() as stores:
        refuse_sensitive(who or "", "the name")
        rules = _policy(stores).retention
        planned = plan_retention(stores.warehouse, stores.vault, stores.engine, rules, now)
        outcomes = apply(stores.engine, stores.vault, planned, who or user_name(), now)
        _reopen_due_purges(stores, now)
    count = {outcome: sum(found is outcome for _, found in outcomes) for outcome in Outcome}
    for deletion, outcome in outcomes:
        if outcome is Outcome.FAILED:
            out.print(f"[red]✗[/] {escape(deletion.recording_id)}: not deleted, see the log", highlight=False)
    out.print(
        f"{count[Outcome.DELETED]} deleted, {count[Outcome.HELD]} held, {count[Outcome.FAILED]} failed.",
        highlight=False,
    )
    if count[Outcome.FAILED]:
        raise typer.Exit(EXIT_ERROR)


def hold(
    recording: Recording,
    reason: Reason,
    lift: Annotated[bool, typer.Option("--lift", help="Let retention have it again.")] = False,
    who: As = None,
) -> None:
    """Legal hold: keep a recording's evidence from deletion whatever the rules say, until it is lifted.

    This holds what lies here, and what the policy purges after review; `compliance platform hold` keeps the platform
    from deleting by itself.

    Examples:

        compliance hold rec-20260301-7 --reason "case 4711"

        compliance hold rec-20260301-7 --lift --reason "case 4711 closed"
    """
    from compliance_pipeline import retention
    from compliance_pipeline.cli import fail
    from compliance_pipeline.clock import utc_now

    who = who or user_name()
    with opened() as stores:
        if lift:
            changed = retention.lift(stores.engine, recording, reason, who, utc_now())
            _reopen_due_purges(stores, utc_now())
            said = "is no longer held" if changed else "was not held"
        else:
            _known_or_exit(stores, recording)
            try:
                changed = retention.hold(stores.engine, recording, reason, who, utc_now())
            except retention.NotHeld as error:
                raise fail(str(error)) from None
            said = "is held" if changed else "is held already: nothing was changed"
            if retention.is_shredded(stores.engine, recording):
                said += "; what the vault had of it was deleted before"
    out.print(f"{escape(recording)} {said}", highlight=False)


def review(
    recording: Recording,
    decision: Annotated[Literal["confirmed", "dismissed"], typer.Option(help="What you decided.")],
    reason: Reason,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="The rule that the decision is on; may be repeated. Default: all that it broke."),
    ] = None,
    who: As = None,
) -> None:
    """Confirm or dismiss what was found in a recording: each rule that its newest verdict broke, or only some.

    How often a rule is right is measured from these decisions. A later decision stands beside the earlier one, and
    counts. When every rule is decided, evidence beside card verification codes is due, and so is what the policy purges
    after review.

    Examples:

        compliance review rec-20260301-7 --decision confirmed --reason "the code was read out"

        compliance review rec-20260301-7 --rule PCI-PAN-01 --decision dismissed --reason "an order number"
    """
    from secrets import token_hex

    from compliance_pipeline import reviews
    from compliance_pipeline.cli import fail
    from compliance_pipeline.clock import utc_now

    with opened() as stores:
        _known_or_exit(stores, recording)
        who = who or user_name()
        broken = reviews.broken(stores.warehouse, [recording]).get(recording)
        if broken is None:
            raise fail(f"{recording} broke no rule: there is nothing to decide")
        try:
            made = reviews.decide(
                stores.engine, recording, broken.partition_hour, rule or broken.rule_ids, reviews.Decision(decision),
                reason, who, utc_now(), broken=broken.rule_ids, request_key=token_hex(16),
            )  # fmt: skip
        except reviews.NotDecided as error:
            raise fail(f"{recording}: {error}") from None
        found = reviews.state(stores.engine, [recording])
        open_ones = [one for one in broken.rule_ids if reviews.decided(found, recording, one) is None]
        _reopen_due_purges(stores, utc_now())
    for one in made:
        out.print(f"{escape(recording)}: {escape(one.rule_id or '')} was {decision} by {escape(who)}", highlight=False)
    if open_ones:
        out.print(f"not decided yet: {escape(', '.join(open_ones))}", highlight=False)


def _policy(stores: Stores) -> "PolicyPack":
    from compliance_pipeline.cli import fail
    from compliance_pipeline.promotion import live_policy
    from compliance_pipeline.screening.policy import PolicyError

    try:
        return live_policy(stores.settings, stores.engine)
    except PolicyError as error:
        raise fail("; ".join(error.faults)) from None


def _reopen_due_purges(stores: Stores, now: "datetime") -> None:
    from compliance_pipeline.purge import reopen_due

    if reopened := reopen_due(stores.warehouse, stores.inbox, _policy(stores), now):
        out.print(f"{reopened} recordings will be purged at the platform by the next run", highlight=False)


def _known_or_exit(stores: Stores, recording: str) -> None:
    from compliance_pipeline.cli import fail
    from compliance_pipeline.retention import is_known

    if not is_known(stores.warehouse, recording):
        raise fail(f"there is no recording {recording} here")


def _planned(title: str, planned: "list[Deletion]") -> Table:
    table = _table(title, "due (UTC)", "recording", "what", "why", "")
    for deletion in planned:
        table.add_row(
            f"{deletion.due:%Y-%m-%d %H:%M}",
            escape(deletion.recording_id),
            deletion.what,
            escape(deletion.why),
            f"[yellow]held: {escape(deletion.held)}[/]" if deletion.held is not None else "",
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False,
        header_style="dim", padding=(0, 1, 0, 0),
    )  # fmt: skip
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
