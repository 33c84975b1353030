-- $at, $id (both NULL: from the newest on), $most: the newest recordings in the states, before that one.
SELECT
    recording_id, available_at, channel, direction, queue, agent, policy_version, status, reason, verdict, rule_id,
    severity, undetermined_rules, flagged_s, is_late, is_overdue,
    delivery_s, queue_s, start_s, batch_s, fetch_s, analysis_s, remediation_s
FROM {{recordings_of}}
WHERE $at::TIMESTAMPTZ IS NULL OR (available_at, recording_id) < ($at::TIMESTAMPTZ, $id::VARCHAR)
ORDER BY available_at DESC, recording_id DESC
LIMIT $most
