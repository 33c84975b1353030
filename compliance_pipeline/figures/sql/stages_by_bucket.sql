-- $latency, $start, $end (whole hours), $dimension, $values: percentiles of each stage, at most 1.02% off.
WITH counts AS (
    SELECT stage, bucket, sum(recordings) AS recordings
    FROM read_parquet($latency)
    WHERE partition_hour >= $start AND partition_hour < $end
      AND dimension = $dimension AND (len($values) = 0 OR list_contains($values, value))
    GROUP BY stage, bucket
), ranked AS (
    SELECT *, sum(recordings) OVER (PARTITION BY stage ORDER BY bucket) AS up_to, sum(recordings) OVER (PARTITION BY stage) AS total
    FROM counts
)
SELECT
    stage, any_value(total)::BIGINT AS recordings,
    2 * pow(1.0206, min(bucket) FILTER (up_to >= ceil(0.50 * total))) / 2.0206 AS p50_s,
    2 * pow(1.0206, min(bucket) FILTER (up_to >= ceil(0.95 * total))) / 2.0206 AS p95_s,
    2 * pow(1.0206, min(bucket) FILTER (up_to >= ceil(0.99 * total))) / 2.0206 AS p99_s
FROM ranked GROUP BY stage
