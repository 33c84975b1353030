-- $hour, $inbox, $reviews: one row a recording of the hour: what it was, what became of it, when, and the seconds of each stage.
WITH known AS (
    SELECT
        recording_id::VARCHAR AS recording_id, available_at::TIMESTAMPTZ AS available_at,
        received_at::TIMESTAMPTZ AS received_at, source::VARCHAR AS source, channel::VARCHAR AS channel,
        direction::VARCHAR AS direction, queue::VARCHAR AS queue, agent::VARCHAR AS agent, state::VARCHAR AS state,
        reason::VARCHAR AS reason, found_by_sweep::BOOLEAN AS found_by_sweep, duplicates::INTEGER AS duplicates,
        attempts::INTEGER AS attempts
    FROM (SELECT unnest($inbox, recursive := true))
    WHERE recording_id IS NOT NULL
), newest AS (
    SELECT * FROM latest_verdicts WHERE partition_hour = $hour
), decided AS (
    SELECT recording_id::VARCHAR AS recording_id, rule_id::VARCHAR AS rule_id, decision::VARCHAR AS decision, "at"::TIMESTAMPTZ AS decided_at
    FROM (SELECT unnest($reviews, recursive := true))
    WHERE recording_id IS NOT NULL
), broken AS (
    SELECT x.recording_id, x.rule_id, arg_max(d.decision, (d.rule_id IS NOT NULL, d.decided_at)) AS decision, max(d.decided_at) AS decided_at
    FROM violations x
    JOIN newest n USING (recording_id, policy_version, engine_version)
    LEFT JOIN decided d ON d.recording_id = x.recording_id AND (d.rule_id = x.rule_id OR d.rule_id IS NULL)
    WHERE x.partition_hour = $hour
    GROUP BY ALL
), stages AS (
    SELECT recording_id, map_from_entries(list((stage, seconds))) AS seconds
    FROM stage_times WHERE partition_hour = $hour GROUP BY recording_id
), reviewed AS (
    SELECT recording_id, max(decided_at) AS reviewed_at FROM broken GROUP BY recording_id HAVING bool_and(decision IS NOT NULL)
), actions AS (
    SELECT
        recording_id,
        min(revised_at) FILTER (action = 'tag_recording' AND status = 'done') AS tagged_at,
        min(revised_at) FILTER (action = 'create_work_item' AND status = 'done') AS work_item_at
    FROM latest_remediations WHERE partition_hour = $hour GROUP BY recording_id
)
SELECT
    coalesce(r.recording_id, k.recording_id) AS recording_id,
    $hour::TIMESTAMPTZ AS partition_hour,
    -- A recording stays in the hour that it was first tried in; a window's files are those of its hours.
    least(greatest(coalesce(r.available_at, k.available_at), $hour), $hour + INTERVAL 1 HOUR - INTERVAL 1 MICROSECOND)
        AS available_at,
    coalesce(r.received_at, k.received_at) AS received_at,
    r.ended_at,
    v.judged_at,
    a.tagged_at,
    a.work_item_at,
    w.reviewed_at,
    r.conversation_id,
    coalesce(r.source, k.source) AS source,
    coalesce(r.channel, k.channel) AS channel,
    coalesce(r.direction, k.direction, 'unknown') AS direction,
    coalesce(r.queue, k.queue, 'none') AS queue,
    coalesce(r.agent, k.agent) AS agent,
    coalesce(r.found_by_sweep, k.found_by_sweep) AS found_by_sweep,
    CASE
        WHEN v.verdict = 'UNSCREENABLE' THEN 'unscreenable'
        WHEN v.verdict IS NOT NULL THEN 'judged'
        WHEN k.state = 'dead' THEN 'dead_letter'
        WHEN k.state = 'deferred' THEN 'deferred'
        ELSE 'waiting'
    END AS status,
    CASE WHEN v.verdict = 'UNSCREENABLE' THEN v.unscreenable_reason WHEN v.verdict IS NULL THEN k.reason END AS reason,
    v.verdict,
    v.rule_id,
    v.severity,
    v.policy_version,
    v.engine_version,
    coalesce(v.undetermined_rules, []) AS undetermined_rules,
    coalesce(k.duplicates, 0) AS duplicates,
    coalesce(k.attempts, 0) AS attempts,
    s.seconds['platform'] AS platform_s,
    s.seconds['delivery'] AS delivery_s,
    s.seconds['queue'] AS queue_s,
    s.seconds['start'] AS start_s,
    s.seconds['batch'] AS batch_s,
    s.seconds['fetch'] AS fetch_s,
    s.seconds['analysis'] AS analysis_s,
    s.seconds['first_finding'] AS first_finding_s,
    s.seconds['remediation'] AS remediation_s,
    s.seconds['judged'] AS judged_s,
    s.seconds['flagged'] AS flagged_s
FROM known k
FULL JOIN (FROM recordings WHERE partition_hour = $hour AND source <> 'canary') r USING (recording_id)
LEFT JOIN newest v ON v.recording_id = coalesce(r.recording_id, k.recording_id)
LEFT JOIN stages s ON s.recording_id = coalesce(r.recording_id, k.recording_id)
LEFT JOIN actions a ON a.recording_id = coalesce(r.recording_id, k.recording_id)
LEFT JOIN reviewed w ON w.recording_id = coalesce(r.recording_id, k.recording_id)
ORDER BY available_at, recording_id
