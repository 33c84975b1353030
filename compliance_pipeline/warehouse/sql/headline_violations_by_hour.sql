-- $hour: the mart's hour in the numbers that Dagster plots.
SELECT
    coalesce(sum(recordings), 0)::INTEGER AS "violations",
    coalesce(sum(recordings) FILTER (severity = 'critical'), 0)::INTEGER AS "critical violations",
    count(DISTINCT rule_id) AS "rules broken"
FROM violations_by_hour
WHERE partition_hour = $hour
