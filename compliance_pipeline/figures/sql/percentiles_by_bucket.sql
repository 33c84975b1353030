-- As percentiles_exact.sql, at most 1.02% off: the histogram's bucket in which the percentile lies.
WITH counts AS MATERIALIZED (
    SELECT stage, g.coarse AS time, bucket, sum(recordings)::BIGINT AS recordings
    FROM {{histogram}} JOIN {{grid}} g ON g.fine = epoch_ms(partition_hour) // 1000
    GROUP BY stage, g.coarse, bucket
), ranked AS (
    SELECT
        stage, time, bucket, sum(recordings) OVER (PARTITION BY stage, time ORDER BY bucket) AS up_to,
        sum(recordings) OVER (PARTITION BY stage, time) AS total
    FROM (FROM counts UNION ALL SELECT stage, NULL, bucket, sum(recordings) FROM counts GROUP BY stage, bucket)
)
SELECT
    stage, time, any_value(total)::BIGINT AS recordings, {{percentiles}} AS seconds
FROM ranked GROUP BY stage, time
