"""Every violation of a view, newest first; and the queue of those on which nobody has decided yet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from compliance_pipeline import reviews
from compliance_pipeline.dashboard.access import Role, needs
from compliance_pipeline.dashboard.api import key_of, key_text
from compliance_pipeline.dashboard.pages import Board, board_of, render, view_of
from compliance_pipeline.dashboard.view import SEVERITIES, View
from compliance_pipeline.figures.chosen import DAY, floor_hour
from compliance_pipeline.figures.figures import (
    AGES,
    Age,
    Filter,
    ViolationRow,
    ageing,
    counts,
    latest,
    options,
    review_queue,
    rules,
)
from compliance_pipeline.figures.snapshots import Snapshot
from compliance_pipeline.figures.violations import broken
from compliance_pipeline.promotion import live_policy
from compliance_pipeline.screening.policy import PolicyError

ROWS = 50
"""Of a page."""
CHOICES = ("queue", "channel", "direction", "rule", "severity", "agent", "policy_version", "review")
QUEUE_CHOICES = ("queue", "channel", "direction", "rule", "severity", "agent")
ACTIONS = {
    "tag_recording": "tag",
    "quarantine": "quarantine",
    "create_work_item": "work item",
    "supervisor_callback": "callback",
    "notify": "notice",
    "purge_after_review": "purge",
}
"""In one or two words, in the order in which they are done."""
_ORDER = tuple(ACTIONS)
RULES_SHOWN = 6
MOST_SKIPPED = 1_000
"""How far the queue is searched for a finding on which nobody decided since the snapshot."""
Key = tuple[datetime, str, str]


@dataclass(frozen=True, slots=True)
class Listed:
    """A violation as it stands now. decided: by whom, where that is newer than the snapshot; None else."""

    row: ViolationRow
    review: str
    decided: reviews.Review | None

    @property
    def is_open(self) -> bool:
        return self.review == "open"


def key(row: ViolationRow) -> Key:
    return row.available_at, row.recording_id, row.rule_id


def listed(board: Board, rows: Sequence[ViolationRow]) -> list[Listed]:
    """The rows with what was decided since the snapshot, so that a decision shows at once."""
    found = reviews.state(board.engine, {row.recording_id for row in rows}) if rows else {}
    made = []
    for row in rows:
        review = reviews.decided(found, row.recording_id, row.rule_id)
        now = str(review.decision) if review else row.review
        done = sorted(row.actions, key=lambda one: _ORDER.index(one["action"]) if one["action"] in _ORDER else 99)
        made.append(Listed(replace(row, actions=done), now, review if now != row.review else None))
    return made


def titles(board: Board) -> dict[str, str]:
    """What the live pack calls its rules; nothing where it can't be used, which the policies' page tells."""
    try:
        return {rule.id: rule.title for rule in live_policy(board.settings, board.engine).rules}
    except PolicyError:
        return {}


def way_out(view: View) -> dict[str, Any]:
    """Of a page without rows: why it has none, and a link to one that may have some."""
    if view.active:
        why = "Nothing in this window fits all of the chosen filters."
        plain = replace(view, chosen=Filter(view.chosen.start, view.chosen.end, zone=view.zone), extra={})
        return {"why": why, "way_out": plain.link(), "way_out_label": "Drop the filters"}
    if view.span != "30d":
        return {"why": "Nothing was found in this window.", "way_out": view.ranged("30d"), "way_out_label": "30 days"}
    return {
        "why": "Nothing was found in the last 30 days: either all is well, or nothing is screened.",
        "way_out": view.link("/operations"),
        "way_out_label": "See what was screened",
    }


def show(request: Request) -> Response:
    board = board_of(request)
    snapshot = board.snapshot()
    view = view_of(request, snapshot, ("before",))
    before = key_of(view.extra.get("before"))
    rows = latest(snapshot, view.chosen, limit=ROWS + 1, before=before)
    return render(
        request,
        "violations.html",
        view,
        options=options(snapshot, view.chosen),
        choices=CHOICES,
        broken=broken(snapshot, view.chosen),
        counts=counts(snapshot, view.chosen, board.objective) if is_of_recordings(view) else None,
        rows=listed(board, rows[:ROWS]),
        is_first=before is None,
        first=view.link(before=None),
        older=view.link(before=key_text(key(rows[ROWS - 1]))) if len(rows) > ROWS else None,
        ACTIONS=ACTIONS,
        titles=titles(board),
        **way_out(view),
    )


def is_of_recordings(view: View) -> bool:
    """Whether all violations of the chosen recordings are in view, so that a share of recordings can be told."""
    return not any(view.values(name) for name in ("rule", "severity", "review"))


def whenever(snapshot: Snapshot, chosen: Filter) -> Filter:
    """The same over all days with something open: what waits for a person waits whatever window is looked at."""
    start, data_to = snapshot.open_since(), snapshot.manifest.data_to
    return replace(chosen, start=start, end=max(floor_hour(data_to), start) + 2 * DAY)


def queue(request: Request) -> Response:
    board = board_of(request)
    snapshot = board.snapshot()
    view = view_of(request, snapshot, ("offset",))
    said = view.extra.get("offset", "0")
    offset = int(said) if said.isascii() and said.isdigit() and len(said) < 7 else 0
    everything = whenever(snapshot, view.having(QUEUE_CHOICES))
    found = listed(board, review_queue(snapshot, everything, limit=ROWS + 1, offset=offset))
    rows = found[:ROWS]
    ages = table_of(ageing(snapshot, view.having(QUEUE_CHOICES)))
    return render(
        request,
        "review.html",
        view,
        options=options(snapshot, view.chosen),
        choices=QUEUE_CHOICES,
        rows=rows,
        ages=ages,
        rules=rules(snapshot, replace(everything, review=("open",)))[:RULES_SHOWN],
        AGES=AGES,
        per_page=ROWS,
        rules_shown=RULES_SHOWN,
        ACTIONS=ACTIONS,
        titles=titles(board),
        waiting=sum(everything for _, _, everything in ages),
        critical=sum(everything for severity, _, everything in ages if severity == "critical"),
        decided=sum(not one.is_open for one in rows),
        next=view.link("/review/next") if any(one.is_open for one in rows) else None,
        newer=view.link(offset=max(offset - ROWS, 0) or None) if offset else None,
        older=view.link(offset=offset + ROWS) if len(found) > ROWS else None,
        **way_out(view),
    )


def following(request: Request) -> Response:
    """To the recording of the first finding of the queue that nobody decided on; `after` (recording~rule): of those
    behind that one, if there is any. To the queue where nothing is left."""
    board = board_of(request)
    snapshot = board.snapshot()
    view = view_of(request, snapshot)
    after = request.query_params.get("after")
    everything = whenever(snapshot, view.having(QUEUE_CHOICES))
    first: Listed | None = None
    is_behind = False
    for offset in range(0, MOST_SKIPPED, ROWS):
        rows = listed(board, review_queue(snapshot, everything, limit=ROWS, offset=offset))
        for one in rows:
            is_it = f"{one.row.recording_id}~{one.row.rule_id}" == after
            if one.is_open and not is_it:
                if is_behind or after is None:
                    return RedirectResponse(_recording(view, one), 303)
                first = first or one
            is_behind = is_behind or is_it
        if len(rows) < ROWS:
            break
    return RedirectResponse(_recording(view, first) if first else view.link("/review"), 303)


def _recording(view: View, one: Listed) -> str:
    return view.link(f"/recordings/{quote(one.row.recording_id, safe='')}")


def table_of(ages: Sequence[Age]) -> list[tuple[str, list[int], int]]:
    """(severity, open by AGES, all), the worst first; severities without any are left out."""
    found = {(age.severity, age.age): age.open for age in ages}
    lines = [(severity, [found.get((severity, age), 0) for age in AGES]) for severity in SEVERITIES]
    return [(severity, counts, sum(counts)) for severity, counts in lines if any(counts)]


routes = [
    Route("/violations", needs(Role.VIEWER)(show)),
    Route("/review", needs(Role.VIEWER)(queue)),
    Route("/review/next", needs(Role.VIEWER)(following)),
]
