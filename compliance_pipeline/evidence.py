"""The evidence step: a masked, verified clip for each finding behind a broken rule, as a plain function. No Dagster.

A second pass over the recording, after it was flagged; how clips are cut and masked is `media.clips`'s. With
`keep_originals` the whole recording goes into the vault first, and clips are cut from there, now and later.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from logging import getLogger
from time import monotonic
from typing import Any

from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.contracts.policy import SENSITIVE_CODES, FindingKind
from compliance_pipeline.intake.hours import partition_hour
from compliance_pipeline.media.clips import (
    PAD_MS,
    Clip,
    MemoryMedia,
    Refusal,
    Remains,
    Screener,
    Span,
    Wanted,
    decode,
    make_clips,
)
from compliance_pipeline.media.decode import MediaReader, UnscreenableMedia, decode_audio
from compliance_pipeline.media.vault import NotInVault, Shredded, Vault, VaultError, vault_of
from compliance_pipeline.platforms.port import Gone, MediaStream, NotYet, PlatformError
from compliance_pipeline.screening.engine import EmbeddedEngine
from compliance_pipeline.screening.findings import Symbol
from compliance_pipeline.steps import BATCH_LIMIT, STORE_EVERY_S, Batch, Pipeline
from compliance_pipeline.warehouse.tables import EvidenceRow
from compliance_pipeline.warehouse.warehouse import Warehouse, note_change

log = getLogger(__name__)

FOLDER = "evidence"
ORIGINAL = "original"
"""Name of the whole recording in the vault. No clip's name, so evidence links never lead there."""
MAX_CLIPS = 20
"""Of one recording: those that name its broken rules first, then the earliest findings."""
RETRY_AFTER = timedelta(minutes=10)
"""A platform that is down is not asked for every clip of the hour again by every run."""
UNLOCATED_REACH_MS = 60_000
"""A number is put together from turns up to a minute apart; so it lies within a minute of its cue."""
FEWEST_DIGITS = 2
"""One alone is mostly 'for', 'to' or 'won'; two cost 1% of ordinary talk (60 clips of human speech), and may be what
is left of a number."""
LONGEST_PAUSE_S = 2.5
LEAST_CONFIDENCE = 0.5

VERIFIED, REFUSED, UNAVAILABLE = "verified", "refused", "unavailable"
TEXT, GONE, TOO_MANY = "text", "gone", "the recording has its share of clips already"
_FOR_GOOD = (TEXT, GONE, TOO_MANY)
_CODES = [str(kind) for kind in SENSITIVE_CODES]
_NO_VIOLATION_ALONE = (FindingKind.PHRASE, FindingKind.PHONE_NUMBER, FindingKind.EMAIL_ADDRESS)


@dataclass(slots=True)
class EvidenceReport:
    """Findings by what became of their clips, and recordings left for the next run. size_bytes: of the clips.

    text: findings of chats and e-mails, which have no clip.
    """

    made: int = 0
    refused: int = 0
    unavailable: int = 0
    text: int = 0
    left: int = 0
    size_bytes: int = 0
    seconds: float = 0.0


def keep_evidence(pipeline: Pipeline, run_id: str, since: datetime) -> EvidenceReport:
    """Evidence for every hour from `since` on that lacks some, newest first."""
    together = EvidenceReport()
    now = pipeline.clock()
    for hour in hours_that_lack_evidence(pipeline.warehouse, pipeline.engine.version, since, now):
        report = evidence_batch(pipeline, Batch(partition_hour(hour), run_id, run_id, False, now))
        for figure in fields(EvidenceReport):
            setattr(together, figure.name, getattr(together, figure.name) + getattr(report, figure.name))
    return together


def hours_that_lack_evidence(warehouse: Warehouse, engine: str, since: datetime, now: datetime) -> list[datetime]:
    """Hours from `since` on in which something was found and no clip was made yet, or none could be made for now."""
    rows = warehouse.select(
        _LACKING, {"engine": engine, "since": since, "tried": now - RETRY_AFTER, "final": list(_FOR_GOOD)}
    )
    return [row["partition_hour"] for row in rows]


