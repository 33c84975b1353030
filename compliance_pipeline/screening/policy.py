"""Findings to rule hits to a verdict, by a policy pack. Pure but for reading the pack's file.

What was found belongs to the detectors; what is done about a hit belongs to remediation.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from compliance_pipeline.contracts.event import Channel
from compliance_pipeline.contracts.policy import PolicyPack, Rule
from compliance_pipeline.contracts.verdict import RecommendedAction, Verdict, VerdictValue
from compliance_pipeline.screening.findings import Finding

DEFAULT_PACK = Path(__file__).parent / "policies" / "default-us-eu.yaml"


class PolicyError(ValueError):
    """A policy pack that can't be used. Names the file, the rule, the field, and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class RuleHit:
    """A rule that fired: on its best finding (highest confidence, then earliest), and on how many in all."""

    rule: Rule
    finding: Finding
    count: int


def load_policy(path: Path | None = None) -> PolicyPack:
    """The pack in `path`, or the packaged one. Raises PolicyError."""
    path = path or DEFAULT_PACK
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"policy pack {path} can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise PolicyError(f"policy pack {path} is not YAML: {error}") from error
    try:
        return PolicyPack.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(_fault(content, fault["loc"], fault["msg"]) for fault in error.errors())
        raise PolicyError(f"policy pack {path} is refused: {faults}. Mend it and load it again.") from error


def _fault(content: Any, location: tuple[int | str, ...], message: str) -> str:
    """`rule PCI-PAN-01, when.min_confidence: Input should be ...`"""
    where = ""
    match location:
        case ("rules", int(at), *field):
            rule = content["rules"][at]
            name = rule.get("id") if isinstance(rule, dict) else None
            where, location = f"rule {name or f'number {at + 1}'}", tuple(field)
    path = ".".join(str(part) for part in location)
    return f"{', '.join(part for part in (where, path) if part) or 'pack'}: {message.removeprefix('Value error, ')}"


def evaluate(findings: Iterable[Finding], channel: Channel, policy: PolicyPack) -> list[RuleHit]:
    """The rules that fire, in the pack's order.

    A rule that asks for review looks only at findings that no rule of violation has settled.
    """
    open_findings = list(findings)
    hits: dict[str, RuleHit] = {}
    settled: set[int] = set()
    for verdict in (VerdictValue.VIOLATION_DETECTED, VerdictValue.REVIEW_REQUIRED):
        for rule in policy.rules:
            if rule.verdict is not verdict:
                continue
            matching = [at for at, finding in enumerate(open_findings) if _matches(rule, finding, channel)]
            if verdict is VerdictValue.REVIEW_REQUIRED:
                matching = [at for at in matching if at not in settled]
            else:
                settled.update(matching)
            if matching:
                matched = [open_findings[at] for at in matching]
                best = min(matched, key=lambda finding: (-finding.confidence, finding.start_ms))
                hits[rule.id] = RuleHit(rule, best, len(matched))
    return [hits[rule.id] for rule in policy.rules if rule.id in hits]


def _matches(rule: Rule, finding: Finding, channel: Channel) -> bool:
    when = rule.when
    return (
        finding.kind in when.kinds
        and finding.detector in when.detectors
        and channel in when.channels
        and finding.confidence >= when.min_confidence
    )


def deciding_hit(hits: Sequence[RuleHit]) -> RuleHit | None:
    """The hit that names the verdict: a violation before a review, then severity, confidence, and the earliest."""
    return min(
        hits,
        key=lambda hit: (
            hit.rule.verdict is not VerdictValue.VIOLATION_DETECTED,
            -hit.rule.severity.rank,
            -hit.finding.confidence,
            hit.finding.start_ms,
        ),
        default=None,
    )


def judge(
    recording_id: str, correlation_id: str, hits: Sequence[RuleHit], unscreenable_reason: str | None = None
) -> Verdict:
    """The verdict on one recording: what was found stands even if the media was incomplete; else incomplete media is
    UNSCREENABLE, never clean.

    The evidence is a URI of the span (W3C Media Fragments, temporal), without content.
    """
    if hit := deciding_hit(hits):
        return Verdict(
            recording_id=recording_id,
            verdict=hit.rule.verdict,
            violation_type=hit.rule.violation_type,
            confidence_score=hit.finding.confidence,
            timestamp_offset_ms=hit.finding.start_ms,
            evidence_snippet=_span_uri(recording_id, hit.finding),
            recommended_action=RecommendedAction.ROUTE_TO_COMPLIANCE_QUEUE,
            correlation_id=correlation_id,
        )
    unscreenable = unscreenable_reason is not None
    return Verdict(
        recording_id=recording_id,
        verdict=VerdictValue.UNSCREENABLE if unscreenable else VerdictValue.NO_VIOLATION,
        recommended_action=RecommendedAction.CHECK_MEDIA if unscreenable else RecommendedAction.NONE,
        correlation_id=correlation_id,
    )


def _span_uri(recording_id: str, finding: Finding) -> str:
    end = f",{finding.end_ms / 1000:.3f}" if finding.end_ms > finding.start_ms else ""
    return f"recording:{recording_id}#t={finding.start_ms / 1000:.3f}{end}"
