-- By bucket: recordings flagged, flagged in time, and violating ones not flagged.
SELECT
    epoch_ms(partition_hour) // 1000 AS at,
    sum(flagged)::BIGINT AS flagged, sum(in_time)::BIGINT AS in_time, sum(unflagged)::BIGINT AS unflagged
FROM {{coverage}}
GROUP BY ALL
