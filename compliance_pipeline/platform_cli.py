"""`compliance platform`: is the platform set up for us, and setting it up. Only arguments, printing and exit codes.

What is needed and how it is compared is platforms/permissions' and platforms/as_code's; redaction is redaction's.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from compliance_pipeline.platforms.as_code import FieldAudit, Part
    from compliance_pipeline.platforms.permissions import Found, Probed
    from compliance_pipeline.platforms.port import Platform
    from compliance_pipeline.platforms.transport import Transport
    from compliance_pipeline.redaction import ChannelResult
    from compliance_pipeline.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Set the platform up for the pipeline, and see whether it is.

- May our client do what it must, and is everything there? `compliance platform check`
- Create the subscription and the remediation flow, or see what would change: `compliance platform apply --dry-run`
- Do events carry personal data that nobody needs? `compliance platform audit-fields`
- Does the platform hide card numbers before it gives recordings out? `compliance platform redaction-check`
- Keep a recording from being deleted: `compliance platform hold`
- Who did what to recordings and subscriptions? `compliance platform audits --since 24`

Which platform: COMPLIANCE_PLATFORM_PROFILE (`guide` or `cloud`), COMPLIANCE_PLATFORM_URL, COMPLIANCE_CLIENT_ID and
COMPLIANCE_CLIENT_SECRET.
""",
)
# Without a terminal (a pipe, a log) there is no width to fit.
out = Console(width=None if sys.stdout.isatty() else 100)

EXIT_ERROR, EXIT_USAGE, EXIT_FOUND, EXIT_UNREAD = 1, 2, 3, 4
_YES, _NO, _UNSURE = "[green]✓[/]", "[bold red]✗[/]", "[yellow]?[/]"


def _settings() -> "Settings":
    from compliance_pipeline.cli import settings_or_exit

    return settings_or_exit()


def _fail(message: str) -> typer.Exit:
    from compliance_pipeline.cli import fail

    return fail(message)


@contextmanager
def _connected(settings: "Settings") -> "Iterator[tuple[Transport, Platform]]":
    """The platform of the settings; what it refuses or fails to do is said in a line, with exit code 1."""
    from compliance_pipeline.database import connect
    from compliance_pipeline.platforms.port import PlatformError
    from compliance_pipeline.platforms.profiles import platform_of, transport_of

    settings.home.mkdir(parents=True, exist_ok=True)
    engine = connect(settings.inbox_database_url)
    try:
        transport, platform = transport_of(settings, engine), platform_of(settings, engine)
        try:
            yield transport, platform
        finally:
            transport.close()
            platform.close()
    except PlatformError as error:
        raise _fail(str(error)) from None
    finally:
        engine.dispose()


@app.command()
def check() -> None:
    """Say whether the platform is set up for the pipeline: permissions, names, subscription; and what to fix.

    Signs in and tries each permission by a request that changes nothing: a read of something that doesn't exist, a
    write with an empty body. What the answers mean follows the published behaviour, not verified against a live
    organisation. Exits with 1 if something must be fixed.

    Examples:

        compliance platform check

        COMPLIANCE_PLATFORM_PROFILE=cloud COMPLIANCE_PLATFORM_URL=https://api.mypurecloud.ie compliance platform check
    """
    from compliance_pipeline.platforms.as_code import present_parts, receiver_of
    from compliance_pipeline.platforms.permissions import Held, check_receiver, permissions_of, probe_all

    settings = _settings()
    with _connected(settings) as (transport, platform), out.status("signing in, asking"):
        probed = list(probe_all(transport, permissions_of(settings.platform_profile)))
        found = _names(platform, settings)
        ours, could_not = _tried(lambda: present_parts(transport, settings))
    found += [*_region(settings), _media_hosts(settings)]
    if settings.platform_profile == "guide":
        found.append(check_receiver(receiver_of(settings), settings.platform_url))
    out.print(
        f"signed in to [bold]{escape(_host(settings))}[/] as [bold]{escape(settings.client_id)}[/]; "
        f"profile: {settings.platform_profile}\n",
        highlight=False,
    )
    _print_probed(probed)
    _print_found(found, ours, could_not)
    fixes = [f"{p.said} ({p.permission.needed_for})" for p in probed if p.held is Held.NO and not p.permission.optional]
    fixes += [f.fix for f in found if f.holds is False]
    if changed := _changed(ours):
        fixes.append(f"run `compliance platform apply` for {' and '.join(part.name for part in changed)}")
    if could_not and not fixes:
        fixes.append(could_not)
    if not fixes:
        out.print("[green]The platform is set up for the pipeline.[/]", highlight=False)
        return
    out.print("[bold]What to fix[/]")
    listed = Table.grid(padding=(0, 1))
    for number, fix in enumerate(dict.fromkeys(fixes), 1):
        listed.add_row(f" {number}.", escape(fix))
    out.print(listed, highlight=False)
    raise typer.Exit(EXIT_ERROR)


