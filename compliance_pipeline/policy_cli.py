"""`compliance policy`: check, explain and test policy packs, see what one would change, and promote it. Only arguments,
printing and exit codes.

What a pack may say is contracts/policy's; what its rules do is screening/policy's; what one would change is what_if's;
which one is live is promotion's.
"""

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from compliance_pipeline.clock import utc_now
from compliance_pipeline.stores_cli import Stores, opened, out, user_name

if TYPE_CHECKING:
    from compliance_pipeline.contracts.policy import FindingsForm, PolicyPack, Rule, RuleAction, When
    from compliance_pipeline.promotion import Promotion
    from compliance_pipeline.what_if import Example, PolicyDiff, WhatIf

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Check, read and try policy packs: the rules and phrases by which recordings are judged.

- Is my pack well formed? `compliance policy check my-pack.yaml`
- What do the rules say? `compliance policy explain`
- Do the rules do what their examples say? `compliance policy test my-pack.yaml`
- What would it change? `compliance policy diff my-pack.yaml`
- Let it judge from now on: `compliance policy promote my-pack.yaml`

Without a pack, the packaged one is meant. To write your own: copy it, change it, check it, test it, see what it would
change, promote it. (`COMPLIANCE_POLICY`, a pack's path, comes before what is promoted.) An edited pack is another
policy: its verdicts are kept apart from those before.
""",
)

Pack = Annotated[Path | None, typer.Argument(help="A pack's YAML file; the packaged one if left out.", metavar="PACK")]
EXIT_ERROR = 1
UNVERIFIED = "unverified"
RULE_ID = r"[A-Z0-9]+(-[A-Z0-9]+)+"


def _load(path: Path | None) -> "PolicyPack":
    """The pack; if it is refused, prints a line a fault and exits with 1."""
    from compliance_pipeline.screening.policy import PolicyError, load_policy

    try:
        return load_policy(path)
    except PolicyError as error:
        for fault in error.faults:
            Console(stderr=True).print(f"[bold red]error:[/] {escape(fault)}", highlight=False, soft_wrap=True)
        raise typer.Exit(EXIT_ERROR) from None


@app.command()
def check(pack: Pack = None) -> None:
    """Say whether a pack can be used: one line for each fault, with rule and field; exits with 1 if there is one.

    Examples:

        compliance policy check

        compliance policy check my-pack.yaml && echo well formed
    """
    policy = _load(pack)
    citations = [citation for rule in policy.rules for citation in rule.basis]
    unverified = sum(not citation.verified for citation in citations)
    out.print(
        f"[green]well formed[/]  {policy.policy_version}: {len(policy.rules)} rules, {len(policy.phrases)} phrases, "
        f"{unverified} of {len(citations)} citations {UNVERIFIED}",
        highlight=False,
    )


@app.command()
def explain(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            help="A pack's YAML file, ids of rules, or both; all of the packaged one if left out.",
            metavar="PACK|RULE",
        ),
    ] = None,
) -> None:
    """Show what rules rest on, when they fire, in plain words, and what follows.

    Citations that nobody compared with the clause's text are marked as unverified.

    Examples:

        compliance policy explain

        compliance policy explain HIPAA-VER-01

        compliance policy explain my-pack.yaml PCI-SAD-01 PCI-SAD-02
    """
    from rich.table import Table

    wanted = [word.upper() for word in what or [] if re.fullmatch(RULE_ID, word.upper())]
    packs = [Path(word) for word in what or [] if word.upper() not in wanted]
    if len(packs) > 1:
        raise typer.BadParameter(f"one pack at a time, not {' and '.join(map(str, packs))}")
    policy = _load(packs[0] if packs else None)
    known = [rule.id for rule in policy.rules]
    if unknown := [rule_id for rule_id in wanted if rule_id not in known]:
        raise typer.BadParameter(f"there is no rule {', '.join(unknown)}; there are {', '.join(known)}")
    rules = [rule for rule in policy.rules if not wanted or rule.id in wanted]
    table = Table(title=policy.policy_version, title_justify="left", header_style="bold", show_lines=True)
    for column in ("rule", "severity", "when", "rests on", "then"):
        table.add_column(column, overflow="fold")
    for r in rules:
        table.add_row(
            f"[bold]{r.id}[/]\n{escape(r.title)}",
            f"{r.severity}\n{'violation' if r.verdict == 'VIOLATION_DETECTED' else 'review'}",
            escape(_in_words(r, policy)),
            "\n".join(escape(c.cite) + ("" if c.verified else f" [yellow]({UNVERIFIED})[/]") for c in r.basis),
            escape("\n".join([", ".join(map(_action_in_words, r.actions)), *([r.guidance] if r.guidance else [])])),
        )
    out.print(table)
    out.print(f"[yellow]{escape(policy.notice)}[/]", highlight=False)


@app.command("test")
def try_examples(pack: Pack = None) -> None:
    """Try the examples beside the rules: what must fire, must fire; what must not, must not. Exits with 1 if one fails.

    Examples are small transcripts or findings, screened as any recording is, judged by the whole pack.

    Examples:

        compliance policy test

        compliance policy test my-pack.yaml
    """
    from compliance_pipeline.screening.policy import run_examples

    policy = _load(pack)
    tried = failed = 0
    for result in run_examples(policy):
        tried += 1
        if result.holds:
            continue
        failed += 1
        why = f" ({result.outcome.reason})" if result.outcome.reason else ""
        out.print(
            f"[bold red]failed[/]  {result.rule.id}, example {result.number}: "
            f"expected {result.example.expect}, was {result.outcome.status}{escape(why)}",
            highlight=False,
        )
    bare = [r.id for r in policy.rules if not r.examples]
    if bare:
        out.print(f"[yellow]no examples[/]  {', '.join(bare)}", highlight=False)
    out.print(f"{tried} examples, {failed} failed", highlight=False)
    if failed:
        raise typer.Exit(EXIT_ERROR)


# What a pack would change, and which one judges

Wanted = Annotated[
    str,
    typer.Argument(help="A pack's YAML file, or the version of one that was promoted or is packaged.", metavar="NEW"),
]
TIME_HELP = "such as 2026-03-01 or 2026-03-01T14:00 (UTC), or 2026-03-01T14:00+02:00"
DEFAULT_WINDOW = timedelta(days=7)


def _time(text: str) -> datetime:
    from compliance_pipeline.what_if import time_of

    try:
        return time_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _known(stores: Stores, wanted: str) -> "PolicyPack":
    """By its file, or by its version. Exits with 1."""
    from compliance_pipeline.cli import fail
    from compliance_pipeline.promotion import known_pack
    from compliance_pipeline.screening.policy import PolicyError

    if "@" not in wanted or Path(wanted).exists():
        return _load(Path(wanted))
    try:
        pack = known_pack(stores.settings, stores.engine, wanted)
    except PolicyError as error:
        raise fail(str(error)) from None
    if pack is None:
        raise fail(f"there is no pack {wanted}: name a file, or a version that `compliance policy history` lists")
    return pack


def _live(stores: Stores) -> "PolicyPack":
    from compliance_pipeline.cli import fail
    from compliance_pipeline.promotion import live_policy
    from compliance_pipeline.screening.policy import PolicyError

    try:
        return live_policy(stores.settings, stores.engine)
    except PolicyError as error:
        raise fail(f"the live pack can't be used: {'; '.join(error.faults)}") from None


@app.command("diff")
def show_diff(
    new: Wanted,
    start: Annotated[
        datetime | None,
        typer.Option("--from", parser=_time, metavar="TIME", help=f"{TIME_HELP}; a week before --to if left out."),
    ] = None,
    end: Annotated[
        datetime | None, typer.Option("--to", parser=_time, metavar="TIME", help="The same; now if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the tables.")] = False,
) -> None:
    """Say what a pack would change, beside the live one: verdicts, work items, reviewers' hours, with examples.

    Both packs judge what was found in the recordings of the window. Nothing is fetched, and nothing is written to the
    platform. The result is kept: the dashboard shows it, and `promote` asks for it.

    Examples:

        compliance policy diff my-pack.yaml

        compliance policy diff my-pack.yaml --from 2026-03-01 --to 2026-03-08T12:00

        compliance policy diff my-pack.yaml --json | jq .rules
    """
    from compliance_pipeline.cli import fail
    from compliance_pipeline.what_if import keep

    with opened() as stores:
        now = utc_now()
        end = end or now
        start = start or end - DEFAULT_WINDOW
        if start >= end:
            raise fail("the window ends before it begins: --from must be earlier than --to")
        pack, live = _known(stores, new), _live(stores)
        made = _diff(stores, live, pack, start, end)
        kept = keep(stores.engine, made, pack, user_name(), now)
        page = f"{stores.settings.dashboard_base_url}/what-if/{kept.id}"
    if as_json:
        typer.echo(made.json)
        return
    _print_diff(kept)
    out.print(f"\n[bold]{kept.id}[/]  {page}", highlight=False, soft_wrap=True)
    out.print(f"Let it judge: compliance policy promote {escape(new)}", highlight=False, soft_wrap=True)


def _diff(stores: Stores, live: "PolicyPack", new: "PolicyPack", start: datetime, end: datetime) -> "PolicyDiff":
    from contextlib import closing

    from rich.progress import Progress

    from compliance_pipeline.cli import fail
    from compliance_pipeline.engines import engine_of
    from compliance_pipeline.screening.recogniser import RecogniserError
    from compliance_pipeline.what_if import diff

    try:
        engine = engine_of(stores.settings, live, stores.inbox)
    except RecogniserError as error:
        raise fail(str(error)) from None
    with closing(engine), Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("comparing", total=None)
        return diff(
            stores.warehouse,
            live,
            new,
            engine.version,
            start,
            end,
            stores.settings.review_minutes,
            lambda done, hours: progress.update(task, completed=done, total=hours),
        )


@app.command()
def promote(
    new: Wanted,
    diff_id: Annotated[
        str | None, typer.Option("--diff", help="The what-if that you looked at; the pack's newest if left out.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    without_diff: Annotated[
        str | None, typer.Option(help="Promote without a what-if, for this reason.", metavar="REASON")
    ] = None,
) -> None:
    """Let a pack judge from the next run on. The ledger keeps who, when, and the digest of the what-if.

    It must be the very pack of the what-if, and the one that is live now must be the one that it was compared with. To
    go back, promote the version before. What was judged stays as it was; `compliance backfill` judges it again, but not
    what the same pack judged before: of a recording, the verdict that was judged last is the one that is shown.

    Examples:

        compliance policy promote my-pack.yaml

        compliance policy promote my-pack.yaml --diff 1f2e3d4c5b6a --yes

        compliance policy promote default-us-eu@0.3.0+1f2e3d4c --without-diff "the new rule floods billing"
    """
    from compliance_pipeline import database, promotion, what_if
    from compliance_pipeline.cli import fail
    from compliance_pipeline.screening.policy import PolicyError

    if diff_id is not None and without_diff is not None:
        raise typer.BadParameter("--diff or --without-diff, not both")
    with opened() as stores:
        try:
            promotion.refuse_unpromotable(stores.settings)
            pack = _known(stores, new)
            if without_diff is None:
                database.ensure(stores.engine, what_if.what_if_table)
                with stores.engine.connect() as connection:
                    seen = what_if.find(connection, diff_id) if diff_id else what_if.of_pack(connection, pack)
                if seen:
                    diff_id = seen.id
                    out.print(f"[bold]{seen.id}[/]  {escape(_summary(seen.diff))}", highlight=False, soft_wrap=True)
            if not yes:
                typer.confirm(f"Let {pack.policy_version} judge from the next run on?", abort=True)
            made = promotion.promote(
                stores.settings,
                stores.engine,
                pack,
                user_name(),
                utc_now(),
                diff_id=diff_id,
                without_diff=without_diff,
            )
        except (promotion.NotPromoted, PolicyError) as error:
            raise fail(str(error)) from None
    out.print(
        f"[green]promoted[/]  {escape(made.policy_version)} in place of {escape(made.instead_of)}, "
        f"by {escape(made.by)}: from the next run on. An HTTP engine needs the same pack: start it anew.",
        highlight=False,
        soft_wrap=True,
    )


@app.command("history")
def show_history() -> None:
    """List the packs that were promoted, the newest first: who, when, and which what-if was looked at.

    Example:

        compliance policy history
    """
    from rich.table import Table

    from compliance_pipeline.promotion import history
    from compliance_pipeline.screening.policy import load_policy

    with opened() as stores:
        promotions = history(stores.engine)
        by_setting = stores.settings.policy
        live = _live(stores).policy_version if by_setting else ""
    packaged = load_policy().policy_version
    table = Table(header_style="bold")
    for column in ("", "version", "promoted", "by", "what-if"):
        table.add_column(column, overflow="fold")
    is_live = by_setting is None
    for one in promotions:
        table.add_row("live" if is_live else "", escape(one.policy_version), f"{one.at:%F %T} UTC", *_looked_at(one))
        is_live = False
    table.add_row("live" if is_live else "", escape(packaged), "comes with the package", "", "")
    out.print(table)
    if by_setting is not None:
        out.print(f"Live is {escape(live)}: COMPLIANCE_POLICY names it ({escape(str(by_setting))}).", highlight=False)


def _looked_at(one: "Promotion") -> tuple[str, str]:
    from compliance_pipeline.what_if import ID_LENGTH

    return escape(one.by), (one.diff_digest or "")[:ID_LENGTH] or escape(f"none: {one.reason}")


def _summary(diff: "PolicyDiff") -> str:
    items = diff.work_items
    return (
        f"{diff.new} beside {diff.live}, {diff.start:%F %H:%M} to {diff.end:%F %H:%M} UTC: of {diff.compared:,} "
        f"recordings {diff.added:,} more and {diff.removed:,} fewer would be flagged, {diff.changed:,} otherwise "
        f"changed; {items.opens:,} work items would open, {diff.hours(items.opens):.1f} h of review"
    )


def _print_diff(kept: "WhatIf") -> None:
    from rich.table import Table

    diff = kept.diff
    out.print(escape(_summary(diff)), highlight=False)
    if diff.lexicon.is_any:
        out.print(f"[yellow]{escape(lexicon_in_words(diff))}[/]", highlight=False)
    elif diff.needs_audio:
        out.print(
            f"[yellow]{diff.needs_audio:,} of {diff.recordings:,} recordings have no screening of this engine: they "
            "need their media, and are not compared[/]",
            highlight=False,
        )
    if diff.retention:
        out.print(f"rules about keeping that differ: {', '.join(diff.retention)}", highlight=False)

    def table(title: str, *columns: str, left: int = 1) -> Table:
        made = Table(title=title, title_justify="left", header_style="bold")
        for number, column in enumerate(columns):
            made.add_column(column, justify="left" if number < left else "right", overflow="fold")
        return made

    rules = table("\nBy rule", "rule", "pack", "live", "new", "added", "removed", "changed", "work items open", left=2)
    for rule in diff.rules:
        if rule.is_any:
            edit = f"{rule.edit}: {', '.join(rule.fields)}" if rule.fields else rule.edit
            numbers = (rule.live, rule.new, rule.added, rule.removed, rule.changed, rule.opens)
            rules.add_row(rule.rule_id, edit, *map(_number, numbers))
    queues = table("\nBy queue", "queue", "compared", "live", "new", "added", "removed", "changed", "open", "hours")
    for queue in diff.queues:
        counts = (queue.compared, queue.live, queue.new, queue.added, queue.removed, queue.changed, queue.opens)
        hours = f"{diff.hours(queue.opens):.1f}" if queue.opens else "·"
        queues.add_row(escape(queue.queue or "not known"), *map(_number, counts), hours)
    actions = table("\nActions", "action", "live", "new", "would be done")
    for action in diff.actions:
        name = action.action.replace("_", " ")
        actions.add_row(name, *map(_number, (action.live, action.new, action.opens)))
    examples = table("\nExamples", "", "recording", "queue", "live", "new", "what", left=6)
    for one in diff.examples:
        live, new = (_verdict(one, side) for side in ("live", "new"))
        examples.add_row(one.kind, escape(one.recording_id), escape(one.queue), live, new, escape(one.masked))
    for shown in (rules, queues, actions, examples):
        if shown.row_count:
            out.print(shown)


def lexicon_in_words(diff: "PolicyDiff") -> str:
    changed = diff.lexicon
    names = [(what, getattr(changed, what)) for what in ("added", "changed", "removed")]
    said = "; ".join(f"{what} {', '.join(found)}" for what, found in names if found)
    rules = (
        f"What is told of {', '.join(changed.rules)} is by the phrases as they were"
        if changed.rules
        else "No rule asks for them"
    )
    return (
        f"The phrases differ ({said}): with this pack all {diff.recordings:,} recordings need screening anew, from "
        f"their media. {rules}."
    )


def _number(value: int) -> str:
    return f"{value:,}" if value else "·"


def _verdict(one: "Example", side: str) -> str:
    verdict, rules = getattr(one, side), getattr(one, f"{side}_rules")
    return escape("\n".join([verdict.lower().replace("_", " "), *rules]))


# Rules in words


def _action_in_words(wanted: "RuleAction") -> str:
    words = wanted.action.replace("_", " ")
    if wanted.to:
        words += f" {wanted.to}"
    if wanted.priority:
        words += f", priority {wanted.priority}"
    if wanted.queue:
        words += f", queue {wanted.queue}"
    if wanted.due_hours:
        words += f", due in {wanted.due_hours:g} h"
    return words


def _in_words(rule: "Rule", policy: "PolicyPack") -> str:
    limits = [
        ", ".join(rule.channels) if len(rule.channels) < 3 else "",
        ", ".join(rule.applies.directions),
        _queues(rule, policy),
        f"in {', '.join(rule.jurisdictions)}" if rule.jurisdictions else "",
    ]
    excuses = [
        *[f"noted: {name}" for name in rule.unless.annotations],
        *(["consent is on record"] if rule.unless.consent else []),
        *[policy.phrases[name].description for name in rule.unless.phrases],
    ]
    lines = [
        "; ".join(limit for limit in limits if limit),
        ", or ".join(_forms(rule.when, policy)),
        f"unless {' or '.join(excuses)}" if excuses else "",
    ]
    return "\n".join(line for line in lines if line)


def _queues(rule: "Rule", policy: "PolicyPack") -> str:
    applies = rule.applies
    queues = [
        f"queues {', '.join(applies.queues)}" if applies.queues else "",
        f"not queues {', '.join(applies.except_queues)}" if applies.except_queues else "",
    ]
    said = [policy.phrases[name].description for name in applies.or_said]
    return ", or ".join(["; ".join(limit for limit in queues if limit), *said])


def _forms(when: "When", policy: "PolicyPack") -> list[str]:
    words: list[str] = []
    if when.findings:
        words.append(_findings(when.findings, policy))
    if form := when.absent:
        said = " and ".join(policy.phrases[name].description for name in form.phrases)
        within = f" within {form.within_s:g} s of the start" if form.within_s else ""
        later = " and ".join(policy.phrases[name].description for name in form.later)
        enough = f" (after the first contact, enough: {later})" if later else ""
        words.append(f"not said{_by(form.speakers)}{within}: {said}{enough}")
    if pair := when.together:
        words.append(
            f"within {pair.within_s:g} s of each other: {_findings(pair.one, policy)}; and "
            f"{_findings(pair.other, policy)}"
        )
    if order := when.sequence:
        words.append(
            f"{_findings(order.then, policy)}; before {order.at_least} of these: {_findings(order.first, policy)}"
        )
    if meta := when.metadata:
        if meta.started_outside:
            times = meta.started_outside
            words.append(
                f"begins before {times.earliest:%H:%M} or after {times.latest:%H:%M} where the called party is"
            )
        if meta.contacts:
            words.append(
                f"more than {meta.contacts.attempts_over} attempts within seven days, or within "
                f"{meta.contacts.conversation_within_days} days after a conversation"
            )
        if meta.annotated:
            words.append(f"the platform notes {', '.join(meta.annotated)}")
    return words


def _findings(form: "FindingsForm", policy: "PolicyPack") -> str:
    from compliance_pipeline.contracts.policy import Detector

    what = [kind.replace("_", " ") for kind in form.kinds]
    what += [policy.phrases[name].description for name in form.phrases]
    heard = f" ({', '.join(form.detectors)})" if len(form.detectors) < len(Detector) else ""
    sure = f", confidence {form.min_confidence:g} or more" if form.kinds else ""
    return f"{' or '.join(what)}{heard}{_by(form.speakers)}{sure}"


def _by(speakers: tuple[str, ...]) -> str:
    return f" by the {' or '.join(speakers)}" if speakers else ""
