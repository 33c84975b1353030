-- $interactions: recordings without a verdict on their content, and why.
SELECT partition_hour, queue, channel, direction, status, coalesce(reason, '') AS reason, count(*) AS recordings
FROM read_parquet($interactions)
WHERE status <> 'judged'
GROUP BY ALL
