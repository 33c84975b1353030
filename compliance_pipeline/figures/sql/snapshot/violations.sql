-- $hour: one row a rule that the newest verdict of a recording broke, with what was done about it.
WITH newest AS (
    SELECT recording_id, policy_version, engine_version, judged_at FROM latest_verdicts WHERE partition_hour = $hour
), actions AS (
    SELECT recording_id, rule_id, list({'action': action, 'status': status, 'at': revised_at} ORDER BY action) AS actions
    FROM latest_remediations WHERE partition_hour = $hour GROUP BY recording_id, rule_id
)
SELECT
    x.recording_id,
    x.rule_id,
    x.partition_hour,
    r.available_at,
    n.judged_at,
    x.channel,
    coalesce(r.direction, 'unknown') AS direction,
    coalesce(r.queue, 'none') AS queue,
    r.agent,
    x.policy_version,
    x.engine_version,
    x.verdict,
    x.violation_type,
    x.severity,
    x.detector,
    x.speaker,
    x.start_ms,
    x.confidence,
    x.masked,
    x.hits,
    x.finding_no,
    coalesce(e.status = 'verified', false) AS has_clip,
    coalesce(a.actions, []) AS actions
FROM violations x
JOIN newest n USING (recording_id, policy_version, engine_version)
JOIN recordings r ON r.partition_hour = x.partition_hour AND r.recording_id = x.recording_id
LEFT JOIN evidence e
    ON e.partition_hour = x.partition_hour AND e.recording_id = x.recording_id
    AND e.engine_version = x.engine_version AND e.finding_no = x.finding_no
LEFT JOIN actions a ON a.recording_id = x.recording_id AND a.rule_id = x.rule_id
WHERE x.partition_hour = $hour
ORDER BY r.available_at, x.recording_id, x.rule_id