_LACKING = """
SELECT DISTINCT v.partition_hour
FROM violations v
LEFT JOIN evidence e
    ON e.partition_hour = v.partition_hour AND e.recording_id = v.recording_id
    AND e.engine_version = v.engine_version AND e.finding_no = v.finding_no
ANTI JOIN (FROM recordings WHERE partition_hour >= $since AND source = 'canary') c
    ON c.partition_hour = v.partition_hour AND c.recording_id = v.recording_id
WHERE v.partition_hour >= $since AND v.engine_version = $engine AND v.finding_no IS NOT NULL
  AND (e.status IS NULL OR (e.status = 'unavailable' AND e.made_at < $tried AND NOT list_contains($final, e.reason)))
ORDER BY 1 DESC
"""


@dataclass(frozen=True, slots=True)
class _Case:
    """One recording: all its findings, and which of them still lack a clip (the most telling first)."""

    recording_id: str
    is_voice: bool
    sha256: str | None
    """As it was screened; None where its end was missing then."""
    has_code: bool
    """Whether any engine found a card verification code or PIN in it."""
    findings: tuple[Mapping[str, Any], ...] = field(repr=False)
    pending: tuple[int, ...]
    is_retry: bool


@dataclass(frozen=True, slots=True)
class _Unavailable:
    number: int
    reason: str


_Outcome = Clip | Refusal | _Unavailable


def evidence_batch(pipeline: Pipeline, batch: Batch) -> EvidenceReport:
    """Make the clips that the hour's violations lack, whichever run flagged them; a row for each finding says where
    its clip is or why there is none.

    Done again it changes nothing: a clip has the same bytes and the same name each time. A recording that can't be
    fetched now is tried again by a run after RETRY_AFTER. One recording's failure is its own.
    """
    started = monotonic()
    with closing(vault_of(pipeline.settings, pipeline.inbox.engine)) as vault:
        delete_forbidden(pipeline, vault, batch)
        if not isinstance(pipeline.engine, EmbeddedEngine):
            return EvidenceReport()  # another engine says what it found, not where all of its digits are
        report = _make(pipeline, vault, batch, pipeline.engine)
    report.seconds = monotonic() - started
    return report


def _make(pipeline: Pipeline, vault: Vault, batch: Batch, embedded: EmbeddedEngine) -> EvidenceReport:
    engine = embedded.version
    screener = partial(remaining_digits, embedded.without_words())
    cases = _cases(pipeline, batch, engine)
    report = EvidenceReport(left=max(0, len(cases) - BATCH_LIMIT))
    rows: list[EvidenceRow] = []
    stored_at = monotonic()
    with ThreadPoolExecutor(pipeline.settings.fetch_workers, thread_name_prefix="evidence") as pool:
        futures = {pool.submit(_clips, pipeline, vault, case, screener): case for case in cases[:BATCH_LIMIT]}
        try:
            for future in as_completed(futures):
                rows += _rows(pipeline, vault, batch, engine, futures[future], future.result(), report)
                if monotonic() - stored_at > STORE_EVERY_S:
                    _store(pipeline.warehouse, rows)
                    rows, stored_at = [], monotonic()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    _store(pipeline.warehouse, rows)
    return report


_CASES = """
SELECT
    f.*, r.channel, m.container, m.sha256 AS screened_sha256, m.complete, e.status, e.reason, e.made_at,
    EXISTS (FROM violations v WHERE v.partition_hour = f.partition_hour AND v.recording_id = f.recording_id
            AND v.engine_version = f.engine_version AND v.finding_no = f.finding_no) AS names_a_rule,
    EXISTS (FROM findings c WHERE c.partition_hour = f.partition_hour AND c.recording_id = f.recording_id
            AND list_contains($codes, c.kind)) AS has_code
FROM findings f
JOIN recordings r
    ON r.partition_hour = f.partition_hour AND r.recording_id = f.recording_id AND r.source <> 'canary'
LEFT JOIN media m
    ON m.partition_hour = f.partition_hour AND m.recording_id = f.recording_id AND m.engine_version = f.engine_version
LEFT JOIN evidence e
    ON e.partition_hour = f.partition_hour AND e.recording_id = f.recording_id
    AND e.engine_version = f.engine_version AND e.finding_no = f.finding_no
WHERE f.partition_hour = $hour AND f.engine_version = $engine
  AND f.recording_id IN (FROM violations SELECT recording_id WHERE partition_hour = $hour AND engine_version = $engine)
ORDER BY r.available_at DESC, f.recording_id, f.finding_no
"""


