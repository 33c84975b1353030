-- $interactions: judged recordings of each agent and UTC day.
SELECT
    date_trunc('day', partition_hour) AS partition_hour, queue, channel, direction, policy_version, agent,
    count(*) AS judged,
    count(*) FILTER (verdict IN ('VIOLATION_DETECTED', 'REVIEW_REQUIRED')) AS violating
FROM read_parquet($interactions)
WHERE status = 'judged' AND agent IS NOT NULL
GROUP BY ALL