@app.command()
def apply(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask before writing.")] = False,
    include: Annotated[
        list[str] | None, typer.Option(help="A further field of the events; repeat for more.", metavar="FIELD")
    ] = None,
    because: Annotated[
        str | None,
        typer.Option(help="Why a field with personal data is needed; kept on the platform.", metavar="REASON"),
    ] = None,
) -> None:
    """Create or change what the pipeline needs on the platform, after showing the difference. Safe to repeat.

    Profile `guide`: the event subscription (guide, step 1) and the remediation flow (step 3). Profile `cloud`: a
    workflow, published, and the trigger that starts it when a conversation ends.

    Events carry only the fields that are needed. One that holds personal data is refused, unless you say why.

    Examples:

        compliance platform apply --dry-run

        compliance platform apply --yes

        compliance platform apply --include participants --because "rules apply by queue"
    """
    from compliance_pipeline.platforms.as_code import parts

    settings = _settings()
    if because is not None and not include:
        raise typer.BadParameter("--because gives the reason for a field: name it with --include")
    with _connected(settings) as (transport, _):
        wanted = parts(transport, settings, include or (), because)
        for part in wanted:
            _print_part(part)
        changed = _changed(wanted)
        if not changed:
            out.print("[green]Nothing to change.[/]")
            return
        if dry_run:
            out.print(f"{_count(len(changed), 'change')}; nothing was written (--dry-run).", highlight=False)
            return
        if not yes:
            _ask_or_exit(len(changed), settings)
        for part in changed:
            part.write()
            done = "created" if part.present is None else "changed"
            out.print(f"{_YES} {part.kind} [bold]{escape(part.name)}[/] {done}", highlight=False)
        left = _changed(parts(transport, settings, include or (), because))
    if left:
        names = ", ".join(part.name for part in left)
        raise _fail(f"the platform took what was written, but shows something else for {names}; see --dry-run")
    out.print("[green]Read back: the platform has what is written here.[/]")


@app.command("audit-fields")
def audit_fields() -> None:
    """Name every field of the subscribed events: does it carry personal data, do we need it?

    Profile `guide`: of each subscription on the platform. Profile `cloud`: events can't be narrowed there, so the
    table says what our consumer drops. Exits with 3 if a subscription carries personal data that is not needed.

    Example:

        compliance platform audit-fields
    """
    from compliance_pipeline.platforms import as_code

    settings = _settings()
    if settings.platform_profile == "cloud":
        _print_fields(f"{as_code.TOPIC}", as_code.audit_cloud())
        out.print(
            "Amazon EventBridge sends all of these and can't be told to drop any. Our consumer keeps what is "
            "needed and drops the rest before anything is stored.",
            highlight=False,
        )
        return
    refused = 0
    with _connected(settings) as (transport, _):
        present = as_code.subscriptions(transport)
    for subscription in present:
        overridden, why = as_code.overridden_in(subscription)
        fields = (subscription.get("eventData") or {}).get("include") or []
        audits = as_code.audit_guide([str(name) for name in fields], overridden)
        _print_fields(str(subscription.get("name")), audits, why)
        refused += sum(audit.judgement is as_code.Judgement.REFUSED for audit in audits)
    if not present:
        _print_fields(f"{as_code.SUBSCRIPTION} (not applied yet)", as_code.audit_guide(as_code.NEEDED))
    if refused:
        out.print(
            f"[bold red]{_count(refused, 'field')} with personal data that is not needed.[/] "
            "`compliance platform apply` takes them out of our subscription; of others', ask their owners.",
            highlight=False,
        )
        raise typer.Exit(EXIT_FOUND)
    out.print("[green]No personal data without need or reason.[/]")


