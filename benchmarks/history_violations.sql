-- $hour: the violations of one hour of `day`.
SELECT
    recording_id, rule_id, partition_hour, available_at, judged_at, channel, direction, queue, agent, policy_version,
    engine_version, verdict, split_part(rule_id, '-', 1) || '_' || split_part(rule_id, '-', 2) AS violation_type, severity,
    'digits' AS detector, 'customer' AS speaker, 30000 AS start_ms, 0.97 AS confidence, '4000 00** **** 0002' AS masked,
    1 AS hits, 1 AS finding_no, channel = 'voice' AS has_clip,
    [{'action': 'tag_recording', 'status': 'done', 'attempts': 1, 'at': tagged_at},
     {'action': 'create_work_item', 'status': CASE WHEN hash(recording_id) % 499 = 0 THEN 'dead' ELSE 'done' END,
      'attempts': 1 + 2 * (hash(recording_id) % 499 = 0)::INT, 'at': work_item_at}] AS actions,
    CASE WHEN reviewed_at IS NULL THEN 'open' WHEN hash(recording_id) % 20 = 0 THEN 'dismissed' ELSE 'confirmed' END AS review,
    reviewed_at, flagged_s
FROM day WHERE rule_id IS NOT NULL AND partition_hour = $hour
