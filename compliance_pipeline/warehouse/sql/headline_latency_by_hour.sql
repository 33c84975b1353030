-- $hour: the mart's hour in the numbers that Dagster plots, all channels.
SELECT
    max(p50_s) FILTER (stage = 'flagged') AS "flagged P50 seconds",
    max(p95_s) FILTER (stage = 'flagged') AS "flagged P95 seconds",
    max(p50_s) FILTER (stage = 'judged') AS "judged P50 seconds",
    max(p95_s) FILTER (stage = 'judged') AS "judged P95 seconds",
    max(recordings) FILTER (stage = 'flagged') AS "flagged",
    max(within_objective) FILTER (stage = 'flagged') AS "flagged within the objective"
FROM latency_by_hour
WHERE partition_hour = $hour AND channel = 'all'
