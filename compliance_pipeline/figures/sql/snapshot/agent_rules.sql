-- $violations: recordings of each agent and UTC day that broke each rule.
SELECT
    date_trunc('day', partition_hour) AS partition_hour, queue, channel, direction, policy_version, agent, rule_id,
    count(*) AS violations
FROM read_parquet($violations)
WHERE agent IS NOT NULL
GROUP BY ALL
