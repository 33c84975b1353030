-- The columns of a violation, as lists and exports have them.
recording_id, rule_id, partition_hour, available_at, judged_at, channel, direction, queue, agent, policy_version,
engine_version, verdict, violation_type, severity, detector, speaker, start_ms, confidence, masked, hits, finding_no,
has_clip, actions, review, reviewed_at, flagged_s
