"""`compliance canaries`: live recall by rule. Only arguments, printing and exit codes."""

import json
import sys
from datetime import timedelta
from typing import Annotated

import typer

from compliance_pipeline.stores_cli import opened, out

EXIT_MISSED = 1


def canaries(
    hours: Annotated[float, typer.Option(help="How far to look back; at most 35 days are kept.", min=1)] = 24.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Show what became of the synthetic violations that are put in each hour, for each rule and channel.

    Each must be flagged for its rule within three times the objective. P95 is from available to flagged, by nearest
    rank; one that was never flagged is later than all others. Exits with 1 if one was missed.

    Examples:

        compliance canaries

        compliance canaries --hours 168 --json | jq .recall
    """
    from rich.table import Table

    from compliance_pipeline.canaries import Recall, by_rule, fates, recall
    from compliance_pipeline.cli import fail
    from compliance_pipeline.clock import utc_now
    from compliance_pipeline.platforms.canary import canaries_of
    from compliance_pipeline.promotion import live_policy
    from compliance_pipeline.screening.policy import PolicyError

    with opened() as stores:
        found = fates(stores.engine, utc_now() - timedelta(hours=hours))
        try:
            policy = live_policy(stores.settings, stores.engine)
        except PolicyError as error:
            raise fail(str(error)) from None
        without = canaries_of(policy)[1]
    whole = recall(found)
    rules = {rule_id: {channel: recall(its) for channel, its in of.items()} for rule_id, of in by_rule(found).items()}
    all_of = {rule_id: recall(fate for its in of.values() for fate in its) for rule_id, of in by_rule(found).items()}
    if as_json:

        def said(one: Recall) -> dict[str, object]:
            at = one.newest_miss
            return {
                "canaries": one.canaries, "flagged": one.flagged, "recall": one.share, "p95_seconds": one.p95_s,
                "newest_miss": at.isoformat() if at else None,
            }  # fmt: skip

        document = said(whole) | {
            "rules": {
                rule_id: said(all_of[rule_id]) | {"channels": {channel: said(one) for channel, one in of.items()}}
                for rule_id, of in rules.items()
            },
            "without": without,
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        table = Table(header_style="bold")
        for column in ("rule", "voice", "chat", "email", "recall", "P95 s", "newest miss (UTC)"):
            table.add_column(column, justify="left" if column == "rule" else "right")
        for rule_id, of in rules.items():
            one = all_of[rule_id]
            table.add_row(
                rule_id,
                *(
                    f"{of[name].flagged}/{of[name].canaries}" if name in of else ""
                    for name in ("voice", "chat", "email")
                ),
                "–" if one.share is None else f"{one.share:.1%}",
                "–" if one.p95_s is None else f"{one.p95_s:.1f}",
                f"{one.newest_miss:%F %R}" if one.newest_miss else "",
            )
        out.print(table)
        p95 = "" if whole.p95_s is None else f", P95 {whole.p95_s:.1f} s"
        out.print(f"{whole.flagged} of {whole.canaries} canaries were flagged in time{p95}.", highlight=False)
        if without:
            out.print(f"[yellow]no canary can be made for[/] {', '.join(without)}: no example that a recording can say")
    if whole.flagged < whole.canaries:
        raise typer.Exit(EXIT_MISSED)