@app.command("redaction-check")
def redaction_check(
    recording: Annotated[
        list[str] | None,
        typer.Option(
            help="A sample that you made: its channel (voice, chat or email) and its recording id.",
            metavar="CHANNEL=ID",
        ),
    ] = None,
) -> None:
    """Does the platform hide the numbers that we planted in sample interactions? What leaks, by channel.

    Against the sandbox the samples make themselves. Against your organisation, run it once without --recording: it
    prints what to say and to type. Make the interactions, wait until they are recorded, and name them.

    Genesys Cloud gives redacted media to a client without `recording:recording:viewSensitiveData`: check with the
    client that the pipeline uses.

    Exit code: 0 nothing leaks, 3 something leaks, 4 nothing leaks but not everything could be read, 1 error.

    Examples:

        compliance platform redaction-check

        compliance platform redaction-check --recording chat=CONVERSATION:RECORDING --recording email=...
    """
    from compliance_pipeline.platforms.port import PlatformError
    from compliance_pipeline.promotion import live_policy_of
    from compliance_pipeline.redaction import PATIENCE_S, Outcome, named_samples, redaction_report, sandbox_samples
    from compliance_pipeline.screening.engine import from_settings
    from compliance_pipeline.screening.policy import PolicyError
    from compliance_pipeline.screening.recogniser import RecogniserError

    settings = _settings()
    try:
        samples = named_samples(recording or settings.redaction_samples)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not samples and not settings.is_sandboxed:
        _print_script()
        return
    try:
        engine = from_settings(settings, live_policy_of(settings))
    except (PolicyError, RecogniserError) as error:
        raise _fail(str(error)) from None
    with _connected(settings) as (transport, platform):
        try:
            samples = samples or sandbox_samples(transport)
        except PlatformError as error:
            raise _fail(f"the platform at {_host(settings)} makes no samples ({error}); is it the sandbox?") from None
        with out.status("reading the samples"):
            # Who names recordings was told to wait until they are there.
            results = redaction_report(platform, engine, samples, patience_s=0.0 if recording else PATIENCE_S)
    _print_redaction(results)
    outcomes = {result.outcome for result in results}
    if Outcome.LEAK in outcomes:
        raise typer.Exit(EXIT_FOUND)
    if Outcome.NOT_READ in outcomes:
        raise typer.Exit(EXIT_UNREAD)


@app.command()
def hold(
    recordings: Annotated[list[str], typer.Argument(help="Ids of recordings.", metavar="RECORDING")],
    release: Annotated[bool, typer.Option("--release", help="Lift the hold.")] = False,
) -> None:
    """Legal hold: keep the platform from deleting these recordings, or let it again.

    Genesys Cloud protects whole conversations: every recording of those that the ids belong to.

    Examples:

        compliance platform hold CONVERSATION:RECORDING

        compliance platform hold --release CONVERSATION:RECORDING CONVERSATION:RECORDING
    """
    with _connected(_settings()) as (_, platform):
        platform.protect(recordings, protected=not release)
    done = "may be deleted again" if release else "is kept from deletion"
    for recording in dict.fromkeys(recordings):
        out.print(f"{_YES} {escape(recording)} {done}", highlight=False)


@app.command()
def audits(
    since: Annotated[float, typer.Option(help="How many hours back.", min=0.1, max=24 * 366, metavar="HOURS")] = 24,
) -> None:
    """What the platform's audit log says was done to recordings, triggers and flows; by whom, as ids only.

    Only Genesys Cloud has one (`audits:audit:view`). Its answer can take a minute.

    Examples:

        compliance platform audits

        compliance platform audits --since 168
    """
    from datetime import timedelta

    from compliance_pipeline.clock import utc_now
    from compliance_pipeline.platforms import permissions

    settings = _settings()
    if settings.platform_profile != "cloud":
        raise _fail(
            "the guide prints no request for audit logs: enable and read them in the platform's administration, "
            "or set COMPLIANCE_PLATFORM_PROFILE=cloud"
        )
    until = utc_now()
    notes: list[str] = []
    with _connected(settings) as (transport, _), out.status("the platform is searching its audit log"):
        found = permissions.audits(transport, until - timedelta(hours=since), until, notes.append)
    table = _table("when (UTC)", "what", "action", "who", "outcome")
    for entry in found:
        when = f"{entry.at:%Y-%m-%d %H:%M:%S}" if entry.at else "?"
        table.add_row(when, escape(entry.entity), escape(entry.action), escape(entry.who), escape(entry.status))
    if found:
        _show(table)
    for note in notes:
        out.print(f"{_UNSURE} {escape(note)}", highlight=False)
    out.print(f"{_count(len(found), 'entry', 'entries')} in the last {since:g} hours.", highlight=False)


# Checks


def _tried(read: "Callable[[], list[Part]]") -> "tuple[list[Part], str]":
    """What it reads, or why it can't be read: a missing permission is one thing to fix among others."""
    from compliance_pipeline.platforms.port import PlatformError

    try:
        return read(), ""
    except PlatformError as error:
        return [], f"what is set up can't be read: {error}"


