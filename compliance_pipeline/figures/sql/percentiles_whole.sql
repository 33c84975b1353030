-- As percentiles_by_bucket.sql, of the whole window.
WITH counts AS (
    SELECT stage, bucket, sum(recordings)::BIGINT AS recordings FROM {{histogram}} GROUP BY stage, bucket
), ranked AS (
    SELECT
        stage, bucket, sum(recordings) OVER (PARTITION BY stage ORDER BY bucket) AS up_to,
        sum(recordings) OVER (PARTITION BY stage) AS total
    FROM counts
)
SELECT
    stage, any_value(total)::BIGINT AS recordings,
    [
        2 * pow(1.0206, min(bucket) FILTER (up_to >= 0.50 * total)) / 2.0206,
        2 * pow(1.0206, min(bucket) FILTER (up_to >= 0.95 * total)) / 2.0206,
        2 * pow(1.0206, min(bucket) FILTER (up_to >= 0.99 * total)) / 2.0206
    ] AS seconds
FROM ranked GROUP BY stage
