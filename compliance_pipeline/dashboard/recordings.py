"""The page of one recording: what happened to it, its masked evidence, and what a person decides on it.

There is one route with audio, and it knows verified clips only.
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from hashlib import sha256
from logging import getLogger
from secrets import token_urlsafe
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from compliance_pipeline import audit, database, ledger, reviews
from compliance_pipeline.asgi import Rejected, line
from compliance_pipeline.contracts.policy import Rule, Severity
from compliance_pipeline.dashboard.access import Role, current_user, form, needs, refuse_other_sites
from compliance_pipeline.dashboard.pages import Board, board_of, exactly, render
from compliance_pipeline.dashboard.recording_list import show_list
from compliance_pipeline.dashboard.timeline import timeline
from compliance_pipeline.dashboard.view import View
from compliance_pipeline.dashboard.waveform import Waveform, Waveforms, masked_spans
from compliance_pipeline.evidence import FOLDER, GONE, REFUSED, TEXT, VERIFIED
from compliance_pipeline.evidence_service import Playable, content_of, played, unknown
from compliance_pipeline.figures.chosen import floor_hour
from compliance_pipeline.figures.figures import Filter, RecordingFacts, RuleFigure, recording, rules
from compliance_pipeline.figures.snapshots import Snapshot
from compliance_pipeline.intake.hours import hour_of, partition_hour
from compliance_pipeline.intake.inbox import Inbox, InboxItem, State
from compliance_pipeline.ledger import Entry
from compliance_pipeline.media.decode import UnscreenableMedia
from compliance_pipeline.media.vault import Vault, VaultError, vault_of
from compliance_pipeline.plain_text import NotPlain
from compliance_pipeline.promotion import live_policy
from compliance_pipeline.remediation.undone import DEAD
from compliance_pipeline.retention import EVERYTHING, PLATFORM, holds, purges
from compliance_pipeline.reviews import Decision, NotDecided
from compliance_pipeline.screening.policy import PolicyError

MOST_EVENTS = 200
"""Of the ledger's entries the newest are shown; `compliance audit show` has all."""
LEAD_MS = 2_000
"""Played before a finding that is silence itself."""
MOST_NAMED = 3
MOST_WAVEFORMS = 12
"""Of a page: each is decoded when it is first shown. Further clips have a player only."""
SEARCHED, AT_ONCE = timedelta(days=400), timedelta(days=20)
"""How far back a recording is looked for that the inbox doesn't know, and in which stretches."""
_OPENED = threading.Lock()
_log = getLogger(__name__)