def _cases(pipeline: Pipeline, batch: Batch, engine: str) -> list[_Case]:
    """Recordings with findings whose clips are missing; those that were never tried come first, newest first."""
    by_recording: dict[str, list[dict[str, Any]]] = {}
    for row in pipeline.warehouse.select(_CASES, {"hour": batch.hour, "engine": engine, "codes": _CODES}):
        by_recording.setdefault(row["recording_id"], []).append(row)
    due = pipeline.clock() - RETRY_AFTER
    cases = []
    for recording_id, findings in by_recording.items():
        pending = [
            row
            for row in findings
            if (row["names_a_rule"] or row["kind"] not in _NO_VIOLATION_ALONE)
            and _is_pending(row)
            and (row["status"] is None or row["made_at"] <= due)
        ]
        if not pending:
            continue
        pending.sort(key=lambda row: (not row["names_a_rule"], row["finding_no"]))
        first = findings[0]
        cases.append(
            _Case(
                recording_id=recording_id,
                is_voice=first["channel"] == Channel.VOICE and first["container"] != "text",
                sha256=first["screened_sha256"] if first["complete"] else None,
                has_code=first["has_code"],
                findings=tuple(findings),
                pending=tuple(row["finding_no"] for row in pending),
                is_retry=all(row["status"] for row in pending),
            )
        )
    return sorted(cases, key=lambda case: case.is_retry)


def _is_pending(row: Mapping[str, Any]) -> bool:
    return row["status"] is None or (row["status"] == UNAVAILABLE and row["reason"] not in _FOR_GOOD)


def _clips(pipeline: Pipeline, vault: Vault, case: _Case, screener: Screener) -> list[_Outcome]:
    """What became of each pending finding of one recording. Never raises for the recording's own failure."""

    def none(reason: str) -> list[_Outcome]:
        log.warning("recording %s: no evidence: %s", case.recording_id, reason)
        return [_Unavailable(number, reason) for number in case.pending]

    if not case.is_voice:
        return [_Unavailable(number, TEXT) for number in case.pending]
    try:
        return _cut_and_verify(pipeline, vault, case, screener)
    except Shredded:
        return none(GONE)
    except (PlatformError, VaultError) as error:
        return none(str(error))
    except UnscreenableMedia as error:
        return [Refusal(number, f"the media can't be decoded: {error.reason}") for number in case.pending]
    except _OtherMedia:
        return [Refusal(number, "the platform served other media than was screened") for number in case.pending]
    except _NotThere as error:
        return none(error.reason)
    except Exception as error:
        # The text of an unforeseen exception may quote what was heard: only its type is kept.
        return none(f"the clips failed with {type(error).__qualname__}")


class _NotThere(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


class _OtherMedia(Exception):
    """The times of the findings are not those of this media."""


def _cut_and_verify(pipeline: Pipeline, vault: Vault, case: _Case, screener: Screener) -> list[_Outcome]:
    settled = len(case.findings) - len(case.pending)
    now, later = case.pending[: max(0, MAX_CLIPS - settled)], case.pending[max(0, MAX_CLIPS - settled) :]
    too_many: list[_Outcome] = [_Unavailable(number, TOO_MANY) for number in later]
    if not now:
        return too_many
    with _media(pipeline, vault, case) as stream:
        reader = MediaReader(stream)
        _, blocks = decode_audio(reader)
        outcomes = list(make_clips(blocks, wanted_clips(case.findings, now), screener))
        reader.drain()
        if case.sha256 is not None and reader.sha256 != case.sha256:
            raise _OtherMedia
    return [*outcomes, *too_many]


def delete_forbidden(pipeline: Pipeline, vault: Vault, batch: Batch) -> None:
    """Delete what was kept of the hour's recordings before any engine found a code in them; a legal hold beats it."""
    from compliance_pipeline.retention import Deletion, apply, data_of  # which knows the names of clips from here

    now = pipeline.clock()
    for row in pipeline.warehouse.select(_WITH_CODES, {"hour": batch.hour, "codes": _CODES}):
        try:
            is_kept = ORIGINAL in vault.names(row["recording_id"])
        except VaultError as error:
            log.warning("%s", error)
            continue
        if is_kept:
            why = "a card verification code or PIN was found in it"
            deletion = Deletion(row["recording_id"], data_of(ORIGINAL), (ORIGINAL,), "codes are never kept", why, now)
            apply(pipeline.inbox.engine, vault, [deletion], f"run {batch.run_id}", now)


_WITH_CODES = """
SELECT DISTINCT recording_id FROM findings WHERE partition_hour = $hour AND list_contains($codes, kind) ORDER BY ALL
"""


class _FromVault:
    """A recording of the vault as the decoder takes it."""

    content_length: int | None = None
    content_type: str | None = None
    last_modified: datetime | None = None

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._chunks)


