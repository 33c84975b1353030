-- $latency: the same by UTC day, for windows of many days.
SELECT
    dimension, value, stage, date_trunc('day', partition_hour) AS partition_hour, bucket,
    sum(recordings)::BIGINT AS recordings
FROM read_parquet($latency)
GROUP BY ALL
