-- $hour, $interactions, $reviews: one row a rule that the newest verdict of a recording broke, with what was done about it.
WITH newest AS (
    SELECT recording_id, policy_version, engine_version, judged_at FROM latest_verdicts WHERE partition_hour = $hour
), decided AS (
    SELECT recording_id::VARCHAR AS recording_id, rule_id::VARCHAR AS rule_id, decision::VARCHAR AS decision, "at"::TIMESTAMPTZ AS decided_at
    FROM (SELECT unnest($reviews, recursive := true))
    WHERE recording_id IS NOT NULL
), reviewed AS (
    SELECT x.recording_id, x.rule_id, arg_max(d.decision, (d.rule_id IS NOT NULL, d.decided_at)) AS decision, max(d.decided_at) AS decided_at
    FROM (SELECT DISTINCT recording_id, rule_id FROM violations WHERE partition_hour = $hour) x
    JOIN decided d ON d.recording_id = x.recording_id AND (d.rule_id = x.rule_id OR d.rule_id IS NULL)
    GROUP BY ALL
), actions AS (
    SELECT recording_id, rule_id, list({'action': action, 'status': status, 'attempts': attempts, 'at': revised_at} ORDER BY action) AS actions
    FROM latest_remediations WHERE partition_hour = $hour GROUP BY recording_id, rule_id
)
SELECT
    x.recording_id,
    x.rule_id,
    x.partition_hour,
    r.available_at,
    n.judged_at,
    x.channel,
    r.direction,
    r.queue,
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
    coalesce(a.actions, []) AS actions,
    coalesce(w.decision, 'open') AS review,
    w.decided_at AS reviewed_at,
    s.seconds AS flagged_s
FROM violations x
JOIN newest n USING (recording_id, policy_version, engine_version)
JOIN read_parquet($interactions) r ON r.recording_id = x.recording_id
LEFT JOIN evidence e
    ON e.partition_hour = x.partition_hour AND e.recording_id = x.recording_id
    AND e.engine_version = x.engine_version AND e.finding_no = x.finding_no
LEFT JOIN actions a ON a.recording_id = x.recording_id AND a.rule_id = x.rule_id
LEFT JOIN reviewed w ON w.recording_id = x.recording_id AND w.rule_id = x.rule_id
LEFT JOIN stage_times s ON s.partition_hour = x.partition_hour AND s.recording_id = x.recording_id AND s.stage = 'flagged'
WHERE x.partition_hour = $hour
ORDER BY r.available_at, x.recording_id, x.rule_id