@contextmanager
def _media(pipeline: Pipeline, vault: Vault, case: _Case) -> Iterator[MediaStream]:
    """The recording: from the vault where that has it, else from the platform, by way of the vault if it is to be kept.

    A recording in which any engine found a card verification code or PIN, however unsure, is not kept, whatever the
    setting: PCI DSS forbids to store it, even encrypted, and a deletion after review is a promise that a backup, or a
    review that never comes, can break.
    """
    try:
        kept = vault.read(case.recording_id, ORIGINAL)
    except NotInVault:
        kept = None
    if kept is not None:
        yield _FromVault(kept)
        return
    match pipeline.platform.locate(case.recording_id):
        case NotYet(why):
            raise _NotThere(f"not ready: {why}")
        case Gone():
            raise _NotThere(GONE)
        case ready:
            media = ready.media
    with pipeline.platform.open_media(media) as stream:
        if case.has_code or not pipeline.settings.keep_originals:
            yield stream
            return
        vault.put(case.recording_id, ORIGINAL, _as_judged(stream, case.sha256), pipeline.clock())
    yield _FromVault(vault.read(case.recording_id, ORIGINAL))


def _as_judged(chunks: Iterable[bytes], judged: str | None) -> Iterator[bytes]:
    """The chunks; raises _OtherMedia at their end, so that they are not stored, if their digest is another."""
    digest = sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if judged not in (None, digest.hexdigest()):
        raise _OtherMedia


