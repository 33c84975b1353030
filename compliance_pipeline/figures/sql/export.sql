-- The window's violations, a plain column each.
SELECT
    available_at, recording_id, rule_id, violation_type, severity, verdict, review, reviewed_at, queue, channel,
    direction, agent, detector, speaker, start_ms, confidence, masked, hits, has_clip, flagged_s, judged_at,
    list_aggregate([a.action || ' ' || a.status FOR a IN actions], 'string_agg', ', ') AS actions,
    policy_version, engine_version
FROM read_parquet($violations)
WHERE {{window}} AND {{of_recordings}} AND {{of_violations}}
ORDER BY available_at DESC, recording_id DESC, rule_id DESC
