-- By bucket: recordings that were not judged, and why.
SELECT epoch_ms(partition_hour) // 1000 AS at, status, reason, sum(recordings)::BIGINT AS recordings
FROM {{losses}}
GROUP BY ALL
