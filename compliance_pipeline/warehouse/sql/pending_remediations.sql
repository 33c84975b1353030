-- $ids, $policy, $engine: rules broken by these recordings, with what was done about each so far.
SELECT
    v.recording_id, v.rule_id, v.verdict, v.violation_type, v.severity, v.confidence, v.start_ms, v.masked,
    list({'action': r.action, 'status': r.status, 'revision': r.revision, 'revised_at': r.revised_at,
        'attempts': coalesce(r.attempts, 0), 'due_at': r.due_at, 'error': r.error,
        'since': (SELECT min(p.revised_at) FROM remediations p WHERE p.partition_hour = r.partition_hour
                  AND p.recording_id = r.recording_id AND p.rule_id = r.rule_id AND p.action = r.action)}) FILTER (r.action IS NOT NULL) AS actions
FROM violations v
LEFT JOIN latest_remediations r
    ON r.partition_hour = v.partition_hour AND r.recording_id = v.recording_id AND r.rule_id = v.rule_id
WHERE v.partition_hour = $hour
  AND v.policy_version = $policy AND v.engine_version = $engine
  AND v.recording_id IN (SELECT unnest($ids))
GROUP BY ALL;
