-- How many recordings were flagged, and the bucket in which their 95th percentile lies.
WITH counts AS (
    SELECT bucket, sum(recordings) AS recordings FROM {{histogram}} WHERE stage = 'flagged' GROUP BY bucket
), ranked AS (
    SELECT bucket, sum(recordings) OVER (ORDER BY bucket) AS up_to, sum(recordings) OVER () AS total FROM counts
)
SELECT any_value(total)::BIGINT AS recordings, 2 * pow(1.0206, min(bucket) FILTER (up_to >= 0.95 * total)) / 2.0206 AS p95_s
FROM ranked
