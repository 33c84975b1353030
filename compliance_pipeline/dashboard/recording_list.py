"""Recordings one by one, newest first, by what became of them: where the numbers of the other pages lead to."""

from dataclasses import dataclass, fields, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from compliance_pipeline.dashboard.api import key_of, key_text
from compliance_pipeline.dashboard.pages import board_of, plain, render, view_of
from compliance_pipeline.dashboard.view import DIMENSIONS, View
from compliance_pipeline.dashboard.violations import titles
from compliance_pipeline.figures.figures import Filter, options
from compliance_pipeline.figures.recordings import STATES, Place, RecordingRow, number_in, recordings_in

ROWS = 50
"""Of a page."""
CHOICES = ("state", "queue", "channel", "direction", "agent", "policy_version")
WORDS = {
    "late": "flagged late or overdue",
    "overdue": "overdue (broke a rule, and was not flagged within the objective)",
    "not-judged": "not judged",
    "unscreenable": "unscreenable",
    "waiting": "waiting",
    "deferred": "deferred",
    "dead_letter": "given up on",
    "undetermined": "judged with a rule that could not be decided",
    "flagged": "flagged",
    "judged": "judged",
}
"""Of STATES, after 'recordings …'."""
STATUS = {
    "judged": "Judged",
    "unscreenable": "Unscreenable",
    "waiting": "Waiting",
    "deferred": "Deferred, to be tried again",
    "dead_letter": "Given up on",
}
UNSAID = {
    "deferred": "announced; its recording is not available yet",
    "waiting": "new, or being worked on",
}
"""Of a status, where no reason is stored."""


@dataclass(frozen=True)
class ListView(View):
    """states: of STATES; the page's own dimension, which links to other pages leave out."""

    states: tuple[str, ...] = ()

    @property
    def active(self) -> list[tuple[str, str]]:
        return [*(("state", one) for one in self.states), *super().active]

    def values(self, dimension: str) -> tuple[str, ...]:
        return self.states if dimension == "state" else super().values(dimension)

    def link(self, path: str | None = None, **extra: str | int | None) -> str:
        if path not in (None, self.path) and self.states:
            return replace(self, states=()).link(path, **extra)
        return super().link(path, **extra)

    def _with(self, dimension: str, values: tuple[str, ...]) -> str:
        if dimension == "state":
            return replace(self, states=values, extra={}).link()
        return super()._with(dimension, values)


def states_of(request: Request) -> tuple[str, ...]:
    """As they stand in the address, once each: state=late&state=overdue, or state=late,overdue."""
    said = " ".join(request.query_params.getlist("state")).replace(",", " ").split()
    return tuple(dict.fromkeys(one for one in said if one in STATES))


def way_out(view: ListView) -> dict[str, Any]:
    """Of a page without rows: why it has none, and a link to one that may have some."""
    others = replace(view, chosen=Filter(view.chosen.start, view.chosen.end, zone=view.zone), extra={})
    if any(view.values(name) for name in CHOICES[1:]):
        return {
            "why": "Nothing in this window fits all of the chosen filters.",
            "way_out": others.link(),
            "way_out_label": "Drop the filters",
        }
    if view.states:
        return {
            "why": f"No recording of this window is {' or '.join(WORDS[one] for one in view.states)}.",
            "way_out": replace(view, states=(), extra={}).link(),
            "way_out_label": "All recordings of the window",
        }
    if view.span != "30d":
        return {
            "why": "No recording became available in this window.",
            "way_out": view.ranged("30d"),
            "way_out_label": "30 days",
        }
    return {
        "why": "No recording became available in the last 30 days: nothing reaches the pipeline.",
        "way_out": view.link("/operations"),
        "way_out_label": "See what holds it up",
    }


def why(row: RecordingRow) -> str:
    """Of its status, in words; empty where the status says all."""
    if row.status == "judged":
        return ""
    return plain(row.reason) if row.reason else UNSAID.get(row.status, "no reason is stored")


def show_list(request: Request) -> Response:
    board = board_of(request)
    snapshot = board.snapshot()
    plain_view = view_of(request, snapshot, ("before",))
    its = {one.name: getattr(plain_view, one.name) for one in fields(plain_view)}
    view = ListView(**its, states=states_of(request))
    chosen = view.having(CHOICES)
    if "undetermined" in view.states:
        chosen = replace(chosen, rule=view.chosen.rule)
    place = key_of(view.extra.get("before"))
    before: Place | None = place[:2] if place else None
    rows = recordings_in(snapshot, chosen, view.states, limit=ROWS + 1, before=before)
    return render(
        request,
        "recording_list.html",
        view,
        DIMENSIONS={"state": "State", **DIMENSIONS},
        options={"state": STATES, **options(snapshot, view.chosen)},
        choices=(*CHOICES, "rule") if "undetermined" in view.states else CHOICES,
        number=number_in(snapshot, chosen, board.objective, view.states),
        words=" or ".join(WORDS[one] for one in view.states),
        rows=rows[:ROWS],
        STATUS=STATUS,
        why_of=why,
        titles=titles(board),
        is_first=before is None,
        first=view.link(before=None),
        older=view.link(before=key_text((*rows[ROWS - 1].place, ""))) if len(rows) > ROWS else None,
        **way_out(view),
    )
