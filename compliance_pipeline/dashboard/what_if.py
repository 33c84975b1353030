"""What another policy pack would change, as it was kept: a list, and a page for each."""

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from compliance_pipeline import database, what_if
from compliance_pipeline.asgi import Rejected
from compliance_pipeline.contracts.policy import Action
from compliance_pipeline.contracts.verdict import VerdictValue
from compliance_pipeline.dashboard.access import Role, needs
from compliance_pipeline.dashboard.pages import Board, board_of, render
from compliance_pipeline.promotion import Promotion, history
from compliance_pipeline.what_if import KINDS, Example, PolicyDiff, WhatIf, what_if_table

LISTED = 100
_VERDICTS = {
    VerdictValue.VIOLATION_DETECTED: "violation",
    VerdictValue.REVIEW_REQUIRED: "review",
    VerdictValue.NO_VIOLATION: "no violation",
    VerdictValue.UNSCREENABLE: "unscreenable",
    VerdictValue.UNDETERMINED: "undetermined",
}
_DONE = {
    Action.CREATE_WORK_ITEM: "work items opened",
    Action.SUPERVISOR_CALLBACK: "supervisors called back",
    Action.NOTIFY: "messages sent",
    Action.TAG_RECORDING: "recordings tagged",
    Action.QUARANTINE: "recordings quarantined",
    Action.PURGE_AFTER_REVIEW: "recordings purged after review",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """Of the table of verdicts. share: of the largest number of those that differ."""

    recordings: int
    is_same: bool
    share: float


def cells(diff: PolicyDiff) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[Cell, ...]], ...]]:
    """Verdicts that occur, in order of VerdictValue; and by verdict of the live pack, a row by that of the new one."""
    found = {(one.live, one.new): one.recordings for one in diff.transitions}
    names = tuple(str(value) for value in VerdictValue if any(value in pair for pair in found))
    most = max((number for (live, new), number in found.items() if live != new), default=0)
    rows = []
    for live in names:
        numbers = [(new, found.get((live, new), 0)) for new in names]
        rows.append(
            (live, tuple(Cell(n, live == new, n / most if most and live != new else 0.0) for new, n in numbers))
        )
    return names, tuple(rows)


def by_kind(examples: Sequence[Example]) -> list[tuple[str, list[Example]]]:
    return [(kind, its) for kind in KINDS if (its := [one for one in examples if one.kind == kind])]


def promotions(board: Board) -> dict[str, Promotion]:
    """By digest of the what-if that was looked at."""
    return {one.diff_digest: one for one in history(board.engine) if one.diff_digest}


def show_list(request: Request) -> Response:
    board = board_of(request)
    database.ensure(board.engine, what_if_table)
    with board.engine.connect() as connection:
        kept = what_if.newest(connection, LISTED)
    return render(request, "what_ifs.html", kept=kept, promoted=promotions(board), most=LISTED)


def show(request: Request) -> Response:
    board = board_of(request)
    kept = _found(board, request.path_params["what_if_id"])
    diff = kept.diff
    verdicts, rows = cells(diff)
    return render(
        request,
        "what_if.html",
        kept=kept,
        diff=diff,
        promoted=promotions(board).get(diff.digest),
        verdicts=verdicts,
        rows=rows,
        rules=[one for one in diff.rules if one.is_any],
        most_rules=max((max(one.live, one.new) for one in diff.rules), default=0) or 1,
        most_queues=max((max(one.live, one.new) for one in diff.queues), default=0) or 1,
        examples=by_kind(diff.examples),
        actions_in_words=_DONE,
        verdicts_in_words=_VERDICTS,
    )


def _found(board: Board, what_if_id: str) -> WhatIf:
    database.ensure(board.engine, what_if_table)
    with board.engine.connect() as connection:
        kept = what_if.find(connection, what_if_id)
    if kept is None:
        raise Rejected(404, "unknown_what_if", "there is no such what-if: /what-if lists those that there are")
    return kept


routes = [
    Route("/what-if", needs(Role.VIEWER)(show_list)),
    Route("/what-if/{what_if_id}", needs(Role.VIEWER)(show)),
]