def names_or_exit(settings: "Settings") -> None:
    """Resolve every name before anything starts: a wrong one would otherwise show at the first violation."""
    with _connected(settings) as (_, platform):
        wrong = [f"{found.what}: {found.fix or found.said}" for found in _names(platform, settings) if not found.holds]
    if wrong:
        raise _fail("; ".join(wrong) + ". `compliance platform check` says more.")


def _names(platform: "Platform", settings: "Settings") -> "list[Found]":
    """Queues, worktype and workbin, which the cloud knows by id only. The guide takes names as they are."""
    from compliance_pipeline.platforms.cloud import CloudPlatform
    from compliance_pipeline.platforms.permissions import Found
    from compliance_pipeline.platforms.port import PlatformError

    if not isinstance(platform, CloudPlatform):
        return []
    queues = dict.fromkeys((settings.compliance_queue, settings.supervisor_queue))
    found = [
        Found(what, False, "not found", str(got)) if isinstance(got, PlatformError) else Found(what, True, f"id {got}")
        for what, got in platform.names([*queues]).items()
    ]
    if not settings.supervisor_number:
        fix = "set COMPLIANCE_SUPERVISOR_NUMBER: callbacks need a number to call"
        found.append(Found("supervisor's number", False, "not set", fix))
    return found


def _region(settings: "Settings") -> "list[Found]":
    """Whether the API host is one that is known; others may be right, Genesys adds regions."""
    from compliance_pipeline.platforms.permissions import Found
    from compliance_pipeline.platforms.profiles import CLOUD_REGION_HOSTS

    host = _host(settings)
    if settings.platform_profile != "cloud" or settings.is_sandboxed or host in CLOUD_REGION_HOSTS:
        return []
    return [Found("region", None, f"{host} is none of the {len(CLOUD_REGION_HOSTS)} known", "look at the URL again")]


def _media_hosts(settings: "Settings") -> "Found":
    from compliance_pipeline.platforms.permissions import Found
    from compliance_pipeline.platforms.profiles import CLOUD_MEDIA_HOSTS

    hosts = settings.media_hosts or (CLOUD_MEDIA_HOSTS if settings.platform_profile == "cloud" else ())
    said = f"from {', '.join(['the API itself', *hosts])}"
    domains = tuple(host.lstrip("*.") for host in CLOUD_MEDIA_HOSTS)
    if settings.platform_profile == "cloud" and not any(host.lower().endswith(domains) for host in hosts):
        fix = f"COMPLIANCE_MEDIA_HOSTS has none of Genesys Cloud's ({', '.join(CLOUD_MEDIA_HOSTS)}): add what you use"
        return Found("media", False, said, fix)
    return Found("media", True, said)


def _changed(parts: "Sequence[Part]") -> "list[Part]":
    return [part for part in parts if not part.is_as_wanted]


def _ask_or_exit(changes: int, settings: "Settings") -> None:
    if not sys.stdin.isatty():
        out.print(
            f"{_NO} Nothing was written: there is nobody to ask. Look at the difference above and repeat with --yes.",
            highlight=False,
        )
        raise typer.Exit(EXIT_USAGE)
    if not typer.confirm(f"Write {_count(changes, 'change')} to {_host(settings)}?"):
        out.print("Nothing was written.")
        raise typer.Exit(EXIT_ERROR)


def _host(settings: "Settings") -> str:
    from urllib.parse import urlsplit

    return urlsplit(settings.platform_url).netloc.rpartition("@")[2]


# Printing


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False,
        header_style="dim", padding=(0, 1, 0, 0),
    )  # fmt: skip
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _show(table: Table) -> None:
    out.print(table, highlight=False)
    out.print()


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def _print_probed(probed: "Sequence[Probed]") -> None:
    from compliance_pipeline.platforms.permissions import Held

    table = _table("", "permission", "needed for", "", title="Permissions")
    table.columns[1].no_wrap = True
    marks = {Held.YES: _YES, Held.NO: _NO, Held.UNKNOWN: _UNSURE}
    for p in probed:
        optional = " [dim](optional)[/]" if p.permission.optional else ""
        said = f"{p.held}{': ' + p.said if p.said and p.held is Held.UNKNOWN else ''}"
        said += f"; {p.said}" if p.said and p.held is Held.YES else ""
        table.add_row(marks[p.held], p.permission.name, p.permission.needed_for + optional, escape(said))
    _show(table)


