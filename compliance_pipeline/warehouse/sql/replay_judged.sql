-- $hour, $engine, $policy: the verdicts on the recordings in `replayed`, as in `verdicts` but for when and by which run.
CREATE OR REPLACE TEMP TABLE judged AS
SELECT
    r.recording_id,
    $policy AS policy_version,
    $engine AS engine_version,
    $hour::TIMESTAMPTZ AS partition_hour,
    r.channel,
    v.verdict,
    w.violation_type,
    w.rule_id,
    w.severity,
    d.confidence AS confidence_score,
    d.start_ms AS timestamp_offset_ms,
    NULL::VARCHAR AS evidence_snippet,
    v.recommended_action,
    r.correlation_id,
    r.unscreenable_reason,
    v.undetermined_rules
FROM replayed r
JOIN decided d USING (n)
JOIN named v
    ON v.rule_no IS NOT DISTINCT FROM d.rule_no AND v.is_incomplete = d.is_incomplete
    AND v.undetermined = d.undetermined
LEFT JOIN rules w ON w.rule_no = d.rule_no
