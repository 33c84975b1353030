-- $hour: 'remediation' (verdict -> tag written) and 'flagged' (available -> tag written) of recordings just tagged.
-- Only what the first verdict flagged: a later policy that flags an old recording says nothing about latency.
INSERT INTO stage_times BY NAME
WITH tagged AS (
    SELECT recording_id, min(revised_at) AS tagged_at
    FROM remediations
    WHERE partition_hour = $hour AND action = 'tag_recording' AND status = 'done'
    GROUP BY recording_id
), flagged_at_first AS (
    SELECT recording_id
    FROM verdicts
    WHERE partition_hour = $hour
    GROUP BY recording_id
    HAVING arg_min(verdict, judged_at) IN ('VIOLATION_DETECTED', 'REVIEW_REQUIRED')
), judged AS (
    SELECT recording_id, partition_hour, channel, started_at AS available_at, ended_at AS judged_at
    FROM stage_times SEMI JOIN flagged_at_first USING (recording_id)
    WHERE partition_hour = $hour AND stage = 'judged'
), added AS (
    -- A clock that was set back in between makes no time negative.
    SELECT *, greatest(tagged_at, judged_at) AS flagged_at, unnest([
        {'stage': 'remediation', 'started_at': judged_at, 'ended_at': flagged_at},
        {'stage': 'flagged', 'started_at': available_at, 'ended_at': flagged_at}
    ], recursive := true)
    FROM judged JOIN tagged USING (recording_id)
)
SELECT recording_id, stage, partition_hour, channel, started_at, ended_at, epoch(ended_at - started_at) AS seconds
FROM added ANTI JOIN (SELECT recording_id, stage FROM stage_times WHERE partition_hour = $hour) USING (recording_id, stage);