def _print_found(found: "Sequence[Found]", ours: "Sequence[Part]", could_not: str) -> None:
    table = _table("", "what", "", title="Set-up")
    table.columns[1].no_wrap = True
    for f in found:
        mark = _UNSURE if f.holds is None else _YES if f.holds else _NO
        table.add_row(mark, escape(f.what), escape(f.said))
    for part in ours:
        state = "as it should be" if part.is_as_wanted else "not there" if part.present is None else "differs"
        note = f"; {part.note}" if part.note else ""
        table.add_row(_YES if part.is_as_wanted else _NO, escape(f"{part.kind} {part.name}"), escape(state + note))
    if could_not:
        table.add_row(_NO, "subscription and flow", "can't be read")
    _show(table)
    for part in _changed(ours):
        if part.present is not None:
            _print_diff(part)


def _print_part(part: "Part") -> None:
    if part.is_as_wanted:
        out.print(f"{_YES} {part.kind} [bold]{escape(part.name)}[/] is as it should be", highlight=False)
    else:
        what = "to be created" if part.present is None else "to be changed"
        out.print(f"[yellow]±[/] {part.kind} [bold]{escape(part.name)}[/] {what}", highlight=False)
        _print_diff(part)
    if part.note:
        out.print(f"  {_UNSURE} {escape(part.note)}", highlight=False)


def _print_diff(part: "Part") -> None:
    styles = {"---": "dim", "+++": "dim", "@@": "cyan", "+": "green", "-": "red"}
    for line in part.diff:
        style = next((style for start, style in styles.items() if line.startswith(start)), "")
        out.print(Text(f"  {line}", style), highlight=False, soft_wrap=True)
    out.print()


def _print_fields(title: str, audits: "Sequence[FieldAudit]", why: str = "") -> None:
    from compliance_pipeline.platforms.as_code import Judgement

    styles = {Judgement.REFUSED: "bold red", Judgement.OVERRIDDEN: "yellow", Judgement.NEEDED: "green"}
    table = _table("field", "personal data?", "needed by us?", "verdict", title=escape(title))
    table.columns[0].no_wrap = True
    for audit in audits:
        style = styles.get(audit.judgement, "")
        table.add_row(
            escape(audit.field.name),
            escape(f"yes: {audit.field.personal}") if audit.field.personal else "no",
            escape(f"yes: {audit.field.needed_for}") if audit.field.needed_for else "no",
            Text(audit.judgement, style),
        )
    _show(table)
    if why:
        out.print(f"reason given: {escape(why)}\n", highlight=False)


def _print_script() -> None:
    from compliance_pipeline.redaction import CARD, WORDS

    out.print(
        f"""[bold]Make three interactions with your organisation, as a customer would[/]

 1. [bold]chat[/]    write the line below
 2. [bold]e-mail[/]  write it too
 3. [bold]call[/]    say it, the numbers digit by digit; then key in {CARD.replace(" ", "")}

[bold]{escape(WORDS)}[/]

The numbers and the address are nobody's. Wait until the recordings are there, then name them:

compliance platform redaction-check \\
    --recording chat=CONVERSATION:RECORDING \\
    --recording email=CONVERSATION:RECORDING \\
    --recording voice=CONVERSATION:RECORDING""",
        highlight=False,
        soft_wrap=True,
    )


def _print_redaction(results: "Sequence[ChannelResult]") -> None:
    from compliance_pipeline.redaction import Outcome

    styles = {Outcome.LEAK: "bold red", Outcome.REDACTED: "green", Outcome.NOT_READ: "yellow"}
    table = _table("channel", "where", "planted", "outcome", "", title="Redaction")
    # What was not read is so for one reason, whatever was planted.
    unread = {(r.channel, r.medium): r for r in results if r.outcome is Outcome.NOT_READ}
    for result in [*(r for r in results if r.outcome is not Outcome.NOT_READ), *unread.values()]:
        planted = "" if result.outcome is Outcome.NOT_READ else result.kind.replace("_", " ")
        outcome = Text(result.outcome, styles[result.outcome])
        table.add_row(result.channel, result.medium, planted, outcome, escape(result.detail))
    _show(table)
    by_outcome = {outcome: sum(result.outcome is outcome for result in results) for outcome in Outcome}
    leaking = dict.fromkeys(f"{r.channel} ({r.medium})" for r in results if r.outcome is Outcome.LEAK)
    out.print(
        f"{by_outcome[Outcome.REDACTED]} redacted, {by_outcome[Outcome.LEAK]} leaked, "
        f"{by_outcome[Outcome.NOT_READ]} not read.",
        highlight=False,
    )
    if leaking:
        out.print(
            f"[bold red]Leaking: {', '.join(leaking)}.[/] Mend the platform's redaction rules for these channels "
            "before production.",
            highlight=False,
        )
