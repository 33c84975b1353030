"""`compliance policy`: check, explain and test policy packs. Only arguments, printing and exit codes.

What a pack may say is contracts/policy's; what its rules do is screening/policy's.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from compliance_pipeline.stores_cli import out

if TYPE_CHECKING:
    from compliance_pipeline.contracts.policy import FindingsForm, PolicyPack, Rule, RuleAction, When

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Check, read and try policy packs: the rules and phrases by which recordings are judged.

- Is my pack well formed? `compliance policy check my-pack.yaml`
- What do the rules say? `compliance policy explain`
- Do the rules do what their examples say? `compliance policy test my-pack.yaml`

Without a pack, the packaged one is meant. To write your own: copy it, change it, check it, test it, and set
`COMPLIANCE_POLICY` to its path. An edited pack is another policy: its verdicts are kept apart from those before.
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