def wanted_clips(findings: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> list[Wanted]:
    """The clips of the findings `numbers`; in each, whatever any of `findings` (rows of the table) says is sensitive.

    A phrase is what the clip is for: it is heard. What can't be located is silenced from its cue to the clip's end, in
    its own clip and in those that begin within UNLOCATED_REACH_MS.
    """
    wanted = []
    for finding in findings:
        number = finding["finding_no"]
        if number not in numbers:
            continue
        clip = Wanted(number, finding["start_ms"], max(finding["start_ms"], finding["end_ms"]), ()).clip_ms
        sensitive = tuple(
            span
            for other in findings
            if other["kind"] != FindingKind.PHRASE
            for span in _sensitive(other, clip, is_own=other["finding_no"] == number)
        )
        wanted.append(Wanted(number, finding["start_ms"], finding["end_ms"], sensitive))
    return wanted


def _sensitive(finding: Mapping[str, Any], clip: Span, is_own: bool) -> Iterator[Span]:
    start, end = finding["start_ms"], finding["end_ms"]
    if not finding["located"] or end <= start:
        if is_own or (start - PAD_MS < clip[1] and clip[0] < max(start, end) + UNLOCATED_REACH_MS):
            yield min(start, clip[1]), clip[1]
        return
    for begins, ends in ((start, end), *finding["spans"]):
        if begins - PAD_MS < clip[1] and clip[0] < ends + PAD_MS:
            yield begins, ends


def remaining_digits(engine: EmbeddedEngine, content: bytes) -> Remains:
    """What the engine's detectors still hear in a clip: keyed digits at all, spoken ones from two in a row."""
    from compliance_pipeline.screening.digits import SpokenDigits
    from compliance_pipeline.screening.tones import ToneDetector

    spans: list[Span] = []
    for channel in decode(content):
        tones, digits = ToneDetector(), SpokenDigits()
        spans += [_span([key]) for key in tones.feed(channel) + tones.finish()]
        heard = [digit for digit in digits.feed(channel) + digits.finish() if digit.confidence >= LEAST_CONFIDENCE]
        spans += [_span(run) for run in _runs(heard) if len(run) >= FEWEST_DIGITS]
    return Remains(tuple(spans), whole_number=bool(engine.screen(MemoryMedia(content), Channel.VOICE).findings))


def _runs(symbols: Sequence[Symbol]) -> list[list[Symbol]]:
    runs: list[list[Symbol]] = []
    for symbol in symbols:
        if runs and symbol.start - runs[-1][-1].end <= LONGEST_PAUSE_S:
            runs[-1].append(symbol)
        else:
            runs.append([symbol])
    return runs


def _span(run: Sequence[Symbol]) -> Span:
    return int(run[0].start * 1000), int(run[-1].end * 1000) + 1


def _rows(
    pipeline: Pipeline,
    vault: Vault,
    batch: Batch,
    engine: str,
    case: _Case,
    outcomes: Sequence[_Outcome],
    report: EvidenceReport,
) -> Iterator[EvidenceRow]:
    for outcome in outcomes:
        uri, reason, clip = None, None, None
        if isinstance(outcome, Clip):
            outcome = _kept(vault, case.recording_id, engine, outcome, pipeline.clock())
        match outcome:
            case Clip():
                status, clip = VERIFIED, outcome
                uri = clip_name(engine, clip.number)
                report.made += 1
                report.size_bytes += len(clip.content)
            case Refusal():
                status, reason = REFUSED, outcome.reason
                log.warning(
                    "recording %s: evidence of finding %d refused: %s", case.recording_id, outcome.number, reason
                )
                report.refused += 1
            case _:
                status, reason = UNAVAILABLE, outcome.reason
                report.text += reason == TEXT
                report.unavailable += reason != TEXT
        yield EvidenceRow(
            recording_id=case.recording_id,
            engine_version=engine,
            finding_no=outcome.number,
            partition_hour=batch.hour,
            status=status,
            reason=reason,
            uri=uri,
            start_ms=clip.start_ms if clip else None,
            end_ms=clip.end_ms if clip else None,
            sha256=sha256(clip.content).hexdigest() if clip else None,
            made_at=pipeline.clock(),
            run_id=batch.run_id,
        )


def _kept(vault: Vault, recording_id: str, engine: str, clip: Clip, now: datetime) -> Clip | _Unavailable:
    """A clip that was stored before replaces itself."""
    try:
        vault.put(recording_id, clip_name(engine, clip.number), clip.content, now)
    except Shredded:
        return _Unavailable(clip.number, GONE)
    except VaultError as error:
        log.warning("evidence of finding %d: %s", clip.number, error)
        return _Unavailable(clip.number, str(error))
    return clip


def clip_name(engine: str, number: int) -> str:
    """A clip's name among those of its recording in the vault; `evidence.uri` says it."""
    return f"{FOLDER}/{_part(engine)}/{number}.flac"


def _part(name: str) -> str:
    """Of a path, without blanks and at most 80 characters; a digest tells apart what is not used as it is."""
    if re.fullmatch(r"[a-z0-9_][a-z0-9_.+-]{0,79}", name) and not name.endswith("."):
        return name
    return f"{re.sub(r'[^a-z0-9_-]+', '_', name.lower())[:40]}~{sha256(name.encode()).hexdigest()[:16]}"


def _store(warehouse: Warehouse, rows: Sequence[EvidenceRow]) -> None:
    """Rows of findings that have none or that were unavailable; what was verified or refused stands."""
    if not rows:
        return
    with warehouse.write() as connection:
        connection.execute(
            """
            INSERT INTO evidence BY NAME SELECT unnest($rows, recursive := true)
            ON CONFLICT DO UPDATE SET
                status = excluded.status, reason = excluded.reason, uri = excluded.uri, start_ms = excluded.start_ms,
                end_ms = excluded.end_ms, sha256 = excluded.sha256, made_at = excluded.made_at, run_id = excluded.run_id
            WHERE evidence.status = 'unavailable'
            """,
            {"rows": [asdict(row) for row in rows]},
        )
        note_change(connection, {row.partition_hour for row in rows})
