-- Deliveries that failed or were given up on, with why; the latter first.
WITH newest AS (
    FROM read_parquet($remediations)
    QUALIFY row_number() OVER (PARTITION BY recording_id, rule_id, action ORDER BY revision DESC) = 1
), chosen AS (
    SELECT recording_id, rule_id, queue, severity FROM read_parquet($violations) WHERE {{window}} AND {{of_recordings}}
)
SELECT
    n.recording_id, n.rule_id, n.action, n.status, coalesce(n.attempts, 0) AS attempts, n.due_at, n.error, n.revised_at,
    c.queue, c.severity
FROM newest n JOIN chosen c USING (recording_id, rule_id)
WHERE n.status IN ('failed', 'dead')
ORDER BY n.status = 'failed', n.revised_at DESC, recording_id, rule_id, n.action
