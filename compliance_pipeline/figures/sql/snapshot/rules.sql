-- $violations: recordings that broke each rule, and what reviewers said of them.
SELECT
    partition_hour, queue, channel, direction, policy_version, rule_id, violation_type, severity,
    count(*) AS violations,
    count(*) FILTER (review = 'open') AS open,
    count(*) FILTER (review = 'confirmed') AS confirmed,
    count(*) FILTER (review = 'dismissed') AS dismissed
FROM read_parquet($violations)
GROUP BY ALL