class Stores:
    """What this page reads beside snapshots: one for an app, opened when first asked for. Threads share it."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.waveforms = Waveforms()

    @cached_property
    def inbox(self) -> Inbox:
        inbox = Inbox(self._board.settings.inbox_database_url)
        inbox.create()
        return inbox

    @cached_property
    def vault(self) -> Vault:
        return vault_of(self._board.settings, self._board.engine)

    @cached_property
    def rules(self) -> Mapping[str, Rule]:
        """Of the policy pack that is set now, by id: for titles and guidance."""
        try:
            return {rule.id: rule for rule in live_policy(self._board.settings, self._board.engine).rules}
        except PolicyError:
            return {}


def _stores(request: Request) -> Stores:
    state = request.app.state
    with _OPENED:
        if not hasattr(state, "recording_stores"):
            state.recording_stores = Stores(board_of(request))
    stores: Stores = state.recording_stores
    return stores


@dataclass(frozen=True, slots=True)
class Finding:
    """What a detector found, with the rules that it is the best finding of, and its clip."""

    row: Mapping[str, Any]
    rules: tuple[str, ...]
    clip: "Evidence | None"

    @property
    def number(self) -> int:
        number: int = self.row["finding_no"]
        return number


@dataclass(frozen=True, slots=True)
class Evidence:
    """A finding's clip, or in `why_not` why there is none.

    start_ms, end_ms, masked: from the recording's start; masked: what findings say is, where it is silence indeed.
    """

    finding: Mapping[str, Any]
    rules: tuple[str, ...]
    status: str
    why_not: str | None = None
    url: str = ""
    start_ms: int = 0
    end_ms: int = 0
    waveform: Waveform | None = None
    masked: tuple[tuple[int, int], ...] = ()

    @property
    def play_s(self) -> float:
        """From the clip's start to the finding, or to a little before it where that is silence."""
        at: int = self.finding["start_ms"]
        lead = LEAD_MS if self.masked else 0
        return max(at - lead - self.start_ms, 0) / 1000

    def x(self, at_ms: float) -> float:
        """Percent of the clip's length."""
        return round(min(max((at_ms - self.start_ms) / max(self.end_ms - self.start_ms, 1), 0), 1) * 100, 2)

    @property
    def ticks(self) -> list[int]:
        """Milliseconds from the recording's start: round ones, eight at most."""
        seconds = (self.end_ms - self.start_ms) / 1000
        step = next((step for step in (1, 2, 5, 10, 20, 30, 60) if seconds / step <= 7), 120) * 1000
        first = -(-self.start_ms // step) * step
        return list(range(first, self.end_ms + 1, step))


def path_of(recording_id: str) -> str:
    """Of the recording's page, whatever characters its id has."""
    return f"/recordings/{quote(recording_id, safe='')}"


# Finding it


def _hour_in(snapshot: Snapshot, recording_id: str) -> datetime | None:
    """The recording's partition, of those published in SEARCHED: for those that the inbox doesn't know."""
    query = "SELECT partition_hour FROM read_parquet($interactions) WHERE recording_id = $id LIMIT 1"
    end = snapshot.manifest.data_to + timedelta(days=2)
    for back in range(SEARCHED // AT_ONCE):
        start = end - (back + 1) * AT_ONCE
        if rows := snapshot.rows(query, start, start + AT_ONCE, id=recording_id):
            hour: datetime = rows[0]["partition_hour"]
            return hour
    return None


def _known(request: Request, snapshot: Snapshot, recording_id: str) -> tuple[InboxItem | None, RecordingFacts | None]:
    """Its row of the inbox and what is published of it; one of them, or both, may be missing."""
    if not recording_id or "\0" in recording_id:
        return None, None
    item = _stores(request).inbox.get(recording_id)
    if item:
        return item, recording(snapshot, hour_of(item.partition_hour), recording_id)
    hour = _hour_in(snapshot, recording_id)
    return None, recording(snapshot, hour, recording_id) if hour else None


@needs(Role.VIEWER)
def find(request: Request) -> Response:
    """The search: to the recording's page, or 404. Without an id, the list."""
    if "id" not in request.query_params:
        return show_list(request)
    recording_id = request.query_params.get("id", "").strip()
    if any(_known(request, board_of(request).snapshot(), recording_id)):
        view = View.of(request.query_params, board_of(request).snapshot().manifest.data_to)
        return RedirectResponse(view.link(path_of(recording_id)), 303)
    return _missing(request, recording_id)


def _missing(request: Request, recording_id: str) -> Response:
    title = f"No recording {recording_id}" if recording_id else "Which recording?"
    return render(request, "recording_missing.html", status=404, title=title, recording_id=recording_id)


# The page


@needs(Role.VIEWER)
def show(request: Request) -> Response:
    return _page(request, request.path_params["recording_id"])


def _page(
    request: Request, recording_id: str, *, status: int = 200, refused: Mapping[str, str] | None = None
) -> Response:
    """refused: rule, reason and problem of a decision that was not taken."""
    board, stores = board_of(request), _stores(request)
    snapshot = board.snapshot()
    item, facts = _known(request, snapshot, recording_id)
    if item is None and facts is None:
        return _missing(request, recording_id)
    view = View.of(request.query_params, snapshot.manifest.data_to, path_of(recording_id))
    if facts is None:
        assert item is not None  # noqa: S101
        parts = stores.inbox.known([recording_id]).get(recording_id, []) if item.state is State.LISTED else []
        return render(
            request,
            "recording_waiting.html",
            view,
            status=status,
            recording_id=recording_id,
            item=item,
            event=item.recording_event,
            parts=[(one, view.link(path_of(one.recording_id))) for one in parts if one.recording_id != recording_id],
        )
    decided = reviews.state(board.engine, [recording_id])
    decisions = {row["rule_id"]: reviews.decided(decided, recording_id, row["rule_id"]) for row in facts.violations}
    kept = _Kept.of(board.engine, recording_id)
    findings = _findings(board, stores, facts, kept, view.zone)
    events = audit.custody(board.engine, recording_id)
    interaction = facts.interaction
    return render(
        request,
        "recording.html",
        view,
        status=status,
        recording_id=recording_id,
        interaction=interaction,
        violations=sorted(facts.violations, key=lambda row: (-Severity(row["severity"]).rank, row["rule_id"])),
        item=item,
        timeline=timeline(facts.stage_times, board.objective.of(interaction["channel"])),
        next_steps=list(_next_steps(facts, item, decisions, view.zone)),
        findings=findings,
        evidence=[one.clip for one in findings if one.clip],
        is_text=interaction["channel"] != "voice",
        rules=stores.rules,
        figures=_figures(snapshot),
        speaker=_speaker,
        told=_told,
        decisions=decisions,
        kept=kept,
        actions=_actions(facts.remediations),
        verdicts=sorted(facts.verdicts, key=lambda row: row["judged_at"], reverse=True),
        events=events[-MOST_EVENTS:][::-1],
        events_left_out=max(len(events) - MOST_EVENTS, 0),
        may_review=current_user(request).may("reviewer"),
        request_key=token_urlsafe(16),
        reason_length=reviews.REASON_LENGTH,
        refused=refused or {},
        dagster=_Dagster(board.settings.dagster_url, partition_hour(interaction["partition_hour"])),
    )


def _figures(snapshot: Snapshot) -> Mapping[str, RuleFigure]:
    """Of each rule over the last 30 days."""
    end = floor_hour(snapshot.manifest.data_to) + timedelta(hours=1)
    return {one.rule_id: one for one in rules(snapshot, Filter(end - timedelta(days=30), end))}


@dataclass(frozen=True, slots=True)
class _Dagster:
    """Where Dagster shows a run, and an asset's partition."""

    url: str
    partition: str

    def run(self, run_id: str | None) -> str | None:
        """None for what is no run of Dagster's: asked for by hand."""
        is_one = run_id and all(one.isalnum() or one == "-" for one in run_id)
        return f"{self.url.rstrip('/')}/runs/{run_id}" if is_one else None

    def asset(self, name: str) -> str:
        return f"{self.url.rstrip('/')}/assets/{name}?view=partitions&partition={quote(self.partition, safe='')}"


@dataclass(frozen=True, slots=True)
class _Kept:
    """What retention did with a recording, and the legal hold on it, if one stands."""

    deletions: tuple[sa.Row[Any], ...]
    hold: sa.Row[Any] | None

    @classmethod
    def of(cls, engine: sa.Engine, recording_id: str) -> "_Kept":
        database.ensure(engine, purges)
        with engine.connect() as connection:
            deletions = connection.execute(
                sa.select(purges).where(purges.c.recording_id == recording_id).order_by(purges.c.begun_at)
            ).all()
            hold = connection.execute(
                sa.select(holds).where(holds.c.recording_id == recording_id, holds.c.lifted_at.is_(None))
            ).first()
        return cls(tuple(deletions), hold)

    def deletion_of(self, name: str) -> sa.Row[Any] | None:
        """Of the vault's blob of this name."""
        return next((row for row in self.deletions if row.what == EVERYTHING or name in json.loads(row.names)), None)

    @property
    def at_platform(self) -> sa.Row[Any] | None:
        return next((row for row in self.deletions if row.what == PLATFORM), None)


def _findings(board: Board, stores: Stores, facts: RecordingFacts, kept: _Kept, zone: str) -> list[Finding]:
    """Those of the engine that judged last, in the order of the recording."""
    engine = facts.interaction["engine_version"]
    rows = sorted(
        (row for row in facts.findings if row["engine_version"] == engine),
        key=lambda row: (row["start_ms"], row["finding_no"]),
    )
    clips = {row["finding_no"]: row for row in facts.evidence if row["engine_version"] == engine}
    rules: dict[int, list[str]] = {}
    for violation in facts.violations:
        if violation["finding_no"] is not None:
            rules.setdefault(violation["finding_no"], []).append(violation["rule_id"])
    found = []
    drawn = 0
    for row in rows:
        number = row["finding_no"]
        broken = tuple(rules.get(number, ()))
        clip = None
        if number in clips:
            is_drawn = drawn < MOST_WAVEFORMS
            clip = _evidence(board, stores, row, clips[number], broken, rows, kept, is_drawn=is_drawn, zone=zone)
            drawn += clip.waveform is not None
        elif broken and facts.interaction["channel"] == "voice":
            clip = Evidence(row, broken, "unavailable", "not made yet: the next run does")
        found.append(Finding(row, broken, clip))
    return found


def _evidence(
    board: Board,
    stores: Stores,
    finding: Mapping[str, Any],
    row: Mapping[str, Any],
    rules: tuple[str, ...],
    findings: Sequence[Mapping[str, Any]],
    kept: _Kept,
    *,
    is_drawn: bool,
    zone: str,
) -> Evidence:
    clip = _playable(row)
    if clip is None:
        return Evidence(finding, rules, row["status"], _why_not(row))
    start, end = row["start_ms"], row["end_ms"]
    if (gone := kept.deletion_of(clip.name)) is not None:
        at = exactly(gone.done_at, zone) if gone.done_at else None
        why = f"deleted at {at} by retention: {gone.why}" if at else f"being deleted by retention: {gone.why}"
        return Evidence(finding, rules, "deleted", why, start_ms=start, end_ms=end)
    url = f"{path_of(clip.recording_id)}/clips/{clip.finding_no}.flac?v={clip.sha256[:16]}"
    if not is_drawn:
        return Evidence(finding, rules, VERIFIED, url=url, start_ms=start, end_ms=end)
    try:
        waveform = stores.waveforms.of(clip.sha256, lambda: content_of(stores.vault, board.engine, clip))
    except Rejected as refusal:
        return Evidence(finding, rules, refusal.reason, str(refusal), start_ms=start, end_ms=end)
    except UnscreenableMedia:
        return Evidence(finding, rules, "damaged", "it can't be decoded")
    except (VaultError, SQLAlchemyError, OSError) as error:
        _log.error(line("waveform", recording=clip.recording_id, error=type(error).__name__))
        return Evidence(finding, rules, "unavailable", "the vault can't be read now: try again")
    return Evidence(
        finding,
        rules,
        VERIFIED,
        url=url,
        start_ms=start,
        end_ms=end,
        waveform=waveform,
        masked=tuple(
            (from_ms, to_ms)
            for from_ms, to_ms in masked_spans(findings, clip.finding_no, (start, end))
            if waveform.is_silent((from_ms - start) / 1000, (to_ms - start) / 1000)
        ),
    )


def _playable(row: Mapping[str, Any]) -> Playable | None:
    """The table is not believed that anything but a verified clip is one."""
    is_clip = row["status"] == VERIFIED and row["sha256"] and (row["uri"] or "").startswith(f"{FOLDER}/")
    return Playable(row["recording_id"], row["finding_no"], row["uri"], row["sha256"]) if is_clip else None


def _why_not(row: Mapping[str, Any]) -> str:
    reason = row["reason"] or "no reason was stored"
    if row["status"] == REFUSED:
        return f"refused, because it would not be safe to hear: {reason}"
    if reason == GONE:
        return "the recording is gone from the platform"
    return "its masked text is the evidence" if reason == TEXT else reason


def _speaker(said: str) -> str:
    """A channel whose role the platform does not say has its index instead."""
    return f"channel {said}" if said.isdigit() else said


def _told(event: audit.Event) -> str:
    """What an entry of the ledger says, in a few words."""
    said = event.details
    parts: dict[str, tuple[Any, ...]] = {
        "event_received": (str(said.get("event", "")).removeprefix("recording:"),),
        "fetched": (said.get("container"), "complete" if said.get("complete") else "its end is missing"),
        "verdict": (
            said.get("verdict"),
            said.get("rule_id") or said.get("unscreenable_reason"),
            said.get("policy_version"),
        ),
        "action": (said.get("action"), said.get("status"), said.get("rule_id"), said.get("error")),
        "play": (said.get("clip"),),
        "review": (said.get("rule"), said.get("decision"), said.get("reason")),
        "hold": ("held" if said.get("held") else "lifted", said.get("reason")),
        "purge": (said.get("what"), said.get("why")),
        "shred": (said.get("what"), said.get("why")),
    }
    return " · ".join(str(part) for part in parts.get(event.kind, ()) if part)


def _actions(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """By rule and action: what holds, and how it came to be, newest first."""
    by_key: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: -row["revision"]):
        by_key.setdefault((row["rule_id"], row["action"]), []).append(row)
    return [(its[0], its) for _, its in sorted(by_key.items())]


def _next_steps(
    facts: RecordingFacts, item: InboxItem | None, decisions: Mapping[str, reviews.Review | None], zone: str
) -> Iterator[tuple[str, str]]:
    """What a person should do, the most urgent first, each with a command or ''; nothing where nothing is."""
    interaction = facts.interaction
    still_open = [rule for rule, decision in decisions.items() if decision is None]
    if still_open:
        what = still_open[0] if len(still_open) == 1 else f"{len(still_open)} rules"
        yield f"Look at what was found, then confirm or dismiss {what}.", ""
    if interaction["verdict"] == "UNSCREENABLE":
        yield "Look at the media on the platform: it can't be screened, and counts neither as clean nor as not.", ""
    if interaction["status"] == "dead_letter":
        yield "It was given up on. Mend the reason, then try again:", "compliance inbox --retry"
    if any(action["status"] == DEAD for action, _ in _actions(facts.remediations)):
        yield "An action was given up on. Mend the reason, then try again:", "compliance remediation retry"
    if undetermined := interaction["undetermined_rules"]:
        what = ", ".join(undetermined) if len(undetermined) <= MOST_NAMED else f"{len(undetermined)} rules"
        yield f"Supply what is missing, mostly a transcript, if {what} should be decided.", ""
    if interaction["status"] in ("waiting", "deferred"):
        is_due = item and item.due_at and interaction["status"] == "deferred"
        due = f" at {exactly(item.due_at, zone)}" if item and item.due_at and is_due else ""
        yield f"Nothing: it is tried{' again' if due else ''} by itself{due}.", ""


# Audio


@needs(Role.VIEWER)
async def clip(request: Request) -> Response:
    """A verified clip, or a part of it; entered into the ledger first, once a minute, user and clip."""
    refuse_other_sites(request)
    recording_id, finding_no = request.path_params["recording_id"], request.path_params["finding_no"]
    digest = request.query_params.get("v", "")
    board, stores, who, now = board_of(request), _stores(request), current_user(request).name, board_of(request).clock()
    chosen: list[Playable] = []

    def read() -> bytes:
        _, facts = _known(request, board.snapshot(), recording_id)
        rows = sorted(facts.evidence if facts else (), key=lambda row: row["made_at"], reverse=True)
        found = (_playable(row) for row in rows if row["finding_no"] == finding_no)
        playable = next((one for one in found if one and one.sha256.startswith(digest)), None)
        if playable is None:
            raise unknown()
        chosen.append(playable)
        return content_of(stores.vault, board.engine, playable)

    def enter() -> None:
        of = sha256("\0".join([who, recording_id, chosen[0].name]).encode()).hexdigest()[:32]
        key = f"play/{of}/{now:%Y-%m-%dT%H:%M}"
        entry = Entry(key, "play", who, recording_id, details={"clip": chosen[0].name})
        ledger.record(board.engine, [entry], now)

    try:
        return await played(request, read, enter)
    except Rejected as refusal:
        _log.warning(line("not_played", reason=refusal.reason, status=refusal.status))
        raise


# Deciding


@needs(Role.REVIEWER)
def decide(request: Request) -> Response:
    """A reviewer's decision on one rule; then the page anew."""
    board, recording_id = board_of(request), request.path_params["recording_id"]
    _, facts = _known(request, board.snapshot(), recording_id)
    if facts is None:
        return _missing(request, recording_id)
    fields = form(request)
    rule, reason, who = fields.get("rule", ""), fields.get("reason", ""), current_user(request).name
    now = reviews.decided(reviews.state(board.engine, [recording_id]), recording_id, rule)
    try:
        if fields.get("decision") not in list(Decision):
            raise NotDecided("say whether you confirm or dismiss")  # noqa: TRY301
        is_repeated = now and (now.by, now.decision) == (who, fields["decision"])
        if now and not is_repeated and fields.get("shown") != now.at.isoformat():
            raise NotDecided(f"{now.decision} meanwhile by {now.by}: read why, then decide again")  # noqa: TRY301
        reviews.decide(
            board.engine,
            recording_id,
            partition_hour(facts.interaction["partition_hour"]),
            [rule],
            Decision(fields["decision"]),
            reason,
            who,
            board.clock(),
            broken=[row["rule_id"] for row in facts.violations],
            request_key=fields.get("request", ""),
        )
    except (NotDecided, NotPlain) as error:
        return _page(request, recording_id, status=422, refused={"rule": rule, "reason": reason, "why": str(error)})
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"{path_of(recording_id)}{query}#rule-{quote(rule, safe='')}", 303)


routes = [
    Route("/recordings", find),
    Route("/recordings/{recording_id:path}/clips/{finding_no:int}.flac", clip),
    Route("/recordings/{recording_id:path}", show),
    Route("/recordings/{recording_id:path}", decide, methods=["POST"]),
]
