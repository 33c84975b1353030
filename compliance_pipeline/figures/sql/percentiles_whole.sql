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
    stage, any_value(total)::BIGINT AS recordings, {{percentiles}} AS seconds
FROM ranked GROUP BY stage
