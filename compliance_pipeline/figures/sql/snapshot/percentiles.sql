-- $latency: percentiles of each stage in each hour, at most 1.02% off, for series of many hours.
WITH ranked AS (
    SELECT
        *, sum(recordings) OVER (PARTITION BY dimension, value, stage, partition_hour ORDER BY bucket) AS up_to,
        sum(recordings) OVER (PARTITION BY dimension, value, stage, partition_hour) AS total
    FROM read_parquet($latency)
)
SELECT
    dimension, value, stage, partition_hour, any_value(total)::BIGINT AS recordings,
    [
        2 * pow(1.0206, min(bucket) FILTER (up_to >= 0.50 * total)) / 2.0206,
        2 * pow(1.0206, min(bucket) FILTER (up_to >= 0.95 * total)) / 2.0206,
        2 * pow(1.0206, min(bucket) FILTER (up_to >= 0.99 * total)) / 2.0206
    ] AS seconds
FROM ranked
GROUP BY dimension, value, stage, partition_hour
